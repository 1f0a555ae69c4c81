import hashlib
import json
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation.records import CAPTION, hash_frames, schema, segment_spans
from curation.stage import OutputError, RunContext
from curation.texts import max_adjacent_similarity
from stages.captioning.captioner import Captioner, Captions
from stages.captioning.measured import MeasuredCaptioner

BLUE_OVER_GREEN = ((200, 120, 40), (40, 140, 40))  # BGR


def drawn(text: str = "", top=BLUE_OVER_GREEN[0], bottom=BLUE_OVER_GREEN[1]) -> np.ndarray:
    height, width = (432, 768) if text else (108, 192)  # in small pictures text is searched faster
    bgr = np.empty((height, width, 3), np.uint8)
    bgr[: height // 2], bgr[height // 2 :] = top, bottom
    cv2.putText(bgr, text, (40, 70), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (255, 255, 255), 3)
    return bgr


def clip_of(folder, frames: list[np.ndarray], clip_id: str = "c0", **measured) -> dict:
    """A kept clip's row; measured: values for every segment, or a list with one per segment."""
    facts = {
        "brightness": 100.0,
        **dict.fromkeys(("camera_x", "camera_y", "camera_zoom", "camera_roll"), 0.0),
        "camera_shake": 0.0,
        "subject_motion": 0.0,
        "subject_area": 0.0,
    }
    segments = []
    for number, (start_s, end_s) in enumerate(segment_spans(15.0, len(frames))):
        jpeg = cv2.imencode(".jpg", frames[number], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        name = f"{clip_id}_{number}.jpg"
        (folder / name).write_bytes(jpeg)
        given = {k: v[number] if isinstance(v, list) else v for k, v in measured.items()}
        segments.append(
            {"start_s": start_s, "end_s": end_s, "key_frame": name}
            | {"key_frame_sha256": hashlib.sha256(jpeg).hexdigest()}
            | facts
            | given
        )
    return {
        "clip_id": clip_id,
        "video": "v.mp4",
        "start_s": 2.0,
        "end_s": 17.0,
        "segments": segments,
    }


@pytest.fixture(scope="module")
def measured() -> MeasuredCaptioner:
    stage = MeasuredCaptioner()
    stage.setup(RunContext())
    return stage


def captioned(stage: Captioner, folder, *clips: dict) -> list[dict]:
    Captioner.setup(stage, RunContext(str(folder)))
    return stage.process(list(clips))


def test_clip_gets_five_sub_captions_with_their_spans_and_a_caption(tmp_path, measured):
    [row] = captioned(measured, tmp_path, clip_of(tmp_path, [drawn()] * 5, camera_x=30.0))
    assert [(s["start_s"], s["end_s"]) for s in row["sub_captions"]] == segment_spans(15.0, 5)
    texts = [s["text"] for s in row["sub_captions"]]
    assert texts[0] == (
        "A picture, mostly blue, with green at the bottom. The view pans to the right. "
        "Hardly anything moves by itself."
    )
    assert (
        texts[1]
        == "Nothing changes: in the blue and green scene the view keeps panning to the right."
    )
    assert "The view pans to the right throughout." in row["caption"]
    assert row["text_similarity_tfidf"] == max_adjacent_similarity(texts)
    assert (row["captioner"], row["error"], row["rejected"]) == ("measured", None, None)
    assert row["video"] == "v.mp4"
    assert json.loads(row["provenance"])["version"] >= 1


def test_row_fits_the_schema_of_the_captions_table(tmp_path, measured):
    [row] = captioned(measured, tmp_path, clip_of(tmp_path, [drawn()] * 5))
    table = pa.Table.from_pylist([{c.name: row[c.name] for c in CAPTION}], schema(CAPTION))
    assert table.num_rows == 1


def test_text_on_screen_is_quoted_when_it_appears(tmp_path, measured):
    frames = [drawn(), drawn("Goal 2"), drawn("Goal 2"), drawn("Goal 3"), drawn()]
    [row] = captioned(measured, tmp_path, clip_of(tmp_path, frames))
    texts = [s["text"] for s in row["sub_captions"]]
    assert ['"Goal 2"' in text for text in texts] == [False, True, False, False, False]
    assert '"Goal 3"' in texts[3]
    assert "Goal" not in texts[4]
    assert row["caption"].endswith('It says "Goal 2" and "Goal 3".')


def test_markup_on_screen_is_made_harmless(tmp_path, measured):
    [row] = captioned(measured, tmp_path, clip_of(tmp_path, [drawn("<script> now")] * 5))
    assert "script" in row["caption"]
    assert not set(row["caption"]) & set("<>&")


def test_change_of_colour_is_mentioned(tmp_path, measured):
    frames = [drawn()] * 2 + [drawn(top=(20, 20, 200))] * 3
    [row] = captioned(measured, tmp_path, clip_of(tmp_path, frames))
    assert "red at the top comes in" in row["sub_captions"][2]["text"].lower()
    assert "blue is gone" in row["sub_captions"][2]["text"]
    assert row["sub_captions"][3]["text"] == (
        "Hardly anything moves or changes in the still view of the green and red scene."
    )


def test_same_clip_gets_the_same_captions_again(tmp_path, measured):
    clip = clip_of(tmp_path, [drawn("Goal 2"), drawn()], camera_y=20.0)
    assert captioned(measured, tmp_path, clip) == captioned(measured, tmp_path, clip)


def test_key_frame_with_another_hash_is_an_error(tmp_path, measured):
    clips = [clip_of(tmp_path, [drawn()] * 5, name) for name in ("good", "swapped")]
    (tmp_path / "swapped_3.jpg").write_bytes((tmp_path / "good_0.jpg").read_bytes() + b" ")
    good, bad = captioned(measured, tmp_path, *clips)
    assert good["error"] is None
    assert "swapped_3.jpg is not the frame that was scored" in bad["error"]
    assert bad["caption"] is bad["sub_captions"] is bad["frames_sha256"] is None
    assert (bad["clip_id"], bad["captioner"]) == ("swapped", "measured")


def test_hash_of_the_key_frames_depends_on_their_order(tmp_path, measured):
    clip = clip_of(tmp_path, [drawn(top=(n, n, n)) for n in range(5)])
    [row] = captioned(measured, tmp_path, clip)
    hashes = [s["key_frame_sha256"] for s in clip["segments"]]
    assert row["frames_sha256"] == hash_frames(hashes)
    assert row["frames_sha256"] != hash_frames(hashes[::-1])


@pytest.mark.parametrize("fault", ["missing", "broken", "unnamed", "no segments"])
def test_clip_without_key_frames_is_an_error_of_its_row(tmp_path, measured, fault):
    clip = clip_of(tmp_path, [drawn()] * 5)
    if fault == "missing":
        (tmp_path / "c0_2.jpg").unlink()
    elif fault == "broken":
        (tmp_path / "c0_2.jpg").write_bytes(b"text")
        clip["segments"][2]["key_frame_sha256"] = hashlib.sha256(b"text").hexdigest()
    elif fault == "unnamed":
        clip["segments"][2]["key_frame"] = None
    else:
        clip["segments"] = []
    [row] = captioned(measured, tmp_path, clip)
    assert row["error"]
    assert row["caption"] is row["sub_captions"] is None


@dataclass
class FixedCaptioner(Captioner):
    """Returns or raises `result`: what the base class does with it is tested."""

    result: Captions | Exception

    captioner: ClassVar[str] = "fixed"

    def provenance(self):
        return {"model": "fixed-1"}

    async def describe(self, clip, frames):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def fixed_caption(tmp_path, result) -> dict:
    [row] = captioned(FixedCaptioner(result), tmp_path, clip_of(tmp_path, [drawn()] * 2))
    return row


@pytest.mark.parametrize(
    "texts", [(["a"], "c"), (["a", "b", "d"], "c"), (["a", " "], "c"), (["a", "b"], "")]
)
def test_captioner_must_return_a_text_for_every_segment_and_the_clip(tmp_path, texts):
    row = fixed_caption(tmp_path, Captions(*texts))
    assert "expected a caption and 2 sub-captions" in row["error"]
    assert row["caption"] is None


def test_rejected_captions_stay_in_the_row(tmp_path):
    row = fixed_caption(tmp_path, Captions(["a", "b"], "c", "too alike", {"attempts": 3}))
    assert (row["rejected"], row["error"], row["caption"]) == ("too alike", None, "c")
    assert json.loads(row["provenance"]) == {
        "model": "fixed-1",
        "attempts": 3,
        "span_s": [2.0, 17.0],
    }


def test_exception_of_a_captioner_is_the_error_of_its_row(tmp_path):
    assert fixed_caption(tmp_path, TimeoutError("server is away"))["error"] == (
        "TimeoutError: server is away"
    )


def test_output_error_stops_the_run(tmp_path):
    with pytest.raises(OutputError):
        fixed_caption(tmp_path, OutputError("disk full"))
