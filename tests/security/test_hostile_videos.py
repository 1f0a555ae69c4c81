"""Hostile files: parsers of containers take any bytes, and decoding opens nothing else."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.structure_mutations import MUTATIONS, boxes, elements, is_matroska, is_mp4, is_ts
from curation.stage import BadVideo
from curation.video import ebml, encryption, mp4_boxes
from curation.video.container import check_boxes, check_file
from tests.support import video_files
from tests.support.paths import REPOSITORY

PARSERS: tuple[Callable[[str], Any], ...] = (
    *(mp4_boxes.identify_other_file, mp4_boxes.read_top_level, mp4_boxes.read_encrypted_tracks),
    *(mp4_boxes.header_and_index_durations, check_boxes, check_file),
    *(ebml.read_crops, ebml.read_encryption),
    lambda path: mp4_boxes.read_crop(path, 1, 160, 96),
    lambda path: mp4_boxes.read_stream_index(path, 1),
    lambda path: ebml.read_stream_index(path, 0, with_end=True),
    lambda path: encryption._scrambled_share_ts(Path(path).read_bytes(), 256),
    lambda path: encryption._scrambled_share_pes(Path(path).read_bytes()),
)


def parse_all(data: bytes, path: Path) -> int:
    """The number of parsers that read the file to its end; the others refuse it by BadVideo."""
    path.write_bytes(data)
    read = 0
    for parse in PARSERS:
        with suppress(BadVideo):
            parse(str(path))
            read += 1
    return read


@pytest.fixture(scope="module")
def containers(tmp_path_factory) -> list[bytes]:
    """One small file of each container that has a parser here."""
    folder = tmp_path_factory.mktemp("containers")
    names = ("a.mp4", "a.mkv", "a.ts")
    files = [video_files.draw(folder / name, frames=10, width=160, height=96) for name in names]
    fragmented = {"movflags": "frag_keyframe+empty_moov"}
    files.append(video_files.draw(folder / "b.mp4", frames=10, muxer=fragmented))
    return [path.read_bytes() for path in files]


def mutate(containers: list[bytes], seed: int) -> bytes:
    rng = random.Random(seed)
    data = bytearray(rng.choice(containers))
    for mutation in rng.choices(MUTATIONS, k=rng.randrange(1, 4)):
        if data:
            mutation(data, rng)
    return bytes(data)


def test_mutations_change_the_structure_of_every_container(containers):
    kinds = [(is_mp4(d), is_matroska(d), is_ts(d)) for d in map(bytearray, containers)]
    assert [sum(kind) for kind in kinds] == [1, 1, 1, 1]
    assert {b"moov", b"stsz", b"mdat"} < {
        kind for kind, _ in boxes(containers[0], 0, len(containers[0]))
    }
    found = {kind for kind, _ in elements(containers[1], 0, len(containers[1]))}
    assert {ebml.SEGMENT, ebml.TRACKS, ebml.TRACK, ebml.VIDEO, ebml.CLUSTER} <= found
    changed = sum(mutate(containers, seed) not in containers for seed in range(50))
    assert changed > 40


@pytest.mark.parametrize("number", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_parsers_of_containers_take_mutated_files(containers, tmp_path, number):
    read = [parse_all(mutate(containers, seed), tmp_path / "a") for seed in range(number)]
    assert 0 < sum(read) <= number * len(PARSERS)


def test_parsers_of_containers_take_any_bytes(tmp_path):
    head = st.sampled_from((b"", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftyp", b"\0\0\0\0moov", b"\x47"))

    @settings(
        max_examples=150,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(head, st.binary(max_size=400))
    def run(start: bytes, data: bytes) -> None:
        parse_all(start + data, tmp_path / "a")

    run()


READ = """
import sys
from functools import partial
from curation.isolate import Isolated
from curation.stage import BadVideo, RunContext
from stages.decode_pass import DecodePass
stage = DecodePass(clip_s=1, max_clip_s=1)
with Isolated(stage.process, partial(stage.setup, RunContext(sys.argv[1]))) as isolated:
    for path in sys.argv[2:]:
        print("FILE", path, flush=True)
        try:
            isolated([{"video": path, "bytes": 1, "version": ""}])
        except BadVideo as error:
            print(error)
"""
OPENED = re.compile(r'(?:open|openat|openat2|creat)\((?:AT_FDCWD, )?"([^"]*)"')
SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib", sys.prefix, sys.base_prefix)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_decoding_hostile_files_opens_no_other_file_and_no_address(containers, tmp_path):
    """Nor starts a program. Of the files some name others: playlists, references."""
    inputs, secret = tmp_path / "in", tmp_path / "secret.mp4"
    inputs.mkdir()
    secret.write_bytes(containers[0])
    named = {
        "list.mp4": f"#EXTM3U\n#EXTINF:1,\n{secret}\nhttp://127.0.0.1:9/a.ts\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
        "session.mp4": "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "manifest.mp4": f"<MPD><BaseURL>file://{secret}</BaseURL></MPD>",
    }
    for name, text in named.items():
        (inputs / name).write_text(text)
    for seed in range(150):
        (inputs / f"{seed}.bin").write_bytes(mutate(containers, seed))
    log = tmp_path / "strace"
    traced = "trace=open,openat,openat2,creat,connect,sendto,bind,execve"
    command = ["strace", "-f", "-qq", "-s", "4096", "-e", traced, "-o", str(log)]
    paths = sorted(map(str, inputs.iterdir()))
    done = subprocess.run(
        [*command, sys.executable, "-c", READ, str(tmp_path / "ledger"), *paths],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "ledger")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("FILE") == len(paths)
    lines = log.read_text().splitlines()
    opened = {match[1] for line in lines if (match := OPENED.search(line))}
    assert set(paths) <= opened
    allowed = (
        *SYSTEM,
        str(REPOSITORY),
        str(tmp_path / "ledger"),
        *os.environ.get("PATH", "").split(":"),
    )
    others = {path for path in opened - set(paths) if path and not path.startswith(allowed)}
    assert {path for path in others if os.path.exists(path)} == set()
    assert [line for line in lines if re.search(r"\b(connect|sendto|bind)\(.*AF_INET", line)] == []
    programs = [line for line in lines if "execve(" in line and sys.executable not in line]
    assert programs == []
