"""What the commands that export and verify share: names of files, clips, labelled data of heads."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

import export as onnx_export
from encoders import Encoder, Head
from quant import parse_bit_width
from ssql.data import DataModule
from ssql.evaluation.probe_head import labelled_test
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

NAMES = {"fp": "fp32", "w8a8": "int8", "w4a8": "int4"}
CLIPS = 32  # of data that a file is verified with


def file_paths(output: str, what: str, bit_widths: Sequence[str], float16: bool = False) -> dict[str, Path]:
    """`<output>/<what>-int8.onnx` for w8a8, and so on, for each bit-width; of fp, `-fp16` where float16 is stored.

    Raises:
        ValueError: an unknown bit-width.
    """
    names = NAMES | ({"fp": "fp16"} if float16 else {})
    return {b: Path(output) / f"{what}-{names.get(b) or parse_bit_width(b)}.onnx" for b in bit_widths}


def in_turn(paths: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Each bit-width and its file; which file of how many is begun, is said."""
    for number, (bit_width, path) in enumerate(paths.items(), start=1):
        log.info("writing file %d of %d, %s at %s", number, len(paths), path, bit_width)
        yield bit_width, path


def labelled_of_head(data: DataModule | None, head: Head | None, task: str | None) -> onnx_export.Labelled | None:
    """Test data of a head; None without, and where nobody asked for a task that the data has no label for."""
    if data is None or head is None or head.task == "regression":
        return None
    texts = getattr(data.dataset("train"), "texts", None)
    has_label = texts is not None if head.task == "ctc" else head.label in data.classes
    if task is None and not has_label:
        return None
    clips = len(data.dataset("test"))  # type: ignore[arg-type]
    return track(labelled_test(data, head), "comparing answers: clips", clips, lambda batch: len(batch[2]))


def verification_clips(data: DataModule | None, encoder: Encoder) -> list[Tensor] | None:
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
