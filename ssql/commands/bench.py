"""`ssql bench`: latency of ONNX files."""

import os
from contextlib import nullcontext
from pathlib import Path

import export as onnx_export
from encoders.storage.ownership import LATENCIES
from export.runtime.runtimes import DEFAULT, Runtime
from quant.checks import check_at_least
from ssql.commands.runtimes import check_runtimes
from ssql.reports.figures import latency_figure
from ssql.reports.result_files import reserved, save
from ssql.reports.tables import latency_tables
from ssql.terminal.checks import not_empty
from ssql.terminal.console import say
from ssql.terminal.groups import check_installed
from ssql.terminal.inputs import check_inputs

SHORTEST_CLIP = 0.025  # seconds: one frame
MOST_THREADS = 1024


def bench(
    files: list[str],
    seconds: list[float] = [1.0, 10.0],  # noqa: B006
    threads: list[int] = [1, 2],  # noqa: B006
    repeats: int = 15,
    runtimes: list[Runtime] = [DEFAULT],  # noqa: B006
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Size, cold start, memory, latency and real-time factor of ONNX files, side by side in one or more runtimes.

    Example: ssql bench runs/a/encoder-fp32.onnx runs/a/encoder-int8.onnx --output runs/a/latency
    Example: ssql bench runs/a/encoder-fp32.onnx runs/a/encoder-int8.onnx --runtimes '[onnxruntime, openvino]'

    Args:
        files: ONNX files that `ssql export` wrote; ratios are against the first, in the first runtime.
        seconds: clip lengths in seconds.
        threads: of the runtimes, one measurement each; 0 takes their default.
        repeats: timed runs of each file in each runtime.
        runtimes: onnxruntime; openvino, at the precision that is fastest on this processor; openvino_f32.
        output: <output>.json gets the rows, <output>.png the plot.
        overwrite: replace earlier latencies.
    """
    not_empty(files=files, seconds=seconds, threads=threads, runtimes=runtimes, output=output)
    check_runtimes(*runtimes)
    runtimes = list(dict.fromkeys(runtimes))
    check_at_least(1, repeats=repeats)
    check_at_least(0, threads=threads)
    if max(threads) > MOST_THREADS:
        raise ValueError(f"threads must be {MOST_THREADS} at most, got {max(threads)}")
    check_at_least(SHORTEST_CLIP, seconds=seconds)
    if output is not None and os.path.basename(output) in ("", ".", ".."):
        files_in_it = os.path.join(output, "latency")
        raise ValueError(f"--output {output} names a folder: name the files in it, as {files_in_it}")
    check_inputs(files=files)
    targets = [Path(f"{output}.json"), Path(f"{output}.png")] if output is not None else []
    if output is not None:
        check_installed("matplotlib")
    with reserved(Path(output), targets, overwrite, LATENCIES) if output is not None else nullcontext():
        rows = onnx_export.measure_files([Path(file) for file in files], seconds, threads, repeats, runtimes)
        if output is not None:
            save({targets[0]: rows, targets[1]: latency_figure(rows)})
    say(*latency_tables(rows))
