"""Published models: their files, their layouts, and the encoders in them."""
