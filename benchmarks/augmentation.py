"""What views with recordings cost: a training step with noise, rooms and speeds against one without, in one process.

Run: .venv/bin/python benchmarks/augmentation.py [--noise FOLDER] [--rooms FOLDER]
Without folders the recordings are made: 40 noises of 5 s, 40 rooms of 1 s. The two steps take turns; the last line is
`step_over_plain=<ratio> share_of_step=<views with recordings over their step>`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import soundfile
import torch

from encoders import SpeechTransformer
from ssql.augment import SpeechAugmentation
from ssql.methods import Method, SimSiam

RATE = 16_000


def recordings(folder: Path) -> tuple[str, str]:
    """Folders of noises and of rooms, decaying by 60 dB in 0.7 s."""
    drawn = np.random.default_rng(0)
    for name, seconds, decay in (("noise", 5, 0.0), ("rooms", 1, 10.0)):
        (folder / name).mkdir()
        for index in range(40):
            samples = drawn.standard_normal(seconds * RATE) * np.exp(-decay * np.arange(seconds * RATE) / RATE) / 10
            soundfile.write(folder / name / f"{index}.wav", samples, RATE)
    return str(folder / "noise"), str(folder / "rooms")


def seconds_of(model: Method, optimizer: torch.optim.Optimizer, batch: dict) -> tuple[float, float]:
    """Of a whole step, and of the two views in it."""
    views_of, spent = model.random_views, [0.0]

    def timed(batch: dict) -> object:
        started = time.perf_counter()
        views = views_of(batch)
        spent[0] = time.perf_counter() - started
        return views

    with patch.object(model, "random_views", timed):
        started = time.perf_counter()
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
        return time.perf_counter() - started, spent[0]


def main() -> None:
    """Take turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", help="folder of recordings")
    parser.add_argument("--rooms", help="folder of impulse responses")
    parser.add_argument("--repeats", type=int, default=11, help="rounds")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a clip")
    parser.add_argument("--width", type=int, default=144, help="of a transformer of 4 layers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        noise, rooms = recordings(Path(folder))
        full = SpeechAugmentation(arguments.noise or noise, (0.0, 15.0), arguments.rooms or rooms, (0.9, 1.0, 1.1))
    torch.manual_seed(0)
    samples = int(arguments.seconds * RATE)
    lengths = torch.full((arguments.batch_size,), samples)
    batch = {"inputs": 0.1 * torch.randn(arguments.batch_size, samples), "lengths": lengths}
    runs = []
    for augmentation in (SpeechAugmentation(), full):
        model = SimSiam(SpeechTransformer(width=arguments.width, depth=4, heads=4), augmentation, True, dim=512)
        runs.append((model, torch.optim.SGD(model.parameters(), lr=0.01)))
    with patch.object(Method, "log"), patch.object(Method, "log_dict"):
        for run in runs:
            seconds_of(*run, batch)  # the first step allocates
        found = []
        for round_ in range(arguments.repeats):
            for model, _ in runs:
                model.seed = round_  # every round has other draws
            found.append([seconds_of(*run, batch) for run in runs])
    times = np.array(found)  # (rounds, without and with, step and views)
    for name, (step, views) in zip(("without", "with"), np.median(times, axis=0), strict=True):
        print(f"{name:8} {step:.3f} s a step, {views:.3f} s of it for the views")
    ratio = np.median(times[:, 1, 0] / times[:, 0, 0])
    print(f"step_over_plain={ratio:.2f} share_of_step={np.median(times[:, 1, 1] / times[:, 1, 0]):.3f}")


if __name__ == "__main__":
    main()
