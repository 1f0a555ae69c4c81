import os
from pathlib import Path

import pytest

VIDEOS = Path(os.environ.get("LONGTAKE_VIDEOS", Path(__file__).parent.parent / "../shared/videos"))


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of labelled real videos."""
    if not (VIDEOS / "labels.csv").exists():
        pytest.skip(f"no labelled videos at {VIDEOS} (LONGTAKE_VIDEOS)")
    return VIDEOS


@pytest.fixture(scope="session")
def cluster():
    """One Ray for all tests of this process."""
    # Ray's workers and the children of these import the stages that tests define.
    root = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    from curation.runner import Cluster

    cluster = Cluster(workers=2)
    cluster.start("/tmp/longtake-test-logs")
    yield cluster
    cluster.stop()
