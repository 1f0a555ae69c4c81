"""A process that uploads 32 MB to the object at a URL, fails to read more, and ends with code 3.

python -m tests.support.failing_upload URL
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

from curation.objects import write_object
from curation.urls import file_system


def chunks() -> Iterator[bytes]:
    for _ in range(4):
        yield bytes(8 << 20)
    raise OSError(errno.EIO, "Input/output error")


if __name__ == "__main__":
    try:
        write_object(*file_system(sys.argv[1]), chunks())
    except OSError:
        sys.exit(3)
