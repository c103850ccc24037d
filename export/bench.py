"""Size, cold start, latency and real-time factor of ONNX files, interleaved in one process."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from encoders.log_mel import HOP, SAMPLE_RATE
from export.runtime import open_session

COLD_STARTS = 3


def measure_files(
    paths: Sequence[str | Path], seconds: Sequence[float] = (1.0, 10.0), threads: int = 0, repeats: int = 15
) -> list[dict[str, Any]]:
    """Measure encoders side by side: the files take turns, so that a drifting machine is fair to all.

    Args:
        paths: files written by `to_onnx`, of one modality; ratios are against the first.
        seconds: clip lengths in seconds (speech); image encoders run one image.
        threads: of ONNX Runtime; 0 takes its default.
        repeats: timed runs of each file.

    Returns:
        a row for each clip length and file: file, size_bytes, size_ratio, cold_start_ms (session creation,
        median), seconds, latency_ms (median), spread_ms (10th to 90th percentile), speedup, real_time_factor.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no file at all, files of speech and vision together, or no repeats.
        VerificationError: ONNX Runtime cannot read or run a file.
    """
    if not paths or repeats < 1:
        raise ValueError(f"measuring needs at least one file and one repeat, got {len(paths)} files, {repeats} repeats")
    sessions, cold_starts = _start(paths, threads)
    first_inputs = {session.get_inputs()[0].name for session in sessions}
    if len(first_inputs) > 1:
        raise ValueError(f"files to compare must take the same input, got {' and '.join(sorted(first_inputs))}")
    sizes = [Path(path).stat().st_size for path in paths]
    rows = []
    for duration in seconds if first_inputs != {"images"} else (0.0,):
        timings = _take_turns(sessions, [_feed(session, duration) for session in sessions], repeats)
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


def _start(paths: Sequence[str | Path], threads: int) -> tuple[list[onnxruntime.InferenceSession], list[float]]:
    """A session of each file, and its median start in ms."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    starts: list[list[float]] = [[] for _ in paths]
    sessions: list[onnxruntime.InferenceSession] = []
    for _ in range(COLD_STARTS):
        sessions = []
        for path, times in zip(paths, starts, strict=True):
            started = time.perf_counter()
            sessions.append(open_session(path, options))
            times.append(1000 * (time.perf_counter() - started))
    return sessions, [median(times) for times in starts]


def _take_turns(
    sessions: list[onnxruntime.InferenceSession], feeds: list[dict[str, np.ndarray]], repeats: int
) -> list[list[float]]:
    """Milliseconds of each run of each session."""
    timings: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats):
        for session, feed, times in zip(sessions, feeds, timings, strict=True):
            # Untimed: it allocates, fills the caches, and outlasts the spinning threads of the session before.
            session.run(None, feed)
            started = time.perf_counter()
            session.run(None, feed)
            times.append(1000 * (time.perf_counter() - started))
    return timings


def _feed(session: onnxruntime.InferenceSession, seconds: float) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    first = session.get_inputs()[0]
    if first.name == "waveform":
        samples = int(seconds * SAMPLE_RATE)
        waveform = 0.1 * generator.standard_normal((1, samples), dtype=np.float32)
        return {"waveform": waveform, "lengths": np.array([samples], dtype=np.int64)}
    if first.name == "log_mel":
        frames = int(seconds * SAMPLE_RATE / HOP)
        log_mel = generator.standard_normal((1, first.shape[1], frames), dtype=np.float32)
        return {"log_mel": log_mel, "lengths": np.array([frames], dtype=np.int64)}
    return {first.name: generator.standard_normal((1, *first.shape[1:]), dtype=np.float32)}
