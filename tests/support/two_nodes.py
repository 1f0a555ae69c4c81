"""Curates on a Ray cluster of two nodes on this machine, as its own process.

    python -m tests.support.two_nodes INPUT OUTPUT [kill]

With `kill`, one node is killed once the first key frame is written.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

# Ray reads these when it is imported: a dead node is detected after 3 s instead of 30 s.
os.environ |= {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "2000",
}

from ray.cluster_utils import Cluster as Nodes

from curation import config
from curation.runner.cluster import Cluster
from curation.storage import Folder
from pipelines import curate
from pipelines.settings import DEFAULT_CONFIG, Settings
from tests.support.small_input import SETTINGS


def run(source: str, out: str, kill: bool) -> None:
    # The node of the driver has no CPU: all rows go to the other two.
    head = {"num_cpus": 0, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
    nodes.wait_for_nodes()
    if kill:
        threading.Thread(target=_kill, args=(nodes, workers[0], Path(out)), daemon=True).start()
    given = [*SETTINGS, f"input={source}", f"output={out}", f"cluster.address={nodes.address}"]
    given.append("cluster.workers=2")
    settings = config.load(Settings, DEFAULT_CONFIG, given)
    try:
        with Cluster(settings.cluster, f"{out}/logs") as cluster:
            curate.run(settings, Folder(out), cluster)
    finally:
        nodes.shutdown()


def _kill(nodes: Nodes, node: object, out: Path) -> None:
    while not any(out.glob("ledger/key_frames/*/*")):
        time.sleep(0.01)
    nodes.remove_node(node, allow_graceful=False)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], "kill" in sys.argv[3:])
