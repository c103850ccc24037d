"""One command of the toolkit in a forked process: imports are paid for once, and nothing is left from case to case."""

import contextlib
import importlib
import locale
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path

MEMORY = 10 << 30  # bytes that a command may ask for: an option such as 10**12 must not take the machine down
IDLE = 25  # seconds in which nothing happens at all
OUTSIDE = "fuzz: reached out to the network: "


@dataclass(frozen=True)
class Surroundings:
    """What a command runs in.

    Attributes:
        variables: of the environment; None takes one away.
        largest_file: bytes after which a write fails, as on a full disk.
        ascii_locale: text files without an encoding of their own are ASCII, as in a container without a locale.
        interrupt_after: seconds after which Ctrl-C is pressed.
        limit: seconds after which the command counts as one that hangs.
    """

    variables: Mapping[str, str | None] = field(default_factory=dict)
    largest_file: int | None = None
    ascii_locale: bool = False
    interrupt_after: float | None = None
    limit: float = 120


@dataclass
class Outcome:
    """How a command ended."""

    code: int | None
    signal: int | None
    hung: bool
    text: str
    seconds: float


def warm() -> None:
    """Import all that any command imports, and start no thread."""
    import torch

    torch.set_num_threads(1)
    from ssql import cli

    for name in cli.COMMANDS:
        importlib.import_module(f"ssql.commands.{cli.NAMES.get(name, name)}")
    for module in ("jsonargparse", "lightning.pytorch.cli", "onnx", "onnxruntime", "onnxscript", "timm", "kornia"):
        importlib.import_module(module)
    # The exporter imports most of itself when it is first used.
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), torch.no_grad():
            torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), f"{folder}/x.onnx", dynamo=True)


def in_child(work: Callable[[], None], folder: Path, around: Surroundings = Surroundings()) -> Outcome:
    """Do something in a fork of this process, with `folder` as its working directory.

    Its output is caught by file descriptor, so that libraries and its own children are heard as well.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    reading, writing = os.pipe()  # not a file: a full disk does not stop it
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become(writing, folder, around)
        os._exit(_exit_code(work))
    os.close(writing)
    try:
        with open(reading, "rb", buffering=0) as pipe:
            status, hung, said = _wait(child, pipe, started, around)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        raise
    text = said.decode("utf-8", "replace")
    seconds = time.monotonic() - started
    if os.WIFSIGNALED(status):
        return Outcome(None, os.WTERMSIG(status), hung, text, seconds)
    return Outcome(os.WEXITSTATUS(status), None, hung, text, seconds)


def run_command(words: list[str], folder: Path, around: Surroundings = Surroundings()) -> Outcome:
    """`ssql WORDS` in a folder."""

    def command() -> None:
        from ssql import cli

        sys.argv = ["ssql", *words]
        sys.exit(cli.main())  # as the installed script does

    return in_child(command, folder, around)


def _become(output: int, folder: Path, around: Surroundings) -> None:
    os.setsid()  # whatever it starts can be ended with it
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)  # torch makes its pool of threads anew after a fork, which two threads at once get wrong
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for name, value in around.variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if around.ascii_locale:
        locale.setlocale(locale.LC_ALL, "C")
    if around.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (around.largest_file, around.largest_file))
    _close_the_network()


def _close_the_network() -> None:
    """Nothing is looked up or fetched: an attempt is written down, and fails as on a machine without a network."""
    look_up = socket.getaddrinfo

    def refuse(host: object, *args: object, **kwargs: object) -> object:
        if host in (None, "", "localhost", "127.0.0.1", "::1"):
            return look_up(host, *args, **kwargs)  # type: ignore[arg-type]
        os.write(2, f"{OUTSIDE}{host}\n".encode())
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    socket.getaddrinfo = refuse  # type: ignore[assignment]


def _exit_code(work: Callable[[], None]) -> int:
    """Run to the end, and say of exceptions what the interpreter would say."""
    code: object = 0
    try:
        work()
    except SystemExit as stopped:
        code = stopped.code
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        with contextlib.suppress(OSError):
            os.write(2, f"{code}\n".encode("utf-8", "backslashreplace"))
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return (code or 0) & 255


def _wait(child: int, pipe: RawIOBase, started: float, around: Surroundings) -> tuple[int, bool, bytes]:
    """Its status, whether it had to be ended, and what it said. A process it left behind is not waited for."""
    interrupted = hung = False
    said, looked, idle = b"", started, 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        while select.select([pipe], [], [], 0 if done else 0.02)[0] and (block := os.read(pipe.fileno(), 1 << 16)):
            said += block
        if done:
            return status, hung, said
        after = time.monotonic() - started
        if around.interrupt_after is not None and after > around.interrupt_after and not interrupted:
            os.kill(child, signal.SIGINT)
            interrupted = True
        if time.monotonic() > looked + 1:
            looked = time.monotonic()
            idle = idle + 1 if _all_wait(child) else 0
        if (after > around.limit or idle > IDLE) and not hung:
            hung = True
            os.killpg(child, signal.SIGKILL)


def _all_wait(session: int) -> bool:
    """Whether no process of a session computes or reads a disk: one that opens a FIFO waits for ever."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) != session:
                continue
            threads = [stat.read_text(errors="replace") for stat in process.glob("task/*/stat")]
            if any(thread.rpartition(")")[2].split()[0] in "RD" for thread in threads):
                return False
    return True
