"""The migration steps, one file for each. A step is never changed after its release."""
