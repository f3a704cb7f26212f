"""Judges a run of ``make chaos`` from the files in its folder: its history and Kafka's data.

The judge imports nothing of ``rtfm``. It knows only the files, the format of Kafka's log, and the pages in docs/. Run
it with ``python -m tests.judge DIR``. docs/delivery.md lists its rules.
"""
