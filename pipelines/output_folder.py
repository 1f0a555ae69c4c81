"""Refuses an output folder whose files a run could replace, or which it would take for input."""

from __future__ import annotations

import glob
import os

from curation.stage import PlanError
from curation.storage import Folder
from curation.urls import is_remote, local_path, split_url
from curation.video_list import matches_pattern

# What other processes of a run may still write after its output was removed, with the ledger
LATE_FILES = {
    *("clips.parquet", "videos.parquet", "funnel.parquet", "stats.parquet", "shards.parquet"),
    *("manifest.json", "SHA256SUMS", "report.html", "status.json", "status.prom"),
    *("shards", "presto", "extracted", "logs"),
}
EXAMPLES = ("clips.parquet", "extracted/clip.mp4", "presto/videos/clip.mp4")  # files of an output


def check_output_folder(out: Folder, given: str | None) -> None:
    """Raises PlanError where the folder has other files than an output, or lies in the input.

    given: the setting `input`.
    """
    folders = out.subfolders()
    names = {name for name in (*out.names(), *folders) if not name.startswith(".")}
    foreign = sorted(names - LATE_FILES - {"lost+found"})
    if "ledger" not in folders and foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise PlanError(
            f"{out.url} is no output of an earlier run, and it has files: {shown}\n  fix: give a "
            "new or empty folder as output, because a run replaces files"
        )
    if given is not None and _reads_output(given, out):
        raise PlanError(
            f"the output {out.url} lies in the input {given}: the next run would take its clips "
            "for videos\n  fix: give an output outside of the input"
        )


def _reads_output(given: str, out: Folder) -> bool:
    """Whether a run with this input, a folder or a pattern, reads files of the output."""
    if is_remote(given) != is_remote(out.url):
        return False
    if is_remote(given):
        *store, source, _ = split_url(given)
        *store_of_output, folder, _ = split_url(out.url)
        is_folder = not glob.has_magic(source)
    else:
        source, folder = (os.path.realpath(local_path(path)) for path in (given, out.url))
        store = store_of_output = []
        is_folder = not glob.has_magic(source) or os.path.isdir(source)
    pattern = _parts(f"{glob.escape(source)}/**/*" if is_folder else source)
    return store == store_of_output and any(
        matches_pattern(_parts(f"{folder}/{name}"), pattern) for name in EXAMPLES
    )


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
