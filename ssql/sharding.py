"""Fully sharded data parallelism (FSDP2): each process keeps a part of every weight, for encoders too large for one.

The idea is that of Zhao et al. 2023 (PyTorch FSDP); every Parameter is sharded for itself along its first axis.
"""

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

import quant
from encoders.encoder import ENCODERS, Encoder
from ssql.activation_checkpointing import blocks_of


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the Parameters of a method over the processes of a mesh, in place, by torch's `fully_shard`.

    A block is gathered when it runs and let go afterwards, so that its layers see, and quantize, whole weights;
    what is outside of blocks is gathered an encoder, a projector or a predictor at a time. Gradients are averaged over
    processes, as DDP averages them. All processes must start from the same weights. Batch norms keep statistics of
    their own process.

    Args:
        model: encoders, and modules beside them that are called by `forward`.
        mesh: one-dimensional.

    Raises:
        ValueError: Parameters that belong to a module with an encoder inside: no forward pass would gather them.
    """
    for module in _units(model):
        if isinstance(module, Encoder):
            for block in blocks_of(module):
                fully_shard(block, mesh=mesh)
        # Also at the root: a momentum teacher follows sharded weights, which a pass without gradient would leave whole.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if hasattr(module, "block_outputs"):
            register_fsdp_forward_method(module, "block_outputs")


def gathered_encoder(encoder: Encoder) -> Encoder:
    """A whole encoder with the weights of a sharded one, on every process; one that is not sharded itself.

    Args:
        encoder: prepared.
    """
    if not isinstance(encoder, FSDPModule):
        return encoder
    whole = ENCODERS[encoder.name](**encoder.arguments)
    policy = next(iter(quant.quant_layers(encoder).values())).mode.policy
    state = get_model_state_dict(encoder, options=StateDictOptions(full_state_dict=True))
    quant.prepare(whole, policy).load_state_dict(state)
    return whole


def _units(module: nn.Module) -> list[nn.Module]:
    """Encoders, and the outermost modules beside them that have Parameters."""
    if isinstance(module, Encoder) or not any(isinstance(part, Encoder) for part in module.modules()):
        return [module] if any(True for _ in module.parameters()) else []
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        raise ValueError(
            f"{type(module).__name__} has Parameters of its own beside an encoder, {', '.join(own)}, which no forward "
            "pass would gather: put them in a module"
        )
    return [unit for child in module.children() for unit in _units(child)]
