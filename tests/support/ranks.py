"""A function on several ranks of this machine, as torchrun would start them."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import pytest

context = multiprocessing.get_context("forkserver")
# What each rank would import by itself, which takes longer than its work.
LIBRARIES = ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg")
context.set_forkserver_preload(["tests.training.test_parallel", *LIBRARIES])


def on_ranks(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` gave on each rank. The first one that raises ends the others, and its own
    traceback is what the test fails with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks, waiting, found = [], {}, {}
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        ranks.append(context.Process(target=_run, args=(rank, count, port, there, work, args)))
        ranks[rank].start()
        there.close()  # so that a rank which dies without a word ends its pipe
        waiting[here] = rank
    try:
        while waiting:
            for pipe in wait(list(waiting)):
                rank = waiting.pop(pipe)
                found[rank], raised = _heard(pipe)
                if raised:  # its last line first: it is what pytest's summary shows
                    pytest.fail(f"rank {rank}: {raised.splitlines()[-1]}\n{raised}", pytrace=False)
    except BaseException:
        for process in ranks:
            process.kill()
        raise
    finally:
        for process in ranks:
            process.join()
    return [found[rank] for rank in range(count)]


def _heard(pipe: Any) -> tuple[Any, str]:
    """What a rank gave, and the traceback of what it raised."""
    try:
        return pipe.recv()
    except EOFError:
        return None, "died without a word"


def _run(rank, count, port, pipe, work, args):
    import torch

    from training.parallel import shutdown

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send((work(*args), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        os._exit(1)  # as a process that died: no goodbye to the others
    shutdown()
