"""Size, cold start, memory, latency and real-time factor of ONNX files in their runtimes, side by side."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from export.errors import VerificationError
from export.external_data import size_of
from export.runtime import fresh_process
from export.runtime.fresh_process import feed
from export.runtime.runtimes import DEFAULT, Runtime
from export.runtime.start import start

if TYPE_CHECKING:
    from export.runtime.start import AnySession

log = logging.getLogger(__name__)

COLD_STARTS = 3
# A session's threads spin for a while after a run, on the cores that the next session needs.
REST = 0.02


def measure_files(
    paths: Sequence[str | Path],
    seconds: Sequence[float] = (1.0, 10.0),
    threads: Sequence[int] = (0,),
    repeats: int = 15,
    runtimes: Sequence[Runtime] = (DEFAULT,),
) -> list[dict[str, Any]]:
    """Measure encoders side by side: files and runtimes take turns, so that a drifting machine is fair to all.

    Args:
        paths: files written by `to_onnx`, of one kind of input; ratios are against the first.
        seconds: clip lengths in seconds (speech); image encoders run one image.
        threads: of the runtimes, one measurement each; 0 takes their default.
        repeats: timed runs of each file in each runtime.
        runtimes: of `export.runtime.runtimes.RUNTIMES`; each runs every file, one clip or image at a time.

    Returns:
        a row for each number of threads, clip length, runtime and file: file, runtime, precision (of what is not on
        integers, as the runtime computes it: `f32`, `bf16`, `f16`), size_bytes (with its weights where they are in a
        second file), size_ratio, cold_start_ms (session creation in a process of its own, median), peak_memory_bytes
        (that process's), threads, seconds, latency_ms (median), spread_ms (10th to 90th percentile), fastest_ms,
        speedup (against the first file in the first runtime, of the fastest runs: other processes only ever add time),
        real_time_factor.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: a runtime is not installed.
        ValueError: no file or no runtime at all, files with different inputs, or no repeats.
        VerificationError: a runtime cannot read or run a file.

    Example:
        >>> import encoders, export, pathlib
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> written = export.to_onnx(encoder, "encoder.onnx", check=False, overwrite=True)
        >>> [row] = export.measure_files([pathlib.Path("encoder.onnx")], seconds=[1], threads=[1], repeats=1)
        >>> row["latency_ms"] > 0
        True
    """
    if not paths or repeats < 1 or not runtimes:
        raise ValueError(
            "measuring needs at least one file, one runtime and one repeat, got "
            f"{len(paths)} files, {len(runtimes)} runtimes, {repeats} repeats"
        )
    rows: list[dict[str, Any]] = []
    started, done = time.monotonic(), 0  # of every file's start and latency in every situation
    for count in threads:
        sessions = [start(path, runtime, count, batch=1) for runtime in runtimes for path in paths]
        sizes = [size_of(session.path) for session in sessions]
        first_inputs = {session.get_inputs()[0].name for session in sessions}
        for path, session in zip(paths, sessions, strict=False):
            if "state" in session.get_modelmeta().custom_metadata_map:
                raise ValueError(f"{path} is one step of a stream: latency is measured of files of ssql export")
        if len(first_inputs) > 1:
            raise ValueError(f"files to compare must take the same input, got {' and '.join(sorted(first_inputs))}")
        durations = seconds if first_inputs != {"images"} else (0.0,)
        total = 2 * len(sessions) * len(durations) * len(threads)
        for duration in durations:
            inputs = f"{duration:g} s" if duration else "an image"
            situation = f"{inputs} on {count or 'default'} thread{'s' * (count != 1)}"
            alone = []
            for number, session in enumerate(sessions, start=1):
                what = f"{session.path}{'' if session.runtime == DEFAULT else f' in {session.runtime}'}"
                which = f"file {number} of {len(sessions)}, {what}{_left(started, done, total)}"
                log.info("measuring start and memory, %s: %s", situation, which)
                alone.append(_in_fresh_process(session.path, duration, count, session.runtime))
                done += 1
            log.info("measuring latency, %s: %d files in turn%s", situation, len(sessions), _left(started, done, total))
            timings = take_turns(sessions, [feed(session, duration) for session in sessions], repeats)
            for session, size, process, times in zip(sessions, sizes, alone, timings, strict=True):
                low, high = np.percentile(times, [10, 90])
                rows.append(
                    {
                        "file": Path(session.path).name,
                        "runtime": session.runtime,
                        "precision": session.precision,
                        "size_bytes": size,
                        "size_ratio": size / sizes[0],
                        **process,
                        "threads": count,
                        "seconds": duration,
                        "latency_ms": median(times),
                        "spread_ms": float(high - low),
                        "fastest_ms": min(times),
                        "speedup": min(timings[0]) / min(times),
                        "real_time_factor": median(times) / 1000 / duration if duration else None,
                    }
                )
                log.info("%s, %s: %s", rows[-1]["file"], situation, _in_words(rows[-1]))
            done += len(sessions)
    return rows


def _left(started: float, done: int, total: int) -> str:
    """The time that is left, once some is behind."""
    if not done:
        return ""
    rest = timedelta(seconds=round((time.monotonic() - started) / done * (total - done)))
    return f"; {done} of {total} steps done, about {rest} left"


def _in_words(row: dict[str, Any]) -> str:
    """What is known of a file, as it comes; the tables at the end have all of it."""
    memory = f", {row['peak_memory_bytes'] / 1e6:.0f} MB" if row["peak_memory_bytes"] else ""
    return f"{row['latency_ms']:.2f} ms (fastest {row['fastest_ms']:.2f}), start {row['cold_start_ms']:.0f} ms{memory}"


def _in_fresh_process(path: str | Path, seconds: float, threads: int, runtime: Runtime = DEFAULT) -> dict[str, Any]:
    """Median start in ms, and peak memory in bytes."""
    command = [sys.executable, "-P", fresh_process.__file__, str(path), str(seconds), str(threads), runtime]
    runs = []
    for _ in range(COLD_STARTS):
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            said = ran.stderr.strip().split("\n")[-1] or f"exit status {ran.returncode}"
            said = "out of memory" if "MemoryError" in said else said.partition(f"Error: {path} ")[2] or said
            raise VerificationError(f"{path} does not run for {seconds:g} s in a process of its own: {said}")
        runs.append(json.loads(ran.stdout))
    return {
        "cold_start_ms": median(run["cold_start_ms"] for run in runs),
        "peak_memory_bytes": runs[0]["peak_memory_bytes"],
    }


def take_turns(sessions: "list[AnySession]", feeds: list[dict[str, np.ndarray]], repeats: int) -> list[list[float]]:
    """Milliseconds of each run of each session, on feeds of its own; sessions take turns."""
    timings: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats):
        for session, inputs, times in zip(sessions, feeds, timings, strict=True):
            time.sleep(REST)
            session.run(None, inputs)  # allocates, fills the caches
            started = time.perf_counter()
            session.run(None, inputs)
            times.append(1000 * (time.perf_counter() - started))
    return timings
