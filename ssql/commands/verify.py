"""`ssql verify`: an ONNX file against torch."""

from pathlib import Path

import export as onnx_export
from encoders import load_encoder, load_head, load_tokenizer
from encoders.storage.ownership import REPORT, refuse_foreign
from export.graph.head import stored_head
from export.metadata import load_file
from export.runtime.runtimes import DEFAULT, Runtime
from ssql.commands.exported_files import labelled_of_head, verification_clips
from ssql.commands.runtimes import check_runtimes
from ssql.data import DataModule
from ssql.evaluation.probe_head import probe_head
from ssql.reports.result_files import save
from ssql.terminal.console import say
from ssql.terminal.inputs import check_inputs


def verify(
    file: str,
    encoder: str,
    bit_width: str | None = None,
    data: DataModule | None = None,
    task: str | None = None,
    runtime: Runtime = DEFAULT,
) -> None:
    """Compare an ONNX file with torch: every integer, features frame by frame, head and names, tokens, accuracy.

    Writes <file>.verification.json beside the file; exits with 1 where they do not agree, and removes nothing. Says
    first whether they agree, then the worst frame, its squared error over the variance of torch's features, and how
    many values fell to the other side of a rounding edge. With a runtime, also how far the features are from torch's
    as that runtime computes them (in_runtime in the report): by 2 % of their variance at most, or by chance.

    Example: ssql verify --file runs/a/encoder-int4.onnx --encoder runs/a/encoder --data SpokenWords --task word

    Args:
        file: the ONNX file.
        encoder: the encoder folder it was exported from; a margin of silence after each clip is the file's own.
        bit_width: the bit-width it was exported at; what the file says by default.
        data: clips or images to compare on, 32 of the test split; real speech that comes with the package by default.
            Labelled, also what the file's own head, or with task a linear probe, says of the test split.
        task: the label to predict; the head's own by default. Names a head in the file that ssql export trained, which
            the folder does not have.
        runtime: beside ONNX Runtime, compare the features of openvino, at the precision that is fastest on this
            processor, or of openvino_f32.
    """
    check_runtimes(runtime)
    path = Path(file)
    proto, found = load_file(path)
    report = path.with_suffix(".verification.json")
    check_inputs(data=data)
    loaded = load_encoder(encoder)
    refuse_foreign(report, REPORT)
    own, head = stored_head(proto, path), load_head(encoder)
    if task is not None and own is not None and own.label != task:
        raise ValueError(f"{file} has a head for the task {own.label}, not {task}")
    if task is not None and own is None and data is None:
        raise ValueError(f"{file} has no head: a probe for the task {task} needs data, --data")
    if task is not None and (head is None or head.label != task):
        probe = own is None and data is not None
        head = probe_head(loaded, data, task, found["bit_width"] if bit_width is None else bit_width) if probe else None  # type: ignore[arg-type]
    said = own or (head if task is not None else None)
    result = onnx_export.verify(
        path,
        loaded,
        bit_width,
        verification_clips(data, loaded),
        head,
        labelled_of_head(data, said, task),
        load_tokenizer(encoder),
        runtime,
    )
    save({report: result.to_dict()})
    say(f"{path}: {result}")
    if not result.passed:
        raise onnx_export.VerificationError(f"{path} does not agree with torch: {result.reasons}")
