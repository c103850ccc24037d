"""A long stream through exported files on one thread: real-time factor, and whether memory grows.

Run: .venv/bin/python benchmarks/stream.py        (an hour of audio; --minutes 5 for a look)
The encoder is 512 wide with 6 blocks of 8 heads, 25 Hz, chunks of 320 ms and 2.56 s of the past, untrained: time does
not depend on weights. Seconds are those of the processor, so that a busy machine does not count; the log-mel is made
piece by piece in torch and counted apart. Prints a Markdown table; its last line is
`stream_int4_real_time_factor=<x> stream_int4_growth_mb=<x>` (of the last file).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch

import quant
from encoders import StreamingTransformer
from encoders.models.sample_stream import LogMelStream
from export import FileStream, stream_to_onnx
from export.runtime.session import open_session

FILES = {"fp32": "fp", "int8": "w8a8", "int4": "w4a8"}


def main() -> None:
    """One row a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES))
    arguments = parser.parse_args()
    minutes = arguments.minutes
    torch.set_num_threads(1)
    encoder = quant.prepare(StreamingTransformer(width=512, depth=6, heads=8, pooling=2)).eval()
    quant.calibrate(encoder, [encoder.front_end(minute_of_audio(n)[:, :160_000])[0] for n in range(2)])
    print("| file | size, MB | real-time factor | a chunk, ms | memory after 1 min, MB | at the end, MB | features |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.files:
            path = Path(folder) / f"{name}.onnx"
            stream_to_onnx(encoder, path, bit_width=FILES[name])
            measured = measure(path, encoder, minutes)
            print(
                f"| {name} | {path.stat().st_size / 1e6:.1f} | {measured['factor']:.4f} | {measured['chunk_ms']:.1f} | "
                f"{measured['early']:.0f} | {measured['late']:.0f} | {measured['features']} |",
                flush=True,
            )
    print(f"\nlog-mel in torch: real-time factor {measured['front_end']:.4f}; {minutes} minutes, one thread")
    growth = measured["late"] - measured["early"]
    print(f"stream_{name}_real_time_factor={measured['factor']:.4f} stream_{name}_growth_mb={growth:.1f}")


def measure(path: Path, encoder: StreamingTransformer, minutes: int) -> dict[str, float]:
    """Processor seconds of a stream over its length, and the process's memory early and late."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_session(path, options)
    stream, log_mel = FileStream(session), LogMelStream(encoder.front_end)
    frames, early, seconds, front_end = 0, 0.0, 0.0, 0.0
    for minute in range(minutes):
        for piece in minute_of_audio(minute).split(16_000, dim=1):
            started = time.process_time()
            mels = log_mel.push(piece)[0].numpy()
            made = time.process_time()
            frames += len(stream.push(mels))
            front_end, seconds = front_end + made - started, seconds + time.process_time() - made
        if minute == 0:
            early = resident_mb()
    return {
        "factor": seconds / (60 * minutes),
        "chunk_ms": 1000 * seconds / (6000 * minutes / stream.chunk),
        "front_end": front_end / (60 * minutes),
        "early": early,
        "late": resident_mb(),
        "features": frames,
    }


def minute_of_audio(number: int) -> torch.Tensor:
    """Syllable-like bursts of harmonics in noise, (1, 960,000) at 16,000 Hz; another minute for each number."""
    generator = torch.Generator().manual_seed(number)
    time_axis = torch.arange(960_000) / 16_000
    pitch = 120 + 60 * torch.sin(2 * torch.pi * (0.3 + 0.01 * number) * time_axis)
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / 16_000
    voice = sum(torch.sin(harmonic * phase) / harmonic for harmonic in range(1, 9))
    bursts = (torch.sin(2 * torch.pi * 4 * time_axis) > 0).float()
    return (0.1 * voice * bursts + 0.01 * torch.randn(len(time_axis), generator=generator)).unsqueeze(0)


def resident_mb() -> float:
    """Resident memory of this process, in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
