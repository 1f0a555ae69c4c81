"""Disturbs whole runs, runs them again, and compares the dataset with that of an undisturbed run.

    python -m tests.chaos SEED…

A seed chooses where the output is (a disk, an S3 server on this machine), two or three faults of
`FAULTS`, and the moment of each: when a file appears in the output, one of them while it is
written. Consecutive seeds go through all faults. Then the same command runs on fresh nodes until it
ends with exit code 0. Prints a JSON line per seed, and one with the counts of all. A fault whose
moment does not come, or whose process is not there, is printed and counts as not done. Exit code 1:
a dataset differs, or a run hangs; its last lines are then the stacks of its threads.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from curation.storage import file_system
from tests.captioning.test_captions import chat, model
from tests.chaos.proxy import Proxy
from tests.support.chat_server import ChatServer
from tests.support.paths import REPOSITORY
from tests.support.s3_server import s3_bucket, url_options
from tests.support.small_input import draw_small_input
from tests.support.whole_run import descendants, differences, start, unfinished_files

RUN_LIMIT_S = 200.0  # of one run, with its faults; a longer one hangs
MAX_RERUNS = 3
NODE_STARTS = 3  # attempts
STORE_FAULT_S = 8.0
PAUSE_S = 6.0
MEMORY_LIMIT = 0.2  # share of the memory that is free at first: more used, and Ray ends workers
MEMORY_TAKEN = 0.3  # share of it that the fault takes
MEMORY_FAULT_S = 6.0
WORKER = "Worker"  # in the names of Ray's processes for our workers: ray::Worker, ray::AsyncWorker
NO_PROCESS = "no such process"
NOT_DONE = (NO_PROCESS, "the run had ended", "the moment did not come")
# Moments: patterns of files in the output, in the order of a run, and their phase. In those of
# DISK_WRITES and S3_WRITES a file is unfinished, or others of its kind are being written.
MOMENTS = {
    "ledger/input.parquet": "score",
    "ledger/key_frames/*/*": "score",
    "ledger/videos/.tmp-*": "score",
    "ledger/videos/part-*": "score",
    "ledger/selection.parquet": "select",
    "ledger/captions/*/.tmp-*": "caption",
    "ledger/captions/*/part-*": "caption",
    "extracted/.tmp-*": "export",
    "extracted/*": "export",
    "shards/.tmp-*": "export",
    "shards/*": "export",
    "presto/videos/*": "export",
    ".tmp-*clips*": "export",
    "clips.parquet": "export",
}
DISK_WRITES = tuple(moment for moment in MOMENTS if ".tmp-" in moment)
S3_WRITES = ("ledger/key_frames/*/*", "extracted/*", "shards/*", "presto/videos/*")
CAPTIONS_START = "ledger/selection.parquet"
# RAY_…: lost nodes and a lost control service are noticed within seconds
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "PYTHONFAULTHANDLER": "1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Output:
    """Where a seed's runs write."""

    url: str  # as the runs have it
    fs: pafs.FileSystem
    root: str
    proxy: Proxy | None = None

    @property
    def is_local(self) -> bool:
        return self.proxy is None

    def has(self, pattern: str) -> bool:
        if self.is_local:
            return any(Path(self.root).glob(pattern))
        expression = re.compile(pattern.replace("**", ".+").replace("*", "[^/]*"))
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        names = (f.path.removeprefix(f"{self.root}/") for f in self.fs.get_file_info(selector))
        return any(expression.fullmatch(name) for name in names)

    def remove(self) -> None:
        if self.is_local:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        selector = pafs.FileSelector(self.root, recursive=True, allow_not_found=True)
        for found in self.fs.get_file_info(selector):
            if found.type == pafs.FileType.File:
                self.fs.delete_file(found.path)

    def copy_to(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        pafs.copy_files(self.root, str(folder), source_filesystem=self.fs)


@dataclass
class Run:
    """A driver and its nodes."""

    driver: subprocess.Popen[str]
    nodes: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)
    started_s: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        return max(0.0, self.started_s + RUN_LIMIT_S - time.monotonic())

    def processes(self, part: str) -> list[int]:
        """Process ids, in order, of descendants whose command line has this part."""
        roots = (self.driver.pid, self.nodes.pid)
        return sorted(pid for root in roots for pid, line in descendants(root) if part in line)


@dataclass
class Attempt:
    """One seed's surroundings, for its faults."""

    random: random.Random
    run: Run
    output: Output
    server: ChatServer
    start_run: Callable[[], Run]
    others: list[Run] = field(default_factory=list)  # second drivers

    def kill(self, part: str) -> str:
        pids = self.run.processes(part)
        if not pids:
            return NO_PROCESS
        with suppress(ProcessLookupError):
            os.kill(self.random.choice(pids), signal.SIGKILL)
        return ""

    def pause(self, pid: int, seconds: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)


def kill_worker(a: Attempt) -> str:
    return a.kill(WORKER)


def kill_child(a: Attempt) -> str:
    return a.kill("curation.isolate")


def kill_driver(a: Attempt) -> str:
    a.run.driver.kill()
    return ""


