"""Kafka, a schema registry, Chroma and PostgreSQL as processes of this machine, without Docker."""
