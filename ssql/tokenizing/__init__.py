"""Training a tokenizer on an encoder's frames."""
