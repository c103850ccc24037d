"""What every test needs."""

import copy
import functools
import logging
import resource

import pytest
import torch  # noqa: F401  its import sets the logger up
from torch.onnx._internal.exporter._registration import ONNXRegistry

# pytest listens to loggers that do not propagate: torch then writes out every step of an export, a fifth of its time.
logging.getLogger("torch.__trace").propagate = True

# torch reads the signatures of all ONNX operators for each export, a fifth of its time: once a process is enough.
_registry = functools.cache(ONNXRegistry.from_torchlib)


def _copied_registry(*args: int, **options: int) -> ONNXRegistry:
    registry = copy.copy(_registry(*args, **options))
    registry.functions = {name: list(forms) for name, forms in registry.functions.items()}
    return registry


ONNXRegistry.from_torchlib = staticmethod(_copied_registry)


@pytest.fixture
def small_disk():
    """A file that would have more than 10,000 bytes cannot be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
