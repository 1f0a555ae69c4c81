"""Refuses an output folder whose files a run could replace, or which it would take for input."""

from __future__ import annotations

import os

from curation.stage import PlanError
from curation.storage import Folder

# What other processes of a run may still write after its output was removed, with the ledger
LATE_FILES = {
    *("clips.parquet", "videos.parquet", "funnel.parquet", "stats.parquet", "shards.parquet"),
    *("manifest.json", "SHA256SUMS", "report.html", "status.json", "status.prom"),
    *("shards", "presto", "extracted", "logs"),
}


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
    if given is None or not os.path.isdir(given) or not out.is_local:
        return
    source = os.path.realpath(given)
    if os.path.commonpath([source, os.path.realpath(out.url)]) == source:
        raise PlanError(
            f"the output {out.url} lies in the input {given}: the next run would take its clips "
            "for videos\n  fix: give an output outside of the input"
        )
