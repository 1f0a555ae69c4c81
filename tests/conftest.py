import fcntl
import os
import pickle
import signal
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from tests.support.canary import CANARY
from tests.support.paths import REPOSITORY, VIDEOS
from tests.support.small_input import draw_small_input
from tests.support.whole_run import FinishedRun, curate, wait_for_end

# The S3 server of the tests accepts any key. Ray's workers get the variables set before they start.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", CANARY)
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
# A shell has its commands in the background ignore Ctrl-C, and so would those that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Without a deadline for each example: busy cores would miss it.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of labelled real videos."""
    if not (VIDEOS / "labels.csv").exists():
        pytest.skip(f"no labelled videos at {VIDEOS} (LONGTAKE_VIDEOS)")
    return VIDEOS


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory):
    """One Ray session for all tests of this process; up to two workers per pool."""
    # Ray's workers and their child processes import the stages that tests define.
    root = str(REPOSITORY)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    from curation.runner.cluster import Cluster
    from curation.runner.settings import ClusterSettings

    with Cluster(ClusterSettings(workers=2), str(tmp_path_factory.mktemp("logs"))) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture(scope="session")
def cluster(two_workers, tmp_path_factory):
    """The same session; one worker per pool, whose start takes longer than the rows of a test."""
    from curation.runner.cluster import Cluster
    from curation.runner.settings import ClusterSettings

    return Cluster(ClusterSettings(workers=1), str(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def unused_cluster():
    """A cluster for runs that must end before any worker starts. Starting it is an error."""
    from curation.runner.cluster import Cluster
    from curation.runner.settings import ClusterSettings

    return Cluster(ClusterSettings(address="nowhere"), "/dev/null/logs")


@dataclass
class Dataset:
    """The output of a whole run on a small drawn input, in a process of its own."""

    source: Path
    videos: dict[str, Path]  # by outcome, see tests/support/small_input.py
    out: Path
    run: FinishedRun
    mark: str  # in the environment of all its processes


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Dataset:
    """Curated once for the tests of all processes. Tests copy it before they change it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of this run
    made = folder / "dataset.pickle"
    with open(folder / "dataset.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(_make_dataset(folder / "dataset")))
    return pickle.loads(made.read_bytes())


def _make_dataset(folder: Path) -> Dataset:
    videos = draw_small_input(folder / "in")
    mark = f"longtake-test-{os.getpid()}"
    keys = dict.fromkeys(("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"), CANARY)
    run = curate(folder / "in", folder / "out", LONGTAKE_MARK=mark, **keys)
    return Dataset(folder / "in", videos, folder / "out", wait_for_end(run), mark)
