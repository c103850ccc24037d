"""Notices a run that is lost: a loss that is not finite, or embeddings that have become all the same."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Healthy runs of the recipes in experiments/ stay above 0.1, but for contrastive features without batch norm before
# the queue is theirs: MoCo on words touched 0.007 at step 90 and was at 0.2 by step 180. Constant features give 0.
COLLAPSED_STD = 0.003
PATIENCE = 50


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the run stops and its last checkpoint stays."""


class CollapseError(RuntimeError):
    """All embeddings have become the same; the run stops and its last good checkpoint stays."""


class Health:
    """Follows loss and `feature_std` from step to step.

    Attributes:
        suspicious_steps: consecutive steps with collapsed embeddings, 0 in good health. No checkpoint is written
            while it is not 0, hence it needs no place in a checkpoint.
    """

    def __init__(self) -> None:
        self.suspicious_steps = 0
        self._waiting: tuple[int, Sequence[str], Tensor, torch.cuda.Event | None] | None = None

    def watch(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """Look at a step: at once on a CPU; on a GPU in `settle`, until when the values are on their way.

        Args:
            step: optimizer step, for the message.
            names: of the values: `loss`, `feature_std`, ...
            values: shape (names,).

        Raises:
            NonFiniteLossError, CollapseError: see `check`.
        """
        self.settle()
        arrived = torch.cuda.Event() if values.is_cuda else None
        self._waiting = step, names, values.to("cpu", non_blocking=True), arrived
        if arrived is None:
            self.settle()
        else:
            arrived.record()  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        """Look at the step that is waiting, if one is.

        Called once backward pass and update are queued: the device has work to do meanwhile.
        """
        if self._waiting is None:
            return
        (step, names, values, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()  # type: ignore[no-untyped-call]
        measured = dict(zip(names, values.tolist(), strict=True))
        self.check(step, measured.pop("loss"), measured)

    def check(self, step: int, loss: float, logs: dict[str, float]) -> None:
        """Look at one step.

        Args:
            step: optimizer step, for the message.
            loss: of the step.
            logs: the step's logged values, with `feature_std` (of `ssql.methods.objectives`) where it has one.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            CollapseError: `feature_std` has been below 0.003 for 50 steps in a row.
        """
        if not math.isfinite(loss):
            values = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
            raise NonFiniteLossError(
                f"loss is {loss} at step {step} ({values}): "
                "lower the learning rate or add warm-up; the last checkpoint is kept"
            )
        collapsed = logs.get("feature_std", math.inf) < COLLAPSED_STD
        self.suspicious_steps = self.suspicious_steps + 1 if collapsed else 0
        if self.suspicious_steps >= PATIENCE:
            raise CollapseError(
                f"the embeddings have collapsed: feature_std is {logs['feature_std']:.2g} at step {step} and was below "
                f"{COLLAPSED_STD} for {PATIENCE} steps (1 is spread out, 0 all the same); lower the learning rate, "
                "raise weight decay or the momentum of the teacher; the last good checkpoint is kept"
            )
