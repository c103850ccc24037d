"""Small folders in every layout, as people have them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

SECONDS = {"anna": 0.5, "ben": 0.6}
PITCH = {"anna": 220.0, "ben": 110.0}
TEXTS = ("ja", "nein", "grün")
# What soundfile does not know from the name.
FORMAT_OF = {
    ".opus": {"format": "OGG", "subtype": "OPUS"},
    ".oga": {"format": "OGG"},
    ".rf64": {"format": "RF64"},
    ".sph": {"format": "NIST"},
    ".aif": {"format": "AIFF"},
}


def record(path: Path, speaker: str, rate: int = 16_000, channels: int = 1) -> Path:
    """A file of a speaker's tone in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * PITCH[speaker] * np.arange(int(SECONDS[speaker] * rate)) / rate)
    noise = 0.01 * np.random.default_rng(len(path.name)).standard_normal(len(tone))
    samples = np.stack([tone + noise] * channels, axis=1).astype(np.float32)
    soundfile.write(path, samples, rate, **FORMAT_OF.get(path.suffix, {}))
    return path


def rows() -> list[tuple[str, str, str, str]]:
    """Split, name, speaker and text of twelve recordings."""
    return [
        (split, f"{speaker}-{number}", speaker, TEXTS[number])
        for split in ("train", "test")
        for speaker in ("anna", "ben")
        for number in range(3)
    ]


def plain(root: Path) -> None:
    """Folders whose names are classes."""
    for split, name, speaker, _ in rows():
        record(root / speaker / f"{split}-{name}.wav", speaker)


def manifest(root: Path) -> None:
    """The toolkit's own manifest, as a spreadsheet on Windows saves it."""
    lines = ["path,split,speaker,text"]
    for split, name, speaker, text in rows():
        record(root / f"{split}-{name}.wav", speaker)
        lines.append(f"{split}-{name}.wav,{split},{speaker},{text}")
    (root / "labels.CSV").write_bytes("\r\n".join(lines).encode("utf-8-sig"))


def librispeech(root: Path) -> None:
    """Two subsets, speakers, one chapter each."""
    for subset, part in (("train-clean-100", "train"), ("test-clean", "test")):
        for speaker in ("anna", "ben"):
            chapter = root / subset / speaker / "7"
            lines = []
            for split, name, who, text in rows():
                if (split, who) == (part, speaker):
                    record(chapter / f"{name}.flac", speaker)
                    lines.append(f"{name} {text.upper()}\n")
            (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines), encoding="utf-8")


def common_voice(root: Path) -> None:
    """Tables with and without what speakers said of themselves, and clips in mp3."""
    for part in ("train", "test"):
        lines = ["client_id\tpath\tsentence\tup_votes\tage\tgender\tlocale"]
        for split, name, speaker, text in rows():
            if split == part:
                record(root / "clips" / f"{split}-{name}.mp3", speaker, rate=48_000)
                age = "" if name == "anna-0" else "twenties"
                lines.append(f'{speaker}\t{split}-{name}.mp3\t"{text}" sagt sie\t2\t{age}\t{speaker}ish\tde')
        (root / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def kaldi(root: Path) -> None:
    """Two data folders; each recording is one file of a speaker, cut into segments."""
    for part in ("train", "test"):
        folder = root / part
        folder.mkdir(parents=True)
        tables: dict[str, list[str]] = {"wav.scp": [], "segments": [], "text": [], "utt2spk": []}
        for speaker in ("anna", "ben"):
            record(root / "audio" / f"{part}-{speaker}.wav", speaker, channels=2)
            tables["wav.scp"].append(f"{speaker}-{part} audio/{part}-{speaker}.wav")
        for split, name, speaker, text in rows():
            if split == part:
                start = int(name[-1]) / 8
                tables["segments"].append(f"{name} {speaker}-{part} {start:.3f} {start + 0.125:.3f}")
                tables["text"].append(f"{name} {text}")
                tables["utt2spk"].append(f"{name} {speaker}")
        for name, lines in tables.items():
            (folder / name).write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8")


def huggingface(root: Path) -> None:
    """train/ and test/, one with metadata.csv, the other with metadata.jsonl."""
    for split, name, speaker, _ in rows():
        record(root / split / f"{name}.ogg", speaker)
    train = [f"{n}.ogg,{s},{p + 0.5},{t}" for sp, n, s, t in rows() if sp == "train" for p in [len(n)]]
    lines = ["file_name,speaker,pitch (Hz),transcription", *train]
    (root / "train" / "metadata.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    objects = [
        {"file_name": f"{n}.ogg", "speaker": s, "pitch (Hz)": len(n) + place, "transcription": t}
        for place, (sp, n, s, t) in enumerate(rows())
        if sp == "test"
    ]
    (root / "test" / "metadata.jsonl").write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


def nemo(root: Path) -> None:
    """A manifest a split, with parts of files."""
    for part in ("train", "test"):
        lines = []
        for split, name, speaker, text in rows():
            if split == part:
                path = record(root / "wavs" / f"{split}-{name}.opus", speaker)
                place = path.relative_to(root).as_posix() if speaker == "anna" else str(path)
                row = {"audio_filepath": place, "duration": 0.25, "text": text, "speaker": speaker}
                lines.append(json.dumps(row | ({"offset": 0.125} if speaker == "ben" else {}), ensure_ascii=False))
        (root / f"{part}_manifest.json").write_text("\n".join(lines), encoding="utf-8")


# Layout, how it is made, and options beside the folder.
LAYOUTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "folder": (plain, ["--data.test_pattern", "test-"]),
    "manifest": (manifest, ["--data.labels", "labels.CSV"]),
    "librispeech": (librispeech, []),
    "common_voice": (common_voice, []),
    "kaldi": (kaldi, []),
    "huggingface": (huggingface, []),
    "nemo": (nemo, []),
}
