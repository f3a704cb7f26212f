"""The rules for schemas, by themselves and against released versions, and descriptions of changes. Pure."""
