"""The commands that make and try files, each a typed function that jsonargparse turns into a command line."""

from pathlib import Path

from rich.console import Console

import export as onnx_export
import quant
from encoders import Encoder, load_encoder
from quant import parse_bit_width
from ssql.data import DataModule
from ssql.evaluate import calibrate_on, prepare_anew, sensitivities_on
from ssql.output import refuse_existing, save_json
from ssql.report import latency_table, sensitivity_table

FILE_NAMES = {"fp": "encoder-fp32.onnx", "w8a8": "encoder-int8.onnx", "w4a8": "encoder-int4.onnx"}


def calibrate(
    encoder: str,
    data: DataModule,
    output: str,
    observer: str = "min_max",
    policy: quant.Policy | None = None,
    average_bits: float | None = None,
    batches: int = 8,
    overwrite: bool = False,
) -> None:
    """Choose anew how an encoder is quantized, without training: grids, bits of each layer, activation ranges.

    Example: ssql calibrate --encoder runs/a/encoder --data SpokenWords --output runs/a/encoder-mse
    --observer mse --policy.shift true --policy.weight_range mse --average_bits 4

    Args:
        encoder: encoder folder.
        data: data module whose training split is looked at; labels are not needed.
        output: folder of the new encoder.
        observer: how activation ranges are found: min_max, moving_average, percentile, mse.
        policy: per-layer bit-widths and grids; the encoder's own when null.
        average_bits: gives each layer its own weight bits, by its sensitivity, within this average.
        batches: training batches looked at.
        overwrite: replace an existing folder.
    """
    refuse_existing([Path(output)], overwrite)
    loaded = load_encoder(encoder)
    prepare_anew(loaded, policy)
    if average_bits is not None:
        rows = sensitivities_on(loaded, data, batches)
        mixed = quant.policy_within(loaded, rows, average_bits)
        Console().print(sensitivity_table(rows, mixed))
        prepare_anew(loaded, mixed)
    calibrate_on(loaded, data, batches, observer)
    loaded.save_pretrained(output, overwrite=overwrite)
    Console().print(f"encoder: {output}")


def export(encoder: str, output: str, bit_width: list[str] | str = "w8a8", overwrite: bool = False) -> None:
    """Write an encoder as ONNX at one or more bit-widths, verify each file against torch, measure them.

    Example: ssql export --encoder runs/a/encoder --output runs/a --bit_width '[fp, w8a8, w4a8]'

    Args:
        encoder: encoder folder.
        output: folder for encoder-fp32.onnx (fp), encoder-int8.onnx (w8a8), encoder-int4.onnx (w4a8),
            encoder-<bit-width>.onnx for others.
        bit_width: one, or a list.
        overwrite: replace existing files.
    """
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    paths = {b: Path(output) / FILE_NAMES.get(b, f"encoder-{parse_bit_width(b)}.onnx") for b in bit_widths}
    refuse_existing(list(paths.values()), overwrite)
    loaded = load_encoder(encoder)
    for name, path in paths.items():
        onnx_export.to_onnx(loaded, path, name, overwrite=overwrite)
        _print_verification(path, loaded, name)
    bench([str(path) for path in paths.values()], output=str(Path(output) / "latency.json"))


def verify(file: str, encoder: str, bit_width: str) -> None:
    """Compare an ONNX file with torch: every integer, and features at several lengths and batch sizes.

    Example: ssql verify --file runs/a/encoder-int4.onnx --encoder runs/a/encoder --bit_width w4a8

    Args:
        file: the ONNX file.
        encoder: the encoder folder it was exported from.
        bit_width: the bit-width it was exported at.
    """
    _print_verification(Path(file), load_encoder(encoder), bit_width)


def bench(files: list[str], seconds: list[float] = [1.0, 10.0], threads: int = 0, output: str | None = None) -> None:  # noqa: B006
    """Size, cold start, latency and real-time factor of ONNX files, side by side in ONNX Runtime.

    Example: ssql bench --files '[runs/a/encoder-fp32.onnx, runs/a/encoder-int8.onnx]'

    Args:
        files: ONNX files that `ssql export` wrote; ratios are against the first.
        seconds: clip lengths in seconds.
        threads: of ONNX Runtime; 0 takes its default.
        output: JSON file for the rows.
    """
    rows = onnx_export.measure_files([Path(file) for file in files], seconds=tuple(seconds), threads=threads)
    if output:
        save_json(rows, Path(output))
    Console().print(latency_table(rows))


def _print_verification(path: Path, encoder: Encoder, bit_width: str) -> None:
    result = onnx_export.verify(path, encoder, bit_width)
    save_json(result.to_dict(), path.with_suffix(".verification.json"))
    Console().print(f"{path}: {result}")
    if not result.passed:
        raise onnx_export.VerificationError(f"{path} does not agree with torch at {bit_width}: {result}")
