"""Self-supervised methods, each with and without the SSQL branch."""

from ssql.methods.byol import BYOL
from ssql.methods.distillation import Distillation
from ssql.methods.health import CollapseError, NonFiniteLossError
from ssql.methods.masked_prediction import MaskedPrediction
from ssql.methods.method import Method, SSQLOptions
from ssql.methods.moco import MoCo
from ssql.methods.simclr import SimCLR
from ssql.methods.simsiam import SimSiam

__all__ = [
    "BYOL",
    "CollapseError",
    "Distillation",
    "MaskedPrediction",
    "Method",
    "MoCo",
    "NonFiniteLossError",
    "SSQLOptions",
    "SimCLR",
    "SimSiam",
]
