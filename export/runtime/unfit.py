"""What is wrong with inputs that a file does not take, in words that follow its name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of ONNX Runtime's names for the inputs that files of ours have.
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def unfit(specs: Sequence[Any], feeds: Mapping[str, np.ndarray]) -> str | None:
    """Names, shapes and types that are not those of the file's inputs; None when all are.

    Args:
        specs: of a session's `get_inputs`: name, shape (text where any size is taken), type.
        feeds: what is given.
    """
    inputs = {spec.name: spec for spec in specs}
    if inputs.keys() != feeds.keys():
        return f"takes the inputs {', '.join(inputs)}, got {', '.join(feeds) or 'none'}"
    for name, spec in inputs.items():
        found, dtype = feeds[name], DTYPES.get(spec.type, spec.type)
        fits = len(found.shape) == len(spec.shape) and all(
            isinstance(size, str) or size is None or size == given
            for size, given in zip(spec.shape, found.shape, strict=True)
        )
        if not fits or str(found.dtype) != dtype:
            shape = ", ".join(map(str, spec.shape))
            return f"takes {name} of shape ({shape}), {dtype}; got {found.shape}, {found.dtype}"
    return None


def too_long(about: Mapping[str, str], feeds: Mapping[str, np.ndarray]) -> str | None:
    """That a clip is longer than the file has positions for; None where none is, or where no torch is to tell.

    Args:
        about: what the file says of itself.
        feeds: what is given.
    """
    try:
        from encoders.speech.log_mel import HOP, SAMPLE_RATE  # with torch, which a deployer need not have
        from export.metadata import longest_input

        longest = longest_input(dict(about))
    except (ModuleNotFoundError, KeyError, ValueError):
        return None
    hop = 1 if "waveform" in feeds else HOP
    samples = int(np.max(feeds["lengths"], initial=0)) * hop if "lengths" in feeds else 0
    if longest is None or samples <= longest:
        return None
    return (
        f"has positions for {longest / SAMPLE_RATE:g} s at most, got a clip of {samples / SAMPLE_RATE:.2f} s: cut "
        "it into windows (ssql features does)"
    )
