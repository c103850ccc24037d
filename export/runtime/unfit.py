"""What is wrong with inputs that a file does not take, in words that follow its name."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Of ONNX Runtime's names for the inputs that files of ours have.
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}

CUT = "cut it into windows (ssql features does)"


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
    """That a clip is longer than the file has positions for; None where none is, or where the file does not say.

    Args:
        about: what the file says of itself.
        feeds: what is given.
    """
    longest = longest_seconds(about)
    try:
        hop = 1 if "waveform" in feeds else int(about["mel_hop_samples"])
        found = int(np.max(feeds["lengths"], initial=0)) * hop / int(about["sample_rate_hz"])
    except (KeyError, ValueError):
        return None
    if longest is None or found <= longest:
        return None
    return f"takes {longest:g} s at most, got a clip of {found:.2f} s: {CUT}"


def longest_seconds(about: Mapping[str, str]) -> float | None:
    """How long a clip may be, as `encoders.speech.windows.limits` has it, without torch; None for any length.

    Args:
        about: what the file says of itself.
    """
    try:
        positions = json.loads(about["arguments"]).get("positions")
        return 2 * int(about["mel_hop_samples"]) * positions / int(about["sample_rate_hz"]) if positions else None
    except (KeyError, ValueError, TypeError, AttributeError):  # a file that others changed
        return None
