"""OUT/SHA256SUMS: the hashes of the files for users, which `sha256sum -c` can check too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from curation.checksums import format_checksums, parse_checksums
from curation.stage import PlanError
from curation.storage import Folder

CHECKSUMS = "SHA256SUMS"
MAX_READERS = 16  # files that are read at the same time


def hash_files(out: Folder, names: Iterable[str]) -> dict[str, str | None]:
    """Name -> SHA-256; None of a missing file."""
    listed = list(dict.fromkeys(names))
    with ThreadPoolExecutor(MAX_READERS) as pool:
        return dict(zip(listed, pool.map(out.sha256, listed), strict=True))


def read_checksums(out: Folder) -> dict[str, str]:
    """Name -> SHA-256; empty where the file is missing. Raises PlanError where it is damaged."""
    if not out.exists(CHECKSUMS):
        return {}
    try:
        return parse_checksums(out.read(CHECKSUMS))
    except ValueError as error:
        raise PlanError(
            f"{out.path(CHECKSUMS)} is damaged: {error}\n  fix: delete it and run longtake export"
        ) from None


def update_checksums(
    out: Folder, names: Iterable[str], others: Mapping[str, str | None] | None = None
) -> None:
    """Hashes the files of these names, and writes the file.

    others: hashes that are known, in place of those recorded for other names.
    """
    recorded = read_checksums(out) if others is None else others
    found = {**recorded, **hash_files(out, names)}
    out.write(CHECKSUMS, format_checksums({n: sha256 for n, sha256 in found.items() if sha256}))
