"""Where the repository and the labelled real videos are."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS") or REPOSITORY.parent / "shared/videos")
