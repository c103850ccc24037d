"""Encoders on the Hugging Face hub, by names like `hf-hub:owner/name`: only known files, and never for ever."""

import logging
import multiprocessing
import re
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

log = logging.getLogger(__name__)

PREFIX = "hf-hub:"
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
ANSWER_SECONDS = 10  # for each answer of the hub
LISTING_SECONDS = 30  # until it is known which files there are, with all retries
DOWNLOAD_SECONDS = 3600  # for all files

Found = TypeVar("Found")


def downloaded(name: str, files: Sequence[str]) -> Path:
    """The local copy of an encoder on the hub; an older copy where the hub cannot be reached.

    Args:
        name: `hf-hub:owner/name`, or `hf-hub:owner/name@revision`.
        files: names that are taken where the repository has them; nothing else is.

    Raises:
        ValueError: no such name, an encoder that is not there, or a hub that does not answer in time.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not match:
        raise ValueError(f"{name!r} is no name on the hub: write {PREFIX}owner/name, or {PREFIX}owner/name@revision")
    repository, revision = match["repository"], match["revision"]
    try:
        info = _within(
            LISTING_SECONDS, lambda: HfApi().model_info(repository, revision=revision, timeout=ANSWER_SECONDS)
        )
        present = {sibling.rfilename for sibling in info.siblings or ()}
        wanted = [file for file in files if file in present]
        if not wanted:
            raise ValueError(f"it has none of {', '.join(files)}")
        # One by one: the hub's own way of fetching all at once has threads that outlive a time limit.
        fetch = partial(hf_hub_download, repository, revision=info.sha, etag_timeout=ANSWER_SECONDS)
        return Path(_within(DOWNLOAD_SECONDS, lambda: list(map(fetch, wanted)))[0]).parent
    except Exception as error:
        copy = _copy(repository, revision, files)
        if copy is None:
            raise ValueError(f"no encoder at {name}: {_first_line(error)}") from error
        log.warning("%s: the hub did not give it (%s); an earlier copy is used", name, _first_line(error))
        return copy


def _copy(repository: str, revision: str | None, files: Sequence[str]) -> Path | None:
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(files), local_files_only=True)
    except Exception:  # whatever it is, there is no copy
        return None
    return Path(folder) if any((Path(folder) / file).is_file() for file in files) else None


def _within(seconds: float, work: Callable[[], Found]) -> Found:
    """What the work gives, on a thread that does not keep the process alive.

    Raises:
        TimeoutError: it takes longer.
    """
    pool = ThreadPool(1)
    try:
        return pool.apply_async(work).get(seconds)
    except multiprocessing.TimeoutError:
        raise TimeoutError(f"the hub did not answer within {seconds:g} s") from None
    finally:
        pool.close()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
