"""`rtfm-cli dlq`: lists, inspects, replays and discards dead letters."""
