"""`rtfm-cli`: one file per group of commands, each thin over a room of ``rtfm``."""
