"""Errors of the storage of an output: a local disk or an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from curation.stage import OutputError


class MissingFile(OutputError, FileNotFoundError):
    """A file that is to be read is not there. Where nothing handles that, another process removed
    it during the run, which stops."""


@contextmanager
def storage_errors(action: str, place: str) -> Iterator[None]:
    """Raises OutputError for an error of the storage, MissingFile for a file that is not there."""
    try:
        yield
    except (OSError, pa.ArrowException) as e:
        if action == "read" and isinstance(e, FileNotFoundError):
            raise MissingFile(f"can't read {place}: no such file") from None
        raise OutputError(f"can't {action} {place}: {e}") from None
