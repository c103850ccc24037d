"""The model card: `README.md` and `config.json` beside the files of an export."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import onnx

from encoders import Encoder, Head, Tokenizer, weights_sha256
from encoders.speech.log_mel import HOP, SAMPLE_RATE
from encoders.storage.files import json_bytes, utf8, write_together
from encoders.storage.folder import file_sha256
from encoders.storage.ownership import CARD, mark, refuse_foreign
from export.external_data import SHA256, data_file, size_of
from export.graph.head import stored_head
from export.graph.signature import SpeechInput, input_form
from export.graph.tokenizer import stored_tokenizer
from export.metadata import load_file
from export.oldest_runtime import oldest_runtime
from export.runtime.limits import limits_of
from quant import FULL_PRECISION, BitWidth, is_prepared, parse_bit_width, quant_layers

CONFIG, README = "config.json", "README.md"
TEMPLATE = Path(__file__).with_name("card.md")
FORMAT_VERSION = 1
DTYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
UNSPECIFIED = "unspecified"


def describe(
    paths: Sequence[Path], encoder: Encoder, licence: str = UNSPECIFIED, trained_on: str = UNSPECIFIED
) -> dict[str, Any]:
    """What `config.json` says of files that `to_onnx` wrote of one encoder; entries of `files` may be added to.

    Args:
        paths: the files, of one input and head.
        encoder: that they were exported from.
        licence: of the weights.
        trained_on: data the encoder learned from.

    Returns:
        sample_rate_hz, input (waveform, log_mel, images), inputs and outputs (name to shape, dtype, unit), limits (of
        `export.runtime.limits`), frame_rate_hz, feature_dim, head (null, or task, classes, units, label), tokenizer
        (null, or its sizes), files (file, bit_width, where layers have bits of their own average_weight_bits,
        size_bytes, sha256, where a second file has its weights data_file and data_sha256, oldest_onnxruntime,
        error_over_variance and accuracy: of the file itself, by its verification; `measured` of the file itself, by
        `add_results`, `accuracy_in_torch` and `latency_ms` may be added), licence, trained_on, encoder,
        format_version.
    """
    proto, found = load_file(paths[0])
    head, tokenizer = stored_head(proto), stored_tokenizer(proto)
    units = _units(found, head)
    audio = encoder.modality == "audio"
    return {
        "format_version": FORMAT_VERSION,
        "encoder": {"name": encoder.name, "arguments": encoder.arguments, "weights_sha256": weights_sha256(encoder)},
        "sample_rate_hz": SAMPLE_RATE if audio else None,
        "input": found["input"],
        "inputs": {value.name: _tensor(value, units) for value in proto.graph.input},
        "outputs": {value.name: _tensor(value, units) for value in proto.graph.output},
        "limits": limits_of(paths[0]),
        "frame_rate_hz": float(found["frame_rate_hz"]) if audio else None,
        "feature_dim": encoder.feature_dim,
        "head": head.arguments if head else None,
        "tokenizer": tokenizer.arguments if tokenizer else None,
        "files": [_entry(path, encoder) for path in paths],
        "licence": licence,
        "trained_on": trained_on,
    }


def entries_to_keep(
    folder: Path, encoder: Encoder, input: SpeechInput | None, head: Head | None, overwrite: bool,
    tokenizer: Tokenizer | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Entries of an earlier card in a folder that stay: files of the same encoder, input, head and tokenizer.

    An entry tells of one very file: where that is gone or another by now, so is the entry.

    Raises:
        FileExistsError: a card of another encoder, input, head or tokenizer, unless overwrite; a `README.md` or
            `config.json` that is not a card's, always: an encoder's own folder is no place for its files.
    """
    path, form = folder / CONFIG, input_form(encoder, input)
    refuse_foreign_card(folder)
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    same = (
        found["encoder"]["weights_sha256"] == weights_sha256(encoder)
        and found["input"] == form
        and found["head"] == (head.arguments if head else None)
        and found["tokenizer"] == (tokenizer.arguments if tokenizer else None)
    )
    if same:
        return [entry for entry in found["files"] if _is_file_of(entry, folder)]
    if not overwrite:
        raise FileExistsError(
            f"{folder} holds files of another encoder, input or head, or of another tokenizer "
            f"({found['encoder']['name']}, {found['input']}): choose another folder, or overwrite"
        )
    return []


def refuse_foreign_card(folder: Path) -> None:
    """Raise FileExistsError where a folder's `README.md` or `config.json` is not an export's, such as an encoder's."""
    for name in (CONFIG, README):
        refuse_foreign(folder / name, CARD)


