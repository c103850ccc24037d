"""The ranges of activations: what is seen of them, and how a range is found from that."""
