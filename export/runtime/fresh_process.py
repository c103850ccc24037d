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
# What ONNX Runtime computes less exactly unless it is told otherwise, each faster so. Without VNNI it adds pairs of
# uint8 times int8 in 16 bits, and the sums of 8-bit weights saturate. Float inputs of MatMulNBits it rounds to 8 bits.
EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}


def session_options(threads: int, exact: bool = False) -> onnxruntime.SessionOptions:
    """Options that all sessions share.

    Args:
        threads: 0 takes the runtime's default.
        exact: let the session compute what the file says, on every processor, at the cost of speed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    for name, value in EXACT.items() if exact else ():
        options.add_session_config_entry(name, value)
    return options


def start_failure(path: str | Path, error: Exception) -> str:
    """Why a session did not start, in one sentence."""
    return (
        f"{path} does not start in ONNX Runtime {onnxruntime.__version__}, which takes an .onnx file that ssql export "
        f"wrote: {reason_of(error)}"
    )


def reason_of(error: Exception) -> str:
    """The runtime's own first line, without its code."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip().split("\n")[0])


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
        length = first.shape[2] if isinstance(first.shape[2], int) else length  # clips are filled
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
