"""Synergistic self-supervised and quantization learning: pretrain, evaluate, report."""

import importlib.util
from pathlib import Path


def _check_sister_packages() -> None:
    """Refuse to run with another distribution's `quant`, `encoders` or `export` in front of ours."""
    home = Path(__file__).resolve().parent.parent
    for name in ("quant", "encoders", "export"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"package {name!r} comes from {found}, not from {home / name}: another distribution shadows it; "
                "install ssql-toolkit into an environment of its own"
            )


_check_sister_packages()

__version__ = "0.1.0"
