"""Which layer ONNX cannot express, asked when the exporter has failed."""

import re
from typing import Any

import torch
from torch import Tensor, nn


def unsupported(error: Exception, model: nn.Module, examples: tuple[Tensor, ...], shapes: Any) -> ValueError:
    """What the exporter's error says in a sentence, with the layer's name.

    Args:
        error: of `torch.onnx.export`.
        model: that was exported.
        examples: its inputs.
        shapes: its dynamic shapes.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = re.split(r"\n|(?<=[a-z>])\. ", str(cause))[0]
    layer = _layer(model, examples, shapes, f"{error} {error.__cause__}")
    return ValueError(f"layer {layer.removeprefix('encoder.')!r} has no ONNX form: {reason}")


def _layer(model: nn.Module, examples: tuple[Tensor, ...], shapes: Any, text: str) -> str:
    """The layer that runs where torch.export fails; if it does not, the one whose operation the text names."""
    names = {module: name for name, module in model.named_modules()}
    running: list[str] = []
    hooks = [
        hook
        for module, name in names.items()
        for hook in (
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name)),
            module.register_forward_hook(lambda *_: (running.pop(), None)[1]),  # not called where it fails
        )
    ]
    try:
        program = torch.export.export(model, examples, dynamic_shapes={"inputs": shapes})
    except Exception:
        return running[-1] if running else ""
    finally:
        for hook in hooks:
            hook.remove()
    # Nodes that the exporter decomposed keep the ends of their names.
    named = tuple(re.findall(r"node %(\w+)", text))
    stacks = [node.meta.get("nn_module_stack", {}) for node in program.graph.nodes if node.name.endswith(named)]
    return next((path for stack in stacks for path, _ in reversed(stack.values())), "")
