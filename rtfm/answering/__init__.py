"""Answering: from a question and passages to an answer."""
