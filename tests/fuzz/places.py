"""Where output goes that should not go there, and surroundings in which commands are seldom tried."""

import random
import shutil
from pathlib import Path

from process import Surroundings
from valid import Valid

# What the sandbox gets beside what it has: put in the output of every case that asks for one.
KEPT = "kept-by-hand.txt"


def odd_output(command: Valid, folder: Path, random: random.Random) -> tuple[str, str, bool | None]:
    """An output in a bad relation to what is there: its path, what it is, and whether it must be refused."""
    reads = [name for name in command.reads if (folder / name).exists()] or ["notes"]
    read = random.choice(reads)
    parent = str(Path(read).parent)
    way = random.choice(["input", "parent", "inside", "foreign folder", "foreign file", "link to a file",
                         "link to a folder", "link to nothing", "with notes", "home", "relative up"])  # fmt: skip
    if way == "input":
        return read, "output is the input", None
    if way == "parent":
        return parent, "input inside the output", None
    if way == "inside":
        return f"{read}/new", "output inside the input", None
    if way == "foreign folder":
        return "notes", "output is a folder of the user's", None
    if way == "foreign file":
        name = random.choice(["notes.txt", "notes.json", "talk.wav", "notes", "manifest.csv"])
        return name, "output is a file of the user's", None
    if way.startswith("link"):
        target = {"link to a file": "notes.txt", "link to a folder": "notes", "link to nothing": "nowhere"}[way]
        (folder / "link").symlink_to(target)
        return "link", f"output is a {way}", None
    if way == "with notes" and command.existing and (folder / command.existing).is_dir():
        copy = folder / "out" / "mixed"
        shutil.copytree(folder / command.existing, copy)
        inner = random.choice([path for path in (copy, *copy.rglob("*")) if path.is_dir()])
        (inner / KEPT).write_text("not the toolkit's\n")
        return "out/mixed", f"output has a note of the user's in {inner.relative_to(folder)}", None
    if way == "home":
        (folder / KEPT).write_text("not the toolkit's\n")
        return ".", "output is the working directory", None
    return f"out/../{random.choice(['notes', 'new', 'models'])}", "output has .. in it", None


def odd_surroundings(random: random.Random) -> tuple[str, Surroundings]:
    """A full disk, no home, a locale without UTF-8, no temporary folder, an impatient user."""
    way = random.choice(["full disk"] * 4 + ["locale"] * 2 + ["home", "tmp", "interrupt"])
    if way == "full disk":
        size = random.choice([0, 100, 2000, 20_000, 60_000])
        return f"no file may be larger than {size} bytes", Surroundings(largest_file=size)
    if way == "locale":
        return "locale C", Surroundings({"LC_ALL": "C", "LANG": "C"}, ascii_locale=True)
    if way == "home":
        return "no HOME", Surroundings({"HOME": None, "XDG_CACHE_HOME": None})
    if way == "tmp":
        return "TMPDIR is not there", Surroundings({"TMPDIR": "/nowhere"})
    seconds = random.choice([0.2, 0.5, 1.0, 2.0, 4.0])
    return f"Ctrl-C after {seconds} s", Surroundings(interrupt_after=seconds)
