"""A case: one command, one thing that is wrong with it, drawn from a seed and a number."""

import json
import random
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import damage
import options
import places
from process import Surroundings
from valid import COMMANDS, Valid

FAMILIES = {"option": 36, "words": 10, "file": 32, "place": 12, "surroundings": 7, "valid": 3}


@dataclass
class Case:
    """What is run.

    Attributes:
        command: that was valid.
        words: that are typed after `ssql`.
        wrong: what is wrong, in words.
        must_fail: whether it has to be refused; False where it has to work, None where either is right.
        output: of the command, None where it has none.
        overwrite: whether the words allow it to replace its own output.
        around: what it runs in.
        family: of what is wrong.
    """

    command: Valid
    words: list[str]
    wrong: str
    must_fail: bool | None
    output: str | None
    overwrite: bool
    around: Surroundings
    family: str

    def line(self) -> str:
        """As one types it."""
        return "ssql " + " ".join(word if word and " " not in word else json.dumps(word) for word in self.words)


def draw(seed: int, index: int, folder: Path, only: str | None = None) -> Case:
    """The case of this number; damages files in `folder`, a copy of the sandbox of its own."""
    draw = random.Random(f"{seed} {index}")
    commands = [command for command in COMMANDS if only in (None, command.name)]
    command = draw.choices(commands, [command.weight for command in commands])[0]
    family = draw.choices(list(FAMILIES), list(FAMILIES.values()))[0]
    if family == "place" and "output" not in command.options:
        family = "option"
    values = {name: value for name, (value, _) in command.options.items()}
    positional = list(command.positional)
    extra: list[str] = []
    around = Surroundings(interrupt_after=15 if command.name == "demo" else None)
    overwrite = command.existing is not None and family != "valid" and draw.random() < 0.4
    if overwrite:
        values |= {"output": str(command.existing), "overwrite": "true"}
    wrong, must_fail = "nothing", None
    if family == "option":
        wrong, must_fail = _wrong_option(command, values, draw)
    elif family == "words":
        wrong, must_fail = _wrong_words(command, values, positional, extra, draw)
    elif family == "file":
        path = draw.choice(damage.targets(folder, draw.choice(command.reads)))
        done, must_fail = damage.damage(path, draw)
        wrong = f"{path.relative_to(folder).parent}/{done}"
        earlier = command.name == "export" and "files_mel" in path.parts  # a card that is made anew
        if path.suffix in LENIENT.get(command.name, ()) or earlier:
            must_fail = None
        if must_fail and values.get("resume") == "true":
            must_fail = None  # it may go on from an older checkpoint
    elif family == "place":
        values["output"], wrong, must_fail = places.odd_output(command, folder, draw)
        if draw.random() < 0.6:
            overwrite = True
            if command.name != "bench":
                values["overwrite"] = "true"
    elif family == "surroundings":
        wrong, odd = places.odd_surroundings(draw)
        around = replace(odd, interrupt_after=odd.interrupt_after or around.interrupt_after)
    elif family == "valid" and command.name != "demo":
        must_fail = False
    words = [command.name, *positional]
    for name, value in values.items():
        words += [f"--{name}={value}"] if value.startswith("-") or not value else [f"--{name}", value]
    words += extra
    output = values.get("output")
    if command.name in ("pretrain", "finetune", "tokenizer") and output is None and "config" in values:
        output = str(Path(values["config"]).parents[2]) if "logs" in values["config"] else None
    return Case(command, words, wrong, must_fail, output, overwrite, around, family)


REQUIRED = (
    "encoder",
    "output",
    "weights",
    "file",
    "rows",
    "runs",
    "encoders.a",
    "tokenizers.a",
    "task",
    "files",
)
# Endings of files that a command may read past: a damaged file of results is no result, a card can be made anew.
LENIENT = {
    "report": (".json", ".yaml", ".csv", ".ckpt", ".v2", ".0", ".tsv", ".safetensors"),  # the run's model is not read
    "bench": (".onnx",),
    "demo": (".onnx", ".json"),
    "features": (".onnx",),
}


def _wrong_option(command: Valid, values: dict[str, str], draw: random.Random) -> tuple[str, bool | None]:
    kinds = {name: kind for name, (_, kind) in command.options.items()} | command.more
    if "overwrite" in values:
        del kinds["overwrite"], kinds["output"]
    name = draw.choice(sorted(kinds))
    value, must_fail = options.wrong_value(kinds[name], draw)
    values[name] = value
    if name in ("trainer.log_every_n_steps", "data.labels", "seed_everything", "model.seed") and must_fail:
        must_fail = None if value in ("0", "-1", "-3") else must_fail
    if (command.name, name, value) in options.RIGHT_ELSEWHERE or (command.name == "report" and name == "batches"):
        must_fail = None
    return f"--{name} {value!r}", must_fail


def _wrong_words(
    command: Valid, values: dict[str, str], positional: list[str], extra: list[str], draw: random.Random
) -> tuple[str, bool | None]:
    ways = ["missing", "unknown", "near", "near", "twice", "alone", "stray", "help", "config"]
    way = draw.choice([*ways, "positional", "positional"] if positional else ways)
    name = draw.choice(sorted(values))
    if way == "missing":
        del values[name]
        required = name in REQUIRED and "config" not in values and command.name not in ("bench", "suite")
        return f"--{name} left out", True if required else None
    if way == "unknown":
        extra += [f"--{draw.choice(['nonsense', 'data.nonsense', 'model.nonsense', 'trainer.nonsense', '-', ''])}", "1"]
        return f"{extra[0]} 1", True
    if way == "near":
        slip = options.near(name, draw)
        values[slip] = values.pop(name)
        free = re.match(r"(encoders|tokenizers)\.", name)  # the names behind it are the user's own
        return f"--{slip} for --{name}", None if free and slip.startswith(free[0]) else True
    if way == "twice":
        extra += [f"--{name}", values[name]]
        return f"--{name} twice", None
    if way == "alone":
        extra += [f"--{name}"]
        return f"--{name} without a value", True
    if way == "stray":
        word = draw.choice([*options.ODD_WORDS[:6], "export", "=", "a=b"])
        extra += [word]
        return f"a stray {word!r} at the end", True
    if way == "help":
        extra += [draw.choice(["--help", "--print_config", "--version", "--debug"])]
        return f"{extra[-1]} at the end", None
    if way == "positional":
        odd = ["nowhere.wav", "", "notes.txt", "notes", "fifo", "dangling", "café.wav", "[/b].wav"]
        positional[0] = draw.choice(odd)
        return f"file {positional[0]!r}", True
    extra += ["--config", draw.choice(["nowhere.yaml", "notes.txt", "notes", "talk.wav", "configs", "fifo"])]
    return f"--config {extra[-1]}", True


def prepare(sandbox: Path, folder: Path) -> None:
    """A copy of the sandbox, with a FIFO and a dangling symlink that options may name."""
    import os

    shutil.copytree(sandbox, folder, symlinks=True)
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to("nowhere")
