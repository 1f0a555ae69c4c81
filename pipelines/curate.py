"""Curate: raw videos in, a dataset of long takes with progressive captions out.

    python -m pipelines.curate [CONFIG] input=VIDEOS output=OUT [key=value …]

VIDEOS is a folder (all below it), a video, a pattern like 'in/*.mp4', a .txt list with a path per
line, or a Parquet list with a column `video`; local, or s3:// and gs:// URLs. Runs the four
phases score, select, caption and export; after an interruption the same command resumes.
On a Ray cluster: cluster.address=auto (or HOST:PORT, ray://HOST:PORT).

The dataset has the clips of the present input. Add files and run the command again: only these are
scored. With another policy no video is decoded again; only newly kept clips are captioned. Without
input=, an output that has scored videos is selected, captioned and exported again.
"""

from __future__ import annotations

import sys

from curation.runner.cluster import Cluster
from curation.storage import Folder
from pipelines import caption, export, score, select
from pipelines.settings import Settings, main
from pipelines.tables import INPUT


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    # All checks come before the first decode.
    select.check(settings, out, will_score=True)
    score.check(settings.score)
    settings.caption.chosen.check()
    if settings.input is not None or not (out / "ledger").exists(INPUT):
        score.run(settings, out, cluster)
    select.run(settings, out)
    caption.run(settings, out, cluster)
    select.run(settings, out)  # again, with the rules on captions
    export.run(settings, out, cluster)


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
