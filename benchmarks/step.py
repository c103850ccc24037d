"""Time of one training step with and without SSQL, side by side in one process, as ratios.

Run: make bench        (or: .venv/bin/python benchmarks/step.py --repeats 9)
The last line printed is `<network> ssql_over_simsiam=<median ratio> spread=<10th to 90th percentile>`.
"""

import argparse
import time
from unittest.mock import patch

import numpy as np
import torch

from encoders import SpeechTransformer, VisionEncoder
from ssql.augment import ImageAugmentation, SpeechAugmentation
from ssql.memory import keep_freed_memory
from ssql.methods import SimSiam


def seconds_of_step(model: SimSiam, optimizer: torch.optim.Optimizer, batch: dict) -> float:
    """Views, forward passes, backward pass and optimizer step."""
    started = time.perf_counter()
    optimizer.zero_grad()
    model.training_step(batch, 0).backward()
    optimizer.step()
    return time.perf_counter() - started


def compare(name: str, build, batch: dict, repeats: int) -> None:
    """Take turns, SimSiam and SSQL, and print the ratio of their steps."""
    models = [build(ssql) for ssql in (False, True)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    times = []
    with patch.object(SimSiam, "log"), patch.object(SimSiam, "log_dict"):
        for repeat in range(repeats + 1):
            pair = [seconds_of_step(m, o, batch) for m, o in zip(models, optimizers, strict=True)]
            if repeat:  # the first step allocates
                times.append(pair)
    simsiam, ssql = np.array(times).T
    low, high = np.percentile(ssql / simsiam, [10, 90])
    print(f"{name}: SimSiam {np.median(simsiam):.3f} s, SSQL {np.median(ssql):.3f} s a step, {repeats} pairs")
    print(f"{name} ssql_over_simsiam={np.median(ssql / simsiam):.2f} spread={low:.2f}..{high:.2f}")


def main() -> None:
    """Speech transformer on 1 s clips, ResNet-18 at 32x32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of steps")
    repeats = parser.parse_args().repeats
    keep_freed_memory()
    torch.manual_seed(0)
    clips = {"inputs": torch.randn(64, 16_000) * 0.1, "lengths": torch.full((64,), 16_000)}
    images = {"inputs": torch.rand(32, 3, 32, 32), "lengths": None}
    speech = lambda ssql: SimSiam(SpeechTransformer(width=144), SpeechAugmentation(), ssql, dim=512)  # noqa: E731
    resnet = lambda ssql: SimSiam(VisionEncoder(small_images=True), ImageAugmentation(), ssql)  # noqa: E731
    compare("speech_transformer_144x4_batch64", speech, clips, repeats)
    compare("resnet18_32x32_batch32", resnet, images, repeats)


if __name__ == "__main__":
    main()
