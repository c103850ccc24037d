"""Files: written whole or not at all, owned, described, read from strangers with care."""
