"""The commands that make and try files, each a typed function that jsonargparse turns into a command line."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

import export as onnx_export
import quant
from encoders import (
    Encoder,
    FrameEncoder,
    Head,
    StreamingTransformer,
    check_folder_target,
    load_encoder,
    load_head,
    load_tokenizer,
    save_encoder,
    state_sha256,
    weights_sha256,
    window_encoder,
)
from encoders.ownership import LATENCIES, REPORT, refuse_foreign
from encoders.paths import shown
from quant import parse_bit_width
from quant.checks import check_at_least
from quant.observers import parse_observer
from ssql.checks import not_empty
from ssql.console import say
from ssql.data import DataModule
from ssql.evaluate import calibrate_on, correct_bias_on, prepare_anew, sensitivities_on
from ssql.features import feature_paths, write_features
from ssql.figures import latency_figure
from ssql.output import refuse_existing, reserved, save_json, save_plot
from ssql.probe_head import labelled_test, probe_head
from ssql.report import latency_tables, sensitivity_table
from ssql.rows import results_of

SHORTEST_CLIP = 0.025  # seconds: one frame
# Of data that a file is verified with.
CLIPS = 32
FILE_NAMES = {
    "fp": "encoder-fp32.onnx",
    "fp16": "encoder-fp16.onnx",
    "w8a8": "encoder-int8.onnx",
    "w4a8": "encoder-int4.onnx",
}


def calibrate(
    encoder: str,
    data: DataModule,
    output: str,
    observer: str = "min_max",
    policy: quant.Policy | None = None,
    average_bits: float | None = None,
    batches: int = 8,
    bias_correction: list[str] = [],  # noqa: B006
    overwrite: bool = False,
) -> None:
    """Choose anew how an encoder is quantized, without training: grids, bits of each layer, activation ranges.

    A head or tokenizer beside the encoder comes along.

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
        bias_correction: bit-widths at which the layers keep their mean outputs, as heads trained at full precision
            need it: '[w8a8, w4a8]'.
        overwrite: replace an existing encoder folder, which may be the same; one that holds anything else is refused.
    """
    check_folder_target(output, overwrite)
    check_at_least(1, batches=batches)
    check_at_least(2, average_bits=average_bits)
    parse_observer(observer)
    for bit_width in bias_correction:
        quant.check_correctable(bit_width)
    loaded = load_encoder(encoder)
    prepare_anew(loaded, policy)
    learned = quant.learned_bit_width(loaded)
    if learned is not None:
        raise ValueError(
            f"the steps of {encoder} were learned at {learned}, they are its ranges: give a policy to begin anew, such "
            "as --policy.first_layer w8a32"
        )
    if average_bits is not None:
        rows = sensitivities_on(loaded, data, batches)
        mixed = quant.policy_within(loaded, rows, average_bits)
        say(sensitivity_table(rows, mixed))
        prepare_anew(loaded, mixed)
    calibrate_on(loaded, data, batches, observer)
    for bit_width in bias_correction:
        correct_bias_on(loaded, data, batches, bit_width)
    save_encoder(loaded, output, overwrite, load_head(encoder), load_tokenizer(encoder))
    say(f"encoder: {output}")


def export(
    encoder: str,
    output: str,
    bit_width: list[str] | str = "w8a8",
    input: onnx_export.SpeechInput | None = None,
    data: DataModule | None = None,
    task: str | None = None,
    accuracy: str | None = None,
    trained_on: str = "unspecified",
    licence: str = "unspecified",
    overwrite: bool = False,
) -> None:
    """Write an encoder as ONNX at one or more bit-widths, verify each file against torch, measure them, describe them.

    Leaves the files, a report of each verification, latency.json and a model card (README.md, config.json). A head
    (ssql finetune) and a tokenizer (ssql tokenizer) beside the encoder go into the files. With data and task a linear
    probe does, trained at each bit-width, unless the encoder has a head for the task; for 99.5 % of the
    test clips it has to say in ONNX Runtime what it says in torch. Files are verified on clips of data, or on real
    speech that comes with the package.

    Example: ssql export --encoder runs/a/encoder --output runs/a --bit_width '[fp, w8a8, w4a8]' --input waveform
    --data SpokenWords --task word

    Args:
        encoder: encoder folder.
        output: folder for encoder-fp32.onnx (fp), encoder-int8.onnx (w8a8), encoder-int4.onnx (w4a8),
            encoder-<bit-width>.onnx for others.
        bit_width: one, or a list: fp, fp16 (float32 stored in 16 bits), w8a8, w4a8, w2a8, ...; w7a8 where a
            processor without VNNI would saturate the sums of w8a8; w4a32 where there are no integer kernels.
        input: waveform puts the front end into the files; log_mel by default, where the encoder takes that.
        data: clips or images to verify the files with; labelled, for what the encoder's own head says of its test
            split, or with task for a head.
        task: the label to predict; `text` for a recognizer's own head.
        accuracy: JSON file that ssql evaluate, suite or finetune wrote of this encoder as it is saved, for the model
            card; results of other weights, ranges or heads are refused.
        trained_on: the encoder's training data, for the model card.
        licence: of the weights, for the model card.
        overwrite: replace existing files.
    """
    if data is None and task is not None:
        raise ValueError("a task needs data to learn it from: --data SpokenWords --task word")
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    not_empty(bit_width=bit_widths)
    paths = {b: Path(output) / (FILE_NAMES.get(b) or f"encoder-{parse_bit_width(b)}.onnx") for b in bit_widths}
    refuse_existing(paths.values(), overwrite)
    latency_file = Path(output) / "latency.json"
    refuse_foreign(latency_file, LATENCIES)
    for path in paths.values():
        refuse_foreign(path.with_suffix(".verification.json"), REPORT)
    onnx_export.refuse_foreign_card(Path(output))
    loaded, own_head, tokenizer = load_encoder(encoder), load_head(encoder), load_tokenizer(encoder)
    head_sha256 = state_sha256(own_head) if own_head else None
    known = results_of(Path(accuracy), weights_sha256(loaded), head_sha256, encoder) if accuracy else {}
    heads = {b: own_head for b in bit_widths}
    if data is not None and task is not None and (own_head is None or own_head.label != task):
        heads = {b: probe_head(loaded, data, task, "fp" if b == "fp16" else b) for b in bit_widths}
    clips = _clips(data, loaded)
    with reserved(Path(output) / "export", paths.values(), overwrite):
        kept = onnx_export.entries_to_keep(Path(output), loaded, input, heads[bit_widths[0]], overwrite, tokenizer)
        for b, path in paths.items():
            labelled = _labelled(data, heads[b], task)
            onnx_export.to_onnx(
                loaded, path, b, input, heads[b], overwrite, clips=clips, labelled=labelled, tokenizer=tokenizer
            )
        latencies = onnx_export.measure_files(list(paths.values()))
        save_json(_with_others(latencies, latency_file), latency_file)
        say(*latency_tables(latencies))
        card = onnx_export.describe(list(paths.values()), loaded, licence, trained_on)
        for entry in card["files"]:
            if entry["file"] != FILE_NAMES["fp16"]:  # its weights are others than those of full precision
                entry["accuracy_in_torch"] = known.get(entry["bit_width"], {})
            entry["latency_ms"] = {
                f"{row['seconds']:g}": row["latency_ms"] for row in latencies if row["file"] == entry["file"]
            }
        onnx_export.write_card(card, Path(output), kept)
        say(f"model card: {Path(output) / 'README.md'}")


def stream(encoder: str, output: str, bit_width: list[str] | str = "w8a8", overwrite: bool = False) -> None:
    """Write one step of a streaming encoder as ONNX: a chunk and the state in, features and the next state out.

    Each file is verified, chunk by chunk, against torch on whole clips.
    Example: ssql stream --encoder runs/a/encoder --output runs/a --bit_width '[w8a8, w4a8]'

    Args:
        encoder: folder of a StreamingTransformer.
        output: folder for stream-fp32.onnx (fp), stream-int8.onnx (w8a8), stream-int4.onnx (w4a8),
            stream-<bit-width>.onnx for others.
        bit_width: one, or a list.
        overwrite: replace existing files.
    """
    not_empty(bit_width=bit_width)
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    names = {b: FILE_NAMES.get(b) or f"encoder-{parse_bit_width(b)}.onnx" for b in bit_widths}
    paths = {b: Path(output) / name.replace("encoder", "stream") for b, name in names.items()}
    refuse_existing(paths.values(), overwrite)
    loaded = StreamingTransformer.from_pretrained(encoder)
    with reserved(Path(output) / "stream", paths.values(), overwrite):
        for b, path in paths.items():
            onnx_export.stream_to_onnx(loaded, path, b, overwrite)
            say(f"{path}: {onnx_export.verify_stream(path, loaded, b)}")


def features(
    files: list[str],
    encoder: str,
    output: str,
    bit_width: str | None = None,
    window: float | None = None,
    overlap: float = 4.0,
    batch_size: int = 1,
    overwrite: bool = False,
) -> None:
    """Features of audio files of any length, by windows that overlap; memory does not grow with the length.

    Leaves safetensors files: features, float32 (frames, width), times, float32 (frames,) in seconds, and in the
    header's metadata frame_rate_hz, bit_width, window_s, overlap_s and largest_seam, the largest relative difference of
    two windows' features where they are joined.

    Example: ssql features talk.wav --encoder runs/a/encoder --bit_width w4a8 --output runs/talk.safetensors
    Example: ssql features a.wav b.flac --encoder runs/a/encoder-int4.onnx --output runs/features

    Args:
        files: audio files of any sample rate; channel 0 is taken.
        encoder: encoder folder, or a file that ssql export wrote (.onnx).
        output: folder for <name>.safetensors of each audio file; or, for one audio file, its own <name>.safetensors.
        bit_width: of an encoder folder: fp by default. An .onnx file has its own.
        window: length in seconds; 30 by default, or what the encoder takes at most. Step-Audio 2 has 25.
        overlap: of a window with the next in seconds; each gives its middle, half the overlap off on either side.
        batch_size: windows encoded at once.
        overwrite: replace existing files.
    """
    check_at_least(1, batch_size=batch_size)
    paths = feature_paths(files, output)
    refuse_existing(paths.values(), overwrite)
    at_bit_width: AbstractContextManager[None] = nullcontext()
    if encoder.endswith(".onnx"):
        in_windows, about = onnx_export.file_window_encoder(encoder)
        run = parse_bit_width(about["bit_width"])
        if bit_width is not None and parse_bit_width(bit_width) != run:
            raise ValueError(f"{encoder} runs at {run}: leave --bit_width out, or export the encoder at {bit_width}")
    else:
        loaded, run = load_encoder(encoder), parse_bit_width("fp" if bit_width is None else bit_width)
        if not isinstance(loaded, FrameEncoder):
            raise ValueError(f"{encoder} holds a {loaded.name} encoder: only speech encoders have features of frames")
        in_windows = window_encoder(loaded)
        if run != quant.FULL_PRECISION:
            at_bit_width = quant.at(loaded, run, reuse_weights=True)
    with at_bit_width:
        for recording, path in paths.items():
            about = {"encoder": encoder, "bit_width": str(run), "audio": shown(recording.name)}
            written = write_features(in_windows, recording, path, about, window, overlap, batch_size)
            say(str(written))


def verify(
    file: str, encoder: str, bit_width: str | None = None, data: DataModule | None = None, task: str | None = None
) -> None:
    """Compare an ONNX file with torch: every integer, features frame by frame, head and names, tokens, accuracy.

    Writes <file>.verification.json beside the file; exits with 1 where they do not agree, and removes nothing. Says the
    worst frame, its squared error over the variance of torch's features, and how many values fell to the other side of
    a rounding edge.

    Example: ssql verify --file runs/a/encoder-int4.onnx --encoder runs/a/encoder --data SpokenWords --task word

    Args:
        file: the ONNX file.
        encoder: the encoder folder it was exported from.
        bit_width: the bit-width it was exported at; what the file says by default.
        data: clips or images to compare on, 32 of the test split; real speech that comes with the package by default.
            Labelled, also what the file's own head, or with task a linear probe, says of the test split.
        task: the label to predict; the head's own by default. Names a head in the file that ssql export trained, which
            the folder does not have.
    """
    path, report = Path(file), Path(file).with_suffix(".verification.json")
    refuse_foreign(report, REPORT)
    loaded = load_encoder(encoder)
    proto, found = onnx_export.load_file(path)
    own, head = onnx_export.stored_head(proto, path), load_head(encoder)
    if task is not None and own is not None and own.label != task:
        raise ValueError(f"{file} has a head for the task {own.label}, not {task}")
    if task is not None and own is None and data is None:
        raise ValueError(f"{file} has no head: a probe for the task {task} needs data, --data")
    if task is not None and (head is None or head.label != task):
        probe = own is None and data is not None
        head = probe_head(loaded, data, task, found["bit_width"] if bit_width is None else bit_width) if probe else None  # type: ignore[arg-type]
    said = own or (head if task is not None else None)
    result = onnx_export.verify(
        path, loaded, bit_width, _clips(data, loaded), head, _labelled(data, said, task), load_tokenizer(encoder)
    )
    save_json(result.to_dict(), report)
    say(f"{path}: {result}")
    if not result.passed:
        raise onnx_export.VerificationError(f"{path} does not agree with torch: {result}")


def bench(
    files: list[str],
    seconds: list[float] = [1.0, 10.0],  # noqa: B006
    threads: list[int] = [1, 2],  # noqa: B006
    repeats: int = 15,
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Size, cold start, memory, latency and real-time factor of ONNX files, side by side in ONNX Runtime.

    Example: ssql bench runs/a/encoder-fp32.onnx runs/a/encoder-int8.onnx --output runs/a/latency

    Args:
        files: ONNX files that `ssql export` wrote; ratios are against the first.
        seconds: clip lengths in seconds.
        threads: of ONNX Runtime, one measurement each; 0 takes its default.
        repeats: timed runs of each file.
        output: <output>.json gets the rows, <output>.png the plot.
        overwrite: replace earlier latencies.
    """
    not_empty(files=files, seconds=seconds, threads=threads)
    check_at_least(1, repeats=repeats)
    check_at_least(0, threads=threads)
    check_at_least(SHORTEST_CLIP, seconds=seconds)
    targets = [Path(f"{output}.json"), Path(f"{output}.png")] if output else []
    refuse_existing(targets, overwrite, LATENCIES)
    with reserved(Path(output), targets, overwrite, LATENCIES) if output else nullcontext():
        rows = onnx_export.measure_files([Path(file) for file in files], seconds, threads, repeats)
        if output:
            save_json(rows, targets[0])
            save_plot(latency_figure(rows), targets[1])
    say(*latency_tables(rows))


