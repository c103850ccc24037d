"""One ONNX file in a process of its own: how long it takes to start and how much memory it takes at most.

Run: python -P export/runtime/fresh_process.py FILE SECONDS THREADS. It imports ONNX Runtime and NumPy only, as a
deployed program does, and prints JSON: `cold_start_ms` (creating the session) and `peak_memory_bytes` (the process's
largest resident set after one run, interpreter and runtime included; null where the system does not tell).
"""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

STATUS = Path("/proc/self/status")


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options that every measurement shares; 0 threads takes the runtime's default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    return options


def feed(session: onnxruntime.InferenceSession, seconds: float) -> dict[str, np.ndarray]:
    """Inputs of one clip of this length in seconds, or one image: normally distributed numbers, the same each time."""
    generator = np.random.default_rng(0)
    first = session.get_inputs()[0]
    if first.name == "images":
        return {first.name: generator.standard_normal((1, *first.shape[1:]), dtype=np.float32)}
    about = session.get_modelmeta().custom_metadata_map
    length = int(seconds * int(about.get("sample_rate_hz", 16_000)))
    if first.name == "log_mel":
        length //= int(about.get("mel_hop_samples", 160))
    values = generator.standard_normal((1, *first.shape[1:-1], length), dtype=np.float32)
    return {first.name: values, "lengths": np.array([length], dtype=np.int64)}


def main(path: str, seconds: float, threads: int) -> None:
    """Start a session, run once, print what it took."""
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
    cold_start = 1000 * (time.perf_counter() - started)
    session.run(None, feed(session, seconds))
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="utf-8")) if STATUS.exists() else None
    result = {"cold_start_ms": cold_start, "peak_memory_bytes": 1024 * int(peak[1]) if peak else None}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
