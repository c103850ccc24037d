"""What every test needs."""

import logging
import resource

import pytest
import torch  # noqa: F401  its import sets the logger up

# pytest listens to loggers that do not propagate: torch then writes out every step of an export, a fifth of its time.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture
def small_disk():
    """A file that would have more than 10,000 bytes cannot be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
