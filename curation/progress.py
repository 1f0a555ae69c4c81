"""What a person sees while a phase runs: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import threading
import time
import unicodedata
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are misspelt without them


def shown(text: object, limit: int = 200) -> str:
    """Any text as one harmless line: unprintable characters as escapes, too long a middle cut out.

    File names and error texts are hostile: an ANSI escape would drive the terminal, a newline would
    fake a line of ours, a bidi override would show another name.
    """
    text = str(text)
    if len(text) > limit:
        tail = limit // 3
        text = f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"
    return "".join(
        c
        if c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def duration(seconds: float) -> str:
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
    """What became of the units so far. A phase uses the columns that it has."""

    done: int = 0
    kept: int = 0
    rejected: int = 0
    failed: int = 0


class Progress:
    """`with Progress("score", 34, "videos") as progress: progress.update(done=1, kept=2)`.

    Writes to stderr, so that what a pipeline prints as its result stays clean. `total` may be None
    where it isn't known.
    """

    window_s = 60.0  # speed is that of the last minute: models load slowly, then run fast

    def __init__(
        self,
        phase: str,
        total: int | None,
        unit: str,
        out: TextIO | None = None,
        every_s: float = 10.0,
    ) -> None:
        """unit: plural. every_s: time between plain lines."""
        self.phase, self.unit = shown(phase, 40), shown(unit, 40)
        self.total, self.every_s = total, every_s
        self.counts = Counts()
        self.out = sys.stderr if out is None else out
        self._marks: deque[tuple[float, int]] = deque()
        self._note: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._live: Live | None = None
        self._ticker: threading.Thread | None = None

    def update(self, done: int = 0, kept: int = 0, rejected: int = 0, failed: int = 0) -> None:
        """Adds to the counts."""
        with self._lock:
            self.counts.done += done
            self.counts.kept += kept
            self.counts.rejected += rejected
            self.counts.failed += failed

    def say(self, text: str) -> None:
        """One line above the display: a video that failed, a thing worth knowing."""
        line = shown(text, 400)
        if self._live:
            self._live.console.print(Text(line))
        else:
            self._write(line)

    def note(self, text: str | None) -> None:
        """What is waited for just now, beside the counts until None takes it back. In plain lines,
        that it begins and ends is said at once."""
        began, ended = text and not self._note, self._note and not text
        self._note = text and shown(text, 400)
        if self._live is None and (began or ended):
            self._write(f"{self.phase}  {self._note or 'goes on'}")

    def line(self) -> str:
        """`score  12/34 videos · 20 kept · 7 rejected · 1 failed · 3.2/s · 7 s left`"""
        with self._lock:
            counts, now = Counts(**vars(self.counts)), time.monotonic()
            speed = self._speed(now)
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.phase}  {counts.done}{of} {self.unit}"]
        parts += [
            f"{n} {name}" for name, n in list(vars(counts).items())[1:] if n or name == "failed"
        ]
        if self._ended.is_set():
            parts.append(f"in {duration(now - self._started)}")
        elif speed:
            parts.append(f"{speed:.3g}/s" if speed >= 1 else f"{speed * 60:.3g}/min")
            if self.total is not None and self.total > counts.done:
                parts.append(f"{duration((self.total - counts.done) / speed)} left")
        return " · ".join(parts)

    def _speed(self, now: float) -> float:
        """Units per second over the last `window_s`; 0 where nothing was done in it."""
        self._marks.append((now, self.counts.done))
        while len(self._marks) > 2 and now - self._marks[1][0] > self.window_s:
            self._marks.popleft()
        then, done = self._marks[0]
        return (self.counts.done - done) / (now - then) if now > then else 0.0

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._marks.append((self._started, 0))
        if self.out.isatty():
            console = Console(file=self.out, highlight=False)
            self._live = Live(
                get_renderable=self._rows,
                console=console,
                refresh_per_second=4,
                # Ray and libraries print as they like; they must not be drawn into the live line
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        else:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._note = None
        if self._live:
            self._live.stop()
        if self._ticker:
            self._ticker.join()
            self._write(self.line())
        if kind:
            self.say(f"{self.phase}  stopped by {kind.__name__}")

    def _tick(self) -> None:
        """A line of its own thread: a phase that hangs goes on saying how far it came."""
        while not self._ended.wait(self.every_s):
            self._write(" · ".join(filter(None, (self.line(), self._note))))

    def _write(self, line: str) -> None:
        # one write per line, so that lines of other processes on the same pipe can't split it
        encoding = self.out.encoding or "utf-8"
        self.out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self.out.flush()

    def _rows(self) -> Group:
        """The line, and below it what is waited for."""
        return Group(self._row(), *([Text(self._note, "yellow")] if self._note else []))

    def _row(self) -> Table:
        line = Text(self.line(), no_wrap=True, overflow="ellipsis")
        room = (self._live.console.width if self._live else 0) - line.cell_len - 1
        row = Table.grid(padding=(0, 1, 0, 0))
        if room < 8:  # on a narrow terminal the words matter more
            row.add_row(line)
        else:
            row.add_row(ProgressBar(self.total, self.counts.done, width=min(room, 20)), line)
        return row
