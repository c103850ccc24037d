"""Recordings of noise and of rooms, read from a folder into memory once."""

import logging
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.speech.audio_file import AudioFileError, read_blocks
from encoders.speech.log_mel import SAMPLE_RATE, WINDOW
from encoders.storage.paths import shown
from ssql.data.folder_files import Skipped, files_below
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

# Seconds kept of one recording, and of all.
NOISE_SECONDS, ALL_NOISES = 300.0, 14_400.0
ROOM_SECONDS, ALL_ROOMS = 2.0, 3_600.0
BEFORE_PEAK = 80  # samples of an impulse response, 5 ms, that are kept before its direct sound
_SILENCE = 1e-3  # of the peak: what is fainter at both ends, by 60 dB, is cut off


def read_noises(folder: Path) -> list[Tensor]:
    """Noise recordings with a peak of 1: float16, which halves the memory, shape (samples,), 16,000 Hz.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no recording in it.
    """
    return [torch.from_numpy(samples).half() for samples in _recordings(folder, "noise", NOISE_SECONDS, ALL_NOISES)]


def read_rooms(folder: Path) -> list[Tensor]:
    """Room impulse responses, whose direct sound, the peak, is sample `BEFORE_PEAK`: float32, shape (samples,).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no recording in it.
    """
    rooms = []
    for samples in _recordings(folder, "rooms", ROOM_SECONDS, ALL_ROOMS):
        peak = int(np.abs(samples).argmax())
        rooms.append(F.pad(torch.from_numpy(samples), (BEFORE_PEAK - peak, 0)))  # negative where it cuts off
    return rooms


def _recordings(folder: Path, option: str, longest: float, most: float) -> list[np.ndarray]:
    if not folder.is_dir():
        raise FileNotFoundError(f"--model.augmentation.{option} {shown(folder)} is no folder: give one of audio files")
    skipped = Skipped()
    files = [path for path in files_below(folder, skipped) if not path.name.startswith(".")]
    random.Random(0).shuffle(files)  # where not all are kept, they are of all parts of the folder
    found: list[np.ndarray] = []
    seconds, read = 0.0, 0
    for path in track(files, f"reading {option}", len(files)):
        if seconds >= most:
            break
        read += 1
        try:
            samples = _beginning(path, longest)
        except AudioFileError as error:
            skipped.add(error.reason, path)
        except OSError as error:
            skipped.add(f"out of reach: {error.strerror or 'it is gone'}", path)
        else:
            if samples is None:
                skipped.add("all silent", path)
            elif option == "noise" and len(samples) < WINDOW:  # repeated, it would be a tone
                skipped.add("shorter than one 25 ms frame", path)
            else:
                found.append(samples)
                seconds += len(samples) / SAMPLE_RATE
    skipped.warn(log, folder)
    if not files:
        raise ValueError(f"--model.augmentation.{option}: there is no audio file in {shown(folder)}")
    if not found:
        option, count = f"--model.augmentation.{option}", len(files)
        raise ValueError(f"{option}: none of the {count} files in {shown(folder)} is a recording that can be used")
    if read < len(files):
        log.warning(
            "%s: %d of the %d files in %s fill the %g hours that are kept",
            option,
            read,
            len(files),
            folder,
            most / 3600,
        )
    log.info("%s: %d recordings of %s, %.1f minutes", option, len(found), shown(folder), seconds / 60)
    return found


def _beginning(path: Path, longest: float) -> np.ndarray | None:
    """The first `longest` seconds without the silence at both ends, with a peak of 1; None where all is silence."""
    blocks, samples = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        samples += len(block)
        if samples >= longest * SAMPLE_RATE:
            break
    whole = np.concatenate(blocks)
    size = np.abs(whole)
    heard = np.flatnonzero(size > _SILENCE * size.max())
    if not len(heard):
        return None
    kept = whole[heard[0] : heard[-1] + 1][: round(longest * SAMPLE_RATE)]
    return kept / np.abs(kept).max()