def _with_others(latencies: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """Latencies, after those that a file has of other ONNX files beside it."""
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() and file.stat().st_size else []
    measured = {row["file"] for row in latencies}
    others = [row for row in earlier if row["file"] not in measured and file.with_name(row["file"]).is_file()]
    return others + latencies


def _labelled(data: DataModule | None, head: Head | None, task: str | None) -> onnx_export.Labelled | None:
    """Test data of a head; None without, and where nobody asked for a task that the data has no label for."""
    if data is None or head is None or head.task == "regression":
        return None
    texts = getattr(data.dataset("train"), "texts", None)
    has_label = texts is not None if head.task == "ctc" else head.label in data.classes
    return labelled_test(data, head) if task is not None or has_label else None


def _clips(data: DataModule | None, encoder: Encoder) -> list[Tensor] | None:
    """At most 32 clips or images, evenly spread over the test split, or over the training split where it is empty.

    Raises:
        ValueError: data for another kind of encoder.
    """
    if data is None:
        return None
    if data.modality != encoder.modality:
        raise ValueError(f"the encoder is for {encoder.modality}, the data is {data.modality}")
    for split in ("test", "train"):
        dataset = data.splits[split]
        size = len(dataset)  # type: ignore[arg-type]
        if size:
            places = range(0, size, -(-size // CLIPS))
            return [dataset[place]["inputs"] for place in places]
    raise ValueError("the data holds no clip to verify with")
