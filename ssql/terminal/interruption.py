"""SIGTERM and Ctrl-C: training ends after a step, with a checkpoint, all else at once; the exit code says by which."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SOON = 0.02  # seconds


class Interrupted(SystemExit):
    """A signal ended the command: neither an error nor success.

    Args:
        signal_number: of the signal.
        sentence: what is said; nothing when empty.

    Attributes:
        code: exit code, 130 for Ctrl-C and 143 for SIGTERM, as shells have it.
    """

    def __init__(self, signal_number: int, sentence: str = "interrupted") -> None:
        super().__init__(sentence)
        self.signal_number, self.code = signal_number, 128 + signal_number


class Interruption:
    """The handler of both signals: raises `Interrupted`, or in training only notes the first of them.

    Attributes:
        deferred: whether the first signal waits for someone to look at `signal_number`.
        signal_number: of the signal that waits; None when there was none.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.signal_number: int | None = None
        self._process = os.getpid()

    def install(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        """Take the place of other handlers; Lightning sets its own when it starts."""
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal, or raise Interrupted."""
        if os.getpid() != self._process:  # a process that loads data: its parent ends it
            return
        if self.deferred and self.signal_number is None:
            self.signal_number = number
            with suppress(OSError):
                os.write(2, b"\nstopping when this step is done; the same again stops at once\n")
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # one more kills the process
        raise Interrupted(number)


@contextmanager
def interruptible(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[Interruption]:
    """The signals raise `Interrupted`; the handlers that both had before come back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interruption = Interruption()
    interruption.install(signals)
    try:
        yield interruption
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def heard_everywhere() -> Iterator[None]:
    """A signal is not lost where Python cannot pass its exception on, as out of a callback of C: it is sent again.

    Once this has ended, Ctrl-C ends the interpreter, which only tidies up, without a word.
    """
    before, timers = sys.unraisablehook, list[threading.Timer]()

    def send_again(lost: "UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, Interrupted):
            number = lost.exc_value.signal_number
            Interruption().install()
        elif isinstance(lost.exc_value, KeyboardInterrupt):
            number = signal.SIGINT
        else:
            return before(lost)
        timers.append(threading.Timer(SOON, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        with suppress(RuntimeError):  # the interpreter ends anyway
            timers[-1].start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = before
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
