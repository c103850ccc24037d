"""How far a command is: a bar on a terminal, and now and then a line in the log of a run without one."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from lightning import Callback, LightningModule, Trainer
from rich.progress import Progress

log = logging.getLogger(__name__)
Item = TypeVar("Item")
SECONDS = 30.0
SOON = 3.0  # seconds, after which work that has no bar says that it goes on
WORTH_A_BAR = 500  # items


def on_terminal() -> bool:
    """Whether someone looks at a bar."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def track(
    items: Iterable[Item],
    description: str,
    total: int | None = None,
    count: Callable[[Item], int] = lambda item: 1,
    seconds: float = SECONDS,
) -> Iterator[Item]:
    """The items, how many of them are done, and the time left.

    Args:
        items: what is worked on, one after another.
        description: what is done with them.
        total: how many there are.
        count: how many an item stands for, such as the clips of a batch.
        seconds: between lines of the log; the first comes after 3 s.
    """
    if on_terminal() and (total is None or total >= WORTH_A_BAR):
        with Progress(transient=True) as progress:
            task = progress.add_task(description, total=total)
            for item in items:
                yield item
                progress.advance(task, count(item))
        return
    started = time.monotonic()
    due, done = started + min(SOON, seconds), 0
    for item in items:
        yield item
        done, now = done + count(item), time.monotonic()
        if now >= due:
            due = now + seconds
            rest = timedelta(seconds=round((now - started) / done * (total - done))) if total and done else None
            left = "" if rest is None else f" of {total}, {rest} left"
            log.info("%s: %d%s", description, done, left)


class LogProgress(Callback):
    """Logs epoch, step, loss, speed and the time left: after the first step, then every so many seconds.

    Args:
        seconds: between lines; infinity for a run that has a bar.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.started = self.said = 0.0
        self.first_step = 0
        self.epoch = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts; a resumed run has steps behind it."""
        if trainer.is_global_zero:
            counts = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
            learning = sum(count for count, learns in counts if learns)
            every = sum(count for count, _ in counts)
            log.info("training %s of %s parameters on %s", f"{learning:,}", f"{every:,}", pl_module.device)
        self.started = time.monotonic()
        self.said, self.first_step, self.epoch = 0.0, trainer.global_step, max(1, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it when it is time."""
        now, self.epoch = time.monotonic(), trainer.current_epoch + 1  # after the last step Lightning counts one more
        if trainer.is_global_zero and self.seconds < math.inf and (not self.said or now - self.said >= self.seconds):
            self.said = now
            log.info("%s", self._line(trainer, now))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last line."""
        if trainer.is_global_zero and self.seconds < math.inf:
            log.info("%s, trained", self._line(trainer, time.monotonic()))

    def _line(self, trainer: Trainer, now: float) -> str:
        step, rate = trainer.global_step, (trainer.global_step - self.first_step) / max(now - self.started, 1e-9)
        steps = trainer.estimated_stepping_batches
        epochs = f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        ends = 0 < steps < float("inf")
        parts = [f"epoch {self.epoch}{epochs}", f"step {step}" + (f" of {steps:.0f}" if ends else "")]
        loss = trainer.callback_metrics.get("loss")
        if loss is not None:
            parts.append(f"loss {float(loss):.4g}")
        parts.append(f"{rate:.3g} steps/s")
        if ends and rate > 0 and step < steps:
            parts.append(f"{timedelta(seconds=round((steps - step) / rate))} left")
        return ", ".join(parts)
