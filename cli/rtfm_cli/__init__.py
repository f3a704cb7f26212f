"""`rtfm-cli`: most commands have a module of their own, which is a thin layer over packages of ``rtfm``."""
