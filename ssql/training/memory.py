"""Keep freed memory: a training step on a CPU takes and returns gigabytes, and fresh pages are slow."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed memory instead of handing it back to the system.

    Saves the page faults of each step's activations, roughly a tenth of a ResNet-18 step on a CPU (see
    `benchmarks/step.py`). The process stays at its peak size.

    Returns:
        whether the C library is glibc and took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) == 1 for name, value in ((_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26), (_MMAP_MAX, 0)))
