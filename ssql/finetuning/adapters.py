"""Low-rank adapters on a frozen, quantized base (QLoRA, Dettmers et al. 2023), by peft and bitsandbytes."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from quant.checks import check_above, check_at_least


@dataclass(frozen=True)
class Adapters:
    """What stays and what learns.

    Args:
        base: how the frozen weights of linear layers are stored while adapters learn: `nf4` (4-bit normal float in
            blocks of 64) or `int8` (one scale for each output).
        rank: of the two matrices whose product is added to each weight.
        alpha: the product is scaled by alpha / rank.

    Raises:
        ValueError: a rank below 1, or an alpha that is not above 0.
    """

    base: Literal["nf4", "int8"] = "nf4"
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check_at_least(1, rank=self.rank)
        check_above(0, alpha=self.alpha)


def add_adapters(model: nn.Module, adapters: Adapters) -> None:
    """Put a model's linear layers, in place, on a frozen quantized base with adapters; all else is frozen as well.

    The adapters start at zero: the model answers as its quantized base does.

    Args:
        model: not prepared.
        adapters: base and rank.

    Raises:
        ValueError: a model without linear layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # It says at every product that inputs are cast.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layer for adapters: fine-tune all of it, or the head")
    for name in names:
        model.set_submodule(name, _on_base(model.get_submodule(name), adapters.base))
    lora = LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=names)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, model)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Turn each adapted layer, in place, back into a linear layer: its dequantized base plus the adapters' product."""
    from peft.tuners.lora import Linear
    from peft.utils.integrations import dequantize_bnb_weight

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear):
            base: Any = layer.get_base_layer()
            weight = dequantize_bnb_weight(base.weight, state=getattr(base, "state", None)).float()
            linear = nn.Linear(base.in_features, base.out_features, base.bias is not None, device=weight.device)
            linear.weight.copy_(weight + layer.get_delta_weight("default"))
            if base.bias is not None:
                linear.bias.copy_(base.bias)
            model.set_submodule(name, linear)
    del model.peft_config


def is_base(key: str) -> bool:
    """Whether a key of a state dict belongs to the frozen base, which comes from the start of a run."""
    return ".base_layer." in key


def _on_base(linear: nn.Module, base: str) -> nn.Module:
    # Imported here: bitsandbytes takes seconds.
    from bitsandbytes import nn as bnb

    assert isinstance(linear, nn.Linear)
    shape = linear.in_features, linear.out_features, linear.bias is not None
    weight = linear.weight.detach()
    quantized: nn.Module
    if base == "nf4":
        quantized = bnb.Linear4bit(*shape, compute_dtype=torch.float32, compress_statistics=False, quant_type="nf4")
        quantized.weight = bnb.Params4bit(weight, requires_grad=False, compress_statistics=False, quant_type="nf4")
        # In evaluation mode it would compute in bfloat16 on CPUs that can: not the network that was trained.
        quantized.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    else:
        quantized = bnb.Linear8bitLt(*shape, has_fp16_weights=False)
        quantized.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    quantized.bias = linear.bias
    return quantized.to(weight.device)  # quantizes
