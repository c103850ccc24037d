"""The race: our files against the stock tools' of ONNX Runtime, OpenVINO and NNCF, in both runtimes, all in turns.

Run: make bench-export RACE='--weights whisper-base --quantized runs/whisper/static --recordings recordings'

Whisper base's shape, one clip of 3, 10 and 30 s, 1 and 2 threads. At 30 s clips are filled, as Whisper does; at 3 and
10 s the encoder takes the clip's own length. A ResNet-18 over log-mel images comes after it. Without --weights the
weights are random, and distances say nothing of real ones: see --help. Tables go to the terminal, <network>.json and
<network>.png to --output. Distances are the squared error over the variance of the features of ONNX Runtime in fp32,
on recordings that nobody calibrated on. Files take turns; each repeat compares the fastest of its turns with that of
ONNX Runtime in fp32, and a speed-up is the median of the repeats', with the least and the most. The last line is of
30 s and 2 threads, ours in the faster runtime:
`int8_speedup= int4_speedup= int8_size= int4_size= int8_distance= int4_distance= nncf_speedup=`.
"""

import argparse
import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch
from nncf_files import IrSession, is_installed, nncf_files
from rich.console import Console
from rich.table import Table
from stock import stock_files

import export
import quant
from encoders import Encoder, SpeechTransformer, VisionEncoder, WhisperLogMel, import_encoder, load_encoder
from export.check.inputs import speech_cuts
from export.runtime.bench import take_turns
from export.runtime.fresh_process import feed
from export.runtime.start import start
from ssql.reports.figures import latency_figure
from ssql.reports.result_files import save

log = logging.getLogger("race")
log.setLevel(logging.WARNING)  # its progress is seen though the root logger is silenced

Batch = dict[str, np.ndarray]

FILLED, SHORTER = 30.0, (3.0, 10.0)
BASE = {"width": 512, "depth": 6, "heads": 8, "positions": 1500, "log_mel": "whisper_filled"}
STATIC = quant.Policy(activation_range="static", layers={"*": "/static/smooth"})
MEL_IMAGE = (80, 1000)  # 10 s
FOR_OPENVINO = "-for-openvino"
LINE = "int8_speedup={} int4_speedup={} int8_size={} int4_size={} int8_distance={} int4_distance={} nncf_speedup={}\n"


