"""A file of one step, run chunk by chunk, against torch on whole clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders import StreamingTransformer
from export.check.agreement import Features, agreement
from export.check.following import Followed, Probe, follow, probe
from export.check.inputs import GIVEN, SHIPPED, shipped_clips
from export.check.stored import first_difference
from export.check.verdict import Roundings, Verification
from export.check.verify import LIMIT
from export.external_data import weights_of
from export.graph.pipeline import Pipeline, run_in_torch
from export.graph.signature import frozen_copy
from export.graph.step import Step
from export.metadata import check_data_file, check_metadata, load_file
from export.runtime.session import open_session
from export.runtime.stream import FileStream
from quant import FULL_PRECISION, BitWidth, parse_bit_width, quant_activations
from quant.bits import FLOAT_BITS


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
    check_data_file(path, found)
    folder = weights_of(path).parent
    check_metadata(found, path, encoder, run)
    encoder = frozen_copy(encoder)
    layers = {} if run == FULL_PRECISION else quant_activations(encoder)
    rounds = any(layer.bits_at(run).activation != FLOAT_BITS for layer in layers.values())
    session, probed = open_session(path), probe(proto, encoder, run, folder) if rounds else None
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
        departure = departure or next(filter(None, (step.departure(False) for step in followed)), None)
        own = torch.cat([step.expected[0][0, : int(step.expected[1])] for step in followed])
        given_roundings.append(Features(name, streamed, own))
    result = Verification(
        str(path), str(run), len(layers), first_difference(proto, layers, run, folder),
        lengths_equal=len(left_alone) == len(named), padding_zero=True, features=None, limit=LIMIT,
        inputs=GIVEN if clips else SHIPPED, clips=len(named),
    )  # fmt: skip
    if result.lengths_equal:
        result.features = agreement(left_alone, LIMIT, encoder.frame_rate)
    if result.lengths_equal and probed is not None:
        given = agreement(given_roundings, LIMIT, encoder.frame_rate)
        result.roundings = Roundings(values, at_edge, given.error_over_variance, given.worst)
        result.departure = departure
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
        followed = follow(probed, step, run, inputs, LIMIT, mine)
        state[:] = followed.expected[2:]
        steps.append(followed)
        return [value.numpy() for value in followed.found]

    stream = FileStream(probed.session, run_step)
    stream.push(frames)
    stream.finish()
    return steps
