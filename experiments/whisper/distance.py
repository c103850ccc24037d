"""How far features are from those in full precision, on some recordings of a folder, by both definitions in use.

    python distance.py ENCODER RECORDINGS EVERY NAME@BIT_WIDTH [NAME@BIT_WIDTH ...]

ENCODER is the folder of the encoder in full precision, NAME that of a quantized one, or a file of `ssql export`, whose
bit-width is its own. Every EVERY-th recording of RECORDINGS in the order of names is taken, up to 30 s long. The first
number is the mean squared error over the variance of all numbers, as most reports have it; in the second each
dimension's mean is taken off before, as in `ssql evaluate` and `ssql verify`.
"""

import sys
from pathlib import Path

import soundfile
import torch
from torch import Tensor

import quant
from encoders import load_encoder
from export import FileEncoder

SAMPLES = 480_000


@torch.no_grad()
def features(name: str, bit_width: str, clips: list[Tensor]) -> Tensor:
    """Of all frames, one after another: (frames, width)."""
    if name.endswith(".onnx"):
        file = FileEncoder(name)
        return torch.cat([file(clip)[0][0] for clip in clips])
    encoder = load_encoder(name)
    if bit_width == "fp":
        return torch.cat([encoder(*encoder.front_end(clip))[0][0] for clip in clips])
    with quant.at(encoder, bit_width, reuse_weights=True):
        return torch.cat([encoder(*encoder.front_end(clip))[0][0] for clip in clips])


def main(encoder: str, recordings: str, every: str, *specifications: str) -> None:
    """Print a line for each."""
    paths = sorted(Path(recordings).iterdir())[:: int(every)]
    clips = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]).unsqueeze(0) for path in paths]
    clips = [clip for clip in clips if clip.shape[1] <= SAMPLES]
    exact = features(encoder, "fp", clips)
    print(f"{len(clips)} recordings")
    for specification in specifications:
        name, bit_width = specification.rsplit("@", 1)
        error = (features(name, bit_width, clips) - exact).square().mean()
        of_all, by_dimension = (error / (exact - mean).square().mean() for mean in (exact.mean(), exact.mean(dim=0)))
        print(f"{specification}: {of_all:.4f}, {by_dimension:.4f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
