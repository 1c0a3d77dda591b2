"""Progress and cancelling: what is being done, on one line of a terminal, and chunks of steps of a loop that is one graph."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator

from tfsd.errors import shown

CHUNK_SECONDS = 1.0  # a chunk takes about as long, so that a bar moves and a cancel is heard
_TICK_SECONDS = 0.5  # between two drawings of the line
_ANSWER_SECONDS = 0.5  # after which Ctrl-C is answered if it is not obeyed by then


_here = threading.local()  # the open `Stages` of each thread


class Cancelled(Exception):
    """The callback asked to stop, so there is no image."""


class Stages:
    """Says on one line of standard error what is being done and for how long; use it in `with`.

    Call: `stages("loading")` begins a stage and ends the one before; `stages("drawing", 20)` begins one of 20 steps,
    of which `step(n)` tells how many are done. The line is drawn at once, then twice a second, and only on a terminal
    or in a notebook. `label` stands before the stage's name; with `keep` each stage leaves a line with its time.
    While one is open, others that its thread makes by `within` are parts of it.
    """

    def __init__(self, wanted: bool, *, keep: bool = False):
        self.label, self.name = "", ""
        self.drawn = bool(wanted) and _draws(sys.stderr)
        self._keep = keep
        self._total: int | None = None
        self._done, self._unit, self._scale, self._began = 0, "step", False, time.monotonic()
        self._lock, self._over = threading.RLock(), threading.Event()
        self._depth = 0
        self.interrupted = False  # set once Ctrl-C was pressed, by whoever hears it

    @classmethod
    def within(cls, wanted: bool) -> "Stages":
        """Returns the open one, or a new one."""
        return _opened() or cls(wanted)

    def __enter__(self) -> "Stages":
        self._depth += 1
        if self._depth == 1:
            _here.stages = self
            if self.drawn:
                threading.Thread(target=self._tick, name="tfsd-stages", daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._over.set()
            self._end(failed=failure[0] is not None)
            _here.stages = None

    def __call__(self, name: str, total: int | None = None, *, unit: str = "step", scale: bool = False):
        """Begins a stage; `total` counts units, with prefixes such as M where `scale`.

        Raises: `KeyboardInterrupt` if Ctrl-C was pressed and not obeyed: Python drops the exception where it comes up in a
        callback, as imports have some.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        with self._lock:
            self._end()
            self.name, self._done, self._total, self._unit, self._scale = name, 0, total, unit, scale
            self._began = time.monotonic()
            self._draw()

    def step(self, done: int, total: int | None = None):
        """Tells how many units of the stage are done, and of how many if that changed; raises as the call does."""
        if self.interrupted:
            raise KeyboardInterrupt
        with self._lock:
            self._done, self._total = done, self._total if total is None else total
            self._draw()

    def advance(self, count: int = 1):
        """Tells that `count` more units are done."""
        self.step(self._done + count)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the line away while something else is written to the terminal."""
        with self._lock:
            self._write("")
            yield
            self._draw()

    def _end(self, failed: bool = False):
        if self.drawn and self.name:
            self._write("")
            if self._keep and not failed:
                sys.stderr.write(f"{self._title()}: {time.monotonic() - self._began:.1f} s\n")
        self.name = ""

    def _tick(self):
        while not self._over.wait(_TICK_SECONDS):
            with self._lock:
                if not self._over.is_set():
                    self._draw()

    def _title(self) -> str:
        return f"{self.label}: {self.name}" if self.label else self.name

    def _draw(self):
        if not self.drawn or not self.name:
            return
        seconds, columns = time.monotonic() - self._began, shutil.get_terminal_size().columns - 1
        if self._total is None:
            self._write(f"{self._title()} ...{f' {seconds:.0f} s' if seconds >= 1 else ''}"[:columns])
            return
        from tqdm import tqdm

        plain = "utf" not in (getattr(sys.stderr, "encoding", None) or "").lower()
        done, total = self._done, self._total
        meter = {"prefix": self._title(), "ncols": columns, "unit": self._unit, "unit_scale": self._scale, "ascii": plain}
        self._write(tqdm.format_meter(done, total, seconds, **meter))

    def _write(self, line: str):
        if self.drawn:
            sys.stderr.write(f"\r{line}\x1b[K")
            sys.stderr.flush()


def _opened() -> Stages | None:
    return getattr(_here, "stages", None)


def _draws(file) -> bool:
    """Tells whether a line of this file can be drawn again and again: a terminal's or a notebook's."""
    try:
        return file.isatty() or type(file).__module__.startswith("ipykernel")
    except (AttributeError, ValueError):  # None or closed
        return False


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Takes an open line away while something else is written to the terminal."""
    opened = _opened()
    with contextlib.nullcontext() if opened is None else opened.aside():
        yield


