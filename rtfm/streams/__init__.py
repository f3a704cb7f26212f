"""Streams: topics, producers, the pipeline and dead letters, on Kafka."""
