"""Which weights something was measured on: a hash of all that decides what an encoder, or a head, answers."""

import hashlib
import json

import torch
from torch import nn

from encoders.base import Encoder
from quant import QuantLayer


def weights_sha256(encoder: Encoder) -> str:
    """Hash of an encoder's weights, activation ranges, learned steps, bias corrections, policy and arguments.

    Files of one encoder at several bit-widths share it, and so do the encoder, its folder and its copy on a GPU. A
    range that moved, or weights that another rule puts on their grid, change it.
    """
    layer = next((module for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    policy = None if layer is None else layer.mode.policy.to_dict()
    return state_sha256(encoder, json.dumps([encoder.name, encoder.arguments, policy]))


def state_sha256(module: nn.Module, description: str = "") -> str:
    """Hash of a module's Parameters and buffers by name, and of what else decides its outputs."""
    digest = hashlib.sha256(description.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
