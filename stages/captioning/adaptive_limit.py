"""A limit on requests in flight that follows what a server can take."""

from __future__ import annotations

import asyncio
import time

DECREASE = 0.7  # factor on the limit after an overload


class AdaptiveLimit:
    """Additive increase, multiplicative decrease of the requests in flight, as in TCP.

    `async with limit:` holds one of the places; it belongs to the running event loop.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.limit = float(max_in_flight)
        self._max = max_in_flight
        self._decreased_s = 0.0  # time of the last decrease
        self._semaphore = asyncio.Semaphore(max_in_flight)
        self._withheld = 0  # places that are not given out

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._withheld < self._max - int(self.limit):
            self._withheld += 1
        else:
            self._semaphore.release()

    def decrease(self, sent_s: float) -> None:
        """Call when a request sent at sent_s was turned away; those sent together count once."""
        if sent_s >= self._decreased_s:
            self._decreased_s = time.monotonic()
            self.limit = max(1.0, self.limit * DECREASE)

    def increase(self) -> None:
        """Call when a request was answered."""
        self.limit = min(float(self._max), self.limit + 1 / self.limit)
        while self._withheld > self._max - int(self.limit):
            self._withheld -= 1
            self._semaphore.release()
