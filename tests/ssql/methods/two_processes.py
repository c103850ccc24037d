"""A few training steps through Lightning, in one process or as one of two: run by test_distributed.py.

Both see the same batches, here without randomness, so that losses can be compared.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.tensor import DTensor

from encoders import SpeechTransformer
from ssql.activation_checkpointing import checkpoint_activations
from ssql.data import DataModule
from ssql.data.batch import LabelledTensors
from ssql.methods import BYOL, Distillation, MaskedPrediction, MoCo, SimCLR, SSQLOptions, masked_prediction
from ssql.sharding import gathered_encoder

SEQUENTIAL, WHOLE = SSQLOptions(), SSQLOptions(sequential=False)
REVERSED = SSQLOptions(targets="quantized")
RUNS = {
    "simclr": (SimCLR, {"dim": 16, "ssql": SEQUENTIAL}, {}),
    "simclr_whole": (SimCLR, {"dim": 16, "ssql": WHOLE}, {}),
    "simclr_plain": (SimCLR, {"dim": 16, "ssql": False}, {}),
    "moco": (MoCo, {"dim": 16, "queue_size": 24, "momentum": 0.9}, {}),
    "masked": (MaskedPrediction, {"momentum": 0.9}, {}),
    "accumulated": (SimCLR, {"dim": 16}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "batch_norm_bf16": (BYOL, {"dim": 16}, {"precision": "bf16-mixed"}),
}
# With each process keeping half of every weight.
SHARDED = {
    "sharded_apart": (SimCLR, {"dim": 16, "views": "apart"}, {}),
    "sharded_reversed": (MoCo, {"dim": 16, "queue_size": 24, "momentum": 0.9, "ssql": REVERSED}, {}),
    "sharded_masked": RUNS["masked"],
    "sharded_accumulated": RUNS["accumulated"],
    "sharded_bf16": RUNS["batch_norm_bf16"],
    "sharded_distillation": (Distillation, {}, {}),
}


class Clips(DataModule):
    """Noise of several lengths."""

    modality = "audio"

    def load(self):
        generator = torch.Generator().manual_seed(0)
        clips = [torch.randn(2000 + 100 * index, generator=generator) for index in range(48)]
        return {"train": LabelledTensors(clips, {"class": [0] * 48})}


class TwoGains(nn.Module):
    """The whole clip, and the whole clip at a lower gain."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs, lengths, encoder):
        self.calls += 1
        return encoder.front_end(inputs * (0.3 if self.calls % 2 else 1.0), lengths)


class Record(Callback):
    def __init__(self):
        self.losses, self.bits = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        self.bits.append([int(trainer.callback_metrics.get(f"{name}_bits", 0)) for name in ("weight", "activation")])


def every_third(frames, share, span):
    return (torch.arange(int(frames.max())) % 3 == 1) & (torch.arange(int(frames.max())) < frames.unsqueeze(1))


def train(name: str, world: int) -> dict:
    sharded = name in SHARDED
    method, arguments, trainer_arguments = (RUNS | SHARDED)[name]
    strategy = ModelParallelStrategy(world, 1, save_distributed_checkpoint=False) if sharded else "ddp"
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=2, heads=2)
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
    model = method(encoder, TwoGains(), optimizer=optimizer, seed=3, **arguments)
    if sharded:
        checkpoint_activations(encoder)
    record = Record()
    with patch.object(masked_prediction, "random_spans", every_third):
        Trainer(
            max_steps=3,
            accelerator="cpu",
            devices=world,
            strategy=strategy if world > 1 else "auto",
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[record],
            **trainer_arguments,
        ).fit(model, Clips(batch_size=8 // world))
    if sharded:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters()) == (world > 1)
    state = gathered_encoder(model.encoder).state_dict() if sharded else model.state_dict()
    return {"losses": record.losses, "bits": record.bits, "state": state}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, number = Path(sys.argv[1]), sys.argv[2]
    torch.save({name: train(name, 2) for name in RUNS | SHARDED}, folder / f"rank{number}.pt")
