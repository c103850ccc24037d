"""A few training steps through Lightning, in one process or as one of two: run by test_distributed.py.

Both see the same batches, here without randomness, so that losses can be compared.
"""

import signal
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from lightning import Callback, Trainer
from torch import nn
from torch.distributed.tensor import DTensor

from encoders import SpeechTransformer
from ssql.data import DataModule
from ssql.data.batch import LabelledTensors
from ssql.methods import BYOL, MaskedPrediction, MoCo, SimCLR, SSQLOptions, masked_prediction
from ssql.terminal.interruption import Interrupted, Interruption
from ssql.training.activation_checkpointing import checkpoint_activations
from ssql.training.checkpoint_files import PREVIOUS, newest_whole
from ssql.training.checkpoints import LastCheckpoint
from ssql.training.sharding import FSDP2, gathered_encoder

SEQUENTIAL, WHOLE = SSQLOptions(), SSQLOptions(sequential=False)
REVERSED = SSQLOptions(targets="quantized")
LEARNED = SSQLOptions(bit_widths=["w8a8", "w4a4", "w2a8"], learn_scales=True, loss_units="running_mean")
RUNS = {
    "simclr": (SimCLR, {"dim": 16, "ssql": SEQUENTIAL}, {}),
    "simclr_whole": (SimCLR, {"dim": 16, "ssql": WHOLE}, {}),
    "simclr_plain": (SimCLR, {"dim": 16, "ssql": False}, {}),
    "moco": (MoCo, {"dim": 16, "queue_size": 24, "momentum": 0.9}, {}),
    "masked": (MaskedPrediction, {"momentum": 0.9}, {}),
    "accumulated": (SimCLR, {"dim": 16}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "learned": (SimCLR, {"dim": 16, "ssql": LEARNED}, {"strategy": "ddp_find_unused_parameters_true"}),
    "batch_norm_bf16": (BYOL, {"dim": 16}, {"precision": "bf16-mixed"}),
}
# With each process keeping half of every weight.
SHARDED = {
    "sharded_apart": (SimCLR, {"dim": 16, "views": "apart"}, {}),
    "sharded_reversed": (MoCo, {"dim": 16, "queue_size": 24, "momentum": 0.9, "ssql": REVERSED}, {}),
    "sharded_masked": RUNS["masked"],
    "sharded_accumulated": RUNS["accumulated"],
    "sharded_bf16": RUNS["batch_norm_bf16"],
}
RESUMED = "sharded_reversed"


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
    """Losses and bits of all steps; a checkpoint after the first update, where there is a path for it."""

    def __init__(self, checkpoint=None):
        self.losses, self.bits, self.checkpoint = [], [], checkpoint

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(outputs["loss"].item() * trainer.accumulate_grad_batches)
        self.bits.append([int(trainer.callback_metrics.get(f"{name}_bits", 0)) for name in ("weight", "activation")])
        if self.checkpoint and trainer.global_step == 1:
            trainer.save_checkpoint(self.checkpoint)


def every_third(frames, share, span):
    return (torch.arange(int(frames.max())) % 3 == 1) & (torch.arange(int(frames.max())) < frames.unsqueeze(1))


class SignalToOne(Callback):
    """In the second step the second of two processes gets a signal."""

    def __init__(self, interruption):
        self.interruption = interruption

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 2 and trainer.global_rank == 1:
            self.interruption.signal_number = signal.SIGTERM


def train(name: str, world: int, save=None, resume=None, strategy=None, more=()) -> dict:
    sharded = name in SHARDED
    method, arguments, trainer_arguments = (RUNS | SHARDED)[name]
    trainer_arguments = dict(trainer_arguments)
    distributed = trainer_arguments.pop("strategy", "fsdp2" if sharded else "ddp")
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=2, heads=2)
    # Lightning cannot restore an optimizer without any state under this strategy.
    momentum = 0.9 if name == RESUMED else 0
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=momentum)  # noqa: E731
    model = method(encoder, TwoGains(), optimizer=optimizer, seed=3, **arguments)
    if sharded:
        checkpoint_activations(encoder)
    record = Record(save)
    with patch.object(masked_prediction, "random_spans", every_third):
        Trainer(
            max_steps=3,
            accelerator="cpu",
            devices=world,
            strategy=strategy or ("auto" if world == 1 else distributed),
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=bool(more),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[record, *more],
            **trainer_arguments,
        ).fit(model, Clips(batch_size=8 // world), ckpt_path=resume, weights_only=True)
    if sharded:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters()) == (world > 1)
    state = gathered_encoder(model.encoder).state_dict() if sharded else model.state_dict()
    return {"losses": record.losses, "bits": record.bits, "state": state}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, number = Path(sys.argv[1]), sys.argv[2]
    checkpoint = folder / "first.ckpt"
    results = {name: train(name, 2, checkpoint if name == RESUMED else None) for name in RUNS | SHARDED}
    results["resumed"] = train(RESUMED, 2, resume=checkpoint)
    in_parts = LastCheckpoint(folder / "parts", 1, Interruption())
    train(RESUMED, 2, strategy=FSDP2(save_distributed_checkpoint=True), more=[in_parts])
    results["resumed_parts"] = train(RESUMED, 2, resume=newest_whole(folder / "parts").with_name(PREVIOUS))
    last = LastCheckpoint(folder / "stopped", 100, Interruption())
    try:
        train("simclr", 2, more=[SignalToOne(last.interruption), last])
    except Interrupted as stop:
        results["stopped"] = {"code": stop.code, "step": last.saved_step}
    torch.save(results, folder / f"rank{number}.pt")
