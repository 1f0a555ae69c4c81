"""The nodes of the cluster."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from curation.isolate import out_of_memory_kills
from curation.stage import RunError

ANSWER_TIMEOUT_S = 60.0  # of a node that starts a process for the question
CHECK_INTERVAL_S = 2.0


class WorkerNode(NamedTuple):
    """The node of a worker."""

    node_id: str
    memory_kills: int  # processes that its kernel had ended by then because memory ran out


def this_node() -> WorkerNode:
    return WorkerNode(ray.get_runtime_context().get_node_id(), out_of_memory_kills())


def counts_against_row(node: WorkerNode) -> bool:
    """Whether a worker that died on this node did so because of its row: the node lives, and has
    not run out of memory since the worker started. Ray itself notices a dead node after seconds."""
    if node.node_id not in alive_nodes():
        return False
    here = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    task = ray.remote(this_node).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    try:
        return ray.get(task.remote(), timeout=ANSWER_TIMEOUT_S).memory_kills == node.memory_kills
    except RayError:
        return False


def alive_nodes() -> set[str]:
    """Ids of the nodes with a CPU or a GPU for workers, as far as Ray knows.

    Raises RunError where the node of this process is dead: Ray then starts no worker, and reports
    no error.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if ray.get_runtime_context().get_node_id() not in {node["NodeID"] for node in nodes}:
        raise RunError(
            "Ray's process on the node of this command has ended\n  fix: start Ray there again, "
            "and run the same command again, which resumes"
        )
    return {n["NodeID"] for n in nodes if n["Resources"].keys() & {"CPU", "GPU"}}


@dataclass
class NodeWatch:
    """Notices nodes that left."""

    _nodes: set[str] = field(default_factory=alive_nodes)
    _checked_s: float = field(default_factory=time.monotonic)

    def report(self) -> str | None:
        """Returns a line about the nodes that left since the last call; None if there are none.
        Raises RunError where the node of this process left."""
        if time.monotonic() - self._checked_s < CHECK_INTERVAL_S:
            return None
        self._checked_s, before, self._nodes = time.monotonic(), self._nodes, alive_nodes()
        lost = len(before - self._nodes)
        if not lost:
            return None
        what = "a node" if lost == 1 else f"{lost} nodes"
        return (
            f"{what} left: {len(self._nodes)} of {len(self._nodes | before)} remain; the rows "
            "there are computed again"
        )
