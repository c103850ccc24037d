"""The Step-Audio 2 encoder in its released size, really built: artifact, calibration, four files, two runtimes.

Run: .venv/bin/python benchmarks/full_size.py        (an hour on a calm machine; --blocks 2 for a look)
652 million random weights (32 blocks, 1280 wide, the adaptor with its 15 million among them), attention quantized too,
one 25 s clip of synthetic speech, batch 1. Every step is a process of its own, so that its peak memory is its own; of
an export the memory of loading, writing and verifying is told apart. Besides the largest resident set, which counts
pages of files that the system may take back, the memory is given that nobody can take back (`RssAnon`).
Prints Markdown tables; the last line is `full_int8_speedup=<x> full_int4_speedup=<x> full_int8_gb=<x>
full_int4_gb=<x>`, speed in ONNX Runtime at one thread against fp32. Takes 8 GB of disk in --output while it runs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream import minute_of_audio

import quant
from encoders import SpeechTransformer, load_encoder, save_encoder, step_audio_2
from export import to_onnx, verify
from export.check.inputs import speech_cuts
from export.external_data import size_of
from export.runtime import fresh_process
from export.runtime.runtimes import Runtime
from export.runtime.start import start

SECONDS = 25
# Bit-width of each file, and whether its floats are stored in 16 bits.
FILES = {"fp32": ("fp", False), "fp16": ("fp", True), "int8": ("w8a8", False), "int4": ("w4a8", False)}
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
STATUS = Path("/proc/self/status")
CLIPS = [(3.3, 1.0), (8.0, 2.5)]  # of the shipped recording, to verify with


@contextmanager
def memory(result: dict[str, Any], name: str) -> Iterator[None]:
    """Peak memory inside, in GB, into a result: `<name>_gb` resident, `<name>_own_gb` without pages of files."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the largest resident set begins anew
    own, done = [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            own[0] = max(own[0], _status("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        result |= {f"{name}_gb": _status("VmHWM"), f"{name}_own_gb": own[0]}


def _status(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024 / 1e9


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
    """One file as `ssql export` makes it: loaded, written, and verified on two clips."""
    bit_width, float16 = FILES[name]
    result: dict[str, Any] = {}
    path = folder / name / "encoder.onnx"
    with memory(result, "load"):
        encoder = load_encoder(folder / "encoder")
    with memory(result, "write"):
        to_onnx(encoder, path, bit_width=bit_width, float16=float16, overwrite=True, check=False)
    with memory(result, "verify"):
        found = verify(path, encoder, bit_width, list(speech_cuts(CLIPS).values()))
    files = sorted(part.name for part in path.parent.iterdir())
    return result | {"gb": size_of(path) / 1e9, "files": files} | found.to_dict()


def run_torch(folder: Path) -> dict[str, Any]:
    """Features of the clip in torch at each bit-width, for `run` to compare with."""
    encoder, seconds = load_encoder(folder / "encoder"), {}
    taken = inputs(encoder)
    np.savez(folder / "inputs.npz", log_mel=taken[0].numpy(), lengths=taken[1].numpy())
    for bit_width in dict.fromkeys(bit_width for bit_width, _ in FILES.values()):
        with torch.no_grad(), quant.at(encoder, bit_width):
            started = time.perf_counter()
            np.save(folder / f"{bit_width}.npy", encoder(*taken)[0].numpy())
            seconds[bit_width] = time.perf_counter() - started
    return {"torch_s": seconds}


def run(folder: Path, name: str, runtime: Runtime, repeats: int) -> dict[str, Any]:
    """The clip in a runtime: start and memory in a process of its own, seconds at one thread, cosine to torch."""
    path, feeds = folder / name / "encoder.onnx", dict(np.load(folder / "inputs.npz"))
    command = [sys.executable, "-P", fresh_process.__file__, str(path), str(SECONDS), "1", runtime]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    session, features, times = start(path, runtime, 1, batch=1), np.zeros(0), []
    for _ in range(repeats + 1):
        started = time.process_time()  # the processor's seconds: other processes on the machine add none
        features = session.run(["features"], feeds)[0]
        times.append(time.process_time() - started)
    own, full = (np.load(folder / f"{bits}.npy") for bits in (FILES[name][0], "fp"))
    return result | {
        "precision": session.precision, "clip_s": min(times[1:]), "tokens": features.shape[1],
        "cosine_to_own": cosine(features, own), "cosine_to_full": cosine(features, full),
    }  # fmt: skip


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
    for runtime in RUNTIMES:
        steps |= {
            f"run {name} {runtime}": lambda name=name, runtime=runtime: run(folder, name, runtime, arguments.repeats)  # type: ignore[misc]
            for name in FILES
        }
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
    lines += [
        f"| {name} | {result['s']:.0f} | {result['peak_gb']:.1f} |"
        for name, result in results.items()
        if name in ("build", "torch")
    ]
    lines += [
        "",
        "| file | GB | verified | load | write | verify | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in FILES:
        written = results[f"write {name}"]
        parts = [
            f"{written[f'{part}_gb']:.2f} ({written[f'{part}_own_gb']:.2f})" for part in ("load", "write", "verify")
        ]
        verified = "yes" if written["passed"] else "no"
        lines.append(f"| {name} | {written['gb']:.3f} | {verified} | {' | '.join(parts)} | {written['s']:.0f} |")
    lines += [
        "",
        "| file | runtime | precision | start, s | start and a clip, GB | a clip, s | cosine to torch | to fp |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for runtime in RUNTIMES:
        for name in FILES:
            ran = results[f"run {name} {runtime}"]
            lines.append(
                f"| {name} | {runtime} | {ran['precision']} | {ran['cold_start_ms'] / 1000:.1f} | "
                f"{ran['peak_memory_bytes'] / 1e9:.2f} | {ran['clip_s']:.2f} | "
                f"{ran['cosine_to_own']:.6f} | {ran['cosine_to_full']:.5f} |"
            )
    tokens = results["run fp32 onnxruntime"]["tokens"]
    lines += ["", f"{results['build']['parameters']:,} parameters; {tokens} tokens of the {SECONDS} s clip"]
    return "\n".join(lines)


def main() -> None:
    """All steps, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=32, help="fewer for a look")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each file in each runtime")
    parser.add_argument("--output", type=Path, default=Path("runs/full-size"))
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--stage", help="one step only, in this process")
    arguments = parser.parse_args()
    if arguments.stage:
        started = time.perf_counter()
        result = stages(arguments)[arguments.stage]()
        print(json.dumps(result | {"s": time.perf_counter() - started, "peak_gb": _status("VmHWM")}))
        return
    if not arguments.keep and arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output} is not empty, and would be deleted at the end: choose another --output")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {stage: alone(stage, arguments) for stage in stages(arguments)}
    print(tables(results))
    full, int8, int4 = (results[f"run {name} onnxruntime"]["clip_s"] for name in ("fp32", "int8", "int4"))
    print(
        f"\nfull_int8_speedup={full / int8:.2f} full_int4_speedup={full / int4:.2f} "
        f"full_int8_gb={results['write int8']['gb']:.3f} full_int4_gb={results['write int4']['gb']:.3f}"
    )
    if not arguments.keep:
        shutil.rmtree(arguments.output)


if __name__ == "__main__":
    main()
