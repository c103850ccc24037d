"""The folder of a run: whose it is, what is in it, and how an earlier run stays safe until a new one has finished."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from encoders.storage.files import remove, take_lock
from encoders.storage.folder import check_folder_target
from encoders.storage.ownership import RESULTS, refuse_foreign

CHECKPOINTS, LOGS = "checkpoints", "logs"
# In `checkpoints/`, from the first step on: what a resumed run must agree with.
CONFIG, INPUTS = "config.yaml", "inputs.json"
# Names that the toolkit writes, relative to the run's folder.
_OWN = re.compile(
    r"checkpoints/(config\.yaml|inputs\.json|\.?[^/]+\.ckpt(\.tmp)?(/(\.metadata|meta\.pt|[^/]+\.distcp))?|\.[^/]+[.-](tmp|lock))"
    r"|logs/version_\d+(/(metrics\.csv|hparams\.yaml|config\.yaml|events\.out\.tfevents[^/]*))?"
)


class RunFolder:
    """The folder of one run.

    Args:
        path: of the folder.
        products: names of what the run leaves in it when it has finished: folders of encoders, files of results.
    """

    def __init__(self, path: Path, products: tuple[str, ...]) -> None:
        self.path, self.products = path, products

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / CHECKPOINTS

    @property
    def begun(self) -> bool:
        """Whether a run in the folder has done its first step."""
        return (self.checkpoints / CONFIG).exists()

    @property
    def resumable(self) -> bool:
        """Whether a run in the folder has left a checkpoint."""
        return self.begun and any(self.checkpoints.glob("[!.]*.ckpt"))

    @property
    def replaced(self) -> list[Path]:
        """Hidden folders with checkpoints and logs of runs that the present one replaces, oldest first."""
        found = [path for path in self.path.glob(".replaced-*") if path.name.rpartition("-")[2].isdigit()]
        return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))

    def found(self) -> list[str]:
        """Names of an earlier run."""
        names = (CHECKPOINTS, LOGS, *self.products)
        return [name for name in names if (self.path / name).exists() or (self.path / name).is_symlink()]

    def check_replaceable(self, names: tuple[str, ...] = ()) -> None:
        """Refuse to replace what the toolkit did not write.

        Args:
            names: what is to be replaced; all of the run when empty.

        Raises:
            FileExistsError: names the first such file.
        """
        for name in self.found():
            if names and name not in names:
                continue
            path = self.path / name
            if name.endswith(".json"):
                refuse_foreign(path, RESULTS)
            elif name in self.products:
                check_folder_target(path, overwrite=True)
            else:
                self._check_own(path)

    def _check_own(self, path: Path) -> None:
        """Refuse checkpoints or logs with anything among them that the toolkit did not write."""
        if path.is_symlink():
            raise FileExistsError(f"{path} is a link, which no run of ssql makes: it is not replaced")
        if not path.is_dir():
            raise FileExistsError(f"{path} is a file, which no run of ssql makes: it is not replaced")
        for inner in sorted(path.rglob("*")):
            if inner.is_symlink() or not _OWN.fullmatch(inner.relative_to(self.path).as_posix()):
                raise FileExistsError(
                    f"{inner} was not written by a run of ssql: move it elsewhere, or choose another --output"
                )

    def set_aside(self) -> None:
        """Move checkpoints and logs of an earlier run into a hidden folder; its products stay where they are."""
        names = [name for name in self.found() if name in (CHECKPOINTS, LOGS)]
        if names:
            number = int(self.replaced[-1].name.rpartition("-")[2]) + 1 if self.replaced else 1
            aside = self.path / f".replaced-{number}"
            aside.mkdir()
            for name in names:  # checkpoints first: without them the run has not begun
                os.rename(self.path / name, aside / name)

    def restore(self) -> None:
        """Checkpoints and logs of the run that was replaced last come back; those of the one that failed go."""
        if self.replaced:
            aside = self.replaced[-1]
            for name in (LOGS, CHECKPOINTS):  # checkpoints last: with them all is back
                if (aside / name).exists():
                    remove(self.path / name)
                    os.rename(aside / name, self.path / name)
            aside.rmdir()

    def heal(self) -> None:
        """Finish what a kill has cut off, and remove what it left."""
        for path in [*self.path.glob(".discarded-*"), *self.checkpoints.glob(".*tmp")]:
            remove(path)
        if self.replaced and (not self.begun or not any(self.replaced[-1].iterdir())):
            self.check_replaceable(tuple(path.name for path in self.replaced[-1].iterdir()) or (LOGS,))
            self.restore()

    def discard_replaced(self) -> None:
        """Delete what a finished run has replaced."""
        for path in self.replaced:
            discarded = path.with_name(path.name.replace(".replaced", ".discarded"))
            os.rename(path, discarded)
            remove(discarded)


@contextmanager
def claimed(folder: RunFolder, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the folder for a run, by one process.

    A run that is interrupted before its first step, or fails before its first checkpoint, leaves the folder as it was;
    one that finishes discards what it replaced.

    Args:
        folder: of the run.
        resume: go on with the run that is there.
        overwrite: replace an earlier run.

    Raises:
        FileExistsError: an earlier run without `overwrite`, or files in it that are not the toolkit's.
        BlockingIOError: another process has the folder.
        NotADirectoryError: a file or a dangling link in the folder's place.
    """
    path = folder.path
    if path.is_symlink() and not path.exists():
        raise NotADirectoryError(f"{path} is a link to nothing: choose another --output, or make its target")
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, and a run needs a folder: choose another --output")
    if resume and not path.is_dir():
        raise FileNotFoundError(f"nothing to resume: {path} does not exist")
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locked(path):
            folder.heal()
            if not resume:
                if folder.found() and not overwrite:
                    raise FileExistsError(
                        f"{path} holds an earlier run: go on with --resume true, replace it with --overwrite true, or "
                        "choose another --output"
                    )
                folder.check_replaceable()
                folder.set_aside()
            before = folder.found()
            try:
                yield
            except BaseException as error:
                failed = isinstance(error, Exception)  # a signal is none
                if not resume and not (folder.resumable if failed else folder.begun):
                    for name in (LOGS, CHECKPOINTS):
                        if name not in before:
                            remove(path / name)
                    if folder.replaced:
                        folder.restore()
                raise
            folder.discard_replaced()
    finally:
        if made:
            with suppress(OSError):
                path.rmdir()  # only when it is empty


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of the lock when this process dies.

    Raises:
        BlockingIOError: another process has it.
    """
    path = folder / ".lock"
    try:
        # Not flock: processes that load data inherit that one, and would keep it after a kill.
        file, _ = take_lock(path, fcntl.lockf)
    except BlockingIOError:
        owner = ""
        with suppress(OSError):
            owner = path.read_text(encoding="utf-8", errors="replace").strip()
        raise BlockingIOError(
            f"another process{f' ({owner})' if owner else ''} is at work in {folder}: wait for it, or choose "
            "another --output"
        ) from None
    try:
        os.truncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
