"""Grids of integers: scale, zero point, rounding and its gradient, for activations and weights."""
