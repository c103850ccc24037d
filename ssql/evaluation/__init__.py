"""What an encoder still knows at each bit-width."""
