"""What could be wrong in silence: which time is counted, and that copies are copies."""

import asyncio
import hashlib
import io
import sys
import textwrap
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from benchmarks.captions import REQUESTS, Fixed, ratios, steady
from benchmarks.cpu_time import Seen, spent, total_s
from benchmarks.score import Clocked, lay_out, padded, unlike
from stages.captioning.conversation import Completion, Message, Request
from tests.support.drawn import picture, times, view

BURN = "import time\nwhile time.process_time() < {0}: pass\n"
CHILDREN = {
    "waited for": "subprocess.run([sys.executable, '-c', burn])",
    "orphaned": "subprocess.Popen([sys.executable, '-c', burn], start_new_session=True)",
    # The kernel forgets the time of children whose parent ignores SIGCHLD, as Ray's raylet does.
    "ignored": """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, '-c', burn])
        while os.path.exists(f'/proc/{child.pid}'): time.sleep(0.05)
        """,
}


def parent_of_a_busy_child(kind: str, cpu_s: float) -> list[str]:
    code = f"import os, signal, subprocess, sys, time\nburn = {BURN.format(cpu_s)!r}\n"
    return [sys.executable, "-c", code + textwrap.dedent(CHILDREN[kind])]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", CHILDREN)
def test_a_busy_child_is_counted_however_its_parent_treats_it(kind):
    cost = spent(parent_of_a_busy_child(kind, 1.0))
    assert 0.75 < cost.cpu_s < 1.35  # two interpreters start as well


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_fails_says_its_last_words():
    with pytest.raises(RuntimeError, match=r"exit code 3\n(.|\n)*no such thing"):
        spent([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])


def test_time_that_was_waited_for_is_not_counted_twice():
    seen = {
        (10, 0): Seen(parent=1, own_s=2.0, waited_s=5.0),  # has waited for all of 11
        (11, 0): Seen(parent=10, own_s=4.8, waited_s=0.0),  # as last seen
        (12, 0): Seen(parent=1, own_s=1.0, waited_s=0.0),  # has waited for nothing of 13
        (13, 0): Seen(parent=12, own_s=3.0, waited_s=0.0),
    }
    assert total_s(seen, root=1, waited_s=0.0) == pytest.approx(2 + 5 + 1 + 3)


def film(container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, width=160, height=96, pix_fmt="yuv420p")
        stream.thread_count = 1
        still = picture(1, 320, 200)
        for t in times(1.0):
            grey = view(still, (120 + 40 * t, 100, 1, 0), (160, 96)).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="gray")))
        out.mux(stream.encode())
    return file.getvalue()


def frames(path: Path) -> list[tuple[int | None, str]]:
    """(time stamp, hash of the picture) of every frame."""
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
def test_padded_copies_differ_in_bytes_and_length_and_decode_alike(
    tmp_path, suffix, container, codec
):
    video = tmp_path / f"one{suffix}"
    video.write_bytes(film(container, codec))
    folder = lay_out([video], tmp_path / "sets", 3)
    copies = sorted(folder.rglob("*" + suffix))
    assert len({copy.stat().st_size for copy in copies}) == 3
    assert copies[0].read_bytes() == video.read_bytes()
    assert len(frames(video)) == 25
    assert all(frames(copy) == frames(video) for copy in copies)


def test_a_container_without_a_known_padding_is_refused():
    with pytest.raises(ValueError, match=r"\.avi: no padding known"):
        padded(b"", ".avi", 1)


def test_copies_that_were_scored_otherwise_are_named():
    def row(folder, name, brightness):
        clips = [{"clip_id": folder, "brightness": brightness, "fingerprint": b"\x01"}]
        return {"video": f"{folder}/{name}", "sha256": folder, "cpu_s": 1.0, "clips": clips}

    rows = [row("set0", "a.mp4", 90.0), row("set1", "a.mp4", 90.0)]
    rows += [row("set0", "b.mp4", 90.0), row("set1", "b.mp4", 91.0)]
    rows += [row("set0", "c.mp4", 0) | {"error": "9 of 12 bytes belong to no box"}]
    rows += [row("set1", "c.mp4", 0) | {"error": "33 of 36 bytes belong to no box"}]
    assert unlike(rows) == ["b.mp4"]


def test_a_clocked_object_works_as_before_and_its_time_is_counted():
    class Busy:
        size = 3

        def work(self, until_s):
            total = 0
            for number in range(until_s):
                total += number
            return total

    clock = Counter()
    clocked = Clocked(Busy(), clock, "busy")
    assert clocked.size == 3
    assert clocked.work(500_000) == 500_000 * 499_999 // 2
    assert 0.001 < clock["busy"] < 5


class Counting(Fixed):
    """Answers after a while; it knows how many ask at once."""

    captioner = "counting"
    now, seen = 0, ()

    async def asked(self, request: Request) -> Completion:
        self.now += 1
        self.seen = (*self.seen, self.now)
        await asyncio.sleep(0.05)
        self.now -= 1
        return Completion("", 1, 1)


QUESTIONS = [
    Request((Message("user", (f"Part {n} of 5",)),), {}, 9, 0.0, n) for n in range(1, REQUESTS + 1)
]


async def one_after_the_other(stage: Counting) -> None:
    for question in QUESTIONS:
        await stage.complete(question)


def test_a_window_counts_what_is_answered_with_all_places_taken():
    stage = Counting()
    taken = asyncio.run(steady(stage, [stage] * 1000, one_after_the_other, 12, 1.0))
    assert set(stage.seen[12:]) <= {11, 12}  # one answers while another asks
    assert len(taken.said) == pytest.approx(taken.seconds * 12 / 0.05, rel=0.25)
    assert taken.as_row()["clips_per_gpu_hour"] == round(600 * taken.requests_per_s)


def test_a_window_with_empty_places_is_refused():
    stage = Counting()
    with pytest.raises(RuntimeError, match="too few clips"):
        asyncio.run(steady(stage, [stage] * 13, one_after_the_other, 12, 30.0))


def test_a_rate_is_compared_with_the_mean_of_the_engines():
    found = {"engine": {"requests_per_s": 10.0}, "engine, again": {"requests_per_s": 12.0}}
    assert ratios(found | {"ready_s": 3, "http": {"requests_per_s": 9.9}}) == {"http/engine": 0.9}
