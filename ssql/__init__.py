"""Synergistic self-supervised and quantization learning: pretrain, evaluate, report."""

import importlib.util
from pathlib import Path

__version__ = "0.1.0"

for _home in (Path(__file__).resolve().parents[1] / name for name in ("quant", "encoders", "export")):
    _spec = importlib.util.find_spec(_home.name)
    _found = Path(_spec.origin).resolve().parent if _spec and _spec.origin else None
    if _found != _home:
        raise ImportError(
            f"package {_home.name!r} comes from {_found}, not from {_home}: another distribution shadows it; install "
            "ssql-toolkit into an environment of its own"
        )
