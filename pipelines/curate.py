"""Curate: raw videos in, a dataset of long takes with progressive captions out.

    python -m pipelines.curate [CONFIG] input=VIDEOS output=OUT [key=value …]

VIDEOS is a folder (all below it), a video, a pattern like 'in/*.mp4', a .txt list with a path per
line, or a Parquet list with a column `video`; local, or s3:// and gs:// URLs. Runs the four
pipelines score, select, caption and export; interrupted anywhere, the same command goes on.
On a Ray cluster: cluster.address=auto (or HOST:PORT, ray://HOST:PORT).

The dataset is that of the present input. Add files to it and run the command again: only they are
scored. Another policy on the same videos takes no decode, only captions of what is newly kept.
"""

from __future__ import annotations

import sys

from curation.runner.cluster import Cluster
from curation.storage import Folder
from pipelines import caption, export, score, select
from pipelines.settings import Settings, main


def run(settings: Settings, out: Folder, cluster: Cluster) -> None:
    # What can't be answered, or lacks its weights or its server, is refused before the decode.
    select.check(settings, out, will_score=True)
    score.check(settings.score)
    settings.caption.chosen.check()
    score.run(settings, out, cluster)
    select.run(settings, out)
    caption.run(settings, out, cluster)
    select.run(settings, out)  # once more: now the captions count too
    export.run(settings, out, cluster)


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
