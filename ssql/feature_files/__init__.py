"""Features of recordings, in files."""