@contextlib.contextmanager
def answering_interrupts(stages: Stages, say: Callable[[str], None]) -> Iterator[None]:
    """Answers Ctrl-C at once where Python hears it only later, such as while TensorFlow compiles; a second one ends at once.

    The answer names the stage. The signal's own handler, which the interpreter runs when it is next its turn, stays as it is.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    over = threading.Event()
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_answer, args=(heard, over, stages, say), name="tfsd-interrupts", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        told.close()


def _answer(heard: socket.socket, over: threading.Event, stages: Stages, say: Callable[[str], None]):
    count = 0
    with heard:
        while numbers := heard.recv(1):
            if numbers[0] != signal.SIGINT:
                continue
            count += 1
            stages.interrupted = True
            if count > 1:
                with stages.aside():
                    say("stopped at once; a file under way may be left as .partial")
                os._exit(130)
            if not over.wait(_ANSWER_SECONDS):
                doing = {"": "what is under way", "compiling": "compilation"}.get(stages.name, stages.name)
                with stages.aside():
                    say(f"stopping after {doing}; Ctrl-C again stops at once")


class Progress:
    """Splits a plan's rows into chunks and tells of each: to a bar, to a callback, or to nobody (one chunk).

    `pace` holds the seconds that a step takes, by what is computed; it outlives the call, so that only the first one
    has to measure. Raises: `TypeError` for a callback that cannot be called.
    """

    def __init__(self, bar: bool, callback: Callable[[int, int], bool | None] | None, pace: dict | None = None):
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (done, steps); got {shown(callback)}.")
        self.bar = bool(bar)
        self.callback = callback
        self.pace = {} if pace is None else pace

    def stages(self) -> Stages:
        """Returns the line on which a bar is drawn, to tell of what comes before and after the steps; use it in `with`."""
        return Stages.within(self.bar)

    def chunks(self, count: int, kind: Hashable = None, *, compiles: bool = False) -> Iterator[tuple[int, int]]:
        """Yields (first, last) for all `count` rows; the caller runs rows first ... last - 1 of something of `kind`.

        With `compiles`, (1, 0) comes first where nothing of `kind` has run yet: no row, so that the graph is compiled
        and no step is said to take as long.
        Raises: `Cancelled` when the callback returns False.
        """
        if not self.bar and self.callback is None:
            yield 0, count
            return
        with self.stages() as stages:
            if compiles and kind not in self.pace:
                stages("compiling")
                yield 1, 0
                self.pace[kind] = None
            stages("drawing", count)
            first = 0
            while first < count:
                last = min(first + self._size(kind), count)
                started = time.monotonic()
                yield first, last
                if first > 0:  # the first call may have compiled the graph
                    self.pace[kind] = (time.monotonic() - started) / (last - first)
                stages.step(last)
                if self.callback is not None and self.callback(last, count) is False:
                    raise Cancelled(f"Cancelled after {last} of {count} steps.")
                first = last

    def _size(self, kind: Hashable) -> int:
        """Returns how many steps take about `CHUNK_SECONDS`; one where that is not known."""
        pace = self.pace.get(kind)
        return 1 if pace is None else max(1, int(CHUNK_SECONDS / max(pace, 1e-6)))
