"""Dead letters: records that could not be handled, kept byte for byte with their origin and the reason.

``letters`` owns the format and the names of the headers. ``limits`` decides how many dead letters are too many, and
``replays`` which may be replayed. ``store`` reads, replays and discards them. docs/dead-letters.md is for operators.
"""
