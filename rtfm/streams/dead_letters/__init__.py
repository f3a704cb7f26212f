"""Dead letters: records that could not be handled, kept byte for byte with their origin and the reason.

``letters`` owns the format and the names of the headers. ``limits`` decides how many dead letters are too many.
``replays`` decides which dead letters may be replayed. ``store`` reads, replays and discards dead letters.
docs/dead-letters.md is for operators.
"""
