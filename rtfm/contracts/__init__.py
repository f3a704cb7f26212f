"""Contracts: the catalogue, the codec, the rules of compatibility and the registry."""
