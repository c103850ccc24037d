"""The model card: `README.md` and `config.json` beside the files of an export."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from encoders import Encoder, Head, Tokenizer, weights_sha256
from encoders.speech.log_mel import HOP, SAMPLE_RATE
from encoders.storage.files import write_json, write_text
from encoders.storage.folder import file_sha256
from encoders.storage.ownership import CARD, mark, refuse_foreign
from export.graph.head import stored_head
from export.graph.signature import SpeechInput, input_form
from export.graph.tokenizer import stored_tokenizer
from export.metadata import load_file
from export.oldest_runtime import oldest_runtime
from export.runtime.limits import limits_of

CONFIG, README = "config.json", "README.md"
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
        (null, or its sizes), files (file, bit_width, size_bytes, sha256, oldest_onnxruntime, error_over_variance and
        accuracy: of the file itself, by its verification; `measured` of the file itself, by `add_results`,
        `accuracy_in_torch` and `latency_ms` may be added), licence, trained_on, encoder, format_version.
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
        "files": [_entry(path) for path in paths],
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
    write_json(config, folder / CONFIG)
    write_text(card_text(config) + "\n" + mark(CARD), folder / README)


def card_text(config: dict[str, Any]) -> str:
    """Markdown with the front matter of Hugging Face model cards."""
    audio, head, files = config["input"] != "images", config["head"], config["files"]
    title = f"{config['encoder']['name'].replace('_', ' ')} encoder, ONNX"
    kind = "speech clips" if audio else "images"
    rate = f", {config['frame_rate_hz']:g} a second" if audio else ""
    does = f"Turns {kind} into features of {config['feature_dim']} numbers{rate}{_tokens_text(config['tokenizer'])}"
    return "\n".join(
        [
            f"---\nlicense: {config['licence']}\nlibrary_name: onnx\ntags: [feature-extraction, quantized]\n---\n",
            f"# {title}\n",
            f"{does}{_head_text(head)}. One set of weights at several bit-widths; wXaY has X-bit weights and Y-bit "
            "activations.\n",
            "## Files\n",
            _table(files),
            "## Inputs and outputs\n",
            "| | name | shape | type | unit |\n| --- | --- | --- | --- | --- |",
            *[
                f"| {side} | `{name}` | {', '.join(map(str, value['shape']))} | {value['dtype']} | {value['unit']} |"
                for side in ("inputs", "outputs")
                for name, value in config[side].items()
            ],
            f"\n{_contract(config)}\n",
            "## Use\n",
            f"```python\n{snippet(config)}```\n",
            "## Origin\n",
            f"Encoder trained on: {config['trained_on']}. Licence: {config['licence']}. Written by ssql-toolkit.\n",
        ]
    )


def snippet(config: dict[str, Any]) -> str:
    """A program of about ten lines that runs the last, smallest file with onnxruntime and numpy."""
    file, form, head = config["files"][-1]["file"], config["input"], config["head"]
    shape = [1 if isinstance(size, str) else size for size in config["inputs"][form]["shape"]]
    lines = ["import numpy as np", "import onnxruntime", ""]
    if form == "waveform":
        lines.insert(0, "import wave\n")
        lines += [
            'with wave.open("clip.wav") as clip:  # 16 kHz, mono, 16 bits',
            "    samples = np.frombuffer(clip.readframes(clip.getnframes()), np.int16).astype(np.float32) / 32768",
            'feeds = {"waveform": samples[None], "lengths": np.array([len(samples)])}',
        ]
    elif form == "log_mel":
        frames = 100 if isinstance(config["inputs"][form]["shape"][2], str) else shape[2]
        seconds = "one second" if frames == 100 else f"{frames * HOP / SAMPLE_RATE:g} seconds, which silence fills"
        lines.append(f"log_mel = np.zeros((1, {shape[1]}, {frames}), np.float32)  # {seconds}")
        lines.append(f'feeds = {{"log_mel": log_mel, "lengths": np.array([{frames}])}}')
    else:
        lines.append(f'feeds = {{"images": np.zeros({tuple(shape)}, np.float32)}}')
    lines += [
        f'session = onnxruntime.InferenceSession("{file}")',
        "names = [output.name for output in session.get_outputs()]",
        "outputs = dict(zip(names, session.run(None, feeds)))",
        'print(outputs["features"].shape)',
    ]
    if config["tokenizer"]:
        lines.append('print(outputs["linguistic_tokens"][0], outputs["semantic_tokens"][0])')
    if head and head["task"] == "classification":
        lines.insert(0, "import json")
        lines.append('classes = json.load(open("config.json", encoding="utf-8"))["head"]["classes"]')
        lines.append('print(classes[outputs["logits"][0].argmax()])')
    elif head:
        lines.append(f'print(outputs["{"values" if head["task"] == "regression" else "logits"}"][0])')
    return "\n".join(lines) + "\n"


def _is_file_of(entry: dict[str, Any], folder: Path) -> bool:
    path = folder / entry["file"]
    return path.is_file() and entry.get("sha256") == file_sha256(path)


def _entry(path: Path) -> dict[str, Any]:
    """Of one file; accuracy and error over variance are those of its verification report."""
    proto, found = load_file(path)
    report = path.with_suffix(".verification.json")
    checked = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    accuracy = checked.get("accuracy")
    return {
        "file": path.name,
        "bit_width": found["bit_width"],
        "size_bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "oldest_onnxruntime": oldest_runtime(proto),
        "error_over_variance": checked.get("error_over_variance"),
        "accuracy": {accuracy["label"]: accuracy["onnx"]} if accuracy else {},
    }


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


def _head_text(head: dict[str, Any] | None) -> str:
    if head is None:
        return ""
    names = ", ".join(head["classes"][:8]) + (", ..." if len(head["classes"]) > 8 else "")
    said = {"classification": "and classes of", "ctc": "and tokens of", "regression": "and numbers of"}[head["task"]]
    return f", {said} the task {head['label']} ({len(head['classes'])}: {names})"


def _tokens_text(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return ""
    codes = tokenizer["linguistic_codes"], tokenizer["semantic_codes"]
    return f", and tokens of {codes[0]} linguistic (50/3 a second) and {codes[1]} semantic codes (25 a second)"


def _table(files: Sequence[dict[str, Any]]) -> str:
    """A line for each file, a column for each accuracy and latency that is known."""
    own, measured, in_torch, clips = (
        list(dict.fromkeys(name for entry in files for name in entry.get(key, {})))
        for key in ("accuracy", "measured", "accuracy_in_torch", "latency_ms")
    )
    head = ["file", "bit-width", "MB", "ONNX Runtime", "error over variance"]
    head += [f"{task}, % (this file)" for task in own]
    head += [f"{result} (this file)" for result in measured]
    head += [f"{result} (torch)" for result in in_torch]
    head += [f"ms for {clip} s" if float(clip) else "ms an image" for clip in clips]
    lines = [head, ["---"] * len(head)]
    for entry in files:
        line = [f"`{entry['file']}`", entry["bit_width"], f"{entry['size_bytes'] / 1e6:.2f}"]
        oldest = entry["oldest_onnxruntime"]
        line += [f"{oldest} or newer" if oldest else "not tried", _number(entry.get("error_over_variance"), ".1e")]
        line += [_number(entry.get("accuracy", {}).get(task), ".1f") for task in own]
        line += [_result(entry.get("measured", {}).get(result)) for result in measured]
        line += [_result(entry.get("accuracy_in_torch", {}).get(result)) for result in in_torch]
        lines.append(line + [_number(entry.get("latency_ms", {}).get(clip), ".2f") for clip in clips])
    notes = ["The oldest ONNX Runtime for each file was tried, not guessed: with older ones it does not open."]
    if any(entry["bit_width"] == "w8a8" for entry in files):
        notes.append(
            "w8a8 needs a processor with VNNI or ARM's dot products: others saturate its sums, but for sessions with "
            "`session.x64quantprecision` set to 1, which are slower; w7a8 is for those."
        )
    if own or measured:
        notes.append('Accuracy of "this file": what the file itself says of the test clips in ONNX Runtime.')
    if in_torch:
        notes.append('"torch": measured in torch on the encoder at this bit-width, as it was exported.')
    if clips:
        notes.append("Latency in ONNX Runtime on the CPU of the machine that wrote the files.")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{' '.join(notes)}\n"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _result(value: float | None) -> str:
    return _number(value, ".2f" if value is None or abs(value) >= 0.1 or value == 0 else ".2g")


def _contract(config: dict[str, Any]) -> str:
    limits = config["limits"]
    if config["input"] == "images":
        height, width = limits["height"], limits["width"]
        return f"Images of {height} x {width} pixels, {limits['channels']} channels; the batch may have any size."
    samples = config["input"] == "waveform"
    unit, rate = ("samples", SAMPLE_RATE) if samples else ("frames", SAMPLE_RATE // HOP)
    shortest, longest = limits["shortest"], limits["longest"]
    arguments = config["encoder"]["arguments"]
    if arguments.get("log_mel") == "whisper_filled":
        return _filled_contract(config, longest, rate, samples)
    lookahead = (
        " Log-mels have two frames of silence more than `lengths` counts."
        if not samples and arguments.get("log_mel") == "whisper"
        else ""
    )
    most = (
        "There is no longest clip but by memory"
        if longest is None
        else f"No clip may be longer than {longest:,} {unit} ({longest / rate:g} s): cut it into windows"
    )
    return (
        f"Mono audio at {SAMPLE_RATE:,} Hz. Batch and time may have any size within these limits: the longest clip of "
        f"a batch has at least {shortest} {unit} ({1000 * shortest / rate:g} ms). {most}. A clip's features do not "
        f"depend on what it is batched with, and beyond its length they are zero.{lookahead}{_interleaving(config)}"
    )


def _filled_contract(config: dict[str, Any], longest: int, rate: int, samples: bool) -> str:
    """Of an encoder whose clips silence fills to all positions."""
    seconds = f"{longest / rate:g} s"
    taken = (
        f"A clip has 1 to {longest:,} samples ({seconds}), and the file fills it with silence to {longest:,}"
        if samples
        else f"Log-mels have exactly {longest:,} frames, which is what `lengths` says: before a log-mel is taken, "
        f"zeros follow the samples of its clip to {seconds}"
    )
    frames = config["outputs"]["features"]["shape"][1]
    return (
        f"Mono audio at {SAMPLE_RATE:,} Hz; the batch may have any size. {taken}, as the encoder was trained: every "
        f"clip gives {frames:,} frames, first its own and then those of the silence. Cut a longer clip into windows: "
        f"the file refuses it. A clip's features do not depend on what it is batched with.{_interleaving(config)}"
    )


def _interleaving(config: dict[str, Any]) -> str:
    tokenizer = config["tokenizer"]
    return (
        " Both streams as one sequence: every 120 ms two linguistic tokens, then three semantic ones plus "
        f"{tokenizer['linguistic_codes']}; what is left at the end is dropped."
        if tokenizer
        else ""
    )
