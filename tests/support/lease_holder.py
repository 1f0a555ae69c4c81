"""Holds the lease on an output, as its own process, and appends a row to a table until it stops.

    python -m tests.support.lease_holder OUT

Prints a line for each row, as `append` returned.
"""

from __future__ import annotations

import sys
import time
from itertools import count

import pyarrow as pa

from curation import lease
from curation.cli import Arguments, NoSettings, run_command
from curation.ledger import Ledger
from curation.storage import Folder

RENEWAL_INTERVAL_S, EXPIRY_S = 0.2, 1.5
SCHEMA = pa.schema([("video", pa.string())])


def shorten_times() -> None:
    lease.RENEWAL_INTERVAL_S, lease.EXPIRY_S = RENEWAL_INTERVAL_S, EXPIRY_S


def run(given: Arguments[NoSettings]) -> None:
    shorten_times()
    out = Folder(given.values[0])
    with out.locked():
        table = Ledger(out / "ledger", "videos", SCHEMA, "video")
        for number in count():
            table.append([{"video": f"of the holder {number}"}])
            print(number, flush=True)
            time.sleep(0.1)


if __name__ == "__main__":
    run_command(__doc__, run, sys.argv[1:], arguments="OUT")
