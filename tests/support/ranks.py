"""Runs a function on several ranks of this machine, as torchrun starts them."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import pytest

context = multiprocessing.get_context("forkserver")
# Each rank would import these itself, which takes longer than its work.
LIBRARIES = ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg")
context.set_forkserver_preload(["tests.training.test_parallel", *LIBRARIES])


def on_ranks(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """The result of `work(*args)` on each rank. If a rank raises, the others are killed and the
    test fails with its traceback."""
    from torch.distributed import TCPStore

    # As torchrun's agent does, this process listens before the ranks start and until all have
    # ended: no other process can take the port, and no rank ends the store of the others.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks, waiting, found = [], {}, {}
    try:
        for rank in range(count):
            here, there = context.Pipe(duplex=False)
            args_of_rank = (rank, count, store.port, there, work, args)
            process = context.Process(target=_run, args=args_of_rank)
            process.start()
            ranks.append(process)
            there.close()  # so that the pipe ends where the rank dies
            waiting[here] = rank
        while waiting:
            for pipe in wait(list(waiting)):
                rank = waiting.pop(pipe)
                found[rank], raised = _receive(pipe)
                if raised:  # its last line first: it is what pytest's summary shows
                    pytest.fail(f"rank {rank}: {raised.splitlines()[-1]}\n{raised}", pytrace=False)
        for process in ranks:
            process.join()
    except BaseException:
        for process in ranks:
            process.kill()
            process.join()
        raise
    return [found[rank] for rank in range(count)]


def _receive(pipe: Any) -> tuple[Any, str]:
    """A rank's result, and the traceback of what it raised."""
    try:
        return pipe.recv()
    except (EOFError, OSError):  # OSError: it died while it sent
        return None, "the process died"


def _run(rank, count, port, pipe, work, args):
    import torch

    from training.parallel import shutdown

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # a store exists: rank 0 opens none
    try:
        pipe.send((work(*args), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        os._exit(1)  # does not close its connections first, as a process that is killed
    shutdown()
