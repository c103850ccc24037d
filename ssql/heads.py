"""Projector and predictor of SimSiam, at the sizes SSQL trains them with."""

from torch import nn


def projector(in_dim: int, dim: int = 2048) -> nn.Sequential:
    """Three linear layers with batch norm, the last without affine (SimSiam, Chen & He 2021, Sec. 3)."""
    return nn.Sequential(
        nn.Linear(in_dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim),
        nn.ReLU(inplace=True),
        nn.Linear(dim, dim, bias=False),
        nn.BatchNorm1d(dim, affine=False),
    )


def predictor(dim: int = 2048, hidden: int | None = None) -> nn.Sequential:
    """Two linear layers; `hidden` is as wide as `dim` in SSQL's recipes, dim // 4 in SimSiam's paper."""
    hidden = hidden or dim
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim),
    )
