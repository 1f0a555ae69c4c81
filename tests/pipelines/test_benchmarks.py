"""Errors that a benchmark's output would not show: CPU time that is missed or counted twice, copies
of a video that are not equal."""

import asyncio
import hashlib
import io
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.captions import (
    REQUESTS_PER_CLIP,
    FixedTexts,
    measure_window,
    ratios_to_engine,
)
from benchmarks.cpu_time import ProcessTimes, measure_command, total_cpu_s
from benchmarks.score import clock_methods, differently_scored, pad_container, write_copies
from stages.captioning.conversation import Completion, Message, Request
from tests.support.drawn import textured_image, times, view

BURN = "import time\nwhile time.process_time() < {0}: pass\n"
CHILDREN = {
    "waited for": "subprocess.run([sys.executable, '-c', burn])",
    "orphaned": "subprocess.Popen([sys.executable, '-c', burn], start_new_session=True)",
    # the kernel drops the time of children whose parent ignores SIGCHLD, as Ray's raylet does
    "ignored": """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, '-c', burn + 'time.sleep(0.5)'])  # for a poll
        while os.path.exists(f'/proc/{child.pid}'): time.sleep(0.05)
        """,
}


def parent_of_a_busy_child(kind: str, cpu_s: float) -> list[str]:
    code = f"import os, signal, subprocess, sys, time\nburn = {BURN.format(cpu_s)!r}\n"
    return [sys.executable, "-c", code + textwrap.dedent(CHILDREN[kind])]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", CHILDREN)
def test_cpu_time_of_children_is_counted(kind):
    cost = measure_command(parent_of_a_busy_child(kind, 1.0))
    assert 0.75 < cost.cpu_s < 1.35  # includes the start of two interpreters


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_largest_process_is_measured():
    use = "import time; taken = b'x' * 200_000_000; time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {use!r}])"
    peak_bytes = measure_command([sys.executable, "-c", start]).peak_bytes
    assert 200_000_000 < peak_bytes < 300_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_error_of_a_failed_command_has_the_end_of_its_output():
    with pytest.raises(RuntimeError, match=r"exit code 3\n(.|\n)*no such thing"):
        measure_command([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])


def test_time_of_children_is_not_counted_twice():
    processes = {
        (10, 0): ProcessTimes(1, own_s=2.0, waited_s=5.0, peak_bytes=0),  # waited for all of 11
        (11, 0): ProcessTimes(10, own_s=4.8, waited_s=0.0, peak_bytes=0),  # at the last poll
        (12, 0): ProcessTimes(1, own_s=1.0, waited_s=0.0, peak_bytes=0),  # waited for nothing of 13
        (13, 0): ProcessTimes(12, own_s=3.0, waited_s=0.0, peak_bytes=0),
    }
    assert total_cpu_s(processes, root=1, waited_s=0.0) == pytest.approx(2 + 5 + 1 + 3)


def encoded_video(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, width=160, height=96, pix_fmt="yuv420p")
        stream.thread_count = 1
        image = textured_image(1, 320, 200)
        for t in times(1.0):
            grey = view(image, (120 + 40 * t, 100, 1, 0), (160, 96)).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")))
        out.mux(stream.encode())
    return file.getvalue()


def frames(path: Path) -> list[tuple[int | None, str]]:
    """(time stamp, hash of the pixels) of every frame."""
    with av.open(str(path)) as container:
        return [
            (f.pts, hashlib.sha256(f.to_ndarray().tobytes()).hexdigest())
            for f in container.decode(video=0)
        ]


@pytest.mark.parametrize(
    ("suffix", "container", "codec"),
    [
        (".mp4", "mp4", "libx264"),
        (".mov", "mov", "mpeg4"),
        (".mkv", "matroska", "mpeg4"),
        (".webm", "webm", "libvpx"),
    ],
)
def test_padded_copies_differ_in_length_and_decode_to_the_same_frames(
    tmp_path, suffix, container, codec
):
    video = tmp_path / f"one{suffix}"
    video.write_bytes(encoded_video(container, codec))
    folder = write_copies([video], tmp_path / "sets", 3)
    copies = sorted(folder.rglob("*" + suffix))
    assert len({copy.stat().st_size for copy in copies}) == 3
    assert copies[0].read_bytes() == video.read_bytes()
    assert len(frames(video)) == 25
    assert all(frames(copy) == frames(video) for copy in copies)


def test_container_without_known_padding_is_refused():
    with pytest.raises(ValueError, match=r"\.avi: no padding known"):
        pad_container(b"", ".avi", 1)


def test_copies_with_different_scores_are_listed():
    def row(folder, name, brightness):
        clips = [{"clip_id": folder, "brightness": brightness, "fingerprint": b"\x01"}]
        return {"video": f"{folder}/{name}", "sha256": folder, "cpu_s": 1.0, "clips": clips}

    rows = [row("set0", "a.mp4", 90.0), row("set1", "a.mp4", 90.0)]
    rows += [row("set0", "b.mp4", 90.0), row("set1", "b.mp4", 91.0)]
    rows += [row("set0", "c.mp4", 0) | {"error": "9 of 12 bytes belong to no box"}]
    rows += [row("set1", "c.mp4", 0) | {"error": "33 of 36 bytes belong to no box"}]
    assert differently_scored(rows) == ["b.mp4"]


def test_clocked_methods_return_their_results_and_count_their_time():
    class Busy:
        size = 3

        def work(self, count):
            return sum(number % 7 for number in range(count))

        def work_twice(self, count):
            return self.work(count) + self.work(count)

    clock = Counter()
    busy = Busy()
    clock_methods(busy, clock, "busy")
    start = time.process_time()
    assert busy.size == 3
    assert busy.work_twice(500_000) == 2 * Busy().work(500_000)
    assert 0.001 < clock["busy"] < time.process_time() - start


class Sleeping(FixedTexts):
    """Completes each request after 50 ms and records how many are in flight."""

    captioner = "sleeping"
    in_flight = 0
    history: tuple[int, ...] = ()

    async def send(self, request: Request) -> Completion:
        self.in_flight += 1
        self.history = (*self.history, self.in_flight)
        await asyncio.sleep(0.05)
        self.in_flight -= 1
        return Completion("", 1, 1)


REQUESTS = [
    Request((Message("user", (f"Part {n} of 5",)),), {}, 9, 0.0, n)
    for n in range(1, REQUESTS_PER_CLIP + 1)
]


async def caption_in_order(stage: Sleeping) -> None:
    for request in REQUESTS:
        await stage.complete(request)


def test_window_counts_completions_while_all_slots_are_in_use():
    stage = Sleeping()
    window = asyncio.run(measure_window(stage, [stage] * 1000, caption_in_order, 12, 1.0))
    assert set(stage.history[12:]) <= {11, 12}  # 11 between two requests of a slot
    assert len(window.completions) == pytest.approx(window.seconds * 12 / 0.05, rel=0.25)
    assert window.as_row()["clips_per_gpu_hour"] == round(600 * window.requests_per_s)


def test_window_with_empty_slots_is_refused():
    stage = Sleeping()
    with pytest.raises(RuntimeError, match="too few clips"):
        asyncio.run(measure_window(stage, [stage] * 13, caption_in_order, 12, 30.0))


def test_rates_are_compared_with_the_mean_of_the_engine():
    found = {"engine": {"requests_per_s": 10.0}, "engine, again": {"requests_per_s": 12.0}}
    found |= {"ready_s": 3, "http": {"requests_per_s": 9.9}}
    assert ratios_to_engine(found) == {"http/engine": 0.9}
