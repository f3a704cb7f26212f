"""`rtfm-cli`: one file per group of commands, each a thin layer over a package of ``rtfm``."""