def add_results(file: Path, results: Mapping[str, float]) -> Path | None:
    """Add what was measured of a file to the model card beside it.

    Args:
        file: that `to_onnx` wrote.
        results: name, with unit, to value.

    Returns:
        the card; None where no card describes this very file, and where there is nothing to add.
    """
    folder = file.parent
    try:
        refuse_foreign_card(folder)
    except FileExistsError:
        return None
    if not results or not (folder / CONFIG).is_file():
        return None
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    entries = [entry for entry in config["files"] if entry["file"] == file.name and _is_file_of(entry, folder)]
    for entry in entries:
        entry["measured"] = entry.get("measured", {}) | dict(results)
    if entries:
        write_card(config, folder)
    return folder / README if entries else None


def write_card(config: dict[str, Any], folder: Path, kept: Sequence[dict[str, Any]] = ()) -> None:
    """Write `config.json` and a `README.md` that says the same in words.

    Args:
        config: of `describe`.
        folder: of the files.
        kept: of `entries_to_keep`; files that were written anew have their new entries.
    """
    new = {entry["file"] for entry in config["files"]}
    files = [entry for entry in kept if entry["file"] not in new] + config["files"]
    config = config | {"files": sorted(files, key=lambda entry: -entry["size_bytes"])}
    text = f"{card_text(config)}\n\n{mark(CARD)}"
    write_together({folder / CONFIG: json_bytes(config), folder / README: utf8(text)})


def card_text(config: dict[str, Any]) -> str:
    """Markdown with the front matter of Hugging Face model cards, and a program that runs the last, smallest file."""
    keys = ("accuracy", "measured", "accuracy_in_torch", "latency_ms")
    files = [dict.fromkeys(keys, {}) | entry for entry in config["files"]]
    known = {key: list(dict.fromkeys(name for entry in files for name in entry[key])) for key in keys}
    files = [entry | {key: dict.fromkeys(known[key]) | entry[key] for key in keys} for entry in files]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(config | {"files": files}, known=known)


def _is_file_of(entry: dict[str, Any], folder: Path) -> bool:
    path = folder / entry["file"]
    return path.is_file() and entry.get("sha256") == file_sha256(path)


def _entry(path: Path, encoder: Encoder) -> dict[str, Any]:
    """Of one file of an encoder; accuracy and error over variance are those of its verification report."""
    proto, found = load_file(path)
    report = path.with_suffix(".verification.json")
    checked = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    accuracy = checked.get("accuracy")
    data, weights = data_file(path), {}
    if data is not None:
        weights = {"data_file": data.path.name, SHA256: found.get(SHA256) or file_sha256(data.path)}
    return {
        "file": path.name,
        "bit_width": found["bit_width"],
        **_weight_bits(encoder, parse_bit_width(found["bit_width"])),
        "size_bytes": size_of(path),
        "sha256": file_sha256(path),
        **weights,
        "oldest_onnxruntime": oldest_runtime(proto),
        "error_over_variance": checked.get("error_over_variance"),
        "accuracy": {accuracy["label"]: accuracy["onnx"]} if accuracy else {},
    }


def _weight_bits(encoder: Encoder, run: BitWidth) -> dict[str, float]:
    """Bits of a weight on average, where layers but the first have bits of their own in a run."""
    layers = list(quant_layers(encoder).values()) if is_prepared(encoder) else []
    if run == FULL_PRECISION or all(layer.bits_at(run).weight == run.weight for layer in layers[1:]):
        return {}
    bits = sum(layer.bits_at(run).weight * layer.weight.numel() for layer in layers)
    return {"average_weight_bits": round(bits / sum(layer.weight.numel() for layer in layers), 2)}


def _tensor(value: onnx.ValueInfoProto, units: dict[str, str]) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return {"shape": shape, "dtype": DTYPES[tensor.elem_type], "unit": units[value.name]}


def _units(found: dict[str, str], head: Head | None) -> dict[str, str]:
    frames = f"frames at {float(found.get('frame_rate_hz', 1)):g} Hz"
    mel_frames = f"frames at {SAMPLE_RATE // HOP} Hz"
    return {
        "waveform": f"samples at {SAMPLE_RATE} Hz, from -1 to 1",
        "log_mel": found.get("log_mel", ""),
        "images": f"(pixels in [0, 1] - {found.get('pixel_mean')}) / {found.get('pixel_std')}",
        "lengths": "samples" if found["input"] == "waveform" else mel_frames,
        "features": "none",
        "feature_lengths": frames,
        "logits": "logits: softmax gives probabilities",
        "values": ", ".join((head.units if head else None) or []),
        "linguistic_tokens": "codes, 50/3 a second; -1 beyond a clip's length",
        "semantic_tokens": "codes, 25 a second; -1 beyond a clip's length",
        "linguistic_lengths": "tokens",
        "semantic_lengths": "tokens",
    }
