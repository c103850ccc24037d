"""What all speech encoders share: samples, log-mels, frames, windows, tokens."""
