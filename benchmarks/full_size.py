"""The Step-Audio 2 encoder in its released size, really built: artifact, calibration, int8 and int4 files, a clip each.

Run: .venv/bin/python benchmarks/full_size.py        (half an hour on a calm machine; --blocks 2 for a look)
652 million random weights (32 blocks, 1280 wide, the adaptor with its 15 million among them), attention quantized too,
one 25 s clip of synthetic speech, batch 1. Every step is a process of its own, so that its peak memory is its own. The
fp32 file is a yardstick for ONNX Runtime: its weights are in a file beside it, because no ONNX file holds over 2 GB.
Prints Markdown tables; the last line is `full_int8_speedup=<x> full_int4_speedup=<x> full_int8_gb=<x>
full_int4_gb=<x>`, speed at one thread against fp32. Takes 6 GB of disk in --output while it runs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from stream import minute_of_audio

import quant
from encoders import SpeechTransformer, load_encoder, save_encoder, step_audio_2
from export import to_onnx
from export.check.inputs import speech_cuts
from export.graph.pipeline import Pipeline
from export.graph.signature import example_inputs, signature
from export.graph.trace import trace
from export.runtime import fresh_process
from export.runtime.ort_session import session_options
from export.runtime.session import open_session
from export.write import export_form
from quant import FULL_PRECISION

SECONDS = 25
FILES = {"fp32": "fp", "int8": "w8a8", "int4": "w4a8"}


def inputs(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel and length of the clip."""
    log_mel, lengths = encoder.front_end(minute_of_audio(0)[:, : SECONDS * 16_000])
    return log_mel, lengths


def build(folder: Path, blocks: int) -> dict[str, Any]:
    """Random weights, ranges from the clip, saved."""
    torch.manual_seed(0)
    with torch.device("meta"):
        arguments = step_audio_2("mini").arguments | {"depth": blocks}
    encoder = quant.prepare(SpeechTransformer(**arguments), quant.Policy(attention=True)).eval()
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    started = time.perf_counter()
    quant.calibrate(encoder, [inputs(encoder)], lambda batch: encoder(*batch))
    calibrated = time.perf_counter()
    save_encoder(encoder, folder / "encoder", overwrite=True)
    return {"parameters": parameters, "calibrate_s": calibrated - started, "save_s": time.perf_counter() - calibrated}


def write(folder: Path, name: str) -> dict[str, Any]:
    """One file; all but the fp32 yardstick are verified against torch, integer by integer, and on two clips."""
    encoder = load_encoder(folder / "encoder")
    path = folder / name / "encoder.onnx"
    started = time.perf_counter()
    report = {"passed": None}
    if FILES[name] == "fp":
        path.parent.mkdir(exist_ok=True)
        form = "log_mel"
        model, _ = export_form(encoder, FULL_PRECISION)
        proto = trace(Pipeline(model), signature(form), example_inputs(model, form))
        onnx.save(proto, path, save_as_external_data=True, location="encoder.onnx.data")
    else:
        to_onnx(
            encoder, path, bit_width=FILES[name], overwrite=True, clips=list(speech_cuts([(3.3, 1), (8, 2.5)]).values())
        )
        report = json.loads(path.with_suffix(".verification.json").read_text())
    seconds = time.perf_counter() - started
    return {"gb": sum(part.stat().st_size for part in path.parent.glob("*.onnx*")) / 1e9, "write_s": seconds} | report


def run_torch(folder: Path) -> dict[str, Any]:
    """Features of the clip in torch at each bit-width, for `run` to compare with."""
    encoder, seconds = load_encoder(folder / "encoder"), {}
    taken = inputs(encoder)
    np.savez(folder / "inputs.npz", log_mel=taken[0].numpy(), lengths=taken[1].numpy())
    for name, bit_width in FILES.items():
        with torch.no_grad(), quant.at(encoder, bit_width):
            started = time.perf_counter()
            np.save(folder / f"{name}.npy", encoder(*taken)[0].numpy())
            seconds[name] = time.perf_counter() - started
    return {"torch_s": seconds}


