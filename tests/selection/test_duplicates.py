"""Near-duplicates: which clips are paired, which is kept; drawn and re-encoded real videos."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.stage import Planes, VideoInfo
from stages.meters.fingerprint import CODE, SIDE, Fingerprint, codes
from stages.selection.duplicates import better_of, duplicates, groups, pairs, prints
from tests.support import drawn
from tests.support.paths import VIDEOS

TICKS = 60  # 15 s


def scene(
    seed: int, ticks: int = TICKS, place: int | None = None, speed: float = 1.0
) -> np.ndarray:
    """(ticks, SIDE, SIDE) grey pictures: three blobs on smooth ways before an unmoving place."""
    rng = np.random.default_rng(seed)
    t = np.arange(ticks) / 4 * speed
    place = seed if place is None else place
    coarse = np.random.default_rng(place).uniform(40, 200, (8, 8)).astype(np.float32)
    out = np.repeat(cv2.resize(coarse, (SIDE, SIDE))[None], ticks, 0)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    for _ in range(3):
        rate, phase = rng.uniform(0.3, 1.1, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
        x, y = (
            SIDE * (0.5 + 0.15 * np.sin(t[:, None] * r + p).sum(1))
            for r, p in zip(rate, phase, strict=True)
        )
        away = (across - x[:, None, None]) ** 2 + (down - y[:, None, None]) ** 2
        out += 90 * np.exp(-away / 18).astype(np.float32)
    return out


def copy_of(pictures: np.ndarray, seed: int = 0) -> np.ndarray:
    """As an encoder leaves it: other noise, a little darker."""
    rng = np.random.default_rng(seed)
    return pictures * 0.95 - 3 + rng.normal(0, 1.5, pictures.shape).astype(np.float32)


def paired(*clips: np.ndarray, videos=None) -> set[tuple[int, int]]:
    return set(map(tuple, pairs(of(clips), np.arange(len(clips)) if videos is None else videos)))


def of(clips):
    return prints(pa.chunked_array([pa.array([codes(c).tobytes() for c in clips], pa.binary())]))


def test_a_copy_is_paired_and_another_scene_is_not():
    assert paired(scene(1), scene(2), copy_of(scene(1)), scene(3)) == {(0, 2)}


@pytest.mark.parametrize("ticks", [1, 7, 20, 38])
def test_a_trimmed_copy_is_paired_down_to_5_shared_seconds(ticks):
    long = scene(4, TICKS + ticks)
    assert paired(long[:TICKS], copy_of(long[ticks:])) == {(0, 1)}
    assert paired(copy_of(long[ticks:]), long[:TICKS]) == {(0, 1)}


def test_clips_that_share_three_seconds_are_kept_apart():
    long = scene(4, 2 * TICKS - 12)
    assert paired(long[:TICKS], copy_of(long[-TICKS:])) == set()


def test_a_longer_clip_that_holds_a_shorter_one_is_paired_with_it():
    long = scene(4, 3 * TICKS)
    assert paired(long, copy_of(long[50 : 50 + TICKS])) == {(0, 1)}


def test_clips_of_one_unmoved_camera_are_kept_apart():
    assert paired(*(scene(k, place=0) for k in range(40))) == set()


def test_retimed_footage_is_no_duplicate():
    once = scene(4, 2 * TICKS)
    assert paired(once[:TICKS], scene(4, speed=0.8), scene(4, speed=1.5)) == set()
    half_speed = np.concatenate([once[:32], np.repeat(once[32:46], 2, 0)])
    assert paired(once[:TICKS], half_speed) == set()  # the first 8 s are the same


def test_clips_of_one_video_are_never_paired():
    assert paired(scene(1), copy_of(scene(1)), videos=np.array([3, 3])) == set()


def test_where_nothing_moves_there_is_no_evidence():
    still = np.repeat(scene(1)[:1], TICKS, 0)
    assert paired(still, still, copy_of(still)) == set()


def test_null_and_empty_fingerprints_pair_with_nothing():
    column = [None, b"", codes(scene(1)).tobytes(), codes(copy_of(scene(1))).tobytes(), b""]
    p = prints(
        pa.chunked_array([pa.array(column[:2], pa.binary()), pa.array(column[2:], pa.binary())])
    )
    assert pairs(p, np.arange(5)).tolist() == [[2, 3]]
    nothing = prints(pa.chunked_array([], pa.binary()))
    assert [len(part) for part in duplicates(nothing, np.arange(0), np.arange(0))] == [0, 0]
    with pytest.raises(ValueError, match="16-byte"):
        prints(pa.chunked_array([pa.array([b"12345"])]))


def test_of_fifty_copies_one_is_kept():
    clips = [copy_of(scene(k % 3), seed=k) for k in range(150)]
    out, _ = duplicates(of(clips), np.arange(150), np.arange(150)[::-1].copy())
    assert np.flatnonzero(out < 0).tolist() == [147, 148, 149]
    assert (out[:147] % 3 == np.arange(147) % 3).all()


def test_a_chain_of_overlapping_trims_keeps_the_ends_apart():
    long = scene(4, 120)
    clips = [long[0:60], copy_of(long[30:90]), copy_of(long[60:120])]
    out, edges = duplicates(of(clips), np.arange(3), np.array([0, 2, 1]))
    assert edges.tolist() == [[0, 1], [1, 2]]
    assert out.tolist() == [-1, 0, -1]
    out, _ = duplicates(of(clips), np.arange(3), np.array([1, 0, 2]))
    assert out.tolist() == [1, -1, 1]


def test_many_clips_of_one_camera_hide_no_copy_and_meet_only_their_neighbours():
    rng = np.random.default_rng(0)
    clips = np.empty((4000, TICKS), CODE)
    clips["picture"] = 12345
    clips["motion"] = rng.integers(2**63, 2**64, clips.shape, np.uint64)
    copied = clips[:50].copy()
    copied["motion"] ^= np.uint64(1) << rng.integers(0, 60, copied.shape).astype(np.uint64)
    column = pa.array([c.tobytes() for c in [*clips, *copied]], pa.binary())
    found = pairs(prints(pa.chunked_array([column])), np.arange(4050))
    assert found.tolist() == [[k, 4000 + k] for k in range(50)]


EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(EDGES)
def test_groups_are_what_edges_connect(edges):
    expected = list(range(20))
    for _ in range(20):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    matrix = np.array(edges, np.int64).reshape(-1, 2)
    assert groups(matrix, 20).tolist() == expected


@given(EDGES, st.permutations(range(20)))
def test_what_is_out_has_a_better_kept_twin_and_no_two_kept_are_twins(edges, rank):
    matrix = np.array([e for e in edges if e[0] != e[1]], np.int64).reshape(-1, 2)
    out = better_of(matrix, np.array(rank))
    linked = {frozenset(e) for e in edges}
    for clip, twin in enumerate(out.tolist()):
        if twin >= 0:
            assert out[twin] < 0
            assert frozenset((clip, twin)) in linked
            assert rank[twin] < rank[clip]
    assert not any(out[a] < 0 and out[b] < 0 for a, b in matrix)


# Real videos: each is decoded once at reduced size, copies are encoded from that and decoded again.

real = pytest.mark.skipif(
    not (VIDEOS / "labels.csv").is_file(), reason=f"no labelled videos at {VIDEOS}"
)
COPIES = {  # crf, width, height, start_s, fps (None: every frame at its own time), gain, offset
    "low quality": (36, 320, 180, 0.0, None, 1.0, 0),
    "half the size, trimmed": (28, 160, 90, 2.2, None, 1.0, 0),
    "24 fps, trimmed, brighter": (30, 320, 180, 4.63, 24, 1.1, 10),
    "trimmed by 9 s, darker": (30, 320, 180, 9.07, None, 0.9, -10),
}


def decoded(source, up_to_s: float = np.inf):
    """(seconds, reduced full-range luma) of each frame."""
    with av.open(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        first = None
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            if frame.time - first >= up_to_s:
                return
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1)
            step = max(1, round(frame.width / 320))
            luma = luma[::step, : frame.width : step].astype(np.float32)
            yield frame.time - first, np.clip((luma - 16) * (255 / 219), 0, 255).astype(np.uint8)


def encoded(frames, path, crf, width, height, start_s, fps, gain, offset) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.options = {"preset": "veryfast", "crf": str(crf), "threads": "1"}
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        last = -1
        for t, luma in frames:
            tick = int((t - start_s) * fps + 1e-6) if fps else 0
            pts = round(tick / fps * 90000) if fps else round((t - start_s) * 90000)
            if t < start_s or pts <= last:
                continue
            last = pts
            small = cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA)
            y = np.clip(small * (219 / 255) * gain + 16 + offset, 16, 235).astype(np.uint8)
            planes = np.concatenate([y, np.full((height // 2, width), 128, np.uint8)])
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clips_of(frames) -> list[tuple[float, bytes]]:
    """(start_s, fingerprint) of as many 15 s clips as fit, evenly placed."""
    meter, end = Fingerprint(), 0.0
    meter.start(VideoInfo(1280, 720, 30, 320, 180))
    for t, luma in frames:
        meter.process_frame(t, Planes(luma))
        end = t
    fit = int(end // 15)
    starts = [(k + 0.5) * (end - 15 * fit) / fit + 15 * k for k in range(fit)]
    return [(s, meter.bytes_of(s, s + 15)) for s in starts]


def check_real(names, tmp_path, copies) -> tuple[int, int, int]:
    """Found, to be found, falsely found pairs among the files and their copies."""
    column, where = [], []  # where: name, number of the video, start in the source
    for name in names:
        frames = list(decoded(str(VIDEOS / name), up_to_s=31))
        versions = [(frames, 0.0)]
        for how in copies:
            path = tmp_path / f"{name}-{list(COPIES).index(how)}.mp4"
            encoded(frames, str(path), *COPIES[how])
            versions.append((decoded(str(path)), COPIES[how][3]))
        for version in versions:
            number = len({w[1] for w in where})
            for start, code in clips_of(version[0]):
                where.append((name, number, start + version[1]))
                column.append(code)
    found = pairs(prints(pa.chunked_array([pa.array(column)])), np.array([w[1] for w in where]))
    hits, false, truth = 0, 0, 0
    paired = set(map(tuple, found.tolist()))
    for i, one in enumerate(where):
        for j in range(i + 1, len(where)):
            shared = 15 - abs(one[2] - where[j][2]) if one[0] == where[j][0] else 0.0
            if one[1] != where[j][1] and shared >= 5:
                truth += 1
                hits += (i, j) in paired
            elif shared <= 3:
                false += (i, j) in paired
    return hits, truth, false


@real
def test_real_copies_are_paired_and_retimed_footage_of_the_same_road_is_not(tmp_path):
    names = ["take_highway_traffic_static_720p.mp4", "take_highway_traffic_vfr_720p.mp4"]
    hits, truth, false = check_real(names, tmp_path, list(COPIES)[1:3])
    assert truth >= 6
    assert (hits, false) == (truth, 0)


def drawn_take(seed: int):
    """16 s of a picture under a hand's camera, with things that pass: (seconds, luma)."""
    still, tremor = drawn.picture(seed), drawn.shake(seed, 20)
    things = [drawn.cutout(10 * seed + i, 60) for i in range(3)]
    rng = np.random.default_rng(seed)
    path, pace = rng.uniform(0, 6.28, (3, 2)), rng.uniform(0.3, 1.2, (3, 2))
    for t in drawn.times(16, 12):
        dx, dy = tremor(t)
        frame = drawn.view(still, (500 + 15 * t + dx, 400 + dy, 1, 0), (320, 180))
        for thing, phase, rate in zip(things, path, pace, strict=True):
            x, y = np.sin(phase + rate * t)
            drawn.paste(frame, thing, 160 + 130 * x, 90 + 60 * y)
        yield t, np.clip(frame, 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_drawn_copies_are_found_with_precision_and_recall_of_95_percent(tmp_path):
    column, takes = [], []
    for seed in range(20):
        frames = list(drawn_take(seed))
        for number, how in enumerate(("low quality", "half the size, trimmed", None)):
            path = tmp_path / f"{seed}-{number}.mp4"
            if how:
                encoded(frames, str(path), *COPIES[how])
            version = decoded(str(path)) if how else frames
            meter = Fingerprint()
            meter.start(VideoInfo(640, 360, 12, 320, 180))
            for t, luma in version:
                meter.process_frame(t, Planes(luma))
            column.append(meter.bytes_of(0, 13))
            takes.append(seed)
    found = pairs(prints(pa.chunked_array([pa.array(column)])), np.arange(len(column)))
    right = sum(takes[i] == takes[j] for i, j in found.tolist())
    assert right >= 0.95 * 20 * 3
    assert len(found) - right <= 0.05 * right


@real
@pytest.mark.slow
def test_real_copies_are_paired_and_takes_of_one_robot_at_one_bench_are_not(tmp_path):
    names = sorted(p.name for p in VIDEOS.glob("*_robot_*_*0p.mp4"))
    assert len(names) >= 6
    hits, truth, false = check_real(names, tmp_path, COPIES)
    assert hits >= 0.95 * truth
    assert false <= 0.05 * hits
