"""A Kaldi data folder: wav.scp, and where they are there segments, text, utt2spk and spk2gender."""

from pathlib import Path

from encoders.storage.paths import shown
from ssql.data.layouts.entry import Entry, below, split_of
from ssql.data.layouts.rows import lines_of, seconds_of

RECORDINGS = "wav.scp"


def is_kaldi(root: Path) -> bool:
    """Whether wav.scp lies in the folder, or in folders right in it (train/, test/)."""
    return bool(_parts(root))


def read_kaldi(root: Path) -> list[Entry]:
    """Every utterance; a folder train/ or test/ with its own wav.scp names the split.

    Paths are below the folder that was given, or absolute. What is a command, with a pipe, is never run.

    Raises:
        ValueError: no wav.scp, a command instead of a path, or a wrong row; the sentence names file and row.
    """
    parts = _parts(root)
    if not parts:
        raise ValueError(f"{shown(root)} has no {RECORDINGS}, as a Kaldi data folder has")
    return [entry for part in parts for entry in _utterances(part, root, None if part == root else split_of(part.name))]


def _parts(root: Path) -> list[Path]:
    if (root / RECORDINGS).is_file():
        return [root]
    return sorted(file.parent for file in root.glob(f"*/{RECORDINGS}"))


def _utterances(folder: Path, root: Path, split: str | None) -> list[Entry]:
    recordings = {name: (_audio(value, root, where), where) for name, value, where in _rows(folder / RECORDINGS)}
    about = {
        file: {name: value for name, value, _ in _rows(folder / file)} for file in ("text", "utt2spk", "spk2gender")
    }
    parts: list[tuple[str, Path, float, float | None, str]] = []
    if (folder / "segments").is_file():
        for name, value, where in _rows(folder / "segments"):
            fields = value.split()
            if len(fields) != 3 or fields[0] not in recordings:
                raise ValueError(
                    f"{where} is not UTTERANCE RECORDING START END with a recording of {RECORDINGS}: {value}"
                )
            start = seconds_of(fields[1], "start", where)
            end = None if fields[2] == "-1" else seconds_of(fields[2], "end", where)  # -1 is Kaldi's word for the end
            if end is not None and end <= start:
                raise ValueError(f"{where}: the segment ends at {end:g} s, before it starts at {start:g} s")
            parts.append((name, recordings[fields[0]][0], start, end, where))
    else:
        parts = [(name, path, 0.0, None, where) for name, (path, where) in recordings.items()]
    entries = []
    for name, path, start, end, where in parts:
        labels = {"speaker": about["utt2spk"].get(name, "")}
        labels["gender"] = about["spk2gender"].get(labels["speaker"], "")
        entries.append(Entry(path, name, labels, split, about["text"].get(name), start, end, where=where))
    return entries


def _audio(value: str, root: Path, where: str) -> Path:
    if value.endswith("|") or value.startswith("|"):
        raise ValueError(f"{where} is a command, which is never run here: write its output to a file, and name that")
    return below(root, value, where)


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """Name, value and place of each row; none where there is no such file."""
    if not file.is_file():
        return []
    rows: dict[str, tuple[str, str, str]] = {}
    for where, line in lines_of(file):
        name, *value = line.split(maxsplit=1)
        if not value and file.name != "text":  # an utterance may be silent
            raise ValueError(f"{where} has a name alone: a row is NAME VALUE")
        if name in rows:
            raise ValueError(f"{where}: {name} is listed already, in {rows[name][2]}")
        rows[name] = (name, value[0] if value else "", where)
    return list(rows.values())
