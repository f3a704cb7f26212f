"""Writes the answer to a question from the passages that the readers of the answer may see.

The package has the prompt, the clients of the models, the extract that replaces a model's answer, and the cleaning of
answers and extracts. An answer contains only citations and links of the passages from which it was written, and it
pings nobody. The package does not read Kafka, and it stores nothing.
"""
