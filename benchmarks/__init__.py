"""Benchmarks. A benchmark measures this project and a named peer in the same run, and prints their ratio."""
