"""`ssql features`: features of recordings of any length."""

from contextlib import AbstractContextManager, nullcontext

import quant
from encoders import FrameEncoder, load_encoder, window_encoder
from encoders.storage.paths import shown
from export.runtime.runtimes import DEFAULT, Runtime
from quant import parse_bit_width
from quant.checks import check_at_least
from ssql.commands.runtimes import check_runtime_of
from ssql.feature_files.recordings import feature_paths, write_features
from ssql.reports.result_files import refuse_existing
from ssql.terminal.console import say


def features(
    files: list[str],
    encoder: str,
    output: str,
    bit_width: str | None = None,
    window: float | None = None,
    overlap: float = 4.0,
    batch_size: int = 1,
    runtime: Runtime = DEFAULT,
    overwrite: bool = False,
) -> None:
    """Features of audio files of any length, by windows that overlap; memory does not grow with the length.

    Leaves safetensors files: features, float32 (frames, width), times, float32 (frames,) in seconds, and in the
    header's metadata frame_rate_hz, bit_width, window_s, overlap_s and largest_seam, the largest relative difference of
    two windows' features where they are joined; of an .onnx file also runtime and precision, that of what is not on
    integers.

    Example: ssql features talk.wav --encoder runs/a/encoder --bit_width w4a8 --output runs/talk.safetensors
    Example: ssql features a.wav b.flac --encoder runs/a/encoder-int4.onnx --output runs/features

    Args:
        files: audio files of any sample rate; the mean of their channels is taken.
        encoder: encoder folder, or a file that ssql export wrote (.onnx).
        output: folder for <name>.safetensors of each audio file; or, for one audio file, its own <name>.safetensors.
        bit_width: of an encoder folder: fp by default. An .onnx file has its own.
        window: length in seconds; 30 by default, or what the encoder takes at most. Step-Audio 2 has 25.
        overlap: of a window with the next in seconds; each gives its middle, half the overlap off on either side.
        batch_size: windows encoded at once.
        runtime: of an .onnx file: onnxruntime; openvino, at the precision that is fastest here; or openvino_f32.
        overwrite: replace existing files.
    """
    check_at_least(1, batch_size=batch_size)
    check_runtime_of([encoder], runtime)
    paths = feature_paths(files, output)
    refuse_existing(paths.values(), overwrite)
    at_bit_width: AbstractContextManager[None] = nullcontext()
    computed: dict[str, str] = {}
    if encoder.endswith(".onnx"):
        from export import file_window_encoder  # a folder's features need no ONNX

        in_windows, about = file_window_encoder(encoder, runtime=runtime)
        run, computed = parse_bit_width(about["bit_width"]), {key: about[key] for key in ("runtime", "precision")}
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
            about = {"encoder": encoder, "bit_width": str(run), "audio": shown(recording.name)} | computed
            written = write_features(in_windows, recording, path, about, window, overlap, batch_size)
            say(str(written))
