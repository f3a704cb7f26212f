"""Judges the kept folder of a run from its history and Kafka's data files alone.

Imports nothing of what it judges: its only sources are the files, the format of Kafka's log and the pages in docs/. Run
it as ``python -m tests.judge DIR``; docs/delivery.md lists its rules.
"""