def kill_raylet(a: Attempt) -> str:
    return a.kill("/raylet/raylet")


def kill_control_service(a: Attempt) -> str:
    return a.kill("gcs_server")


def kill_node(a: Attempt) -> str:
    """A raylet of a worker node, and at the same time its workers."""
    raylets = a.run.processes("/raylet/raylet")[1:]
    if not raylets:
        return NO_PROCESS
    victim = a.random.choice(raylets)
    for pid in (*(pid for pid, _ in descendants(victim)), victim):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return ""


def fill_disk(a: Attempt) -> str:
    """No process of the run can make a file of more than 1 KiB."""
    for pid in [a.run.driver.pid, *a.run.processes(WORKER), *a.run.processes("curation.isolate")]:
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1024, hard))
    return ""


def remove_output(a: Attempt) -> str:
    a.output.remove()
    return ""


def pause_process(a: Attempt) -> str:
    part = a.random.choice((WORKER, "curation.isolate", "/raylet/raylet", "pipelines.curate"))
    pids = [a.run.driver.pid] if part == "pipelines.curate" else a.run.processes(part)
    if not pids:
        return NO_PROCESS
    a.pause(a.random.choice(pids), PAUSE_S)
    return part


def second_driver(a: Attempt) -> str:
    """It is refused as long as the first runs."""
    a.others.append(a.start_run())
    return ""


def take_over(a: Attempt) -> str:
    """The driver is paused; in S3 a second one takes the output over, on a disk it is refused."""
    os.kill(a.run.driver.pid, signal.SIGSTOP)
    second = a.start_run()
    a.others.append(second)
    code = wait_for_end(second)
    os.kill(a.run.driver.pid, signal.SIGCONT)
    return f"second driver: {code}"


def take_memory(a: Attempt) -> str:
    """Ray ends workers on a node with little free memory."""
    size = int(MEMORY_TAKEN * _memory_kib()["MemAvailable"] * 1024)
    hold = f"import time; taken = b'x' * {size}; time.sleep({MEMORY_FAULT_S})"
    subprocess.run([sys.executable, "-c", hold], check=False)
    return ""


def restart_caption_server(a: Attempt) -> str:
    a.server.stop()
    time.sleep(PAUSE_S)
    a.server.start()
    return ""


def fail_store(fault: str) -> Callable[[Attempt], str]:
    def work(a: Attempt) -> str:
        assert a.output.proxy is not None
        a.output.proxy.fault = fault
        time.sleep(STORE_FAULT_S)
        a.output.proxy.fault = ""
        return f"{a.output.proxy.faults_done} times"

    work.__name__ = f"store_{fault}"
    return work


FAULTS: tuple[Callable[[Attempt], str], ...] = (
    *(kill_worker, kill_child, kill_driver, kill_raylet, kill_control_service, kill_node),
    *(remove_output, pause_process, second_driver, take_over, restart_caption_server),
    take_memory,
)
ON_DISK = (fill_disk,)
IN_S3 = (fail_store("503"), fail_store("slow"), fail_store("cut"))


def start_run(source: Path, out: str, server: ChatServer, limit_memory: bool = False) -> Run:
    env = dict(ENVIRONMENT)
    if limit_memory:
        env["RAY_memory_usage_threshold"] = f"{_memory_threshold():.3f}"
    for _ in range(NODE_STARTS):  # Ray waits no longer than 30 s for a slow machine
        nodes = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | env | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert nodes.stdout is not None
        if address := nodes.stdout.readline().strip():
            break
        end_process(nodes)
    settings = [*chat(out, server), "cluster.workers=2"]  # type: ignore[arg-type]
    settings.append("caption.openai.max_outage_s=60")
    driver = start("curate", f"input={source}", *settings, f"cluster.address={address}", **env)
    run = Run(driver, nodes)
    threading.Thread(target=_read, args=(driver, run.log), daemon=True).start()
    threading.Thread(target=driver.stdout.read, daemon=True).start()  # type: ignore[union-attr]
    return run


def _memory_threshold() -> float:
    """Returns the used share of the machine's memory at which Ray ends workers."""
    kib = _memory_kib()
    return 1 - (1 - MEMORY_LIMIT) * kib["MemAvailable"] / kib["MemTotal"]


def _memory_kib() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def _read(driver: subprocess.Popen[str], lines: list[str]) -> None:
    assert driver.stderr is not None
    lines.extend(line.rstrip("\n") for line in driver.stderr)


def wait_for_end(run: Run) -> int | None:
    """Returns the driver's exit code, None of one that hangs; ends the nodes."""
    try:
        return run.driver.wait(run.left_s())
    except subprocess.TimeoutExpired:
        run.driver.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
        with suppress(subprocess.TimeoutExpired):
            run.driver.wait(5)
        return None
    finally:
        end_process(run.driver)
        end_process(run.nodes)


