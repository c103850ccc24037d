"""A streaming encoder as an ONNX file: one chunk and the state in, features and the next state out."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn

from encoders import StreamingTransformer
from encoders.files import staged_file
from encoders.ownership import ONNX
from encoders.streaming import State
from export.agreement import Features, agreement
from export.departure import first_departure
from export.following import Followed, Probe, follow, probe
from export.inputs import GIVEN, SHIPPED, shipped_clips
from export.metadata import OPSET, VerificationError, check_metadata, load_file, metadata
from export.model import Pipeline, run_in_torch
from export.onnx import check_targets, export_form
from export.packing import give_zero_points, pack_weights
from export.runtime import open_session
from export.signature import Axes, Signature, frozen_copy
from export.stored import first_difference
from export.trace import trace
from export.unused import drop_unused
from export.verification import Roundings, Verification
from export.verify import LIMIT
from quant import FULL_PRECISION, BitWidth, parse_bit_width, quant_activations
from quant.bits import FLOAT_BITS

FORM = "stream"
STATE: Axes = {
    "mel": ("batch", None, None),
    "stem": ("batch", None, None),
    "keys": (None, "batch", None, None),
    "values": (None, "batch", None, None),
    "past": ("batch",),
    "adaptor": ("batch", None, None),
}


def stream_to_onnx(
    encoder: StreamingTransformer,
    path: str | Path,
    bit_width: str | BitWidth = "fp",
    overwrite: bool = False,
    check: bool = True,
    clips: Sequence[Tensor] | None = None,
) -> Path:
    """Export one step of a stream at a bit-width; integers and scales are those of `quant`.

    Inputs: `log_mel` (batch, n_mels, `chunk_mels`), `lengths` (batch,) int64, fewer than the chunk's frames only at a
    stream's end, and the state `mel`, `stem`, `keys`, `values`, `past`, with an adaptor `adaptor`: zeros at a stream's
    start. Outputs: `features` (batch, frames', feature_dim), `feature_lengths` (batch,), and the state for the next
    step under the same names after `next_`. All shapes but the batch are fixed: memory does not grow.

    Args:
        encoder: prepared and calibrated unless bit_width is `fp`; left untouched.
        path: the file to write; it appears whole and verified, or not at all.
        bit_width: `fp`, `w8a8`, `w4a8`, ...
        overwrite: replace an existing file.
        check: verify the file, step by step, against torch on whole clips.
        clips: speech (samples,) at 16,000 Hz to verify with; a recording that comes with the package when None.

    Returns:
        path.

    Raises:
        FileExistsError: the file exists and overwrite is False, or it is not one of ours.
        ValueError: unknown bit-width, an encoder that is not prepared, or a weight that is NaN or infinite.
        quant.NotCalibratedError: a layer whose activation range was never observed.
        VerificationError: the file departs from torch.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    check_targets({path: ONNX}, overwrite)
    proto = _build(encoder, run)
    with staged_file(path) as staging:
        onnx.save(proto, staging)
        if check:
            result = verify_stream(staging, encoder, run, clips)
            if not result.passed:
                raise VerificationError(f"{path} was not written: {result}")
    return path


def verify_stream(
    path: str | Path,
    encoder: StreamingTransformer,
    bit_width: str | BitWidth,
    clips: Sequence[Tensor] | None = None,
) -> Verification:
    """Compare a file, run step by step, with torch's features of whole clips, and its integers with torch's.

    Args:
        path: file written by `stream_to_onnx`.
        encoder: the same encoder, calibrated as it was then.
        bit_width: the same bit-width.
        clips: speech (samples,) at 16,000 Hz; a recording that comes with the package when None.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: not a file of ours, or one of another encoder or bit-width.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    proto, found = load_file(path)
    check_metadata(found, path, encoder, run)
    encoder = frozen_copy(encoder)
    layers = {} if run == FULL_PRECISION else quant_activations(encoder)
    rounds = any(layer.bits_at(run).activation != FLOAT_BITS for layer in layers.values())
    session, probed = open_session(path), probe(proto, encoder, run) if rounds else None
    named = {f"given clip {place}": clip for place, clip in enumerate(clips or ())} or shipped_clips(encoder)
    left_alone, given_roundings, departure, values, at_edge = [], [], None, 0, 0
    for name, clip in named.items():
        log_mel, lengths = encoder.front_end(clip.unsqueeze(0))
        expected = run_in_torch(Pipeline(encoder), run, (log_mel, lengths))[0][0]
        frames = log_mel[0, :, : int(lengths)].numpy()
        stream = FileStream(session)
        streamed = torch.from_numpy(np.concatenate([stream.push(frames), stream.finish()]))
        if streamed.shape != expected.shape:
            continue
        left_alone.append(Features(name, streamed, expected))
        if probed is None:
            continue
        followed = _follow(probed, encoder, run, frames)
        values += sum(step.roundings for step in followed)
        at_edge += sum(step.at_edge for step in followed)
        departure = departure or next(filter(None, (first_departure(step, False) for step in followed)), None)
        own = torch.cat([step.expected[0][0, : int(step.expected[1])] for step in followed])
        given_roundings.append(Features(name, streamed, own))
    result = Verification(
        str(path), str(run), len(layers), first_difference(proto, layers, run),
        lengths_equal=len(left_alone) == len(named), padding_zero=True, features=None, limit=LIMIT,
        inputs=GIVEN if clips else SHIPPED, clips=len(named),
    )  # fmt: skip
    if result.lengths_equal:
        result.features = agreement(left_alone, LIMIT, encoder.frame_rate)
    if result.lengths_equal and probed is not None:
        given = agreement(given_roundings, LIMIT, encoder.frame_rate)
        result.roundings = Roundings(values, at_edge, given.error_over_variance, given.worst)
        result.departure = None if departure is None else str(departure)
    return result


def _follow(probed: Probe, encoder: StreamingTransformer, run: BitWidth, frames: np.ndarray) -> list[Followed]:
    """Each step of one stream in the file, and in torch, with a state of its own, given the file's roundings."""
    step = Step(encoder)
    steps: list[Followed] = []
    state: list[Tensor] = []

    def run_step(piece: np.ndarray) -> Any:
        feeds = stream.feeds(piece)
        inputs = tuple(torch.from_numpy(feeds[spec.name]) for spec in probed.session.get_inputs())
        mine = (*inputs[:2], *(state or inputs[2:]))
        followed = follow(probed, encoder, run, inputs, partial(run_in_torch, step, run, mine), LIMIT)
        state[:] = followed.expected[2:]
        steps.append(followed)
        return [value.numpy() for value in followed.found]

    stream = FileStream(probed.session, run_step)
    stream.push(frames)
    stream.finish()
    return steps


class FileStream:
    """One stream through a file written by `stream_to_onnx`: features as soon as a chunk is whole.

    Args:
        session: of the file.
        run: gives the session's outputs for a piece of at most a chunk; the session does when None.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        run: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None,
    ) -> None:
        self.names = [spec.name for spec in session.get_outputs()]
        self.run = run or (lambda piece: session.run(None, self.feeds(piece)))
        specs = {spec.name: spec for spec in session.get_inputs()}
        _, self.n_mels, self.chunk = specs["log_mel"].shape
        self.feature_dim = session.get_outputs()[0].shape[2]
        self.state = {
            name: np.zeros(
                [1 if isinstance(size, str) else size for size in specs[name].shape],
                np.int64 if name == "past" else np.float32,
            )
            for name in STATE
            if name in specs
        }
        self.waiting = np.zeros((self.n_mels, 0), np.float32)

    def push(self, log_mel: np.ndarray) -> np.ndarray:
        """The next frames, (n_mels, frames) at 100 Hz, to the features of whole chunks, (frames', feature_dim)."""
        frames = np.concatenate([self.waiting, log_mel], axis=1)
        whole = frames.shape[1] // self.chunk * self.chunk
        self.waiting = frames[:, whole:]
        features = [self._step(frames[:, start : start + self.chunk]) for start in range(0, whole, self.chunk)]
        return np.concatenate([np.zeros((0, self.feature_dim), np.float32), *features])

    def finish(self) -> np.ndarray:
        """The last features, as for a clip that ends here."""
        return self._step(self.waiting) if self.waiting.shape[1] else np.zeros((0, self.feature_dim), np.float32)

    def feeds(self, piece: np.ndarray) -> dict[str, np.ndarray]:
        """What the file takes: a piece, (n_mels, frames), of at most a chunk, and the state before it."""
        return self.state | {
            "log_mel": np.pad(piece, ((0, 0), (0, self.chunk - piece.shape[1])))[None],
            "lengths": np.array([piece.shape[1]], np.int64),
        }

    def _step(self, piece: np.ndarray) -> np.ndarray:
        outputs = dict(zip(self.names, self.run(piece), strict=False))
        self.state = {name: outputs[f"next_{name}"] for name in self.state}
        features: np.ndarray = outputs["features"][0, : int(outputs["feature_lengths"][0])]
        return features


class Step(nn.Module):
    """One step with positional tensors only, as the exporter wants it; the state's last part only with an adaptor."""

    def __init__(self, encoder: StreamingTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """log_mel, lengths and the state to features, feature_lengths and the next state."""
        log_mel, lengths, *state = inputs
        parts = len(state)
        if self.encoder.adaptor is None:
            state.append(state[1])  # not looked at
        features, feature_lengths, new = self.encoder.stream(log_mel, lengths, State(*state))
        return (features, feature_lengths, *new[:parts])


def _build(encoder: StreamingTransformer, run: BitWidth) -> onnx.ModelProto:
    model, layers = export_form(encoder, run)
    state = {name: axes for name, axes in STATE.items() if name != "adaptor" or model.adaptor is not None}
    names = Signature(
        {"log_mel": ("batch", None, None), "lengths": ("batch",)} | state,
        {"features": ("batch", None, None), "feature_lengths": ("batch",)}
        | {f"next_{name}": axes for name, axes in state.items()},
    )
    log_mel = torch.randn(2, model.arguments["n_mels"], model.chunk_mels)
    lengths = torch.tensor([model.chunk_mels, model.chunk_mels - 1])
    examples = (log_mel, lengths, *model.start(2)[: len(state)])
    proto = trace(Step(model), names, examples, OPSET)
    pack_weights(proto, layers)
    give_zero_points(proto)
    drop_unused(proto)
    values = metadata(encoder, run, FORM) | {"chunk_mels": str(model.chunk_mels), "state": json.dumps(list(state))}
    helper.set_model_props(proto, values)
    onnx.checker.check_model(proto)
    return proto
