"""Steps from one version of the archive's tables to the next, run by ``SqlArchive.migrate``."""
