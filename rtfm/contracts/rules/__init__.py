"""The rules for schemas. Pure.

``lint`` checks a schema by itself. ``compatibility`` and ``history`` compare it with its released versions.
``difference`` describes what changed between two versions.
"""
