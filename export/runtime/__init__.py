"""Files that run: sessions, encoders, streams, and how fast they are."""
