"""The encoders themselves, one family a file."""
