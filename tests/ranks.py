"""A function on several ranks of this machine, as torchrun would start them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.test_parallel"])


def on_ranks(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` gave on each rank; raises what the first one raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()
    ranks = [
        context.Process(target=_run, args=(rank, count, port, queue, work, args))
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    found = dict(queue.get() for _ in ranks)
    for process in ranks:
        process.join()
    failed = [text for ok, text in found.values() if not ok]
    assert not failed, failed[0]
    return [found[rank][1] for rank in range(count)]


def _run(rank, count, port, queue, work, args):
    import torch

    from training.parallel import leave

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        queue.put((rank, (True, work(*args))))
    except Exception:
        queue.put((rank, (False, traceback.format_exc())))
        os._exit(1)  # as a process that died: no goodbye to the others
    leave()
