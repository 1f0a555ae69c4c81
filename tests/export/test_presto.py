"""The output for the trainer that Presto's authors released, read the way that trainer reads it."""

from fractions import Fraction

import av
import numpy as np
import pandas
import pytest

from curation.storage import Folder
from stages.export.extraction import ExtractedClip
from stages.export.presto import (
    CAPTION_KEYS,
    frame_indices,
    meta_tables,
    skip_reason,
    write_presto_clip,
)
from tests.support.video_files import extract

CODE_OFFSET, SQUARE_SIDE, CODE_BITS = 64, 48, 10  # px, px, squares


def write_numbered_video(path, frames, rate, size=(1280, 720), codec="libx264", params=None):
    """Every frame shows its own number as ten black or white squares."""
    width, height = size
    x = np.linspace(40, 200, width)[None, :] * np.ones((height, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=params or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        plain = np.vstack([x, np.full((height // 2, width), 128)]).astype(np.uint8)
        for number in range(frames):
            picture = plain.copy()
            for bit in range(CODE_BITS):
                left = CODE_OFFSET + bit * SQUARE_SIDE
                level = 235 if number >> bit & 1 else 16
                picture[CODE_OFFSET : CODE_OFFSET + SQUARE_SIDE, left : left + SQUARE_SIDE] = level
            frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_number(luma, scale=1.0):
    middles = [CODE_OFFSET + SQUARE_SIDE // 2 + bit * SQUARE_SIDE for bit in range(CODE_BITS)]
    row = round((CODE_OFFSET + SQUARE_SIDE // 2) * scale)
    return sum((luma[row, round(at * scale)] > 128) << bit for bit, at in enumerate(middles))


def shown_numbers(path, scale=1.0):
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 30
        return [read_number(f.to_ndarray(), scale) for f in container.decode(video=0)]


FAST = {"preset": "ultrafast", "bf": "2", "g": "1000"}


def row(clip_id, duration_s=15.0, split="train", parts=5, start_s=0.0):
    return {
        "clip_id": clip_id,
        "split": split,
        "start_s": start_s,
        "end_s": start_s + duration_s,
        "sub_captions": [
            {"start_s": 0, "end_s": 1, "text": f"{clip_id} {i}"} for i in range(parts)
        ],
    }


def captions_of(clip):
    return dict(zip(CAPTION_KEYS, (part["text"] for part in clip["sub_captions"]), strict=True))


class ReleasedReader:
    """Does with the Parquet table and the mp4s what the released data set class does."""

    def __init__(self, folder, meta="meta.parquet"):
        table = pandas.read_parquet(folder / meta)
        keep = [
            line["height"] >= 720
            and line["width"] >= 1280
            and 720 / 1280 / 1.5 <= line["height"] / line["width"] <= 720 / 1280 * 1.5
            and line["path"].endswith(".mp4")
            and line["num_frames"] >= 5 * 90
            for _, line in table.iterrows()
        ]
        self.folder, self.table = folder, table[keep].reset_index(drop=True)

    def __len__(self):
        return len(self.table)

    def captions(self, index):
        cap = self.table.loc[index]["cap"]
        assert isinstance(cap, dict)
        pairs = sorted(cap.items(), key=lambda pair: int(pair[0]))
        assert int(pairs[1][0]) - int(pairs[0][0]) == 90
        assert all(isinstance(text, str) for _, text in pairs)
        return [text for _, text in pairs]

    def frames(self, index):
        """88 of frames 0 to 449, by number, read with decord where it is installed."""
        numbers = np.linspace(0, 5 * 90 - 1, 88, dtype=int)
        path = str(self.folder / self.table.loc[index]["path"])
        try:
            from decord import VideoReader
        except ImportError:
            with av.open(path) as container:
                decoded = enumerate(container.decode(video=0))
                return numbers, [f.to_ndarray(format="rgb24") for i, f in decoded if i in numbers]
        return numbers, list(VideoReader(path).get_batch(numbers).asnumpy())


@pytest.fixture(scope="module")
def video_30_fps(tmp_path_factory):
    """A little more than 20 s."""
    return write_numbered_video(tmp_path_factory.mktemp("coded") / "in.mp4", 610, 30, params=FAST)


def presto_row(tmp_path, source, duration_s):
    mp4 = tmp_path / "clip.mp4"
    extracted = extract(source, 0.0, duration_s, mp4)
    return write_presto_clip(row("a", duration_s), mp4, extracted, tmp_path / "presto")


def test_clip_of_15_s_at_30_fps_keeps_every_frame_and_is_not_encoded_again(tmp_path, video_30_fps):
    mp4 = tmp_path / "clip.mp4"
    extracted = extract(video_30_fps, 1 / 30, 15 + 1 / 30, mp4, num_frames=450)
    line = write_presto_clip(row("a"), mp4, extracted, tmp_path / "presto")
    path = tmp_path / "presto" / line["path"]
    assert (line["speed"], line["num_frames"]) == (1.0, 450)
    assert shown_numbers(path) == list(range(1, 451))
    with av.open(str(path)) as a, av.open(str(mp4)) as b:
        ours, theirs = ([bytes(p) for p in c.demux(video=0) if p.size] for c in (a, b))
    assert ours == theirs


def test_longer_clip_is_sped_up_to_450_frames(tmp_path, video_30_fps):
    line = presto_row(tmp_path, video_30_fps, 20.0)
    numbers = shown_numbers(tmp_path / "presto" / line["path"])
    assert numbers == [(2 * k + 1) * 600 // 900 for k in range(450)]
    assert line["speed"] == pytest.approx(20 / 15)


def test_copy_with_hidden_frames_is_encoded(tmp_path, video_30_fps):
    mp4 = tmp_path / "clip.mp4"
    for frames in (450, 449):  # with two B frames, one of these ends hides the frame behind it
        extracted = extract(video_30_fps, 0.0, frames / 30, mp4)
        if extracted.hidden_frames:
            break
    assert (extracted.method, extracted.hidden_frames) == ("copy", 1)
    line = write_presto_clip(row("a"), mp4, extracted, tmp_path / "presto")
    path = tmp_path / "presto" / line["path"]
    assert shown_numbers(path) == [min(k, frames - 1) for k in range(450)]
    with av.open(str(path)) as container:
        assert sum(1 for p in container.demux(video=0) if p.size) == 450


def test_larger_picture_is_scaled_down_to_the_size_that_the_trainer_uses(tmp_path):
    source = write_numbered_video(tmp_path / "in.mp4", 46, 3, params=FAST, size=(1920, 1080))
    line = presto_row(tmp_path, source, 15.0)
    assert (line["width"], line["height"]) == (1280, 720)
    numbers = shown_numbers(tmp_path / "presto" / line["path"], scale=2 / 3)
    assert numbers == [int((k + 0.5) / 10) for k in range(450)]


@pytest.mark.parametrize("fps", [30, 30000 / 1001, 29.97])
def test_small_errors_of_time_stamps_select_no_neighbouring_frame(fps):
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, 450) / fps
    times = np.maximum(np.arange(450) / fps + noise, 0) if fps == 30 else np.arange(450) / fps
    np.testing.assert_array_equal(frame_indices(times, 15.0), np.arange(450))


def test_frames_of_24_fps_are_repeated_at_the_right_times():
    indices = frame_indices(np.arange(360) / 24, 15.0)
    assert indices.tolist() == [int((2 * k + 1) * 24 / 60) for k in range(450)]


def test_frames_of_a_variable_rate_are_repeated_for_as_long_as_they_are_shown():
    indices = frame_indices([0.0, 1.0, 14.0], 15.0)
    assert [np.sum(indices == i) for i in range(3)] == [30, 390, 30]


@pytest.mark.parametrize(
    ("width", "height", "parts", "reason"),
    [
        (1280, 720, 5, None),
        (1920, 804, 5, None),
        (1279, 720, 5, "smaller than 1280x720"),
        (720, 1280, 5, "smaller than 1280x720"),
        (1280, 1280, 5, "shape more than 1.5 x off 16:9"),
        (3000, 720, 5, "shape more than 1.5 x off 16:9"),
        (1280, 720, 4, "4 sub-captions, not 5"),
    ],
)
def test_clip_that_the_trainer_would_drop_is_skipped_with_the_reason(width, height, parts, reason):
    assert skip_reason(width, height, parts) == reason


def test_released_reader_accepts_every_row_with_its_own_captions(tmp_path):
    source = write_numbered_video(tmp_path / "in.mp4", 76, 5, params=FAST)
    mp4, folder = tmp_path / "clip.mp4", tmp_path / "presto"
    extracted = extract(source, 0.0, 15.0, mp4)
    line = write_presto_clip(row("b"), mp4, extracted, folder)
    others = (row("a"), row("v", split="validation"))
    rows = [line] + [
        line | {"clip_id": o["clip_id"], "split": o["split"], "cap": captions_of(o)} for o in others
    ]
    small = ExtractedClip("copy", "h264", 450, 0, 640, 360, 30.0, 1, 0.0)
    rows.append(write_presto_clip(row("s"), mp4, small, folder))
    with meta_tables(Folder(str(folder))) as tables:
        tables.add(rows[:2])
        tables.add(rows[2:])
    assert tables.skipped == {"smaller than 1280x720": 1}
    reader = ReleasedReader(folder)
    assert len(reader) == 2
    assert [reader.captions(i)[4] for i in range(2)] == ["b 4", "a 4"]
    numbers, frames = reader.frames(0)
    assert frames[0].shape == (720, 1280, 3)
    shown = [read_number(f.astype(int).mean(-1)) for f in frames]
    assert shown == [int((k + 0.5) / 30 * 5) for k in numbers]
    held_out = ReleasedReader(folder, "meta_validation.parquet")
    assert [held_out.captions(i)[0] for i in range(len(held_out))] == ["v 0"]
    assert [p.name for p in (folder / "videos").iterdir()] == ["b.mp4"]


def test_empty_input_gives_a_table_with_the_same_columns(tmp_path):
    with meta_tables(Folder(str(tmp_path))) as tables:
        tables.add([])
    assert tables.skipped == {}
    table = pandas.read_parquet(tmp_path / "meta.parquet")
    assert list(table.columns[:5]) == ["path", "cap", "num_frames", "height", "width"]
    assert CAPTION_KEYS == ("45", "135", "225", "315", "405")
