"""What a case did: snapshots of its folder before and after, its output, and the faults that follow from these."""

import hashlib
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import Case
from process import OUTSIDE, Outcome
from sandbox import FOREIGN

from encoders import load_encoder

# Path to what is there: `file <hash>`, `folder`, `link <target>`, `other`.
Snapshot = dict[str, str]

# Kinds of faults, worst first. With one of FATAL the run has failed.
KINDS = ("traceback", "crash", "hang", "lost", "wrong", "refused", "leftover", "network", "untidy")
FATAL = KINDS[:8]
CODES = (0, 1, 2, 130, 143)
LONGEST, MOST_LINES = 600, 3
PYTHON = re.compile(
    r"object has no attribute|unexpected keyword argument|not supported between|NoneType|index out of range|<class '"
    r"|KeyError|Error\(s\) in loading|positional argument|object is not |must be str|unhashable|not subscriptable"
    r"|codec can't|invalid literal for|could not convert|has no len|list indices|expected \w+, got|The size of tensor"
    r"|mat1 and mat2|Expected \w+ tensor|\[ONNXRuntimeError\]|Errno|not iterable|empty sequence"
    r"|division by"
)
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Fault:
    """One fault of one case; faults with the same kind, command and key are one finding."""

    kind: str
    command: str
    key: str
    detail: str


def snapshot(folder: Path) -> Snapshot:
    """All that is in a folder; symlinks are not followed."""
    found: Snapshot = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            mode = os.lstat(path).st_mode
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if stat.S_ISLNK(mode):
                found[key] = f"link {os.fsdecode(os.readlink(path))}"
            elif stat.S_ISDIR(mode):
                found[key] = "folder"
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    found[key] = f"file {hashlib.file_digest(file, 'sha256').hexdigest()}"
            else:
                found[key] = "other"
    return found


def judge(case: Case, outcome: Outcome, before: Snapshot, after: Snapshot, folder: Path) -> list[Fault]:
    """The faults of a case."""
    found: list[tuple[str, str, str]] = []
    if TRACEBACK in outcome.text and "--debug" not in case.words:
        last = _last_line(outcome.text)
        found.append(("traceback", _general(last), last[:300]))
    elif re.search(r"internal error|is a bug|report it", outcome.text, re.IGNORECASE) and outcome.code != 0:
        found.append(("traceback", _general(_sentence(outcome.text)), _sentence(outcome.text)[:300]))
    if outcome.hung:
        found.append(("hang", _general(case.wrong.rpartition(": ")[2]), f"not ended after {outcome.seconds:.0f} s"))
    elif outcome.signal is not None:
        found.append(("crash", f"signal {outcome.signal}", outcome.text[-300:]))
    elif outcome.code not in CODES:
        found.append(("crash", f"exit code {outcome.code}", outcome.text[-300:]))
    ended_well = outcome.code == 0
    # A run that was interrupted after its first step keeps what it is to replace until it has finished.
    kept = {
        re.sub(r"/\.replaced-\d+", "", path): what
        for path, what in after.items()
        if "/.replaced-" in path and outcome.code == 130
    }
    replaced = _replaced(case, before, after, folder)
    lost = sorted(
        path
        for path, what in before.items()
        if what not in (after.get(path), kept.get(path))
        and path not in replaced
        and not _may_change(case, path, ended_well)
    )
    if lost:
        gone = sum(path not in after for path in lost)
        found.append(("lost", _place(case), f"{gone} gone, {len(lost) - gone} changed: {', '.join(lost[:4])}"))
    new = sorted(after.keys() - before.keys())
    hidden = [path for path in new if _is_staging(path) and not (kept and "/.replaced-" in path)]
    if hidden:
        found.append(("leftover", "hidden", ", ".join(hidden[:3])))
    if ended_well and case.must_fail:
        found.append(("wrong", _kind_of_wrong(case), f"accepted: {case.wrong}"))
    if ended_well:
        changed = [path for path in after if after[path] != before.get(path) and after[path].startswith("file")]
        found += [
            ("wrong", f"not finite in {Path(path).suffix}", path) for path in changed if not _finite(folder / path)
        ]
    if case.must_fail is False and not ended_well:
        found.append(("refused", "works in the sandbox", _sentence(outcome.text)[:300]))
    if OUTSIDE in outcome.text and "hf-hub:" not in case.line():
        found.append(("network", "", outcome.text.split(OUTSIDE)[1].split("\n")[0]))
    if not ended_well and not any(kind in ("traceback", "hang", "crash") for kind, _, _ in found):
        found += _untidy(case, outcome)
    return [Fault(kind, case.command.name, key, detail) for kind, key, detail in found]


