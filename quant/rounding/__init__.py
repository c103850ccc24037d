"""Weights rounded for the outputs of their layers, on data: GPTQ, and the walk through a model."""
