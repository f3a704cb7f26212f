"""Benchmarks: each measures against a named peer, both in one run, and prints the ratio."""