def recordings(folder: str | None, count: int = 24) -> list[torch.Tensor]:
    """Clips of at most 30 s, (1, samples) at 16,000 Hz: every n-th of a folder's, or of the speech of the package."""
    if folder is None:
        return [clip.unsqueeze(0) for clip in speech_cuts([(0, 4), (0, 7), (0, 10), (4, 11), (2, 9)]).values()]
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    read = (soundfile.read(path, dtype="float32") for path in paths[:: max(1, len(paths) // count)])
    clips = [torch.from_numpy(samples)[None, : int(16_000 * FILLED)] for samples, rate in read if rate == 16_000]
    if len(clips) < 4:
        raise SystemExit(f"{folder} holds {len(clips)} recordings at 16,000 Hz: the race needs 4 or more")
    return clips


def whisper(arguments: argparse.Namespace) -> tuple[Encoder, Encoder]:
    """Encoders in full precision and quantized: the given ones, or random weights with static ranges."""
    torch.manual_seed(0)
    if arguments.weights is None:
        full: Encoder = SpeechTransformer(**BASE).eval()
    else:
        full = import_encoder(arguments.weights)[0]
    if arguments.quantized is not None:
        return full, load_encoder(arguments.quantized).eval()
    quantized = quant.prepare(copy.deepcopy(full), STATIC)
    batches = [quantized.front_end(clip) for clip in recordings(arguments.recordings, 8)]
    quant.calibrate(quantized, batches, lambda batch: quantized(*batch))
    return full, quantized


def unfilled(encoder: Encoder) -> Encoder:
    """The same encoder for clips of their own length."""
    other = copy.deepcopy(encoder)
    other.front_end, other.filled = WhisperLogMel(80), False  # type: ignore[assignment]
    other.arguments = encoder.arguments | {"log_mel": "whisper"}
    return other


def resnet18_mel() -> tuple[Encoder, Encoder]:
    """ResNet-18 over log-mel images, with normalization statistics of its own."""
    torch.manual_seed(0)
    encoder = VisionEncoder("resnet18", in_channels=1)
    with torch.no_grad():
        for batch in mel_images():
            encoder(torch.from_numpy(batch["images"]))
    encoder.eval()
    images = [torch.from_numpy(batch["images"]) for batch in mel_images()]
    quantized = quant.prepare(copy.deepcopy(encoder), quant.Policy(activation_range="static"))
    quant.calibrate(quantized, images)
    return encoder, quantized


def mel_images() -> list[Batch]:
    """Speech as images, (1, 1, 80, 1000)."""
    cuts = speech_cuts([(0, 10), (0, 10.01), (0, 10.02)]).values()
    mels = [SpeechTransformer(width=64).front_end(clip.unsqueeze(0))[0] for clip in cuts]
    return [{"images": mel[:, None, :, : MEL_IMAGE[1]].numpy()} for mel in mels]


def log_mels(encoder: Encoder, clips: Sequence[torch.Tensor]) -> list[Batch]:
    """A file's inputs, one clip each."""
    made = (encoder.front_end(clip) for clip in clips)
    return [{"log_mel": mel.numpy(), "lengths": lengths.numpy()} for mel, lengths in made]


def all_files(full: Encoder, quantized: Encoder, batches: list[Batch], folder: Path) -> list[Path]:
    """Ours, those of ONNX Runtime's tools and, where it is installed, of NNCF; the first is in full precision."""
    folder.mkdir()
    size = MEL_IMAGE if full.modality == "image" else None
    ours = [("fp32", full, "fp"), ("ours-int8", quantized, "w8a8"), ("ours-int4", quantized, "w4a8")]
    paths = []
    for name, encoder, bit_width in ours:
        paths.append(folder / f"{name}.onnx")
        export.to_onnx(encoder, paths[-1], bit_width=bit_width, check=False, image_size=size)
        if size is not None and bit_width != "fp":  # convolutions of images have a form for each runtime
            paths.append(folder / f"{name}{FOR_OPENVINO}.onnx")
            export.to_onnx(encoder, paths[-1], bit_width=bit_width, check=False, image_size=size, runtime="openvino")
    paths += stock_files(paths[0], batches, folder)
    return paths + (nncf_files(paths[0], batches, folder) if is_installed() else [])


def sessions(paths: Sequence[Path], threads: int) -> list[Any]:
    """Of each file in the runtimes that it is for: the stock files in their own, those of images in one."""
    found: list[Any] = []
    for path in paths:
        if path.suffix == ".xml":
            found.append(IrSession(path, threads))
            continue
        if not path.stem.endswith(FOR_OPENVINO):
            found.append(start(path, "onnxruntime", threads))
        if path.with_stem(path.stem + FOR_OPENVINO) in paths:
            continue
        if not path.stem.startswith("stock") or path.stem == "stock-static":
            found.append(start(path, "openvino", threads, batch=1))
    return found


def distances(entries: list[Any], held_out: list[Batch]) -> list[float]:
    """Squared error of each session's features over the variance of all numbers of the first's."""
    features = [np.concatenate([entry.run(None, batch)[0] for batch in held_out], axis=None) for entry in entries]
    return [float(np.square(found - features[0]).mean() / features[0].var()) for found in features]


def size_of(path: Path) -> int:
    """Bytes of a file, and of the weights beside it."""
    return path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)


def race(
    arguments: argparse.Namespace, paths: list[Path], seconds: float, threads: int, held_out: list[Batch],
    feeds: Callable[[Any], Batch],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each file in each runtime; a speed-up for each repeat of some turns, and their median."""
    entries = sessions(paths, threads)
    inputs = [feeds(entries[0])] * len(entries)
    repeats = [take_turns(entries, inputs, arguments.turns) for _ in range(arguments.repeats)]
    errors = distances(entries, held_out)
    rows = []
    for index, (session, error) in enumerate(zip(entries, errors, strict=True)):
        times = [each for timings in repeats for each in timings[index]]
        speedups = [min(timings[0]) / min(timings[index]) for timings in repeats]
        low, high = np.percentile(times, [10, 90])
        path = Path(session.path)
        rows.append(
            {
                "file": path.name, "runtime": session.runtime, "precision": session.precision, "threads": threads,
                "seconds": seconds, "size_bytes": size_of(path), "size_ratio": size_of(path) / size_of(paths[0]),
                "latency_ms": median(times), "spread_ms": float(high - low), "fastest_ms": min(times),
                "speedup": median(speedups), "speedups": speedups, "distance": error,
            }
        )  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """A line for each row."""
    columns = ("file", "runtime", "s", "threads", "ms", "spread", "fastest", "speed-up", "size", "distance")
    found = Table(*columns, title=title)
    for row in rows:
        found.add_row(
            row["file"].partition(".")[0], f"{row['runtime']} {row['precision']}", f"{row['seconds']:g}",
            str(row["threads"]), f"{row['latency_ms']:.1f}", f"{row['spread_ms']:.1f}", f"{row['fastest_ms']:.1f}",
            _with_range(row["speedups"]), f"{row['size_ratio']:.3f}", f"{row['distance']:.4f}",
        )  # fmt: skip
    return found


def _with_range(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def whisper_rows(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All lengths and numbers of threads."""
    full, quantized = whisper(arguments)
    looked_at, others = recordings(arguments.recordings, 16), recordings(arguments.held_out, 9)
    rows: list[dict[str, Any]] = []
    forms = [("filled", (FILLED,), full, quantized), ("own", SHORTER, unfilled(full), unfilled(quantized))]
    for name, lengths, floats, integers in forms:
        lengths = tuple(length for length in lengths if length in arguments.seconds)
        if not lengths:
            continue
        paths = all_files(floats, integers, log_mels(floats, looked_at), folder / name)
        held_out = log_mels(floats, others)
        for seconds in lengths:
            for threads in arguments.threads:
                rows += race(arguments, paths, seconds, threads, held_out, lambda it, s=seconds: feed(it, s))
                log.warning("measured %g s on %d threads", seconds, threads)
    return rows


def resnet_rows(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One image."""
    full, quantized = resnet18_mel()
    images = mel_images()
    paths = all_files(full, quantized, images, folder / "resnet")
    found = [race(arguments, paths, 0.0, threads, images, lambda _: images[0]) for threads in arguments.threads]
    return [row for rows in found for row in rows]


def last_line(rows: Sequence[dict[str, Any]]) -> str:
    """Of 30 s and the most threads."""
    most = max(row["threads"] for row in rows)
    rows = [row for row in rows if (row["seconds"], row["threads"]) == (FILLED, most)]
    best = {
        name: max((row for row in rows if row["file"].startswith(name)), key=lambda row: row["speedup"], default=None)
        for name in ("ours-int8", "ours-int4", "nncf-int8")
    }
    int8, int4, nncf = best["ours-int8"], best["ours-int4"], best["nncf-int8"]
    if int8 is None or int4 is None:
        return "no 30 s were measured\n"
    values = [f"{row[key]:.{digits}f}" for key, digits in (("speedup", 2), ("size_ratio", 3), ("distance", 4))
              for row in (int8, int4)]  # fmt: skip
    return LINE.format(*values, "none" if nncf is None else f"{nncf['speedup']:.2f}")


def main() -> None:
    """Measure the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="openai/whisper-base as downloaded; random weights of its shape without")
    parser.add_argument("--quantized", help="encoder of ssql quantize --bit_width '[w8a8, w4a8]' --policy.smooth true")
    parser.add_argument("--recordings", help="folder to calibrate the others on; speech of the package without")
    parser.add_argument("--held_out", help="folder that nobody calibrated on, for the distances")
    parser.add_argument("--seconds", type=float, nargs="+", default=[*SHORTER, FILLED])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="of the whole; each gives a speed-up")
    parser.add_argument("--turns", type=int, default=5, help="timed runs of each file in each repeat")
    parser.add_argument("--networks", nargs="+", choices=["whisper_base", "resnet18_mel"])
    parser.add_argument("--output", type=Path, default=Path("runs/bench-export"), help="folder for JSON and plots")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)  # the stock quantizers' advice
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    if not is_installed():
        console.print("NNCF is not installed, and has no rows: pip install nncf")
    networks = arguments.networks or ["resnet18_mel", "whisper_base"]
    for name in networks:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            rows = (whisper_rows if name == "whisper_base" else resnet_rows)(arguments, Path(folder))
        weights = "published weights" if name == "whisper_base" and arguments.weights else "random weights"
        console.print(table(rows, f"{name}, {weights}"))
        target = arguments.output / name
        save({target.with_suffix(".json"): rows, target.with_suffix(".png"): latency_figure(rows)})
        if name == "whisper_base":
            sys.stdout.write(last_line(rows))


if __name__ == "__main__":
    main()
