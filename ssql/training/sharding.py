"""Fully sharded data parallelism (FSDP2): each process keeps a part of every weight, for encoders too large for one.

The idea is that of Zhao et al. 2023 (PyTorch FSDP); every Parameter is sharded for itself along its first axis.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

import quant
from encoders.base import ENCODERS, Encoder
from encoders.storage.files import remove
from ssql.training.activation_checkpointing import blocks_of
from ssql.training.checkpoint_files import staging_of, take_place, unwritten


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, over all processes.

    With `--trainer.strategy fsdp2` a checkpoint is one file, which the first process gathers in its memory; by the
    name of the class, a folder with a file of each process unless `save_distributed_checkpoint` is false.
    """

    def setup_environment(self) -> None:
        """Layers are not split over processes: all of them share the weights."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a file, or a folder that gets its name when every process has written its part.

        Raises:
            OSError: it could not be written; earlier checkpoints stay.
        """
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        staging = staging_of(path)
        if self.is_global_zero:
            remove(staging)
        self.barrier()
        try:
            super().save_checkpoint(checkpoint, staging, storage_options)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise unwritten(path, error) from error
        self.barrier()
        if self.is_global_zero:
            take_place(staging, path)
        self.barrier()


StrategyRegistry.register("fsdp2", FSDP2, FSDP2.__doc__ or "", save_distributed_checkpoint=False)


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
        ValueError: as `units`.
    """
    for module in units(model):
        if isinstance(module, Encoder):
            for block in blocks_of(module):
                fully_shard(block, mesh=mesh)
        # Also at the root: a momentum teacher follows sharded weights, which a pass without gradient would leave whole.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if hasattr(module, "block_outputs"):
            register_fsdp_forward_method(module, "block_outputs")


def check_knows_shards(optimizer: Optimizer) -> None:
    """Raise ValueError for an optimizer whose kernels take whole weights only."""
    if type(optimizer).__module__.startswith("bitsandbytes"):
        raise ValueError(
            f"bitsandbytes' {type(optimizer).__name__} does not know sharded weights: with strategy fsdp2 take one of "
            "torch's, such as AdamW"
        )


def gathered_encoder(encoder: Encoder) -> Encoder:
    """A whole encoder with the weights of a sharded one, on every process; one that is not sharded itself.

    Args:
        encoder: prepared.
    """
    if not isinstance(encoder, FSDPModule):
        return encoder
    whole = ENCODERS[encoder.name](**encoder.arguments)
    state = get_model_state_dict(encoder, options=StateDictOptions(full_state_dict=True))
    quant.prepare(whole, quant.policy_of(encoder))
    learning = quant.learning_bit_widths(encoder)
    if learning:
        quant.learn_bit_widths(whole, learning)
    whole.load_state_dict(state)
    return whole


def units(module: nn.Module) -> list[nn.Module]:
    """What is sharded for itself: encoders, and the outermost modules beside them that have Parameters.

    Raises:
        ValueError: Parameters of a module with an encoder inside.
    """
    if isinstance(module, Encoder) or not any(isinstance(part, Encoder) for part in module.modules()):
        return [module] if any(True for _ in module.parameters()) else []
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        raise ValueError(
            f"{type(module).__name__} has Parameters of its own beside an encoder, {', '.join(own)}, which no forward "
            "pass would gather: put them in a module"
        )
    return [unit for child in module.children() for unit in units(child)]
