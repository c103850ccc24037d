"""Projectors and predictors of the methods, at the sizes SSQL trains them with."""

from torch import nn

import quant

# Cao et al. 2022 quantize the projector's weights at 8 bits and none of its activations.
PROJECTOR_POLICY = quant.Policy(first_layer="w8a32", layers={"*": "w8a32"})


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


def contrastive_projector(in_dim: int, dim: int = 128) -> nn.Sequential:
    """Two linear layers without batch norm, the first as wide as its input.

    Chen et al. 2020 (SimCLR, Sec. 2.1); Chen et al. 2020 (MoCo v2, Sec. 3).
    """
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(inplace=True), nn.Linear(in_dim, dim))
