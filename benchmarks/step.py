"""One training step of SimSiam, SSQL and a plain four-pass SSQL, side by side in one process: time and peak memory.

Run: make bench-step        (or: .venv/bin/python benchmarks/step.py --networks resnet18_batch32 --repeats 9)
Each network prints its ratios with their spread (10th to 90th percentile over rounds in which the three take turns).
The last line printed is the worst of the networks measured:
`ssql_over_simsiam=<ratio> naive_over_ssql=<ratio> memory_over_simsiam=<ratio>`.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from four_pass import FourPassSSQL

from encoders import Encoder, SpeechTransformer, VisionEncoder
from ssql.augment import ImageAugmentation, SpeechAugmentation
from ssql.methods import Method, SimSiam
from ssql.training.activation_checkpointing import blocks_of, checkpoint_activations
from ssql.training.memory import keep_freed_memory


def resnet18(cls: type[SimSiam], ssql: bool) -> SimSiam:
    """The published CIFAR encoder and head widths."""
    return cls(VisionEncoder("resnet18", small_images=True), ImageAugmentation(), ssql)


def speech_512x6(cls: type[SimSiam], ssql: bool) -> SimSiam:
    """The transformer that export is measured with, too."""
    return cls(SpeechTransformer(width=512, depth=6, heads=8), SpeechAugmentation(), ssql, dim=512)


def images(count: int) -> dict:
    """32x32 colour images."""
    return {"inputs": torch.rand(count, 3, 32, 32), "lengths": None}


def clips(count: int, seconds: int) -> dict:
    """Noise, 16 kHz."""
    samples = 16_000 * seconds
    return {"inputs": torch.randn(count, samples) * 0.1, "lengths": torch.full((count,), samples)}


NETWORKS = {
    "resnet18_batch32": (resnet18, lambda: images(32)),
    "resnet18_batch256": (resnet18, lambda: images(256)),
    "speech_512x6_batch8_4s": (speech_512x6, lambda: clips(8, 4)),
}


def compile_blocks(encoder: Encoder) -> None:
    """torch.compile of each block for itself."""
    for block in blocks_of(encoder):
        block.compile()


CHANGES: dict[str, Callable[[Encoder], None]] = {
    "plain": lambda encoder: None,
    "checkpointed": checkpoint_activations,
    "compiled": compile_blocks,
}


def step(model: Method, optimizer: torch.optim.Optimizer, batch: dict) -> None:
    """Views, forward passes, backward pass and optimizer step."""
    optimizer.zero_grad()
    model.training_step(batch, 0).backward()
    optimizer.step()


def seconds_of(run: Callable[[], None], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Largest sum of tensors that lived at once during a call, above those that lived before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max())


def compare(
    name: str, repeats: int, device: torch.device, dtype: torch.dtype, change: Callable[[Encoder], None]
) -> tuple[float, float, float]:
    """Take turns, print times and ratios; returns the three ratios of the last line."""
    build, make_batch = NETWORKS[name]
    torch.manual_seed(0)
    batch = {key: value if value is None else value.to(device) for key, value in make_batch().items()}
    models = [build(SimSiam, False), build(SimSiam, True), build(FourPassSSQL, True)]
    change(models[1].encoder)
    models = [model.to(device) for model in models]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in models]
    runs = [lambda m=m, o=o: step(m, o, batch) for m, o in zip(models, optimizers, strict=True)]
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with patch.object(Method, "log"), patch.object(Method, "log_dict"), autocast:
        for run in 2 * runs:  # the first step allocates momentum buffers and compiles kernels
            run()
        times = np.array([[seconds_of(run, device) for run in runs] for _ in range(repeats)])
        # Weights and momentum live all the time.
        steady = [2 * sum(p.nbytes for p in model.parameters()) for model in models]
        memory = np.array([peak_bytes(run, device) for run in runs]) + steady
    simsiam, ssql, naive = times.T
    ratios = {
        "ssql_over_simsiam": ssql / simsiam,
        "naive_over_ssql": naive / ssql,
        "naive_over_simsiam": naive / simsiam,
    }
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{name} on {where}, {dtype}, {repeats} rounds, median seconds a step and peak memory:")
    for label, seconds, size in zip(("SimSiam", "SSQL", "four-pass"), times.T, memory, strict=True):
        print(f"  {label:10} {np.median(seconds):7.4f} s  {size / 2**20:7.0f} MiB  ({size / memory[0]:.2f} of SimSiam)")
    for label, values in ratios.items():
        low, high = np.percentile(values, [10, 90])
        print(f"  {label}={np.median(values):.2f} spread={low:.2f}..{high:.2f}")
    return (
        float(np.median(ratios["ssql_over_simsiam"])),
        float(np.median(ratios["naive_over_ssql"])),
        float(memory[1] / memory[0]),
    )


def main() -> None:
    """Measure the networks asked for and print the worst ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; a third of them for batch 256 on a CPU")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--ssql", choices=CHANGES, default="plain", help="what is done to the SSQL step's encoder")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    repeats, dtype = arguments.repeats, getattr(torch, arguments.precision)
    results = [
        compare(
            name,
            repeats if device.type == "cuda" or not name.endswith("256") else max(2, repeats // 3),
            device,
            dtype,
            CHANGES[arguments.ssql],
        )
        for name in arguments.networks
    ]
    time_ratio, naive_ratio, memory_ratio = zip(*results, strict=True)
    print(
        f"ssql_over_simsiam={max(time_ratio):.2f} naive_over_ssql={min(naive_ratio):.2f} "
        f"memory_over_simsiam={max(memory_ratio):.2f}"
    )


if __name__ == "__main__":
    main()
