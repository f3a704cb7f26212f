"""Knowledge: what was said, where it is kept and how it is found."""
