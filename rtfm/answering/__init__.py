"""Writes the answer to a question from the passages that the readers of the answer may see.

The package builds the prompt, sends it to a model, and cleans the model's answer. Without a usable answer from a model,
it builds an extract. An answer contains only citations and links of the passages from which it was written, and it
pings nobody. The package does not read Kafka, and it stores nothing.
"""
