"""Near-duplicates among drawn clips and re-encoded real videos: which are found, which is kept."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.video.frames import Planes, VideoInfo
from stages.meters.fingerprint import CODE, SIDE, Fingerprint, codes
from stages.selection.clip_fingerprints import ClipFingerprints, read_fingerprints
from stages.selection.near_duplicates import (
    connected_components,
    find_duplicates,
    find_pairs,
    suppress_duplicates,
)
from tests.support import drawn
from tests.support.paths import VIDEOS

TICKS = 60  # 15 s


def scene(
    seed: int, ticks: int = TICKS, background: int | None = None, speed: float = 1.0
) -> np.ndarray:
    """(ticks, SIDE, SIDE) grey: three blobs on smooth paths in front of a fixed background.

    background: its seed, by default the scene's own.
    """
    rng = np.random.default_rng(seed)
    t = np.arange(ticks) / 4 * speed
    background = seed if background is None else background
    coarse = np.random.default_rng(background).uniform(40, 200, (8, 8)).astype(np.float32)
    pictures = np.repeat(cv2.resize(coarse, (SIDE, SIDE))[None], ticks, 0)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    for _ in range(3):
        rate, phase = rng.uniform(0.3, 1.1, (2, 3)), rng.uniform(0, 2 * np.pi, (2, 3))
        x, y = (
            SIDE * (0.5 + 0.15 * np.sin(t[:, None] * r + p).sum(1))
            for r, p in zip(rate, phase, strict=True)
        )
        distance = (across - x[:, None, None]) ** 2 + (down - y[:, None, None]) ** 2
        pictures += 90 * np.exp(-distance / 18).astype(np.float32)
    return pictures


def reencoded(pictures: np.ndarray, seed: int = 0) -> np.ndarray:
    """Other noise and a little darker, as after another encoding."""
    rng = np.random.default_rng(seed)
    return pictures * 0.95 - 3 + rng.normal(0, 1.5, pictures.shape).astype(np.float32)


def fingerprints(clips) -> ClipFingerprints:
    column = pa.array([codes(clip).tobytes() for clip in clips], pa.binary())
    return read_fingerprints(pa.chunked_array([column]))


def found_pairs(*clips: np.ndarray, videos=None) -> set[tuple[int, int]]:
    """The clips are of different videos unless `videos` has their numbers."""
    videos = np.arange(len(clips)) if videos is None else videos
    return set(map(tuple, find_pairs(fingerprints(clips), videos)))


def test_reencoded_copy_is_a_duplicate_and_another_scene_is_not():
    assert found_pairs(scene(1), scene(2), reencoded(scene(1)), scene(3)) == {(0, 2)}


@pytest.mark.parametrize("ticks", [1, 7, 20, 38])
def test_trimmed_copy_is_a_duplicate_down_to_5_shared_seconds(ticks):
    long = scene(4, TICKS + ticks)
    assert found_pairs(long[:TICKS], reencoded(long[ticks:])) == {(0, 1)}
    assert found_pairs(reencoded(long[ticks:]), long[:TICKS]) == {(0, 1)}


@pytest.mark.parametrize("ticks", [6, 8, 12, 16])
def test_copies_of_short_clips_are_duplicates_and_clips_of_one_fixed_camera_are_not(ticks):
    clips = [scene(k, ticks, background=0) for k in range(60)]
    copies = [reencoded(clip, k) for k, clip in enumerate(clips)]
    assert found_pairs(*clips, *copies) == {(k, k + 60) for k in range(60)}


def test_short_clip_is_a_duplicate_of_a_long_one_that_contains_it():
    long = scene(4, TICKS)
    assert found_pairs(long, reencoded(long[20:30])) == {(0, 1)}


def test_clips_that_share_three_seconds_are_no_duplicates():
    long = scene(4, 2 * TICKS - 12)
    assert found_pairs(long[:TICKS], reencoded(long[-TICKS:])) == set()


def test_longer_clip_is_a_duplicate_of_a_shorter_one_that_it_contains():
    long = scene(4, 3 * TICKS)
    assert found_pairs(long, reencoded(long[50 : 50 + TICKS])) == {(0, 1)}


def test_clips_of_one_fixed_camera_are_no_duplicates():
    assert found_pairs(*(scene(k, background=0) for k in range(40))) == set()


def test_footage_at_another_speed_is_no_duplicate():
    once = scene(4, 2 * TICKS)
    assert found_pairs(once[:TICKS], scene(4, speed=0.8), scene(4, speed=1.5)) == set()
    half_speed = np.concatenate([once[:32], np.repeat(once[32:46], 2, 0)])
    assert found_pairs(once[:TICKS], half_speed) == set()  # the first 8 s are the same


def test_part_that_a_video_repeats_is_a_duplicate():
    clips = [scene(1), scene(2), reencoded(scene(1)), scene(3)]
    assert found_pairs(*clips, videos=np.zeros(4)) == {(0, 2)}


def drawn_film(seeds, seconds: float, rounds: int):
    """Scenes one after the other, and all of that `rounds` times: (seconds, luma). The rounds begin
    at other fractions of a quarter of a second."""
    now = 0.0
    for _ in range(rounds):
        for seed in seeds:
            fine = scene(seed, int(12 * seconds), speed=1 / 3)
            for picture in np.clip(fine, 0, 255).astype(np.uint8):
                yield now, cv2.resize(picture, (320, 180), interpolation=cv2.INTER_LINEAR)
                now += 0.0841


def film_clips(frames, rounds: int, scenes: int, seconds: float) -> list[bytes]:
    """The fingerprint of a clip for each scene of each round."""
    meter = Fingerprint()
    meter.start(VideoInfo(1280, 720, 12, 320, 180))
    for t, luma in frames:
        meter.process_frame(t, Planes(luma))
    each_s = int(12 * seconds) * 0.0841
    starts = [each_s * k + 0.1 for k in range(rounds * scenes)]
    return [meter.encode(s, s + each_s - 0.2) for s in starts]


def read_clips(clips: list[bytes]) -> ClipFingerprints:
    return read_fingerprints(pa.chunked_array([pa.array(clips, pa.binary())]))


@pytest.mark.parametrize("seconds", [4, 15])
def test_video_that_loops_keeps_one_round(seconds):
    rounds, scenes = 6, 3
    film = drawn_film(range(scenes), seconds, rounds)
    codes = read_clips(film_clips(film, rounds, scenes, seconds))
    rank = np.random.default_rng(0).permutation(rounds * scenes)
    duplicate_of, _ = find_duplicates(codes, np.zeros(rounds * scenes, int), rank.take)
    best = [min(range(k, rounds * scenes, scenes), key=rank.item) for k in range(scenes)]
    assert sorted(np.flatnonzero(duplicate_of < 0)) == sorted(best)
    for clip, kept in enumerate(duplicate_of.tolist()):
        assert kept == (-1 if clip in best else best[clip % scenes])


def test_encoded_video_that_loops_keeps_one_round(tmp_path):
    path, rounds, scenes = str(tmp_path / "loop.mp4"), 4, 3
    encoded(drawn_film(range(scenes), 6, rounds), path, 32, 320, 180, 0.0, None, 1.0, 0)
    codes = read_clips(film_clips(decoded(path), rounds, scenes, 6))
    clips = rounds * scenes
    duplicate_of, _ = find_duplicates(codes, np.zeros(clips, int), np.arange(clips).take)
    assert np.flatnonzero(duplicate_of < 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("ticks", [4, 8, 12, 16, 60])
def test_clips_of_a_static_camera_in_one_video_are_no_duplicates(ticks):
    clips = [scene(k, ticks, background=0) for k in range(60)]
    assert found_pairs(*clips, videos=np.zeros(60)) == set()


@pytest.mark.parametrize("ticks", [16, 60])
def test_one_long_take_of_a_static_camera_keeps_its_clips(ticks):
    take = scene(5, 60 * ticks)
    assert found_pairs(*np.split(take, 60), videos=np.zeros(60)) == set()


def test_clips_of_one_video_with_steady_change_are_no_duplicates():
    """A sunset: the light on the scene changes at one rate, so that all moments have one motion."""
    shade = np.linspace(0, 60, SIDE)[None, :, None] * np.linspace(0, 1, 8 * 60)[:, None, None]
    clips = np.split(np.repeat(scene(1)[:1], 8 * 60, 0) + shade, 8)
    assert found_pairs(*clips, videos=np.zeros(8)) == set()


@pytest.mark.parametrize(
    ("period_s", "pairs"), [(1.2, 2), (1.75, 0), (2, 0), (2.3, 0), (3, 0), (5, 8 * 7 / 2)]
)
def test_clips_of_one_video_with_swaying_motion_are_duplicates_if_its_period_is_longer_than_3_s(
    period_s, pairs
):
    """A tree in the wind, seen by a camera that stands still."""
    tree, x = scene(1)[0], 2 * np.sin(2 * np.pi * np.arange(8 * 60) / (4 * period_s))
    moved = [np.float32([[1, 0, dx], [0, 1, 0]]) for dx in x]
    take = np.stack([cv2.warpAffine(tree, by, (SIDE, SIDE), borderMode=1) for by in moved])
    clips = [reencoded(clip, k) for k, clip in enumerate(np.split(take, 8))]
    assert len(found_pairs(*clips)) > 20  # between videos they are
    assert len(found_pairs(*clips, videos=np.zeros(8))) == pairs


def test_repeated_part_shorter_than_3_s_is_no_duplicate():
    assert found_pairs(scene(1, 11), scene(1, 11), videos=np.zeros(2)) == set()
    assert found_pairs(scene(1, 12), scene(1, 12), videos=np.zeros(2)) == {(0, 1)}


def test_clips_without_motion_are_never_duplicates():
    static = np.repeat(scene(1)[:1], TICKS, 0)
    assert found_pairs(static, static, reencoded(static)) == set()


def test_clips_without_a_fingerprint_are_no_duplicates_and_a_damaged_one_is_refused():
    column = [None, b"", codes(scene(1)).tobytes(), codes(reencoded(scene(1))).tobytes(), b""]
    p = read_fingerprints(
        pa.chunked_array([pa.array(column[:2], pa.binary()), pa.array(column[2:], pa.binary())])
    )
    assert find_pairs(p, np.arange(5)).tolist() == [[2, 3]]
    nothing = read_fingerprints(pa.chunked_array([], pa.binary()))
    assert [len(part) for part in find_duplicates(nothing, np.arange(0), np.arange(0).take)] == [
        0,
        0,
    ]
    with pytest.raises(ValueError, match="16-byte"):
        read_fingerprints(pa.chunked_array([pa.array([b"12345"])]))


def test_one_of_fifty_copies_is_kept():
    clips = [reencoded(scene(k % 3), seed=k) for k in range(150)]
    duplicate_of, _ = find_duplicates(
        fingerprints(clips), np.arange(150), np.arange(150)[::-1].take
    )
    assert np.flatnonzero(duplicate_of < 0).tolist() == [147, 148, 149]
    assert (duplicate_of[:147] % 3 == np.arange(147) % 3).all()


def test_first_and_third_of_three_overlapping_trims_are_no_duplicates():
    long = scene(4, 120)
    clips = [long[0:60], reencoded(long[30:90]), reencoded(long[60:120])]
    duplicate_of, edges = find_duplicates(
        fingerprints(clips), np.arange(3), np.array([0, 2, 1]).take
    )
    assert edges.tolist() == [[0, 1], [1, 2]]
    assert duplicate_of.tolist() == [-1, 0, -1]
    duplicate_of, _ = find_duplicates(fingerprints(clips), np.arange(3), np.array([1, 0, 2]).take)
    assert duplicate_of.tolist() == [1, -1, 1]


def test_copies_are_found_among_thousands_of_clips_of_one_fixed_camera():
    rng = np.random.default_rng(0)
    clips = np.empty((4000, TICKS), CODE)
    clips["picture"] = 12345
    clips["motion"] = rng.integers(2**63, 2**64, clips.shape, np.uint64)
    copied = clips[:50].copy()
    copied["motion"] ^= np.uint64(1) << rng.integers(0, 60, copied.shape).astype(np.uint64)
    column = pa.array([c.tobytes() for c in [*clips, *copied]], pa.binary())
    found = find_pairs(read_fingerprints(pa.chunked_array([column])), np.arange(4050))
    assert found.tolist() == [[k, 4000 + k] for k in range(50)]


EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30)


@given(EDGES)
def test_connected_components_equal_those_of_a_plain_loop(edges):
    expected = list(range(20))
    for _ in range(20):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    matrix = np.array(edges, np.int64).reshape(-1, 2)
    assert connected_components(matrix, 20).tolist() == expected


@given(EDGES, st.permutations(range(20)))
def test_suppressed_clips_have_a_better_kept_duplicate_and_kept_clips_have_none(edges, rank):
    matrix = np.array([e for e in edges if e[0] != e[1]], np.int64).reshape(-1, 2)
    duplicate_of = suppress_duplicates(matrix, np.array(rank))
    linked = {frozenset(e) for e in edges}
    for clip, kept in enumerate(duplicate_of.tolist()):
        if kept >= 0:
            assert duplicate_of[kept] < 0
            assert frozenset((clip, kept)) in linked
            assert rank[kept] < rank[clip]
    assert not any(duplicate_of[a] < 0 and duplicate_of[b] < 0 for a, b in matrix)


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
    return [(s, meter.encode(s, s + 15)) for s in starts]


def check_real(names, tmp_path, copies) -> tuple[int, int, int]:
    """Pairs of clips of the files and their copies: found, existing, and falsely found."""
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
    found = find_pairs(
        read_fingerprints(pa.chunked_array([pa.array(column)])), np.array([w[1] for w in where])
    )
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
def test_real_copies_are_duplicates_and_other_footage_of_the_same_road_is_not(tmp_path):
    names = ["take_highway_traffic_static_720p.mp4", "take_highway_traffic_vfr_720p.mp4"]
    hits, truth, false = check_real(names, tmp_path, list(COPIES)[1:3])
    assert truth >= 6
    assert (hits, false) == (truth, 0)


@real
def test_clips_of_real_static_cameras_are_no_duplicates_within_their_video():
    names = [
        "surveillance_room_people_one_by_one_432p_60s.mp4",
        "take_robot_dog_park_static_1080p.mp4",
    ]
    between = 0
    for name in names:
        meter, end = Fingerprint(), 0.0
        meter.start(VideoInfo(1280, 720, 30, 320, 180))
        for end, luma in decoded(str(VIDEOS / name)):
            meter.process_frame(end, Planes(luma))
        column = pa.array([meter.encode(s, s + 4) for s in np.arange(0, end - 4, 4)], pa.binary())
        codes = read_fingerprints(pa.chunked_array([column]))
        assert len(find_pairs(codes, np.zeros(len(column), int))) == 0
        between += len(find_pairs(codes, np.arange(len(column))))
    assert between > 0  # clips of different videos would be duplicates


def drawn_take(seed: int):
    """16 s of a picture under a handheld camera, with moving objects: (seconds, luma)."""
    background, tremor = drawn.textured_image(seed), drawn.shake(seed, 20)
    objects = [drawn.cutout(10 * seed + i, 60) for i in range(3)]
    rng = np.random.default_rng(seed)
    path, pace = rng.uniform(0, 6.28, (3, 2)), rng.uniform(0.3, 1.2, (3, 2))
    for t in drawn.times(16, 12):
        dx, dy = tremor(t)
        frame = drawn.view(background, (500 + 15 * t + dx, 400 + dy, 1, 0), (320, 180))
        for cutout, phase, rate in zip(objects, path, pace, strict=True):
            x, y = np.sin(phase + rate * t)
            drawn.paste(frame, cutout, 160 + 130 * x, 90 + 60 * y)
        yield t, np.clip(frame, 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_duplicates_among_drawn_videos_are_found_with_precision_and_recall_of_95_percent(tmp_path):
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
            column.append(meter.encode(0, 13))
            takes.append(seed)
    found = find_pairs(
        read_fingerprints(pa.chunked_array([pa.array(column)])), np.arange(len(column))
    )
    right = sum(takes[i] == takes[j] for i, j in found.tolist())
    assert right >= 0.95 * 20 * 3
    assert len(found) - right <= 0.05 * right


@real
@pytest.mark.slow
def test_real_copies_are_duplicates_and_takes_of_one_robot_at_one_bench_are_not(tmp_path):
    names = sorted(p.name for p in VIDEOS.glob("*_robot_*_*0p.mp4"))
    assert len(names) >= 6
    hits, truth, false = check_real(names, tmp_path, COPIES)
    assert hits >= 0.95 * truth
    assert false <= 0.05 * hits
