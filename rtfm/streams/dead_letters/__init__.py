"""Dead letters: records that can never be handled, kept byte for byte with their origin and the reason.

``letters`` owns the format and the header names, ``limits`` how many are too many, ``replays`` which may be replayed.
``store`` reads, replays and discards them. docs/dead-letters.md is for operators.
"""
