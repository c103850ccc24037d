"""Weights rounded for the outputs of their layers, on data: GPTQ, coordinate descent, and the walk through a model."""
