"""The trainer that Presto's authors released, restated from what it does, reads what we write."""

from fractions import Fraction

import av
import numpy as np
import pandas
import pytest

from stages.export.extraction import Cut, cut
from stages.export.presto import KEYS, frame_choice, left_out, make_presto, write_meta

CODE_AT, CODE_SIDE, CODE_BITS = 64, 48, 10


def draw_coded(path, frames, rate, size=(1280, 720), codec="libx264", params=None):
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
                left = CODE_AT + bit * CODE_SIDE
                level = 235 if number >> bit & 1 else 16
                picture[CODE_AT : CODE_AT + CODE_SIDE, left : left + CODE_SIDE] = level
            frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def number_of(luma, scale=1.0):
    middles = [CODE_AT + CODE_SIDE // 2 + bit * CODE_SIDE for bit in range(CODE_BITS)]
    row = round((CODE_AT + CODE_SIDE // 2) * scale)
    return sum((luma[row, round(at * scale)] > 128) << bit for bit, at in enumerate(middles))


def numbers_in(path, scale=1.0):
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 30
        return [number_of(f.to_ndarray(), scale) for f in container.decode(video=0)]


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


def cap_of(clip):
    return dict(zip(KEYS, (part["text"] for part in clip["sub_captions"]), strict=True))


class ReleasedReader:
    """What the released data set does with the Parquet and the files, told in our words."""

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
        wanted = np.linspace(0, 5 * 90 - 1, 88, dtype=int)
        path = str(self.folder / self.table.loc[index]["path"])
        try:
            from decord import VideoReader
        except ImportError:
            with av.open(path) as container:
                decoded = enumerate(container.decode(video=0))
                return wanted, [f.to_ndarray(format="rgb24") for i, f in decoded if i in wanted]
        return wanted, list(VideoReader(path).get_batch(wanted).asnumpy())


@pytest.fixture(scope="module")
def at_thirty(tmp_path_factory):
    """20 s and a little more, at 30 fps."""
    return draw_coded(tmp_path_factory.mktemp("coded") / "in.mp4", 610, 30, params=FAST)


def make(tmp_path, source, duration_s):
    mp4 = tmp_path / "cut.mp4"
    made = cut(str(source), 0.0, duration_s, mp4)
    return make_presto(row("a", duration_s), mp4, made, tmp_path / "presto"), made


def test_fifteen_seconds_at_thirty_keep_every_frame_and_are_not_encoded_again(tmp_path, at_thirty):
    mp4 = tmp_path / "cut.mp4"
    made = cut(str(at_thirty), 1 / 30, 15 + 1 / 30, mp4, num_frames=450)
    line = make_presto(row("a"), mp4, made, tmp_path / "presto")
    path = tmp_path / "presto" / line["path"]
    assert (line["speed"], line["num_frames"]) == (1.0, 450)
    assert numbers_in(path) == list(range(1, 451))
    with av.open(str(path)) as a, av.open(str(mp4)) as b:
        ours, theirs = ([bytes(p) for p in c.demux(video=0) if p.size] for c in (a, b))
    assert ours == theirs


def test_fifteen_seconds_at_24_show_at_every_moment_what_the_clip_shows(tmp_path):
    source = draw_coded(tmp_path / "in.mp4", 361, 24, params=FAST)
    line, _ = make(tmp_path, source, 15.0)
    numbers = numbers_in(tmp_path / "presto" / line["path"])
    assert numbers == [int((2 * k + 1) * 24 / 60) for k in range(450)]
    assert line["speed"] == 1.0


def test_a_longer_clip_is_squeezed_whole_into_450_frames(tmp_path, at_thirty):
    line, _ = make(tmp_path, at_thirty, 20.0)
    numbers = numbers_in(tmp_path / "presto" / line["path"])
    assert numbers == [(2 * k + 1) * 600 // 900 for k in range(450)]
    assert line["speed"] == pytest.approx(20 / 15)


def test_a_copy_with_hidden_frames_is_made_anew(tmp_path, at_thirty):
    mp4 = tmp_path / "cut.mp4"
    for frames in (450, 449):  # with two B frames, one of these ends hides the frame behind it
        made = cut(str(at_thirty), 0.0, frames / 30, mp4)
        if made.hidden_frames:
            break
    assert (made.method, made.hidden_frames) == ("copy", 1)
    line = make_presto(row("a"), mp4, made, tmp_path / "presto")
    path = tmp_path / "presto" / line["path"]
    assert numbers_in(path) == [min(k, frames - 1) for k in range(450)]
    with av.open(str(path)) as container:
        assert sum(1 for p in container.demux(video=0) if p.size) == 450


def test_a_larger_picture_is_brought_to_the_size_that_the_trainer_uses(tmp_path):
    source = draw_coded(tmp_path / "in.mp4", 46, 3, params=FAST, size=(1920, 1080))
    line, _ = make(tmp_path, source, 15.0)
    assert (line["width"], line["height"]) == (1280, 720)
    numbers = numbers_in(tmp_path / "presto" / line["path"], scale=2 / 3)
    assert numbers == [int((k + 0.5) / 10) for k in range(450)]


@pytest.mark.parametrize("fps", [30, 30000 / 1001, 29.97])
def test_stamps_that_are_a_little_off_pick_no_neighbour(fps):
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, 450) / fps
    times = np.maximum(np.arange(450) / fps + noise, 0) if fps == 30 else np.arange(450) / fps
    np.testing.assert_array_equal(frame_choice(times, 15.0), np.arange(450))


def test_uneven_frames_are_held_as_long_as_the_clip_holds_them():
    choice = frame_choice([0.0, 1.0, 14.0], 15.0)
    assert [np.sum(choice == i) for i in range(3)] == [30, 390, 30]


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
def test_what_the_trainer_would_drop_in_silence_is_left_out_with_its_reason(
    width, height, parts, reason
):
    assert left_out(width, height, parts) == reason


def test_the_released_reader_takes_every_row_with_its_own_captions(tmp_path):
    source = draw_coded(tmp_path / "in.mp4", 76, 5, params=FAST)
    mp4, folder = tmp_path / "cut.mp4", tmp_path / "presto"
    made = cut(str(source), 0.0, 15.0, mp4)
    line = make_presto(row("b"), mp4, made, folder)
    others = (row("a"), row("v", split="validation"))
    rows = [line] + [
        line | {"clip_id": o["clip_id"], "split": o["split"], "cap": cap_of(o)} for o in others
    ]
    small = Cut("copy", "h264", 450, 0, 640, 360, 30.0, 1, 0.0)
    rows.append(make_presto(row("s"), mp4, small, folder))
    assert write_meta(rows, folder) == {"smaller than 1280x720": 1}
    reader = ReleasedReader(folder)
    assert len(reader) == 2
    assert [reader.captions(i)[4] for i in range(2)] == ["a 4", "b 4"]
    numbers, frames = reader.frames(0)
    assert frames[0].shape == (720, 1280, 3)
    shown = [number_of(f.astype(int).mean(-1)) for f in frames]
    assert shown == [int((k + 0.5) / 30 * 5) for k in numbers]
    held_out = ReleasedReader(folder, "meta_validation.parquet")
    assert [held_out.captions(i)[0] for i in range(len(held_out))] == ["v 0"]
    assert [p.name for p in (folder / "videos").iterdir()] == ["b.mp4"]


def test_no_clips_are_an_empty_table_of_the_same_columns(tmp_path):
    assert write_meta([], tmp_path) == {}
    table = pandas.read_parquet(tmp_path / "meta.parquet")
    assert list(table.columns[:5]) == ["path", "cap", "num_frames", "height", "width"]
    assert KEYS == ("45", "135", "225", "315", "405")