def _untidy(case: Case, outcome: Outcome) -> list[tuple[str, str, str]]:
    said = _sentence(outcome.text)
    if not said.strip():
        return [("untidy", "nothing said", outcome.text[-200:])]
    if len(said.splitlines()) > MOST_LINES or len(said) > LONGEST:
        return [("untidy", "long", f"{len(said.splitlines())} lines, {len(said)} characters: {said[:200]!r}")]
    if match := PYTHON.search(said):
        return [("untidy", f"Python's words: {match[0]}", said[:300])]
    return []


def _sentence(text: str) -> str:
    """What follows the last `error:`, or all of a text without one."""
    lines = text.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if "error:" in line]
    return "\n".join(lines[starts[-1] :] if starts else lines[-1:])


def _last_line(text: str) -> str:
    """Of a traceback: the exception."""
    after = text.rpartition(TRACEBACK)[2].splitlines()[1:]
    lines = [line for line in after if line and not line.startswith((" ", "\t"))]
    return lines[0] if lines else "unknown"


def _general(text: str) -> str:
    """Without numbers, names and paths, so that one fault has one name."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'..'", text)
    text = re.sub(r"\S*/\S*", "PATH", text)
    return re.sub(r"\d+", "N", text)[:110]


def _kind_of_wrong(case: Case) -> str:
    """A finding for each option, and for each way of damaging each kind of file."""
    if case.family == "file":
        name, _, done = Path(case.wrong.split(": ")[0]).name, *case.wrong.partition(": ")[1:]
        return f"{name}: {_general(done)}"
    return case.wrong if case.family == "option" else _general(case.wrong)


def _place(case: Case) -> str:
    return _general(case.wrong) if case.family == "place" else f"{case.family}{', overwrite' if case.overwrite else ''}"


def _inside(path: str, output: str) -> str | None:
    """A path relative to the output, `` for the output itself; None outside."""
    output = os.path.normpath(output) if output else "."
    if path == output:
        return ""
    if output == ".":
        return path
    return path[len(output) + 1 :] if path.startswith(f"{output}/") else None


def _may_change(case: Case, path: str, ended_well: bool) -> bool:
    """Whether the command was allowed to replace or delete what was at a path."""
    if path.split("/")[0] in FOREIGN or "kept-by-hand" in path:
        return False
    name = case.command.name
    if name == "verify":
        return path.endswith(".verification.json")
    if case.output is None:
        return False
    inner = _inside(path, case.output)
    if inner is None:
        return False
    if "resume" in case.command.options and "--overwrite" not in case.words:
        return (
            case.command.is_product(inner) if ended_well else re.match(r"checkpoints|logs|\.?lock", inner) is not None
        )
    if name == "export" and inner in ("config.json", "README.md", "latency.json") and ended_well:
        return True  # files join the card of earlier ones
    return ended_well and case.overwrite and case.command.is_product(inner)


def _replaced(case: Case, before: Snapshot, after: Snapshot, folder: Path) -> set[str]:
    """Of a run that was to overwrite one and ended after its model was written: the earlier model and its results.

    Results must not tell of another model: they go when it does. The new model has to be whole.
    """
    if not (case.overwrite and case.output and case.command.name in ("finetune", "pretrain", "tokenizer")):
        return set()
    output = os.path.normpath(case.output)
    earlier = [path for path in before if re.match(r"(model|encoder)/", _inside(path, output) or "")]
    weights = [path for path in earlier if path.endswith("/model.safetensors")]
    if (
        not weights
        or any(path not in after for path in earlier)
        or all(before[path] == after[path] for path in weights)
    ):
        return set()
    try:
        load_encoder(folder / Path(weights[0]).parent)
    except (ValueError, OSError):
        return set()
    return {path for path in (*earlier, os.path.join(output, "results.json")) if _may_change(case, path, True)}


def _is_staging(path: str) -> bool:
    name = path.rpartition("/")[2]
    return (name.startswith(".") or name.endswith((".tmp", "-old", ".part"))) and "lock" not in name


def _finite(path: Path) -> bool:
    """Whether JSON is JSON, and features are numbers."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        except ValueError:
            return False
    if path.suffix == ".safetensors":
        import safetensors.numpy

        state = safetensors.numpy.load_file(path)
        return not any(np.isnan(value).any() for value in state.values() if value.dtype.kind == "f")
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON ({math.nan})")
