"""Dead letters: records that can never be handled, kept byte for byte with where they stood and why they are here.

``letters`` is the form of a letter and the only owner of header names, ``limits`` says how many are too many, ``store``
reads, replays and discards them, ``replays`` says which may be replayed. docs/dead-letters.md is for operators.
"""
