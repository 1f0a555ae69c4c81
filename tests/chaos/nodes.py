"""A Ray cluster of two worker nodes on this machine, until standard input ends.

    python -m tests.chaos.nodes

Prints its address. The first node has the control service and no CPU.
"""

from __future__ import annotations

import sys

from tests.support.two_nodes import Nodes


def run() -> None:
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    print(nodes.address, flush=True)
    sys.stdin.read()
    nodes.shutdown()


if __name__ == "__main__":
    run()
