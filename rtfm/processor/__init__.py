"""The processor: the service that ingests messages and answers questions."""
