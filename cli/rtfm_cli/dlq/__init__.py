"""`rtfm-cli dlq`: dead letters, why they are there, and what becomes of them."""
