"""The lock on an output on a disk and the lease on one in S3: only one run at a time writes to it.

The lease is an object that its holder renews, by conditional requests alone. A process that finds
it held waits for `EXPIRY_S` of its own monotonic clock: if it is renewed meanwhile, another run is
at work; if not, the process takes it over.

Each holder has an epoch, one above the last, which the parts of the ledger carry in their names. A
takeover stores which numbers the parts have by then (`cuts`): parts of an older epoch with later
numbers do not count, so that a paused process which continues changes no table. So does the first
holder, whose epoch is the time of day: a run may still write to an output that was removed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from curation.json_text import parse_object
from curation.stage import OutputError

LEASE = "lease.json"  # in the folder ledger/
RENEWAL_INTERVAL_S = 5.0
EXPIRY_S = 30.0  # without a renewal for so long, another process may take the lease over
REQUEST_TIMEOUT_S = 5.0
NOT_APART = "two runs at once on this output are not kept apart: start only one"

# epoch; parts: table -> first number of a part that an older epoch may not use
Cut = dict[str, Any]


class LeaseLost(OutputError):
    """Another run has taken the output over, or it was removed."""


@dataclass(frozen=True)
class FileLock:
    """The lock of this process on an output on a disk."""

    path: str
    status: os.stat_result  # of the locked file

    def check(self, at_once: bool = True) -> None:
        """As Lease.check, always at once."""
        try:
            is_present = os.path.samestat(os.stat(self.path), self.status)
        except FileNotFoundError:
            is_present = False
        except OSError as error:
            raise OutputError(f"can't access {self.path}: {error.strerror}") from None
        if not is_present:
            raise _removed(self.path)


def _removed(path: str) -> LeaseLost:
    return LeaseLost(
        f"this output was removed: {path} is gone; this run stops\n  fix: if its disk is not "
        "mounted, mount it; run the same command again, which computes what is missing"
    )


class _ConditionFailed(Exception):
    """The object is not the one that the condition names."""


class _Object:
    """An object in S3 that is written only under conditions."""

    def __init__(self, bucket: str, key: str, options: str) -> None:
        """options: of the URL, as pyarrow knows them. Raises ImportError without boto3, OutputError
        where boto3 can't use the options or the user's AWS settings."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        given = dict(urllib.parse.parse_qsl(options))
        endpoint = given.get("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
        own_server = endpoint or "AWS_ENDPOINT_URL" in os.environ
        config = Config(
            connect_timeout=REQUEST_TIMEOUT_S,
            read_timeout=REQUEST_TIMEOUT_S,
            retries={"total_max_attempts": 2},
            s3={"addressing_style": "path" if own_server else "auto"},
        )
        self._place = {"Bucket": bucket, "Key": key}
        self.url = f"s3://{bucket}/{key}"
        try:
            self._client = boto3.client(
                "s3", endpoint_url=endpoint, region_name=given.get("region"), config=config
            )
        except (BotoCoreError, ValueError) as error:  # no such profile; an invalid endpoint
            raise OutputError(f"can't connect to {self.url}: {error}") from None
        self._client.meta.events.register("before-send.s3.PutObject", _send_without_expect)

    def read(self) -> tuple[str, dict[str, Any]] | None:
        """Returns the ETag and the content; None where there is none. Raises OutputError."""
        with self._errors("read"):
            try:
                found = self._client.get_object(**self._place)
                return found["ETag"], parse_lease(found["Body"].read(), self.url)
            except self._client.exceptions.NoSuchKey:
                return None

    def write(self, content: dict[str, Any], etag: str | None) -> str:
        """Returns the new ETag. etag: of the present object; None: there must be none. Raises
        _ConditionFailed, OutputError."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._errors("write"):
            body = json.dumps(content, indent=1).encode()
            return self._client.put_object(**self._place, Body=body, **condition)["ETag"]

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if action == "write" and status in (404, 412):
                raise _ConditionFailed from None
            raise OutputError(f"can't {action} {self.url}: {error}") from None
        except BotoCoreError as error:
            raise OutputError(f"can't {action} {self.url}: {error}") from None


def parse_lease(data: bytes, url: str) -> dict[str, Any]:
    """Returns the content of the object at this URL. Raises OutputError where it is damaged."""
    try:
        content = parse_object(data)
        kinds = {"epoch": int, "holder": str | None, "nonce": str, "cuts": list}
        for name, kind in kinds.items():
            if not isinstance(content.get(name), kind):
                raise ValueError(f"{name} is {content.get(name)!r:.60}")
        for cut in content["cuts"]:
            if not (isinstance(cut["epoch"], int) and isinstance(cut["parts"], dict)):
                raise ValueError(f"{cut!r:.60} in its cuts")
    except (ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"{url} is damaged: {error}\n  fix: restore it; if no run is writing, it may be "
            "deleted, but parts of a run that had lost the output then count again"
        ) from None
    return content


def _send_without_expect(request: Any, **_: Any) -> None:
    """Removes `Expect: 100-continue`: botocore reads without end where a connection is cut in the
    middle of the answer to it."""
    request.headers.pop("Expect", None)


class Lease:
    """The lease while this process holds it."""

    def __init__(self, store: _Object, etag: str | None, epoch: int, cuts: list[Cut]) -> None:
        """Takes the lease: of an object with this ETag, None of no object. Raises OutputError."""
        self.epoch, self.cuts = epoch, cuts
        self.is_lost = self._is_removed = False
        self._store, self._etag = store, etag
        self._nonce, self._renewals = uuid.uuid4().hex, 0
        self._holder: str | None = f"process {os.getpid()} on {socket.gethostname()}"
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        try:
            self._write()
        except _ConditionFailed:
            raise OutputError(f"another run has just taken {store.url}; wait for it") from None

    def conditions_hold(self) -> bool:
        """Whether the server refuses a write whose condition fails. Some ignore conditions."""
        try:
            self._etag = self._store.write(self._content(), None)
        except _ConditionFailed:
            return True
        return False

    def check(self, at_once: bool = False) -> None:
        """Before a write to the output. Raises LeaseLost, and OutputError where the store fails.
        at_once: asks the store in any case."""
        if self.is_lost:
            raise self._error()
        if at_once or _clock() - self._confirmed_s > 2 * RENEWAL_INTERVAL_S:
            try:
                self.renew()
            except LeaseLost:
                if threading.current_thread() is threading.main_thread():
                    self._ended.set()  # the thread need not interrupt
                raise

    def renew(self) -> None:
        """Writes the lease again. Raises LeaseLost; OutputError if the store fails."""
        with self._lock:
            if self.is_lost:
                raise self._error()
            for _ in range(2):
                try:
                    self._write()
                    return
                except _ConditionFailed:
                    found = self._store.read()
                    self._is_removed = found is None
                    # The answer to an earlier renewal may be lost while its write is not.
                    self.is_lost = found is None or found[1]["nonce"] != self._nonce
                    if self.is_lost or found is None:
                        raise self._error() from None
                    self._etag = found[0]

    def keep_renewed(self) -> None:
        """Renews the lease in a thread. If it is lost, the main thread gets SIGINT. Commands that a
        script starts in the background ignore it: they get SIGTERM, which they handle alike."""
        self._thread.start()

    def release(self) -> None:
        """Ends the renewals. The next process need not wait."""
        self._ended.set()
        self._thread.join()
        self._holder = None
        if not self.is_lost:
            self.renew()

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL_INTERVAL_S):
            try:
                self.renew()
            except LeaseLost:
                if not self._ended.is_set():
                    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
                    number = signal.SIGTERM if is_ignored else signal.SIGINT
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                return
            except OutputError:
                pass  # the next renewal may succeed; `check` stops the writes meanwhile

    def _write(self) -> None:
        self._renewals += 1
        started_s = _clock()
        self._etag = self._store.write(self._content(), self._etag)
        self._confirmed_s = started_s

    def _content(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "holder": self._holder,
            "nonce": self._nonce,
            "renewals": f"{self._renewals:012d}",  # of one length: a read meanwhile is not cut off
            "cuts": self.cuts,
        }

    def _error(self) -> LeaseLost:
        if self._is_removed:
            return _removed(self._store.url)
        return LeaseLost(
            f"another run has taken over this output: {self._store.url} was not renewed in time; "
            "this run stops"
        )


def take_lease(
    url_parts: tuple[str, str, str],
    next_parts: Callable[[], dict[str, int]],
    report: Callable[[str], None],
) -> Lease | None:
    """Takes the lease on an output. Returns None, and reports a line, if the server can't keep runs
    apart. Raises OutputError if another run holds the lease.

    url_parts: bucket, key and options. next_parts: returns `parts` of a cut. report: prints a line.
    """
    try:
        store = _Object(*url_parts)
    except ImportError:
        report(f"boto3 is not installed: {NOT_APART}, or install the extra s3")
        return None
    found = store.read()
    if found is None:  # a run whose output was removed may still write
        etag, epoch, cuts, other_may_write = None, int(time.time()), [], True
    else:
        etag, content = found
        epoch, cuts = content["epoch"] + 1, content["cuts"]
        other_may_write = content["holder"] is not None
        if other_may_write and _is_renewed(store, etag, content, report):
            raise OutputError(
                f"another run is writing to {store.url}: {content['holder']}; wait for it"
            )
    if other_may_write:
        cuts = [*cuts, {"epoch": epoch, "parts": next_parts()}]
    lease = Lease(store, etag, epoch, cuts)
    if not lease.conditions_hold():
        report(f"the server of {store.url} ignores If-None-Match: {NOT_APART}")
    lease.keep_renewed()
    return lease


def _is_renewed(
    store: _Object, etag: str, content: dict[str, Any], report: Callable[[str], None]
) -> bool:
    """Waits for at most EXPIRY_S for a renewal."""
    report(f"{content['holder']} holds this output: waiting {EXPIRY_S:g} s for a renewal")
    until_s = _clock() + EXPIRY_S
    while (left_s := until_s - _clock()) > 0:
        time.sleep(min(left_s, RENEWAL_INTERVAL_S / 2))
        found = store.read()
        if found is None or found[0] != etag:
            return True
    return False


def _clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
