"""The steps of the migrations, one file each; a released step is never changed."""
