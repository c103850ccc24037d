"""SIGKILLs at random moments of pretraining, fine-tuning and the tokenizer: each run resumes and ends with equal bits.

    python tests/fuzz/kills.py --count 100 --output /dev/shm/kills

The output should lie on another file system than the temporary folder. Runs are forked from one process that has
loaded torch already, so that a run takes a second or two. Not part of the test suite.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import quant
from encoders import SpeechTransformer, VisionEncoder, save_encoder
from ssql import cli
from ssql.commands import finetune, pretrain, tokenizer
from ssql.data import SpokenWords, spoken_words
from ssql.data.espeak import synthesize

COMMON = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
COMMON += ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
RESNET = {"stem_width": 8, "channels": [8, 16, 24, 32]}
WORDS = ["--data", "SpokenWords", "--data.languages", "[en-us]", "--data.train_size", "60", "--data.test_size", "20"]
# Loaded before a run is forked.
MODULES = (pretrain, finetune, tokenizer)
COMMANDS = {
    "pretrain": [
        *["--model", "SimSiam", "--model.dim", "16", "--model.encoder", "encoders.VisionEncoder"],
        *["--model.encoder.model_name", "resnet10t", "--model.encoder.in_channels", "1"],
        *["--model.encoder.model_arguments", str(RESNET)],
        *["--model.augmentation", "ssql.augment.ImageAugmentation", "--model.augmentation.image_size", "8"],
        *["--data", "Digits", "--data.batch_size", "64", "--trainer.max_steps", "26"],
        *["--calibration_batches", "2", "--bias_correction", "[w4a4]"],
    ],
    "finetune": [
        *["--encoder", "{start}/image", "--data", "Digits", "--data.batch_size", "64", "--task", "class"],
        *["--bit_width", "w4a4", "--train_limit", "400", "--trainer.max_epochs", "4", "--calibration_batches", "2"],
    ],
    "tokenizer": [
        *["--encoder", "{start}/speech", *WORDS, "--data.batch_size", "8", "--ssql", "true"],
        *["--linguistic_codes", "8", "--semantic_codes", "12", "--trainer.max_epochs", "4", "--start_batches", "2"],
    ],
}
PRODUCT = {"pretrain": "encoder", "finetune": "model", "tokenizer": "model"}


def main() -> None:
    """Kill, resume, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills in all")
    parser.add_argument("--output", type=Path, required=True, help="folder, on another file system than TMPDIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.output.stat().st_dev == os.stat(tempfile.gettempdir()).st_dev:
        say("note: the output is on the file system of the temporary folder")
    random.seed(options.seed)
    start = options.output / "start"
    make_encoders(start)
    speak_once()
    whole = {}
    for command in COMMANDS:
        folder = options.output / f"whole-{command}"
        began = time.monotonic()
        code, said = wait(begin(command, folder, start, []), folder)
        assert code == 0, said
        whole[command] = weights(folder / PRODUCT[command]), time.monotonic() - began
        say(f"{command}: an unbroken run takes {whole[command][1]:.1f} s")
    counts: Counter[str] = Counter()
    number = 0
    while counts["kills"] < options.count:
        command = list(COMMANDS)[number % len(COMMANDS)]
        number += 1
        folder = options.output / f"killed-{number}-{command}"
        state, seconds = whole[command]
        outcome = one_run(command, folder, start, seconds, counts)
        if outcome is None:
            outcome = "alike" if alike(weights(folder / PRODUCT[command]), state) else "OTHER WEIGHTS"
            left = [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith(".tmp")]
            if left:
                counts["runs that left hidden files"] += 1
                say(f"{folder} left {left}")
        counts[f"runs {outcome}"] += 1
        counts[f"runs {command}"] += 1
        if outcome == "alike":
            shutil.rmtree(folder)
        say(dict(counts))
    bad = counts["runs OTHER WEIGHTS"] + counts["runs that failed"]
    sys.exit(1 if bad else 0)


def one_run(command: str, folder: Path, start: Path, seconds: float, counts: Counter[str]) -> str | None:
    """A run killed two to four times, then left alone; what went wrong, or None."""
    steps = str(random.choice([1, 1, 2, 3, 5]))
    words = ["--checkpoint_steps", steps]
    for _ in range(random.randint(2, 4)):
        process = begin(command, folder, start, words)
        if killed(process, folder, seconds, counts):
            counts["kills"] += 1
        else:  # it had ended before
            code, said = wait(process, folder)
            if code:
                say(f"{folder}: exit code {code}: {said[-1000:]}")
                return "that failed"
        words = ["--checkpoint_steps", steps, *again(folder, counts)]
    code, said = wait(begin(command, folder, start, words), folder)
    counts["resumed from an older checkpoint"] += "which is older" in said
    if code:
        say(f"{folder}: exit code {code}: {said[-1000:]}")
        return "that failed"
    return None


def again(folder: Path, counts: Counter[str]) -> list[str]:
    """How to go on: from a checkpoint where there is one."""
    if any((folder / "checkpoints").glob("*.ckpt")):
        counts["resumes"] += 1
        return ["--resume", "true"]
    counts["starts anew"] += 1
    return ["--overwrite", "true"]


def killed(process: int, folder: Path, seconds: float, counts: Counter[str]) -> bool:
    """SIGKILL at a random moment after the first checkpoint, often while one is written; False when it has ended."""
    checkpoints = folder / "checkpoints"
    aimed = random.random() < 0.6
    until_first = random.random() < 0.1
    delay = random.uniform(0, 0.3 * seconds)
    first = None if not (until_first or any(checkpoints.glob("*.ckpt"))) else time.monotonic()
    skipped = random.randint(0, 3)
    before: set[str] = set()
    while True:
        ended, _ = os.waitpid(process, os.WNOHANG)
        if ended:
            ENDED[process] = _
            return False
        try:
            names = set(os.listdir(checkpoints))
        except FileNotFoundError:
            names = set()
        first = first or (time.monotonic() if any(name.endswith(".ckpt") for name in names) else None)
        staged = any(name.endswith(".tmp") for name in names)
        if aimed and first:
            if staged and not any(name.endswith(".tmp") for name in before):
                skipped -= 1
                if skipped < 0:
                    time.sleep(random.uniform(0, 0.01))
                    counts["kills aimed at a checkpoint"] += 1
                    break
        elif first and time.monotonic() - first > delay:
            break
        before = names
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    ENDED[process] = status
    return os.WIFSIGNALED(status)


ENDED: dict[int, int] = {}


def say(line: object) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def begin(command: str, folder: Path, start: Path, words: list[str]) -> int:
    """Fork a run; what it says goes beside its folder."""
    process = os.fork()
    if process == 0:
        said = os.open(f"{folder}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        arguments = [word.format(start=start) if word.startswith("{start}") else word for word in COMMANDS[command]]
        torch.set_num_threads(1)  # the pool of threads is made anew after a fork, which two threads at once get wrong
        sys.argv = ["ssql", command, *COMMON, *arguments, "--output", str(folder), *words]
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                say(stop.code)
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:
            say(f"traceback: {error!r}")
            code = 99
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
    return process


def wait(process: int, folder: Path) -> tuple[int, str]:
    """Exit code, and what the run said."""
    if process not in ENDED:
        ENDED[process] = os.waitpid(process, 0)[1]
    return os.waitstatus_to_exitcode(ENDED[process]), Path(f"{folder}.txt").read_text(encoding="utf-8")


def make_encoders(folder: Path) -> None:
    """What fine-tuning and the tokenizer start from."""
    torch.manual_seed(0)
    speech = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    quant.calibrate(speech, [torch.randn(4, 80, 60)])
    save_encoder(speech.eval(), folder / "speech", overwrite=True)
    save_encoder(VisionEncoder("resnet10t", 1, model_arguments=RESNET), folder / "image", overwrite=True)


def speak_once() -> None:
    """Clips are made before runs are forked."""
    clips = {}

    def spoken(utterances: Any) -> list[Any]:
        key = tuple(utterances)
        if key not in clips:
            clips[key] = list(synthesize(key))
        return clips[key]

    spoken_words.synthesize = spoken
    SpokenWords(languages=["en-us"], train_size=60, test_size=20).setup()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of all files of a product."""
    return {
        f"{file.name}/{key}": value
        for file in sorted(folder.glob("*.safetensors"))
        for key, value in safetensors.torch.load_file(file).items()
    }


def alike(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all bits are equal."""
    return first.keys() == second.keys() and all(
        first[key].cpu().numpy().tobytes() == second[key].cpu().numpy().tobytes() for key in first
    )


if __name__ == "__main__":
    main()
