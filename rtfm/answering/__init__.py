"""Writes the answer to a question from the passages that its readers may see.

Owns the prompt, the models, the extract that replaces a model's answer, and the cleaning of both. Promises that an
answer cites and links only what it was given, and pings nobody. Does not read Kafka and stores nothing.
"""
