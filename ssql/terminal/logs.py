"""What a command says while it works: our own log, real warnings in one line each, and not others' chatter."""

import logging
import os
import sys
import warnings
from typing import TextIO

# Of libraries that we drive on purpose as they warn of: nothing that a user could do anything about.
NOT_FOR_USERS = (
    r".*LeafSpec.*|.*pytree.*|.*treespec.*",  # Lightning with a newer torch
    r".*Found \d+ module\(s\) in eval mode.*",  # a frozen encoder
    r".*does not have many workers.*",  # decoded audio is in memory
    r".*number of training batches \(\d+\) is smaller than the logging interval.*",
    r".*Total length of .* across ranks is zero.*",
    r".*FLOPs.*",
    r".*Early stopping conditioned on metric .* is not available.*",  # the same
    r".*could not find the monitored key in the returned metrics.*",  # no validation yet: we say so at the end
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # it is ours, and was looked at before
    r".*trying to infer the `batch_size` from an ambiguous collection.*",
    r".*lr_scheduler\.step\(\).*before.*optimizer\.step\(\).*",
    r".*Lightning couldn't infer the indices fetched for your dataloader.*",
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",  # our order of data goes on within
    r".*is_namedtuple_cls.*",
)
# Modules whose FutureWarnings and DeprecationWarnings are about their own callers.
OLD_WAYS = (r"sklearn.*", r"torch\.onnx.*", r"onnxscript.*", r"torch\.jit.*", r"lightning.*", r"torch.*", r"timm.*")
NOT_LOGGED = (
    "Seed set to", "litlogger", "litmodels", "GPU available: False", "TPU available", "HPU available",
    "`weights_only` was not set", "Consider setting `persistent_workers", "`Trainer.fit` stopped",
    "Restoring states from", "Restored all states",
)  # fmt: skip

BUSY = 1.5  # load for each core


def set_up_logs() -> None:
    """Once, before a command runs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().addFilter(_for_users)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_for_users)
    for noisy in ("matplotlib", "httpx", "torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for text in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", text)
    for module in OLD_WAYS:
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)
    warnings.showwarning = _show


def busy_sentence() -> str | None:
    """What to do about a machine that others keep busy, where PyTorch's threads wait for each other; None elsewhere."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if "OMP_NUM_THREADS" in os.environ or load < BUSY * cores:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {cores} cores): with OMP_NUM_THREADS=1 before it, a command may be "
        "several times as fast"
    )


def quiet_lightning() -> None:
    """Lightning's handlers, there once it is imported, neither advertise nor say all twice."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        if logging.getLogger().handlers:
            logger.handlers.clear()  # what they log reaches the root's, once
            logger.propagate = True
        for handler in logger.handlers:
            handler.addFilter(_for_users)


def _for_users(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in NOT_LOGGED)


def _show(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """A warning as one line, without the source that happened to be there."""
    stream = file or sys.stderr
    if stream is not None:
        stream.write(f"warning: {' '.join(str(message).split())}\n")
