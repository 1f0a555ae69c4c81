"""Reports from an isolated child to its parent that a call makes progress."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL_S = 1.0

_send: Callable[[], None] | None = None
_sent_s = 0.0


def set_sender(send: Callable[[], None]) -> None:
    """Sets what `report_progress` calls, at most every INTERVAL_S; in a child of isolate.py
    only."""
    global _send
    _send = send


def report_progress() -> None:
    """Reports that a part of the call is done: a frame, a chunk of a file, a clip. Does nothing in
    other processes."""
    global _sent_s
    if _send is not None and time.monotonic() - _sent_s > INTERVAL_S:
        _sent_s = time.monotonic()
        _send()
