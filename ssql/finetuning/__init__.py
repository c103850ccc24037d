"""Fine-tuning an encoder with a task head at a bit-width."""
