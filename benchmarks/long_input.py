"""Recordings of 6, 30 and 60 minutes through windows: memory, speed, and what the overlap does to the seams.

Run: .venv/bin/python benchmarks/long_input.py --audio data/prompts/en      (--minutes 1 2 for a look)
Recordings are wav files of --audio one after the other, over and over, at their own sample rate. Encoders: the speech
transformer, 512 wide with 6 blocks of 8 heads, untrained (time does not depend on weights), in torch and as an int8
file; one thread; each row is a process of its own, whose peak memory it is. The seconds are those of the processor, so
that a busy machine does not count. With --encoder FOLDER a second table: for several overlaps, by how much two windows
differ where they meet, and stitched features from those of windows that move by 2 s. Prints Markdown tables; the last
line is `long_int8_growth_mb=<x> long_int8_times_real_time=<x>`, growth from the shortest to the longest recording (of
the last form asked for).
"""

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch

import quant
from encoders import SpeechTransformer, encode_windows, load_encoder, read_blocks, save_encoder, window_encoder
from export import file_window_encoder, to_onnx
from ssql.feature_files.recordings import write_features

FORMS = ("torch", "int8")
OVERLAPS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
FINE = 28.0  # seconds: windows of 30 s that move by 2 s, so that each frame is within 1 s of its window's middle


def recording(audio: Path, minutes: float, path: Path) -> Path:
    """Wav files one after the other until there are so many minutes; written piece by piece."""
    clips = sorted(audio.rglob("*.wav"))
    if not clips:
        raise FileNotFoundError(f"{audio} has no wav file")
    rate, left = soundfile.info(clips[0]).samplerate, 0
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        left = round(60 * minutes * rate)
        for clip in itertools.cycle(clips):
            samples, _ = soundfile.read(clip, dtype="int16", always_2d=True)
            file.write(samples[:left, 0])
            left -= len(samples)
            if left <= 0:
                return path
    raise AssertionError


def prepare(folder: Path, forms: Sequence[str]) -> list[Path]:
    """The encoder's folder and its int8 file, or one of them."""
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=512, depth=6, heads=8), quant.Policy(attention=True)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(1, 160_000))], lambda batch: encoder(*batch))
    paths = []
    if "torch" in forms:
        save_encoder(encoder, folder / "torch fp32")
        paths.append(folder / "torch fp32")
    if "int8" in forms:
        paths.append(folder / "int8.onnx")
        to_onnx(encoder, paths[-1], bit_width="w8a8", input="waveform")
    return paths


def measure(encoder: str, audio: Path, output: Path) -> dict[str, float]:
    """One recording through one encoder, in this process."""
    torch.set_num_threads(1)
    if encoder.endswith(".onnx"):
        windows = file_window_encoder(encoder, threads=1)[0]
    else:
        windows = window_encoder(load_encoder(encoder))
    started = time.process_time()
    written = write_features(windows, audio, output, {}, None, 4.0, 1)
    seconds = time.process_time() - started
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    return {
        "minutes": written.audio_seconds / 60,
        "seconds": seconds,
        "peak_mb": int(peak[1]) * 1024 / 1e6,
        "frames": written.frames,
        "file_mb": output.stat().st_size / 1e6,
    }


def alone(*words: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--audio", ".", "--one", *map(str, words)]
    row: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return row


def seams(folder: Path, audio: Path) -> list[str]:
    """A line for each overlap."""
    encoder = window_encoder(load_encoder(folder))
    blocks = list(read_blocks(audio))
    reference = np.concatenate([piece.features for piece in encode_windows(encoder, blocks, overlap=FINE)])
    lines = []
    for overlap in OVERLAPS:
        pieces = list(encode_windows(encoder, blocks, overlap=overlap))
        features = np.concatenate([piece.features for piece in pieces])
        distances = np.linalg.norm(features - reference, axis=1) / np.linalg.norm(reference, axis=1)
        ends = np.cumsum([len(piece.features) for piece in pieces])[:-1]
        beside = np.concatenate([distances[end - 2 : end + 2] for end in ends])
        found = [piece.seam for piece in pieces if piece.seam is not None]
        said = f"{median(found):.3f} | {max(found):.3f}" if overlap else "– | –"
        work = 30 / (30 - overlap)
        lines.append(f"| {overlap:g} | {work:.2f} | {said} | {np.median(beside):.3f} | {np.median(distances):.3f} |")
    return lines


def main() -> None:
    """A row for each encoder and recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, required=True, help="folder of wav files of one sample rate")
    parser.add_argument("--minutes", type=float, nargs="+", default=[6, 30, 60])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--encoder", type=Path, help="folder of a trained encoder, for the table of overlaps")
    parser.add_argument("--one", nargs=3, metavar=("ENCODER", "AUDIO", "OUTPUT"), help="one row, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        encoder, audio, output = arguments.one
        print(json.dumps(measure(encoder, Path(audio), Path(output))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recordings = [recording(arguments.audio, m, folder / f"{m:g}.wav") for m in arguments.minutes]
        print("| encoder | audio, min | features | file, MB | processor, s | times real time | peak memory, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        rows = []
        for encoder in prepare(folder, arguments.forms):
            for audio in recordings:
                row = alone(encoder, audio, folder / "out.safetensors")
                rows.append(row)
                speed = 60 * row["minutes"] / row["seconds"]
                print(
                    f"| {encoder.stem} | {row['minutes']:g} | {row['frames']} | {row['file_mb']:.0f} | "
                    f"{row['seconds']:.1f} | {speed:.0f} | {row['peak_mb']:.0f} |",
                    flush=True,
                )
        if arguments.encoder:
            print("\n| overlap, s | work | seam, median | seam, largest | from fine windows, at seams | everywhere |")
            print("| --- | --- | --- | --- | --- | --- |")
            print("\n".join(seams(arguments.encoder, recording(arguments.audio, 6, folder / "six.wav"))))
    first, last = rows[-len(recordings)], rows[-1]
    speed = 60 * last["minutes"] / last["seconds"]
    form, growth = arguments.forms[-1], last["peak_mb"] - first["peak_mb"]
    print(f"\nlong_{form}_growth_mb={growth:.0f} long_{form}_times_real_time={speed:.0f}")


if __name__ == "__main__":
    main()