def end_process(process: subprocess.Popen[str]) -> None:
    """Kills it and its descendants."""
    below = [pid for pid, _ in descendants(process.pid)]
    if process.poll() is None:
        process.kill()
    for pid in below:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def disturb(
    attempt: Attempt, plan: list[tuple[Callable[[Attempt], str], str]]
) -> Iterator[dict[str, Any]]:
    """Causes the faults, each once its moment has come."""
    for fault, moment in plan:
        detail = wait_for_moment(attempt, moment) or fault(attempt)
        yield {
            "fault": fault.__name__,
            "phase": MOMENTS[moment],
            "at": moment,
            "done": detail not in NOT_DONE,
            "detail": detail,
        }


def wait_for_moment(attempt: Attempt, moment: str) -> str:
    """Returns nothing once the moment has come, else why it does not."""
    while attempt.run.driver.poll() is None:
        if attempt.output.has(moment):
            return ""
        if not attempt.run.left_s():
            return "the moment did not come"
        time.sleep(0.002 if attempt.output.is_local else 0.1)
    return "the run had ended"


def draw_plan(
    seed: int, rng: random.Random, is_local: bool
) -> list[tuple[Callable[[Attempt], str], str]]:
    """Returns two or three faults with the moment of each, in the order of a run."""
    choices = [*FAULTS, *(ON_DISK if is_local else IN_S3)]
    others = [m for m in MOMENTS if is_local or m not in DISK_WRITES]
    moments = [rng.choice(DISK_WRITES if is_local else S3_WRITES)]
    moments += rng.choices(others, k=rng.choice((1, 1, 2)))
    faults = [choices[seed // 2 % len(choices)], *rng.choices(choices, k=len(moments) - 1)]
    rng.shuffle(faults)
    plan = list(zip(faults, moments, strict=True))
    plan = [(f, CAPTIONS_START if f is restart_caption_server else m) for f, m in plan]
    return sorted(plan, key=lambda pair: [*MOMENTS].index(pair[1]))


def run_seed(seed: int, source: Path, known: Path, scratch: Path, server: ChatServer) -> dict:
    rng = random.Random(seed)
    began_s = time.monotonic()
    with ExitStack() as stack:
        output = stack.enter_context(make_output(seed % 2 == 0, scratch))
        plan = draw_plan(seed, rng, output.is_local)

        def begin() -> Run:
            return start_run(source, output.url, server)

        first = start_run(source, output.url, server, take_memory in [f for f, _ in plan])
        attempt = Attempt(rng, first, output, server, begin)
        done = list(disturb(attempt, plan))
        codes = [wait_for_end(attempt.run)]
        logs = [attempt.run.log]
        for other in attempt.others:
            wait_for_end(other)
            logs.append(other.log)
        hangs = codes[0] is None
        while codes[-1] != 0 and len(codes) <= MAX_RERUNS:
            again = begin()
            codes.append(wait_for_end(again))
            logs.append(again.log)
            hangs |= codes[-1] is None
        if output.is_local:
            made = Path(output.root)
        else:
            made = scratch / "made"
            output.copy_to(made)
        different = differences(known, made) if codes[-1] == 0 else ["the run never ended well"]
        if output.is_local:
            different += [f"unfinished: {name}" for name in unfinished_files(made)]
    return {
        "seed": seed,
        "output": "disk" if output.is_local else "s3",
        "faults": done,
        "exit_codes": codes,
        "outcome": "hang" if hangs else "differs" if different else "equal",
        "different": different,
        "seconds": round(time.monotonic() - began_s),
        "last_lines": [log[-80 if hangs else -3 :] for log in logs],
        "tracebacks": sum("Traceback" in line for log in logs for line in log),
    }


@contextmanager
def make_output(is_local: bool, scratch: Path) -> Iterator[Output]:
    if is_local:
        yield Output(str(scratch / "out"), pafs.LocalFileSystem(), str(scratch / "out"))
        return
    with s3_bucket() as (address, direct):
        proxy = Proxy(address)
        fs, root = file_system(f"s3://bucket/out?{direct}")
        yield Output(f"s3://bucket/out?{url_options(proxy.address)}", fs, root, proxy)
        proxy.close()


def main(seeds: list[int]) -> int:
    os.environ |= {k: v for k, v in ENVIRONMENT.items() if k.startswith("AWS")}
    counts = Counter[str]()
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder, ChatServer(model) as server:
        source, known = Path(folder, "in"), Path(folder, "known")
        draw_small_input(source)
        undisturbed = start_run(source, str(known), server)
        if wait_for_end(undisturbed) != 0:
            print("\n".join(undisturbed.log), file=sys.stderr)
            return 1
        for seed in seeds:
            scratch = Path(folder, str(seed))
            scratch.mkdir()
            found = run_seed(seed, source, known, scratch, server)
            print(json.dumps(found, ensure_ascii=False), flush=True)
            outcomes[found["outcome"]] += 1
            counts.update(f"{f['fault']} in {f['phase']}" for f in found["faults"] if f["done"])
            shutil.rmtree(scratch)
    print(json.dumps({"seeds": outcomes, "faults": dict(sorted(counts.items()))}))
    return int(outcomes.keys() != {"equal"})


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]]))
