"""The Discord service: messages and questions in, replies out."""