def run(folder: Path, name: str, repeats: int) -> dict[str, Any]:
    """The clip in ONNX Runtime: start, memory, seconds at 1 and 2 threads, cosine to torch at its bits and to fp32."""
    path, feeds = folder / name / "encoder.onnx", dict(np.load(folder / "inputs.npz"))
    command = [sys.executable, "-P", fresh_process.__file__, str(path), str(SECONDS), "1"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    features = np.zeros(0)
    for threads in (1, 2):
        # Of one thread the processor's seconds, which a busy machine does not add to; of two, those of the clock.
        clock = time.process_time if threads == 1 else time.perf_counter
        session, times = open_session(path, session_options(threads)), []
        for _ in range(repeats + 1):
            started = clock()
            features = session.run(["features"], feeds)[0]
            times.append(clock() - started)
        result[f"clip_s_{threads}"] = min(times[1:])
    cosines = {f"cosine_to_{other}": cosine(features, np.load(folder / f"{other}.npy")) for other in ("fp32", name)}
    return result | cosines | {"tokens": features.shape[1]}


def cosine(features: np.ndarray, others: np.ndarray) -> float:
    """Of all values at once."""
    a, b = features.astype(np.float64).ravel(), others.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def stages(arguments: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every step by name, in order."""
    folder: Path = arguments.output
    steps: dict[str, Callable[[], dict[str, Any]]] = {"build": lambda: build(folder, arguments.blocks)}
    steps |= {f"write {name}": lambda name=name: write(folder, name) for name in FILES}  # type: ignore[misc]
    steps["torch"] = lambda: run_torch(folder)
    steps |= {f"run {name}": lambda name=name: run(folder, name, arguments.repeats) for name in FILES}  # type: ignore[misc]
    return steps


def alone(stage: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A step in a process of its own: what it returns, its seconds and its peak memory."""
    words = [sys.executable, __file__, "--stage", stage, "--output", str(arguments.output)]
    words += ["--blocks", str(arguments.blocks), "--repeats", str(arguments.repeats)]
    result = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    print(f"{stage}: {result}", file=sys.stderr, flush=True)
    return dict(result)


def tables(results: dict[str, dict[str, Any]]) -> str:
    """What was measured, as Markdown."""
    lines = ["| step | seconds | peak memory, GB |", "| --- | --- | --- |"]
    lines += [f"| {name} | {result['s']:.0f} | {result['peak_gb']:.1f} |" for name, result in results.items()]
    lines += [
        "",
        "| file | GB | verified | start, s | memory, GB | a clip, s, 1 thread | speed-up | 2 threads | speed-up | "
        "cosine to torch at its bits | to fp32 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    full = results["run fp32"]
    for name in FILES:
        written, ran = results[f"write {name}"], results[f"run {name}"]
        verified = {None: "–", True: "yes", False: "no"}[written["passed"]]
        faster = [full[f"clip_s_{threads}"] / ran[f"clip_s_{threads}"] for threads in (1, 2)]
        lines.append(
            f"| {name} | {written['gb']:.3f} | {verified} | {ran['cold_start_ms'] / 1000:.1f} | "
            f"{ran['peak_memory_bytes'] / 1e9:.2f} | {ran['clip_s_1']:.2f} | {faster[0]:.2f} | "
            f"{ran['clip_s_2']:.2f} | {faster[1]:.2f} | {ran[f'cosine_to_{name}']:.6f} | "
            f"{ran['cosine_to_fp32']:.5f} |"
        )
    lines += ["", f"{results['build']['parameters']:,} parameters; {full['tokens']} tokens of the {SECONDS} s clip"]
    return "\n".join(lines)


def main() -> None:
    """All steps, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=32, help="fewer for a look")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each file and number of threads")
    parser.add_argument("--output", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--stage", help="one step only, in this process")
    arguments = parser.parse_args()
    if arguments.stage:
        started = time.perf_counter()
        result = stages(arguments)[arguments.stage]()
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        assert peak is not None
        print(json.dumps(result | {"s": time.perf_counter() - started, "peak_gb": int(peak[1]) * 1024 / 1e9}))
        return
    if not arguments.keep and arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output} is not empty, and would be deleted at the end: choose another --output")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {stage: alone(stage, arguments) for stage in stages(arguments)}
    print(tables(results))
    full, int8, int4 = (results[f"run {name}"]["clip_s_1"] for name in FILES)
    print(
        f"\nfull_int8_speedup={full / int8:.2f} full_int4_speedup={full / int4:.2f} "
        f"full_int8_gb={results['write int8']['gb']:.3f} full_int4_gb={results['write int4']['gb']:.3f}"
    )
    if not arguments.keep:
        shutil.rmtree(arguments.output)


if __name__ == "__main__":
    main()
