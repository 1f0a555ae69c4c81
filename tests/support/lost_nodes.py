"""Runs one row on a Ray cluster whose worker nodes die under it, as its own process.

    python -m tests.support.lost_nodes FOLDER

Two nodes are killed, each when the row has started on it. A third, which joins when the run
reports that it waits for one, finishes it. Prints a line for each node that left, the reason for
which the third joined, and the row's error.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.two_nodes import Nodes  # isort: skip (sets variables that Ray reads)

import ray

from curation.atomic import write_atomic
from curation.runner.cluster import Cluster
from curation.runner.settings import ClusterSettings
from curation.stage import Row, Stage

LOST_NODES = 2


@dataclass
class WaitOnLostNodes(Stage):
    """Marks its start, and waits on the nodes that will be killed."""

    folder: str

    def process(self, rows: list[Row]) -> list[Row]:
        attempt = len(list(Path(self.folder).glob("start-*")))
        node = ray.get_runtime_context().get_node_id()
        write_atomic(Path(self.folder, f"start-{attempt}"), node)
        if attempt < LOST_NODES:
            time.sleep(600)
        return rows


def kill_nodes(nodes: Nodes, folder: Path) -> None:
    """Nodes can be added in the main thread alone."""
    for number in range(LOST_NODES):
        start = folder / f"start-{number}"
        while not start.exists():
            time.sleep(0.1)
        [node] = [n for n in nodes.worker_nodes if n.node_id == start.read_text()]
        nodes.remove_node(node, allow_graceful=False)


def run(folder: Path) -> None:
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(LOST_NODES):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    threading.Thread(target=kill_nodes, args=(nodes, folder), daemon=True).start()

    def add_awaited_node(reason: str | None) -> None:
        if reason and reason.endswith("waiting for a node to join") and not nodes.worker_nodes:
            print(reason, flush=True)
            nodes.add_node(num_cpus=1)

    try:
        with Cluster(ClusterSettings(nodes.address), str(folder / "logs")) as cluster:
            stages = [WaitOnLostNodes(str(folder))]
            rows = [{"error": None}]
            for row in cluster.stream(stages, rows, add_awaited_node, report_event=print):
                print(row["error"], flush=True)
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
