"""`ssql pack`: a folder's files in shards."""

from pathlib import Path

from encoders.speech.log_mel import SAMPLE_RATE
from quant.checks import check_above
from ssql.data import AudioFolder, ImageFolder
from ssql.data.shards.examining import examined_audio, examined_images
from ssql.data.shards.packing import Packed, pack_entries
from ssql.terminal.console import say


def pack(data: AudioFolder | ImageFolder, output: str, shard_mb: float = 100.0) -> None:
    """Pack the files of a folder or manifest into shards, from which training reads any amount of data.

    Shards are plain tar files of the files as they are, in WebDataset's layout: train-000000.tar, ..., each with an
    index beside it (.jsonl), and index.json, which is written last: counts, seconds, names of labels, hash of each
    shard. Files that AudioFolder or ImageFolder would skip are left out and counted. A pack that was stopped goes on
    when the same command is given again; given once more it checks every shard, and makes anew those that are
    damaged or whose files have changed.
    Train on them with --data AudioShards (ImageShards) --data.root SHARDS in place of --data AudioFolder (ImageFolder).
    Example: ssql pack --data.root recordings --output shards/recordings
    Example: ssql pack --data.root recordings --data.labels manifest.csv --output shards/recordings
    Example: ssql pack --data ImageFolder --data.root images --output shards/images

    Args:
        data: the folder and its labels, splits and texts: AudioFolder, if not said otherwise, or ImageFolder. What an
            item becomes in training (max_seconds, image_size, batch_size, ...) is said there, not here.
        output: folder for the shards.
        shard_mb: size of a shard in megabytes; the last file in it may lead beyond.
    """
    check_above(0, shard_mb=shard_mb)
    examine, rate = (examined_audio, SAMPLE_RATE) if isinstance(data, AudioFolder) else (examined_images, 0)
    packed = pack_entries(data.entries(), Path(output), examine, data.modality, max(1, round(shard_mb * 1e6)), rate)
    say(_sentence(packed, output, data.modality))


def _sentence(packed: Packed, output: str, modality: str) -> str:
    things = "clips" if modality == "audio" else "images"
    counts = ", ".join(f"{count:,} {split}" for split, count in packed.items.items())
    hours = f" ({packed.seconds / 3600:.2f} h)" if packed.seconds else ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(packed.skipped.items()))
    files = f"{packed.shards} shard{'s' * (packed.shards > 1)}"
    size = f"{packed.bytes / 1e6:,.1f} MB"
    written = "" if packed.written else "; all of them were there, and whole"
    return f"{output}: {counts} {things}{hours} in {files} of {size}; left out: {reasons or 'nothing'}{written}"
