"""Run an exported file on a wav with ONNX Runtime and numpy alone; no torch, nothing of this toolkit.

    pip install onnxruntime numpy
    python python_without_torch.py runs/mine/encoder-int8.onnx clip.wav

The file is one that `ssql export --input waveform` wrote; config.json beside it names the classes of its head.
"""

import json
import sys
import time
import wave
from pathlib import Path

import numpy as np
import onnxruntime

SAMPLE_RATE = 16_000
# They let ONNX Runtime compute what the file says on every processor; its defaults are faster on some and less exact.
EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}


def read_wav(path: str) -> np.ndarray:
    """A 16-bit wav as float32 samples in [-1, 1], shape (samples,), channels averaged, at 16 kHz."""
    try:
        with wave.open(path) as file:
            if file.getsampwidth() != 2:
                sys.exit(f"{path} has {8 * file.getsampwidth()} bits a sample; this example reads 16")
            rate, channels, frames = file.getframerate(), file.getnchannels(), file.getnframes()
            content = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        sys.exit(f"{path} is no wav that this example reads ({error}): convert it, as with ffmpeg -i {path} clip.wav")
    if len(content) != 2 * channels * frames:
        sys.exit(f"{path} was cut off: its header promises more samples than there are")
    samples = np.frombuffer(content, "<i2").reshape(-1, channels)
    return resample(samples.mean(axis=1) / 32768, rate).astype(np.float32)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Keep the part of the spectrum that 16 kHz can hold."""
    if rate == SAMPLE_RATE:
        return samples
    count = round(len(samples) * SAMPLE_RATE / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: count // 2 + 1], count) * count / len(samples)


def answer(head: dict, output: np.ndarray) -> str:
    """What the head says: a class, a text, or values in their units."""
    classes = head["classes"]
    if head["task"] == "regression":
        return ", ".join(f"{n} {v:.4g} {u}" for n, v, u in zip(classes, output, head["units"], strict=True))
    if head["task"] == "ctc":
        best = output.argmax(axis=1)  # blank is 0
        merged = best[np.append(True, best[1:] != best[:-1])]
        return "".join(classes[token - 1] for token in merged if token)
    powers = np.exp(output - output.max())
    probabilities = powers / powers.sum()
    top = probabilities.argsort()[::-1][:3]
    return ", ".join(f"{classes[index]} {100 * probabilities[index]:.1f} %" for index in top)


def main(model: str, clip: str) -> None:
    """Print the features' shape, the latency and the answer."""
    config = json.loads(Path(model).with_name("config.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    for name, value in EXACT.items():
        options.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    waveform = read_wav(clip)
    feed = {"waveform": waveform[np.newaxis], "lengths": np.array([len(waveform)])}
    session.run(None, feed)  # the first run allocates
    started = time.perf_counter()
    outputs = session.run(None, feed)
    latency, seconds = time.perf_counter() - started, len(waveform) / SAMPLE_RATE
    by_name = dict(zip([output.name for output in session.get_outputs()], outputs, strict=True))
    frames, dim = by_name["features"][0].shape
    print(f"features: {frames} frames of {dim} dimensions, {config['frame_rate_hz']} frames a second")
    print(f"latency: {1000 * latency:.1f} ms for {seconds:.2f} s, real-time factor {latency / seconds:.4f}")
    if config["head"]:
        output = by_name["values" if config["head"]["task"] == "regression" else "logits"][0]
        print(f"answer: {answer(config['head'], output)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
