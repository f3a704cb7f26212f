"""The message processor: ingests messages and answers questions."""
