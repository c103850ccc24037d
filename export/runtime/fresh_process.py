"""One ONNX file in a process of its own: how long it takes to start and how much memory it takes at most.

Run: python -P export/runtime/fresh_process.py FILE SECONDS THREADS [RUNTIME]. It imports the runtime and NumPy only, as
a deployed program does, and prints JSON: `cold_start_ms` (creating the session) and `peak_memory_bytes` (the process's
largest resident set after one run, interpreter and runtime included; null where the system does not tell).
"""

import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.runtime.runtimes import DEFAULT, Runtime
from export.runtime.start import MODULES, start

if TYPE_CHECKING:
    from export.runtime.start import AnySession

STATUS = Path("/proc/self/status")


def feed(session: "AnySession", seconds: float) -> dict[str, np.ndarray]:
    """Inputs of one clip of this length in seconds, or one image: normally distributed numbers, the same each time."""
    generator = np.random.default_rng(0)
    first = session.get_inputs()[0]
    if first.name == "images":
        return {first.name: generator.standard_normal((1, *first.shape[1:]), dtype=np.float32)}
    about = session.get_modelmeta().custom_metadata_map
    length = int(seconds * int(about.get("sample_rate_hz", 16_000)))
    if first.name == "log_mel":
        length //= int(about.get("mel_hop_samples", 160))
        length = first.shape[2] if isinstance(first.shape[2], int) else length  # clips are filled
    values = generator.standard_normal((1, *first.shape[1:-1], length), dtype=np.float32)
    return {first.name: values, "lengths": np.array([length], dtype=np.int64)}


def main(path: str, seconds: float, threads: int, runtime: Runtime = DEFAULT) -> None:
    """Start a session, run once, print what it took."""
    importlib.import_module(MODULES[runtime])
    started = time.perf_counter()
    session = start(path, runtime, threads, batch=1)
    cold_start = 1000 * (time.perf_counter() - started)
    session.run(None, feed(session, seconds))
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8")) if STATUS.exists() else None
    result = {"cold_start_ms": cold_start, "peak_memory_bytes": 1024 * int(peak[1]) if peak else None}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])  # type: ignore[arg-type]
