"""Progress of a phase: a live line on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import sys
import threading
import time
import unicodedata
from collections import deque
from dataclasses import dataclass
from typing import ClassVar, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curation.texts import JOINERS


def printable(text: object, limit: int = 200) -> str:
    """Returns any text as one printable line; of a longer text the middle is left out.

    Unprintable characters become escapes, since file names and error texts may be hostile: an ANSI
    escape controls the terminal, a newline imitates a line of this program, a bidi override another
    name."""
    text = str(text)
    if len(text) > limit:
        tail = limit // 3
        text = f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"
    return "".join(
        c
        if c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def format_duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 5 h 07 min, 2 d 3 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 48 * 3600:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


@dataclass
class Counts:
    """Units of a phase by outcome."""

    done: int = 0
    rejected: int = 0
    failed: int = 0


@dataclass(frozen=True)
class PhaseState:
    """What a phase has done by now."""

    phase: str
    unit: str
    total: int | None
    counts: Counts
    per_s: float  # over the last `Progress.window_s`; of a finished phase, over all its time
    left_s: float | None  # None where unknown, and of a finished phase
    elapsed_s: float
    finished: bool

    def format_line(self) -> str:
        """`score  12/34 videos · 7 rejected · 1 failed · 3.2/s · 7 s left`"""
        total = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.phase}  {self.counts.done}{total} {self.unit}"]
        parts += [
            f"{n} {name}"
            for name, n in list(vars(self.counts).items())[1:]
            if n or name == "failed"
        ]
        if self.finished:
            parts.append(f"in {format_duration(self.elapsed_s)}")
        elif self.per_s:
            speed = self.per_s
            parts.append(f"{speed:.3g}/s" if speed >= 1 else f"{speed * 60:.3g}/min")
            if self.left_s is not None:
                parts.append(f"{format_duration(self.left_s)} left")
        return " · ".join(parts)


class Progress:
    """`with Progress("score", 34, "videos") as progress: progress.update(done=1, failed=1)`.

    Writes to stderr, apart from the results on stdout.
    """

    window_s = 60.0  # of the speed: models load slowly, then run fast
    started: ClassVar[deque[Progress]] = deque(maxlen=8)  # the last ones of this process

    def __init__(
        self,
        phase: str,
        total: int | None,
        unit: str,
        out: TextIO | None = None,
        every_s: float = 10.0,
    ) -> None:
        """total: None where unknown. unit: plural. every_s: time between plain lines."""
        self.phase, self.unit = printable(phase, 40), printable(unit, 40)
        self.total, self.every_s = total, every_s
        self.counts = Counts()
        self.out = sys.stderr if out is None else out
        self._history: deque[tuple[float, int]] = deque()  # time, units done by then
        self._wait_reason: str | None = None
        self._ended_s = 0.0
        self.errors: deque[str] = deque(maxlen=5)  # the last ones: of rows, nodes
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._live: Live | None = None
        self._printer: threading.Thread | None = None

    @property
    def wait_reason(self) -> str | None:
        """What the workers wait for."""
        return self._wait_reason

    def update(self, done: int = 0, rejected: int = 0, failed: int = 0) -> None:
        """Adds to the counts."""
        with self._lock:
            self.counts.done += done
            self.counts.rejected += rejected
            self.counts.failed += failed

    def add_error(self, text: str) -> None:
        """Keeps it as one of the last errors."""
        self.errors.append(printable(text, 400))

    def print_error(self, text: str) -> None:
        """Prints one line above the live line, and keeps it: a video that failed, a node that
        left."""
        self.add_error(text)
        self.print_line(text)

    def print_line(self, text: str) -> None:
        """Prints one line above the live line."""
        line = printable(text, 400)
        if self._live:
            self._live.console.print(Text(line))
        else:
            self._write(line)

    def show_wait_reason(self, text: str | None) -> None:
        """Shows what the workers wait for with the counts, until None is given. Where lines are
        plain, the begin and the end of a wait are printed at once."""
        began, ended = text and not self._wait_reason, self._wait_reason and not text
        self._wait_reason = text and printable(text, 400)
        if self._live is None and (began or ended):
            self._write(f"{self.phase}  {self._wait_reason or 'continues'}")

    def state(self) -> PhaseState:
        """The counts, speed and time left."""
        with self._lock:
            finished = self._finished.is_set()
            now = self._ended_s if finished else time.monotonic()
            counts, elapsed_s = Counts(**vars(self.counts)), now - self._started
            speed = counts.done / max(elapsed_s, 1e-3) if finished else self._speed(now)
        left = 0 if self.total is None or finished else self.total - counts.done
        left_s = left / speed if left > 0 and speed else None
        return PhaseState(
            self.phase, self.unit, self.total, counts, speed, left_s, elapsed_s, finished
        )

    def format_line(self) -> str:
        return self.state().format_line()

    def _speed(self, now: float) -> float:
        """Returns the units per second over the last `window_s`."""
        self._history.append((now, self.counts.done))
        while len(self._history) > 2 and now - self._history[1][0] > self.window_s:
            self._history.popleft()
        since, done = self._history[0]
        return (self.counts.done - done) / (now - since) if now > since else 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        Progress.started.append(self)
        self._history.append((self._started, 0))
        if self.out.isatty():
            console = Console(file=self.out, highlight=False)
            self._live = Live(
                get_renderable=self._render,
                console=console,
                refresh_per_second=4,
                # what Ray and other libraries print must not be drawn into the live line
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        else:
            self._printer = threading.Thread(target=self._print_lines, daemon=True)
            self._printer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended_s = time.monotonic()
        self._finished.set()
        self._wait_reason = None
        if self._live:
            self._live.stop()
        if self._printer:
            self._printer.join()
            self._write(self.format_line())
        if kind:
            self.print_line(f"{self.phase}  stopped by {kind.__name__}")

    def _print_lines(self) -> None:
        """Prints lines from a separate thread, so that they also appear while a phase waits."""
        while not self._finished.wait(self.every_s):
            self._write(" · ".join(filter(None, (self.format_line(), self._wait_reason))))

    def _write(self, line: str) -> None:
        # one write per line, so that lines of other processes on the same pipe can't split it
        encoding = self.out.encoding or "utf-8"
        self.out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self.out.flush()

    def _render(self) -> Group:
        """Returns the live line, and below it the wait reason."""
        reason = self._wait_reason
        return Group(self._line_with_bar(), *([Text(reason, "yellow")] if reason else []))

    def _line_with_bar(self) -> Table:
        line = Text(self.format_line(), no_wrap=True, overflow="ellipsis")
        bar_width = (self._live.console.width if self._live else 0) - line.cell_len - 1
        row = Table.grid(padding=(0, 1, 0, 0))
        if bar_width < 8:
            row.add_row(line)
        else:
            row.add_row(ProgressBar(self.total, self.counts.done, width=min(bar_width, 20)), line)
        return row
