"""How far the features of one bit-width come in a few steps, with a learning rate for each kind of what it learns.

    python rates.py ENCODER RECORDINGS VALIDATION BIT_WIDTH STEPS OFFSETS SCALES BIASES

ENCODER is a folder of `ssql quantize`. The rates, which a cosine takes to zero: of offsets in steps of the grid, of
scales in units of the first ones, of biases in units of the noise of rounding. Half of the windows are a recording of
the folder RECORDINGS and silence, the others recordings joined to 28 s; all frames count. Distances on every sixth
recording of VALIDATION are printed before and after: over all frames of the windows, over those of the recordings
alone, and these in units of each feature's variance, as in training.
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import quant
from encoders import Encoder, load_encoder
from encoders.speech.audio_file import read_audio
from quant.learned_run import OF_NOISE, OF_SCALE
from ssql.methods.distillation import distance_by_feature

SAMPLES, PAUSE, HOP = 28 * 16_000, 4_000, 320  # of a window, between two recordings, of a frame
WARMUP, SAID_EVERY = 20, 40  # steps
# Parameters of a `LearnedRun`, and how many of each are the unit that its rate is in.
PARTS = {"offset": 1.0, "growth": 1 / OF_SCALE, "change": 1 / OF_NOISE}


def windows(files: list[Path]) -> Iterator[Tensor]:
    """Waveforms (1, samples) without end."""
    draw, place = random.Random(0), 0
    draw.shuffle(files)
    while True:
        alone = draw.random() < 0.5
        parts: list[Tensor] = []
        while not parts or (not alone and sum(map(len, parts)) < SAMPLES):
            parts += [torch.from_numpy(read_audio(files[place % len(files)])), torch.zeros(PAUSE)]
            place += 1
        yield torch.cat(parts[:-1])[None, :SAMPLES]


def both(encoder: Encoder, run: str, waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Features of a window in full precision and at the bit-width, (frames, feature_dim)."""
    log_mel = encoder.front_end(waveform, torch.tensor([waveform.shape[1]]))
    with torch.no_grad():
        exact = encoder(*log_mel)[0]
    with quant.at(encoder, run, reuse_weights=True):
        found = encoder(*log_mel)[0]
    return exact[0].float(), found[0].float()


@torch.no_grad()
def distances(encoder: Encoder, run: str, files: list[Path]) -> str:
    """Of recordings, each followed by silence."""
    pairs = []
    for file in files:
        waveform = torch.from_numpy(read_audio(file))[None]
        pairs.append([*both(encoder.eval(), run, waveform), waveform.shape[1] // HOP])
    found = []
    for own in (False, True):
        exact, given = (torch.cat([pair[side][: pair[2] if own else None] for pair in pairs]) for side in (0, 1))
        found.append(float((given - exact).square().mean() / exact.var(dim=0, correction=0).mean()))
    return f"{found[0]:.4f} {found[1]:.4f} {float(distance_by_feature(given, exact)):.4f}"


def main(folder: str, recordings: str, validation: str, run: str, steps: int, *rates: float) -> None:
    """Print distances, and the mean loss of every 40 steps."""
    encoder = load_encoder(folder)
    quant.learn_bit_widths(encoder, [run], offsets=True, freeze=True)
    groups = [
        {"params": [own for name, own in encoder.named_parameters() if name.endswith(f".{part}")], "rate": rate * units}
        for (part, units), rate in zip(PARTS.items(), rates, strict=True)
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    files = sorted(Path(validation).iterdir())[::6]
    print(f"{run}, rates {rates}: before {distances(encoder, run, files)}", flush=True)
    losses: list[float] = []
    for step, waveform in zip(range(steps), windows(sorted(Path(recordings).iterdir())), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * (1 + math.cos(math.pi * step / steps)) / 2 * min(1, (step + 1) / WARMUP)
        with torch.autocast("cpu", torch.bfloat16):
            exact, found = both(encoder.train(), run, waveform)
            loss = distance_by_feature(found, exact)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) == SAID_EVERY:
            print(f"step {step + 1}: loss {sum(losses) / SAID_EVERY:.4f}", flush=True)
            losses.clear()
    print(f"after {distances(encoder, run, files)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), *map(float, sys.argv[6:]))
