"""Benchmarks. Each measures ours and a named peer in the same run, and prints the ratio."""
