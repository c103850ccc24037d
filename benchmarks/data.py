"""What feeds a training: clips a second, start and peak memory, from a folder, shards and torch's plain loader.

Run: .venv/bin/python benchmarks/data.py --recordings recordings --work data_benchmark --hours 1 10 100
Recordings (a folder of audio files) are copied under new names until there are so many hours, and packed. Each row is
measured in a process of its own. `start` is the time until batches can be drawn, with all files looked at once;
`clips/s` are those that arrive in --seconds of drawing, shuffled, with --workers processes that decode; `memory` is the
peak of the process and its workers together while it draws, each page counted once (proportional set size), above what
importing takes; `waiting` is the share of training steps (SSQL on a transformer, 16 clips) in which no batch was there
yet.
The last line printed is `shards_over_plain=<ratio of clips/s> memory_growth=<ratio> waiting=<share>`.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from encoders import SpeechTransformer
from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.resampling import resampled_length
from ssql.augment import SpeechAugmentation
from ssql.data import AudioFolder, AudioShards
from ssql.data.entries import list_entries
from ssql.data.layouts.entry import Entry
from ssql.data.shards.examining import Examined
from ssql.data.shards.packing import pack_entries
from ssql.methods import SimSiam

SOURCES = ("plain", "folder", "shards")
MEBIBYTE = 2**20
BATCH = 16


class PlainFiles(Dataset):
    """What anyone writes first: a list of files, each decoded when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(path for path in root.rglob("*") if path.suffix in (".ogg", ".flac", ".wav"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        samples, _ = soundfile.read(self.paths[index], dtype="float32", always_2d=True)
        return torch.from_numpy(samples[:160_000, 0].copy())


def padded(clips: list[torch.Tensor]) -> dict:
    """A batch as ours."""
    return {"inputs": pad_sequence(clips, batch_first=True), "lengths": torch.tensor([len(clip) for clip in clips])}


def loader_of(source: str, root: Path, workers: int) -> DataLoader:
    """A loader of shuffled training batches."""
    if source == "plain":
        return DataLoader(PlainFiles(root), BATCH, shuffle=True, num_workers=workers, collate_fn=padded)
    common = {"batch_size": BATCH, "num_workers": workers}
    if source == "folder":
        # As for a folder that is larger than memory.
        return AudioFolder(str(root), labels=None, cache_gib=0, **common).train_dataloader()
    return AudioShards(str(root), **common).train_dataloader()


def endless(loader: DataLoader) -> Iterator[dict]:
    """Epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


class Memory(threading.Thread):
    """The peak of this process and its children, each shared page counted once, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        """Look five times a second."""
        while True:
            self.peak = max(self.peak, resident())
            time.sleep(0.2)


def resident() -> int:
    """Proportional set size of this process and its children now, in bytes."""
    children = Path("/proc/self/task").glob("*/children")
    processes = ["self", *(number for file in children for number in file.read_text(encoding="utf-8").split())]
    return sum(_proportional(process) for process in processes)


def _proportional(process: str) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def drawn(batches: Iterable[dict], seconds: float) -> tuple[int, float]:
    """Clips that arrive in so many seconds, and those seconds."""
    clips, started = 0, time.perf_counter()
    for batch in batches:
        clips += len(batch["lengths"])
        if time.perf_counter() - started >= seconds:
            break
    return clips, time.perf_counter() - started


def waiting_share(batches: Iterator[dict], steps: int) -> float:
    """Share of training steps in which the next batch was waited for; the first three are not counted."""
    torch.manual_seed(0)
    model = SimSiam(SpeechTransformer(width=256, depth=4, heads=4), SpeechAugmentation(), dim=256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    waited = whole = 0.0
    for step in range(steps + 3):
        started = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
        if step >= 3:
            waited += arrived - started
            whole += time.perf_counter() - started
    return waited / whole


def measure(source: str, root: Path, workers: int, seconds: float, steps: int) -> dict:
    """One row, in this process."""
    imported, memory = resident(), Memory()
    memory.start()
    started = time.perf_counter()
    loader = loader_of(source, root, workers)
    start = time.perf_counter() - started
    batches = endless(loader)
    drawn(batches, 1.0)  # workers have come up
    clips, took = drawn(batches, seconds)
    row = {"start_s": start, "clips_per_s": clips / took, "memory_mib": (memory.peak - imported) / MEBIBYTE}
    return row | {"waiting": waiting_share(batches, steps) if steps else None}


def repeated(recordings: Path, folder: Path, hours: float) -> None:
    """Copies of all recordings under new names, until there are so many hours."""
    files = [path for path in sorted(recordings.rglob("*")) if path.suffix in (".ogg", ".flac", ".wav")]
    if not files:
        raise SystemExit(f"{recordings} holds no recordings")
    seconds = [soundfile.info(path).duration for path in files]
    left = 3600 * hours
    for number, (path, length) in enumerate(itertools.cycle(zip(files, seconds, strict=True))):
        if left <= 0:
            return
        place = folder / f"{number // 1000:05d}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / f"{number:08d}{path.suffix}")
        left -= length


def by_header(entries: Sequence[Entry]) -> Iterator[Examined]:
    """Lengths without decoding: `ssql pack` would decode a hundred hours of the same recordings."""
    for entry in entries:
        about = soundfile.info(entry.path)
        yield Examined(entry, 0, resampled_length(about.frames, about.samplerate))


def in_new_process(arguments: list[str]) -> dict:
    """A row, measured in a process of its own."""
    words = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--work", type=Path, default=Path("data_benchmark"), help="copies and shards are made there")
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--prepare", action="store_true", help="only copy and pack")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--steps", type=int, default=20, help="training steps whose waiting is measured")
    parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "ROOT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.measure:
        source, root = asked.measure
        print(json.dumps(measure(source, Path(root), asked.workers, asked.seconds, asked.steps)))
        return
    rows = {}
    print("| hours | from | start, s | clips/s | memory, MiB | waiting |\n| --- | --- | --- | --- | --- | --- |")
    for hours in asked.hours:
        folder, shards = asked.work / f"{hours:g}h", asked.work / f"{hours:g}h_shards"
        if not folder.exists():
            repeated(asked.recordings, folder, hours)
        if "shards" in asked.sources:
            pack_entries(list_entries(folder, labels=None), shards, by_header, "audio", 100_000_000, SAMPLE_RATE)
        for source in [] if asked.prepare else asked.sources:
            root = shards if source == "shards" else folder
            options = ["--workers", asked.workers, "--seconds", asked.seconds, "--steps", asked.steps]
            row = in_new_process(["--measure", source, str(root), *map(str, options)])
            rows[hours, source] = row
            waiting = "" if row["waiting"] is None else f"{100 * row['waiting']:.1f} %"
            cells = f"{row['start_s']:.2f} | {row['clips_per_s']:.0f} | {row['memory_mib']:.0f} | {waiting}"
            print(f"| {hours:g} | {source} | {cells} |", flush=True)
    least, most = min(asked.hours), max(asked.hours)
    if set(asked.sources) >= {"plain", "shards"} and not asked.prepare:
        speed = rows[most, "shards"]["clips_per_s"] / rows[most, "plain"]["clips_per_s"]
        growth = rows[most, "shards"]["memory_mib"] / rows[least, "shards"]["memory_mib"]
        waiting = rows[most, "shards"]["waiting"]
        share = "" if waiting is None else f" waiting={waiting:.3f}"
        print(f"shards_over_plain={speed:.2f} memory_growth={growth:.2f}{share}")


if __name__ == "__main__":
    main()
