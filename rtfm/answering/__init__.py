"""Writes the answer to a question from the passages that the readers of the answer may see.

The package builds the prompt, sends it to a model, and cleans the model's answer. If the model gives no usable answer,
the package builds an extract. An answer cites only passages from which it was written, contains only links from these
passages, and pings nobody. The package does not read Kafka, and it stores nothing.
"""
