"""What every test needs."""

import logging

import torch  # noqa: F401  its import sets the logger up

# pytest listens to loggers that do not propagate, and torch then writes out every step of an export: half its time.
logging.getLogger("torch.__trace").propagate = True
