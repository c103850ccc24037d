"""Synergistic self-supervised and quantization learning: pretrain, evaluate, report."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING


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

__version__: str  # of the distribution

if not TYPE_CHECKING:  # for whom every name would be a string

    def __getattr__(name: str) -> str:
        # Looked up when it is asked for: an import costs nothing, and works where nothing is installed.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("ssql-toolkit")
