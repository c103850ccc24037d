"""A small world of real files: encoders of every kind, finished runs, exported files, results, audio, images, notes."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import soundfile
from process import Surroundings, in_child, run_command

# What the toolkit did not write, and must never touch.
FOREIGN = ("notes", "notes.json", "notes.txt", "audio", "images", "talk.wav", "manifest.csv", "transcripts.tsv",
           "published", "configs")  # fmt: skip

WORDS = ["--data", "SpokenWords", "--data.languages", "[en-us]", "--data.train_size", "40", "--data.test_size", "20",
         "--data.batch_size", "8"]  # fmt: skip
TRAINER = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu",
           "--trainer.enable_model_summary", "false", "--checkpoint_steps", "1"]  # fmt: skip
PRETRAIN = """
trainer: {max_steps: 2, enable_progress_bar: false, enable_model_summary: false, accelerator: cpu}
model:
  class_path: SimSiam
  init_args:
    encoder: {class_path: encoders.SpeechTransformer, init_args: {width: 16, depth: 1, heads: 2}}
    augmentation: {class_path: ssql.augment.SpeechAugmentation}
    dim: 32
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
data: {class_path: ssql.data.SpokenWords, init_args: {languages: [en-us], train_size: 40, test_size: 20, batch_size: 8}}
checkpoint_steps: 1
calibration_batches: 1
bias_correction: [w8a8]
"""


def build(folder: Path) -> None:
    """Fill an empty folder; every command in it takes relative paths.

    Raises:
        RuntimeError: a command that should work does not.
    """
    (folder / "configs").mkdir()
    (folder / "configs" / "pretrain.yaml").write_text(PRETRAIN)
    _notes(folder)
    _audio(folder)
    _images(folder)
    outcome = in_child(lambda: _encoders(Path()), folder, Surroundings(limit=600))
    if outcome.code:
        raise RuntimeError(f"the sandbox has no encoders:\n{outcome.text}")
    for words in _commands():
        outcome = run_command(words, folder, Surroundings(limit=600))
        print(f"sandbox: ssql {words[0]}, {outcome.seconds:.1f} s", flush=True)
        if outcome.code != 0:
            raise RuntimeError(f"ssql {' '.join(words)}\nended with {outcome.code}:\n{outcome.text}")


def _commands() -> list[list[str]]:
    speech = ["--encoder", "models/speech"]
    return [
        ["quantize", "--encoder", "models/fresh", "--output", "models/speech", *WORDS, "--examples", "8",
         "--observer", "mse", "--policy.shift", "true", "--bit_width", "w8a8"],
        ["pretrain", "--config", "configs/pretrain.yaml", "--output", "runs/pretrain"],
        ["pack", "--data.root", "audio", "--data.labels", "manifest.csv", "--output", "shards/audio"],
        ["finetune", *speech, "--task", "word", "--output", "runs/finetune", *WORDS, *TRAINER,
         "--calibration_batches", "1"],
        ["finetune", *speech, "--task", "word", "--output", "runs/lsq", *WORDS, *TRAINER, "--bit_width", "w4a4",
         "--quantizer", "lsq", "--calibration_batches", "1"],
        ["tokenizer", *speech, "--output", "runs/tokens", *WORDS, *TRAINER, "--linguistic_codes", "8",
         "--semantic_codes", "12", "--start_batches", "1"],
        ["import", "--weights", "published", "--layout", "whisper", "--output", "models/imported"],
        ["export", "--encoder", "runs/finetune/model", "--output", "files", "--bit_width", "[fp, w7a8, w4a8]",
         "--input", "waveform"],
        ["export", *speech, "--output", "files_mel", "--bit_width", "w4a8"],
        ["stream", "--encoder", "models/stream", "--output", "files_stream", "--bit_width", "w4a8"],
        ["evaluate", "--encoders.a", "models/speech", *WORDS, "--output", "results/a", "--bit_widths", "[fp, w4a8]",
         "--tasks", "[word]", "--calibration_batches", "1"],
        ["compare", "--rows", "[results/a/accuracy.json]", "--output", "results/b"],
        ["suite", "--encoders", "{}", "--parts", "[]", "--rows", "[results/a/accuracy.json]",
         "--output", "results/suite"],
        ["evaluate_tokenizer", "--tokenizers.a", "runs/tokens/model", *WORDS, "--output", "results/tokens",
         "--bit_widths", "[fp, w4a8]", "--calibration_batches", "1"],
        ["features", "talk.wav", *speech, "--output", "features"],
        ["bench", "files_mel/encoder-int4.onnx", "--seconds", "[0.2]", "--threads", "[1]", "--repeats", "1",
         "--output", "results/latency"],
        ["report", "--runs", "[runs/pretrain, results/a]", "--output", "report.html"],
    ]  # fmt: skip


def _notes(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("ten years of work\n")
    (folder / "notes" / "config.json").write_text('{"mine": true}\n')
    (folder / "notes.txt").write_text("a file where a folder is due\n")
    (folder / "notes.json").write_text('["written by hand"]\n')


def _audio(folder: Path) -> None:
    generator = np.random.default_rng(0)

    def clip(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
        time = np.arange(int(seconds * rate)) / rate
        tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 400) * time) + 0.01 * generator.standard_normal(
            len(time)
        )
        return np.repeat(tone[:, None], channels, axis=1).astype(np.float32)

    soundfile.write(folder / "talk.wav", clip(2.5, 16_000), 16_000)
    names = []
    for index in range(16):
        name = f"{'one' if index % 2 else 'two'}/{index:02}.wav"
        rate = 8_000 if index == 2 else 44_100 if index == 3 else 16_000
        (folder / "audio" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "audio" / name, clip(0.5, rate, 2 if index == 4 else 1), rate, subtype="PCM_16")
        names.append(name)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "speaker", "pitch (Hz)"])
        for index, name in enumerate(names):
            writer.writerow([name, "test" if index % 4 == 3 else "train", f"s{index // 2 % 2}", 100 + 7 * index])
    lines = [f"{name}\t{'ab' if index % 2 else 'ba'}\n" for index, name in enumerate(names)]
    (folder / "transcripts.tsv").write_text("".join(lines))


def _images(folder: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")


def _encoders(folder: Path) -> None:
    import torch

    import quant
    from encoders import MelCNN, SpeechTransformer, StreamingTransformer, VisionEncoder, save_encoder

    torch.manual_seed(0)
    small = {"stem_width": 8, "channels": [8, 16, 24, 32]}
    fresh = {
        "fresh": SpeechTransformer(width=32, depth=1, heads=2),
        "stream": StreamingTransformer(width=16, depth=1, heads=2, chunk=8, left_chunks=2),
        "cnn": MelCNN("resnet10t", model_arguments=small),
        "vision": VisionEncoder("resnet10t", in_channels=1, model_arguments=small),
    }
    for name, encoder in fresh.items():
        encoder = quant.prepare(encoder).eval()
        given = torch.rand(4, 1, 8, 8) if name == "vision" else 0.1 * torch.randn(4, 16_000)
        batch = encoder.front_end(given)
        quant.calibrate(encoder, [batch], lambda inputs, encoder=encoder: encoder.embed(*inputs))
        save_encoder(encoder, folder / "models" / name)
    reference = _published_reference()
    reference.SIZES.update(width=32, heads=2, depth=1)
    weights = reference.random_weights(adaptor=False)
    reference.write(folder / "published", "whisper", weights)
    config = json.loads((folder / "published" / "config.json").read_text())
    assert config["encoder_attention_heads"] == 2


def _published_reference():
    path = Path(__file__).parents[1] / "encoders" / "published_reference.py"
    spec = importlib.util.spec_from_file_location("published_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
