"""What a schema must keep: by itself, against its released versions, and the words for what changed. Pure."""
