"""Exported encoders against ONNX Runtime's stock quantizers: size, start, memory, latency, closeness to fp32.

Run: make bench-export      (or: .venv/bin/python benchmarks/exported.py --networks resnet18_mel --repeats 9)
Every file of a network takes its turn in one process, at 1 and 2 threads; all ours are verified against torch first.
Tables go to the terminal; <network>.json and <network>.png to --output. The last line printed is of the 512 x 6 speech
transformer, 10 s clips and 2 threads, against ONNX Runtime fp32 of the same network (fastest runs):
`int8_speedup=<x> int4_speedup=<x> int8_size=<fraction> int4_size=<fraction>`.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from stock import stock_files

import export
import quant
from encoders import Encoder, SpeechTransformer, VisionEncoder
from encoders.storage.files import write_json
from export.check.inputs import speech_cuts
from export.runtime.session import open_session
from ssql.reports.figures import latency_figure
from ssql.reports.result_files import save_plot
from ssql.reports.tables import latency_tables

SECONDS = 10.0
MEL_IMAGE = (80, 1000)  # the same 10 s


class Network(NamedTuple):
    """What is measured.

    Attributes:
        encoder: builds it, in full precision.
        policy: how it is quantized.
        inputs: names and arrays of one batch for calibration.
    """

    encoder: Callable[[], Encoder]
    policy: quant.Policy
    inputs: Callable[[], list[dict[str, np.ndarray]]]


def speech_512x6() -> Encoder:
    """The transformer that training is measured with, too."""
    return SpeechTransformer(width=512, depth=6, heads=8)


def resnet18_mel() -> Encoder:
    """ResNet-18 over log-mel images, with normalization statistics of its own."""
    encoder = VisionEncoder("resnet18", in_channels=1)
    with torch.no_grad():
        for batch in mel_images():
            encoder(torch.from_numpy(batch["images"]))
    return encoder


def log_mels() -> list[dict[str, np.ndarray]]:
    """Speech, one clip a batch."""
    mels = [
        SpeechTransformer(width=64).front_end(clip.unsqueeze(0))
        for clip in speech_cuts([(0, 4), (0, 7), (0, 10)]).values()
    ]
    return [{"log_mel": mel.numpy(), "lengths": lengths.numpy()} for mel, lengths in mels]


def mel_images() -> list[dict[str, np.ndarray]]:
    """The same as images, (1, 1, 80, 1000)."""
    mels = [
        SpeechTransformer(width=64).front_end(clip.unsqueeze(0))[0]
        for clip in speech_cuts([(0, 10), (0, 10.01), (0, 10.02)]).values()
    ]
    return [{"images": mel[:, None, :, : MEL_IMAGE[1]].numpy()} for mel in mels]


# In the transformer, products of attention are quantized as well: a third of its time at int8 otherwise.
NETWORKS = {
    "speech_512x6": Network(speech_512x6, quant.Policy(attention=True), log_mels),
    "resnet18_mel": Network(resnet18_mel, quant.Policy(), mel_images),
}


def our_files(network: Network, folder: Path) -> list[Path]:
    """fp32, fp16, int8, int4, int2, and the weight-only form in blocks of 32 weights; verified against torch."""
    torch.manual_seed(0)
    encoder = network.encoder().eval()
    image_size = MEL_IMAGE if encoder.modality == "image" else None
    variants = {
        "fp32": ("fp", None),
        "fp16": ("fp", None),
        "ours-int8": ("w8a8", network.policy),
        "ours-int4": ("w4a8", network.policy),
        "ours-int2": ("w2a8", network.policy),
        "ours-int4-blocks": ("w4a32", quant.Policy(granularity="per_group_32")),
    }
    if network.policy.attention:
        variants["ours-int8-float-attention"] = ("w8a8", quant.Policy())
    paths = []
    for name, (bit_width, policy) in variants.items():
        if policy is not None:
            batches = [[torch.from_numpy(value) for value in batch.values()] for batch in network.inputs()]
            quant.calibrate(quant.prepare(encoder, policy), batches, lambda batch: encoder(*batch))
        paths.append(folder / f"{name}.onnx")
        export.to_onnx(encoder, paths[-1], bit_width=bit_width, float16=name == "fp16", image_size=image_size)
        if policy is not None:
            quant.unprepare(encoder)
    return paths


def cosine_to_first(paths: list[Path], inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Cosine of each file's features with those of the first file, by name."""
    features = [open_session(path).run(None, inputs)[0].astype(np.float64).flatten() for path in paths]
    norms = [float(np.linalg.norm(values)) for values in features]
    return {
        path.stem: float(values @ features[0]) / norm / norms[0]
        for path, values, norm in zip(paths, features, norms, strict=True)
    }


def measure(name: str, repeats: int, output: Path) -> list[dict[str, Any]]:
    """Export, quantize with the stock tools, measure, print, write; returns the rows."""
    network = NETWORKS[name]
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        ours = our_files(network, Path(folder))
        paths = [*ours, *stock_files(ours[0], network.inputs(), Path(folder))]
        rows = export.measure_files(paths, seconds=(SECONDS,), threads=(1, 2), repeats=repeats)
        cosines = cosine_to_first(paths, network.inputs()[-1])
        console.print(f"[bold]{name}[/bold]")
        for path in paths:
            operators = export.integer_operators(path)
            floats = {kind: operators[kind] for kind in ("MatMul", "FusedMatMul", "Conv", "Gemm") if kind in operators}
            row_cosine = cosines[path.stem]
            console.print(f"  {path.stem:28} cosine to fp32 {row_cosine:.5f}   float products left: {floats or 'none'}")
    for row in rows:
        row["cosine_to_fp32"] = cosines[Path(row["file"]).stem]
    output.mkdir(parents=True, exist_ok=True)
    write_json(rows, output / f"{name}.json")
    save_plot(latency_figure(rows), output / f"{name}.png")
    console.print(*latency_tables(rows))
    return rows


def main() -> None:
    """Measure the networks asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25, help="timed runs of each file and number of threads")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=Path("runs/bench-export"), help="folder for JSON and plots")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # the stock quantizers' advice
    results = {name: measure(name, arguments.repeats, arguments.output) for name in reversed(arguments.networks)}
    if "speech_512x6" not in results:
        return
    two = {row["file"]: row for row in results["speech_512x6"] if row["threads"] == 2}
    int8, int4 = two["ours-int8.onnx"], two["ours-int4.onnx"]
    sys.stdout.write(
        f"int8_speedup={int8['speedup']:.2f} int4_speedup={int4['speedup']:.2f} "
        f"int8_size={int8['size_ratio']:.3f} int4_size={int4['size_ratio']:.3f}\n"
    )


if __name__ == "__main__":
    main()
