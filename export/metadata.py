"""What a file says about itself: encoder, bit-width, policy, front end."""

import importlib.metadata
import json
from pathlib import Path

import onnx

from encoders import Encoder
from encoders.log_mel import HOP, SAMPLE_RATE, WINDOW
from quant import BitWidth, QuantLayer

FORMAT_VERSION = "1"
LOG_MEL = "(log10(max(slaney_mel(|stft|^2), 1e-10)) + 4) / 4, zero-padded edges, last frame dropped"


class VerificationError(RuntimeError):
    """A file that departs from torch, or that is not one of ours."""


def metadata(encoder: Encoder, run: BitWidth) -> dict[str, str]:
    """Keys and values for an ONNX file's metadata_props; `arguments` and `policy` are JSON."""
    layer = next((module for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    values = {
        "format_version": FORMAT_VERSION,
        "ssql_toolkit_version": importlib.metadata.version("ssql-toolkit"),
        "encoder": encoder.name,
        "arguments": json.dumps(encoder.arguments),
        "bit_width": str(run),
        "policy": json.dumps(layer.mode.policy.to_dict() if layer else None),
        "feature_dim": str(encoder.feature_dim),
    }
    if encoder.modality != "audio":
        return values | {"pixel_mean": str(encoder.arguments["mean"]), "pixel_std": str(encoder.arguments["std"])}
    return values | {
        "sample_rate_hz": str(SAMPLE_RATE),
        "mel_window_samples": str(WINDOW),
        "mel_hop_samples": str(HOP),
        "n_mels": str(encoder.arguments["n_mels"]),
        "log_mel": LOG_MEL,
        "frame_rate_hz": str(encoder.frame_rate),
    }


def check_metadata(proto: onnx.ModelProto, path: Path, encoder: Encoder, run: BitWidth) -> None:
    """Check that a file says it holds this encoder at this bit-width.

    Raises:
        VerificationError: not written by `to_onnx`, another format version, encoder, argument, bit-width or policy.
    """
    found = {prop.key: prop.value for prop in proto.metadata_props}
    if "format_version" not in found:
        raise VerificationError(f"{path} was not written by export.to_onnx: it has no format_version in its metadata")
    if found["format_version"] != FORMAT_VERSION:
        raise VerificationError(
            f"{path} has format_version {found['format_version']}; this version reads {FORMAT_VERSION}"
        )
    expected = metadata(encoder, run)
    if (found.get("encoder"), found.get("bit_width")) != (encoder.name, str(run)):
        raise VerificationError(
            f"{path} holds encoder {found.get('encoder')} at {found.get('bit_width')}, not {encoder.name} at {run}"
        )
    for key in ("arguments", "policy"):
        if found.get(key) != expected[key]:
            raise VerificationError(f"{path} holds an encoder with {key} {found.get(key)}, not {expected[key]}")
