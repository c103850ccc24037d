"""Files and folders that appear whole or not at all, each with one writer at a time.

While `NAME` is written there are beside it `.NAME.ssql-tmp`, which is renamed to it at the end, `.NAME.ssql-lock`, held
by whoever writes, and for the moment in which a folder is exchanged `.NAME.ssql-old`, the one that was there. What a
killed process leaves of these, the next that writes `NAME` removes, or puts back.
"""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

STAGING, LOCK, OLD = ".ssql-tmp", ".ssql-lock", ".ssql-old"
# No space, over the quota, over the size a file may have.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def plain(path: str | Path) -> Path:
    """A path without `..`: `out/../models` is `models`, also where no `out` is and the system would see nothing."""
    return Path(os.path.normpath(path))


def beside(path: str | Path, ending: str) -> Path:
    """The hidden name beside a path, absolute, with one of the endings of this module."""
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}{ending}")


@contextmanager
def staged_file(path: str | Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; renamed to `path` when the block ends well, deleted otherwise.

    The folder is made. A file that stood at `path` stays until then.

    Raises:
        FileExistsError: `path` is a folder or a symbolic link.
        BlockingIOError: something else is writing it.
        OSError: it cannot be written, or the disk is full.
    """
    path = plain(path)
    refuse_other_than_file(path)
    staging = beside(path, STAGING)
    with sole_writer(path), _full_disk_named(path):
        remove(staging)
        try:
            yield staging
            to_disk(staging)
            os.replace(staging, os.path.abspath(path))
        finally:
            remove(staging)


@contextmanager
def staged_pair(path: str | Path, second: str | Path) -> Iterator[Path]:
    """A place in a hidden folder to write a file that may need a second one, both under the names they will have.

    When the block ends well, both are renamed to where they belong, or the one there is, and an old second file goes;
    otherwise they are deleted. An old file never stands beside a new second one: one that did would be gone before.

    Args:
        path: the final name of the file; `staging / its name` is to be written.
        second: the final name, in the same folder, of the second one: `staging / its name` may be written.

    Raises:
        FileExistsError: one of them is a folder or a symbolic link.
        BlockingIOError: something else is writing the file.
        OSError: it cannot be written, or the disk is full.
    """
    path, second = plain(path), plain(second)
    staging = beside(path, STAGING)
    with sole_writer(path), _full_disk_named(path):
        refuse_other_than_file(path)
        refuse_other_than_file(second)
        remove(staging)
        try:
            staging.mkdir()
            yield staging / path.name
            for file in staging.iterdir():
                to_disk(file)
            move_pair(staging / path.name, path, staging / second.name, second)
        finally:
            remove(staging)


def move_pair(source: Path, target: str | Path, second_source: Path, second_target: str | Path) -> None:
    """Rename a file, and a second one if there is one, over those that stand there: see `staged_pair`."""
    target, second_target = map(os.path.abspath, (target, second_target))
    if second_source.exists():
        if os.path.exists(second_target):
            remove(Path(target))
        os.replace(second_source, second_target)
        os.replace(source, target)
    else:
        os.replace(source, target)
        remove(Path(second_target))


@contextmanager
def staged_folder(folder: str | Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden folder beside `folder` to write into; takes its place when the block ends well, is deleted otherwise.

    A folder that stood there stays until then, and is deleted as a whole when the new one stands.

    Args:
        folder: the final name; folders above it are made.
        check: called with `folder` before the block and before the exchange; raises where what stands there is not to
            be deleted.

    Raises:
        BlockingIOError: something else is writing it.
        OSError: it cannot be written, or the disk is full.
    """
    folder = plain(folder)
    staging, old = beside(folder, STAGING), beside(folder, OLD)
    with sole_writer(folder), _full_disk_named(folder):
        if os.path.lexists(old):  # an exchange was interrupted: before the new folder stood, or after
            remove(old) if os.path.lexists(folder) else os.rename(old, folder)
        check(folder)
        remove(staging)
        try:
            staging.mkdir()
            yield staging
            for file in staging.iterdir():
                to_disk(file)
            check(folder)
            _exchange(staging, folder, old)
        finally:
            remove(staging)


@contextmanager
def sole_writer(path: str | Path) -> Iterator[bool]:
    """Hold the lock of a path; where the file system has no locks (False) go on without.

    Folders above it are made, and deleted again where nothing came of them.

    Raises:
        BlockingIOError: something else holds it.
        OSError: nothing can be written there.
    """
    path, lock = Path(path), beside(path, LOCK)
    check_writable(path)
    missing = [folder for folder in lock.parents if not folder.exists()]  # the innermost first
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle, locked = take_lock(lock, fcntl.flock)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {path}: wait for it, or choose another output") from None
    except OSError as error:
        raise _said(error, f"{path} cannot be written: {os.strerror(error.errno or 0)}") from error
    try:
        yield locked
    finally:
        lock.unlink(missing_ok=True)  # while it is held: nobody else can believe to hold it
        os.close(handle)
        with suppress(OSError):  # not empty
            for folder in missing:
                folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left in a folder half written; what has a writer stays."""
    for left in folder.glob(f".*{STAGING}"):
        with suppress(OSError), sole_writer(folder / left.name.removeprefix(".").removesuffix(STAGING)) as locked:
            if locked:
                remove(left)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: on a full disk all of the earlier ones stay."""
    with ExitStack() as stack:
        for path, content in contents.items():
            staging = stack.enter_context(staged_file(path))
            staging.write_bytes(content)
            to_disk(staging)


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON, whole or not at all: see `json_bytes`."""
    write_together({Path(path): json_bytes(value)})


def utf8(text: str) -> bytes:
    """Text as UTF-8; what of a file's name is not UTF-8 is escaped."""
    return text.encode(errors="backslashreplace")


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8; NaN and infinity, which JSON has not, become null."""
    return utf8(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def refuse_other_than_file(path: Path) -> None:
    """Raise FileExistsError where a folder, a symbolic link or a device stands in the place of a file."""
    if path.is_symlink():
        raise FileExistsError(f"{path} is a symbolic link: give the file that it points to, or another output")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: a file is to be written there, choose another output")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file: choose another output")


def check_writable(path: Path) -> None:
    """Raise OSError where nothing new can be made at a path: before the work whose result is to go there."""
    above = next(folder for folder in Path(os.path.abspath(path)).parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: no permission to write in {above}")


def take_lock(lock: Path, by: Callable[[int, int], object]) -> tuple[int, bool]:
    """Make a file and lock it: its handle, and whether the file system has locks.

    Args:
        lock: the file; whoever has the lock deletes it before its handle is closed.
        by: `fcntl.flock`, or `fcntl.lockf`, which children do not inherit.

    Raises:
        BlockingIOError: something else has the lock.
        OSError: the file cannot be made.
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            by(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            raise BlockingIOError(error.errno, f"{lock} is held") from error
        except OSError:
            return handle, False
        # Whoever held it may have deleted it between our opening and our locking.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle, True
        os.close(handle)


def _exchange(staging: Path, folder: Path, old: Path) -> None:
    place = os.path.abspath(folder)  # `.` has no name to be renamed by
    try:
        if os.path.lexists(place):
            os.rename(place, old)
        try:
            os.rename(staging, place)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, place)
            raise
    except OSError as error:
        raise _said(error, f"{folder} cannot be replaced: {os.strerror(error.errno or 0)}") from error
    remove(old)


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        text = f"{path} was not written, and what was there is unchanged: {os.strerror(error.errno)}"
        raise _said(error, text) from error


def _said(error: OSError, text: str) -> OSError:
    """The same kind of error in other words, without `[Errno 28]`."""
    said = type(error)(text)
    said.errno = error.errno
    return said


def to_disk(path: Path) -> None:
    """Let the system write what it still holds of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # a full disk may only say so now
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
