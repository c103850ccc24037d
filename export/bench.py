"""Size, cold start, latency and real-time factor of ONNX files, interleaved in one process."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

FRAMES_PER_SECOND = 100


def measure_files(
    paths: Sequence[str | Path], seconds: Sequence[float] = (1.0, 10.0), threads: int = 0, repeats: int = 15
) -> list[dict[str, Any]]:
    """Measure encoders side by side: the files take turns, so that a drifting machine is fair to all.

    Args:
        paths: files written by `to_onnx`; ratios are against the first.
        seconds: clip lengths in seconds (speech); image encoders run one image.
        threads: of ONNX Runtime; 0 takes its default.
        repeats: timed runs of each file.

    Returns:
        a row for each clip length and file: file, size_bytes, size_ratio, cold_start_ms, seconds,
        latency_ms (median), spread_ms (10th to 90th percentile), speedup, real_time_factor.

    Raises:
        FileNotFoundError: no such file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    sessions: list[onnxruntime.InferenceSession] = []
    cold_starts = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        started = time.perf_counter()
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        cold_starts.append(1000 * (time.perf_counter() - started))
    sizes = [Path(path).stat().st_size for path in paths]
    rows = []
    speech = sessions[0].get_inputs()[0].name == "log_mel"
    for duration in seconds if speech else (0.0,):
        feeds = [_feed(session, duration) for session in sessions]
        timings: list[list[float]] = [[] for _ in sessions]
        for repeat in range(repeats + 2):
            for session, feed, times in zip(sessions, feeds, timings, strict=True):
                started = time.perf_counter()
                session.run(None, feed)
                if repeat >= 2:  # the first runs allocate
                    times.append(1000 * (time.perf_counter() - started))
        for path, size, cold, times in zip(paths, sizes, cold_starts, timings, strict=True):
            low, high = np.percentile(times, [10, 90])
            rows.append(
                {
                    "file": Path(path).name,
                    "size_bytes": size,
                    "size_ratio": size / sizes[0],
                    "cold_start_ms": cold,
                    "seconds": duration,
                    "latency_ms": median(times),
                    "spread_ms": float(high - low),
                    "speedup": median(timings[0]) / median(times),
                    "real_time_factor": median(times) / 1000 / duration if duration else None,
                }
            )
    return rows


def _feed(session: onnxruntime.InferenceSession, seconds: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    first = session.get_inputs()[0]
    if first.name == "log_mel":
        frames = int(seconds * FRAMES_PER_SECOND)
        log_mel = generator.standard_normal((1, first.shape[1], frames), dtype=np.float32)
        return {"log_mel": log_mel, "lengths": np.array([frames], dtype=np.int64)}
    return {first.name: generator.standard_normal((1, *first.shape[1:]), dtype=np.float32)}
