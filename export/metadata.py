"""What a file says about itself: encoder, bit-width, policy, front end."""

import importlib.metadata
import json
import re
from contextlib import suppress
from pathlib import Path

import onnx

from encoders import Encoder, FilledLogMel, Head, LogMel, Tokenizer, WhisperLogMel, weights_sha256
from encoders.speech.log_mel import HOP, SAMPLE_RATE, WINDOW
from encoders.speech.windows import limits
from encoders.storage.folder import file_sha256
from export.errors import VerificationError
from export.external_data import SHA256, data_file, missing_data
from export.onnx_file import load
from quant import BitWidth, QuantLayer

FORMAT_VERSION = "1"
OPSET = 21  # the first with INT4, which quantized graphs need
# Of a file's metadata: head and tokenizer are compared by their numbers; weights too, whose ranges may have changed.
NOT_OF_THE_ENCODER = {"ssql_toolkit_version", "weights_sha256", "head", "tokenizer"}
_WHISPER = "(max(log10(max(slaney_mel(|stft|^2), 1e-10)), the clip's maximum - 8) + 4) / 4, left edge reflected, "
LOG_MELS = {
    LogMel: "(log10(max(slaney_mel(|stft|^2), 1e-10)) + 4) / 4, zero-padded edges, last frame dropped",
    WhisperLogMel: f"{_WHISPER}479 zeros after the clip, last frame dropped",
    FilledLogMel: f"{_WHISPER}zeros after the clip to all positions, last frame dropped",
}
_MARGIN = f"{_WHISPER}{{:g}} s of zeros after the clip or what there are positions for, last frame dropped"


def metadata(
    encoder: Encoder, run: BitWidth, form: str, head: Head | None = None, tokenizer: Tokenizer | None = None
) -> dict[str, str]:
    """Keys and values for an ONNX file's metadata_props; `arguments`, `policy`, `head` and `tokenizer` are JSON.

    Args:
        encoder: in the file.
        run: its bit-width.
        form: `log_mel`, `waveform` or `images`.
        head: in the file.
        tokenizer: in the file.
    """
    layer = next((module for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    values = {
        "format_version": FORMAT_VERSION,
        "ssql_toolkit_version": importlib.metadata.version("ssql-toolkit"),
        "encoder": encoder.name,
        "arguments": json.dumps(encoder.arguments),
        "weights_sha256": weights_sha256(encoder),
        "bit_width": str(run),
        "policy": json.dumps(layer.mode.policy.to_dict() if layer else None),
        "feature_dim": str(encoder.feature_dim),
        "input": form,
        "head": json.dumps(head.arguments if head else None, ensure_ascii=False),
        "tokenizer": json.dumps(tokenizer.arguments if tokenizer else None),
    }
    if encoder.modality != "audio":
        return values | {"pixel_mean": str(encoder.arguments["mean"]), "pixel_std": str(encoder.arguments["std"])}
    values |= {"sample_rate_hz": str(SAMPLE_RATE), "frame_rate_hz": str(encoder.frame_rate)}
    if not isinstance(encoder.front_end, LogMel):
        return values
    return values | {
        "mel_window_samples": str(WINDOW),
        "mel_hop_samples": str(HOP),
        "n_mels": str(encoder.front_end.n_mels),
        "log_mel": _log_mel(encoder),
    }


def _log_mel(encoder: Encoder) -> str:
    margin = encoder.arguments.get("margin")
    return LOG_MELS[type(encoder.front_end)] if margin is None else _MARGIN.format(margin)  # type: ignore[index]


def load_file(path: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A file written by `to_onnx`, its large weights left where they are, and what it says about itself.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: not an ONNX file, not written by `to_onnx`, of another format version, of an opset that is
            too old, or without the file of its weights.
    """
    if path.is_dir():
        raise VerificationError(f"{path} is a folder: give a file that ssql export wrote, such as encoder-int8.onnx")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        proto = load(path)
    except Exception as error:
        raise VerificationError(f"{path} is not an ONNX file: {error}") from error
    found = {prop.key: prop.value for prop in proto.metadata_props}
    if "format_version" not in found:
        raise VerificationError(f"{path} was not written by export.to_onnx: it has no format_version in its metadata")
    if found["format_version"] != FORMAT_VERSION:
        raise VerificationError(
            f"{path} has format_version {found['format_version']}; this version reads {FORMAT_VERSION}"
        )
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OPSET:
        raise VerificationError(f"{path} has opset {opset}, too old: quantized graphs need {OPSET} or newer")
    wrong = missing_data(path)
    if wrong is not None:
        raise VerificationError(wrong)
    return proto, found


def check_data_file(path: Path, found: dict[str, str]) -> None:
    """Check that the file of weights beside a file, if it has one, is the very one that was written with it.

    Raises:
        VerificationError: it is another, or damaged.
    """
    data = data_file(path)
    if data is not None and found.get(SHA256) != file_sha256(data.path):
        raise VerificationError(
            f"{data.path} is not the file of weights that was written with {path.name}, or it is damaged: copy both "
            "again from where they were exported"
        )


def check_metadata(found: dict[str, str], path: Path, encoder: Encoder, run: BitWidth) -> None:
    """Check that a file says it holds this encoder at this bit-width.

    Raises:
        VerificationError: another encoder, argument, bit-width or policy, or another rate, size, front end or pixel
            mean than this encoder has, or a hash that is none.
    """
    expected = metadata(encoder, run, found.get("input", "log_mel"))
    if not re.fullmatch("[0-9a-f]{64}", found.get("weights_sha256", "")):
        raise VerificationError(f"{path} is damaged: weights_sha256 in its metadata is no hash of 64 digits")
    if (found.get("encoder"), found.get("bit_width")) != (encoder.name, str(run)):
        raise VerificationError(
            f"{path} holds encoder {found.get('encoder')} at {found.get('bit_width')}, not {encoder.name} at {run}"
        )
    for key, value in expected.items():
        if key in NOT_OF_THE_ENCODER or found.get(key) == value:
            continue
        if key == "policy":
            given = "that was not quantized" if value == "null" else "of another policy (bits and ranges of layers)"
            raise VerificationError(f"{path} is of another encoder: give the one that it is from, not one {given}")
        raise VerificationError(f"{path} holds an encoder with {key} {found.get(key)}, not {value}")


def fill_as(found: dict[str, str], encoder: Encoder) -> None:
    """Let silence follow an encoder's clips as a file says of itself: `ssql export --margin` is the file's own."""
    if isinstance(encoder.front_end, FilledLogMel):
        with suppress(ValueError, AttributeError, KeyError, TypeError):  # damaged: `check_metadata` says what differs
            encoder.fill(json.loads(found["arguments"]).get("margin"))  # type: ignore[operator]


def longest_input(about: dict[str, str]) -> int | None:
    """Samples that a speech file takes at most, by what it says about itself; None for any number."""
    return limits(json.loads(about["arguments"]), float(about["frame_rate_hz"]))[0]


def log_mel_of(about: dict[str, str]) -> LogMel:
    """The front end that makes the log-mels that a file was exported for, by what it says about itself."""
    n_mels, longest, margin = int(about["n_mels"]), longest_input(about), json.loads(about["arguments"]).get("margin")
    form = next((form for form, text in LOG_MELS.items() if text == about.get("log_mel")), LogMel)
    if form is not FilledLogMel and margin is None:
        return form(n_mels)
    if longest is None:
        raise ValueError("filled clips without positions")
    return FilledLogMel(n_mels, longest, margin)
