"""SimSiam, and SSQL-SimSiam: the quantized branch predicts the full-precision features beside it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

import quant
from encoders.encoder import Encoder
from ssql.draw import draw_bit_width
from ssql.heads import predictor, projector
from ssql.objectives import feature_std, symmetric_negative_cosine


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the run stops and its last checkpoint stays."""


@dataclass
class SSQLOptions:
    """The quantized branch (Cao et al., ECCV 2022).

    Args:
        weight_bits: smallest and largest weight bit-width drawn; published 2 to 8.
        activation_bits: smallest and largest activation bit-width drawn; published 4 to 8.
        batch_norm_statistics: passes that update running statistics. `full_precision` keeps them
            clean; `all` is the reference's behaviour, where the quantized pass has the last word.
    """

    weight_bits: Sequence[int] = (2, 8)
    activation_bits: Sequence[int] = (4, 8)
    batch_norm_statistics: Literal["full_precision", "all"] = "full_precision"

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            bounds = list(getattr(self, name))
            if len(bounds) != 2 or not 2 <= bounds[0] <= bounds[1] <= 8:
                raise ValueError(f"{name} must be two numbers from 2 to 8, smallest first; got {bounds}")


class SimSiam(lightning.LightningModule):
    """SimSiam (Chen & He, CVPR 2021), with the SSQL branch or, with `ssql: null`, without.

    Loss of a step with SSQL (Cao et al. 2022, Sec. 3.2; targets are always full precision):
    L = -1/4 [cos(p1, sg z2) + cos(p2, sg z1) + cos(p1q, sg z2) + cos(p2q, sg z1)].

    Args:
        encoder: speech or vision encoder.
        augmentation: makes one random view of a batch.
        ssql: options of the quantized branch; null trains plain SimSiam.
        policy: per-layer bit-widths of the encoder.
        dim: width of projector and predictor; 2048 is published.
        optimizer: any torch or bitsandbytes optimizer; SGD 0.05, momentum 0.9, weight decay 5e-4 is published.
        warmup_steps: linear warm-up before the cosine to zero; 0 is published.
        seed: of bit-widths and augmentations.
    """

    def __init__(
        self,
        encoder: Encoder,
        augmentation: nn.Module,
        ssql: SSQLOptions | None = SSQLOptions(),  # noqa: B008
        policy: quant.Policy | None = None,
        dim: int = 2048,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = quant.prepare(encoder, policy)
        self.projector = quant.prepare(projector(encoder.feature_dim, dim), quant.Policy(layers={"*": "w8a32"}))
        self.predictor = predictor(dim)
        self.augmentation = augmentation
        self.ssql, self.seed = ssql, seed
        self.optimizer, self.warmup_steps = optimizer, warmup_steps

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One SSQL step: full-precision pass, random bit-width, quantized pass against its targets."""
        with self._seeded():
            views = [self.augmentation(batch["inputs"], batch["lengths"], self.encoder) for _ in range(2)]

        with quant.observe(self):
            targets = [self.projector(self.encoder.embed(*view)) for view in views]
        loss = symmetric_negative_cosine([self.predictor(z) for z in targets], targets)
        logs = {"loss_fp": loss.detach(), "feature_std": feature_std(targets[0])}

        if self.ssql is not None:
            bit_width = draw_bit_width(self.seed, self.global_step, self.ssql.weight_bits, self.ssql.activation_bits)
            clean = self.ssql.batch_norm_statistics == "full_precision"
            with quant.at(self, bit_width, reuse_weights=True), frozen_statistics(self, clean):
                predictions = [self.predictor(self.projector(self.encoder.embed(*view))) for view in views]
            quantized_loss = symmetric_negative_cosine(predictions, targets)
            loss = (loss + quantized_loss) / 2
            logs |= {"loss_quantized": quantized_loss.detach()}
            logs |= {
                "weight_bits": torch.tensor(bit_width.weight),
                "activation_bits": torch.tensor(bit_width.activation),
            }

        self._check_finite(loss, logs)
        self.log("loss", loss.detach(), prog_bar=True)
        self.log_dict({name: value.float() for name, value in logs.items()}, prog_bar=False)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a linear warm-up and a cosine to zero over the whole run."""
        optimizer = self.optimizer(self.parameters())
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            return 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Inside, torch's generators are a function of (seed, step, rank): a resumed run draws the same."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) % 2**63)
            yield

    def _check_finite(self, loss: Tensor, logs: dict[str, Tensor]) -> None:
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in logs.items())
            raise NonFiniteLossError(
                f"loss is {loss.item()} at step {self.global_step} ({values}): "
                "lower the learning rate or add warm-up; the last checkpoint is kept"
            )


@contextmanager
def frozen_statistics(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Inside, batch norms in training mode leave their running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if active else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
