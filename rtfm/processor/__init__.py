"""The processor: ingests messages and answers questions."""
