"""Answering: from a question and what may be seen to an answer with its sources.

Owns the prompt, the models, the extract that stands in for a model, and what code takes out of either. Promises that no
answer cites, links or pings what it was not given. Does not read Kafka and stores nothing.
"""
