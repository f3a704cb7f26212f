"""The real services on this machine, without Docker."""
