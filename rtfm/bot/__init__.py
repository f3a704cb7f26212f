"""The Discord service: publishes messages and questions, and posts replies."""
