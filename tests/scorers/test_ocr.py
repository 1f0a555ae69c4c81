import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation import heartbeat
from curation.stage import OutputError, TransientError
from curation.storage import Folder
from stages.scorers.ocr import OcrStage, covered_share, evenly_spaced
from stages.scorers.ocr_engine import OcrEngine
from tests.support.paths import VIDEOS


@pytest.fixture(scope="module")
def ocr() -> OcrEngine:
    return OcrEngine()


def scene(width: int = 1280, height: int = 720) -> np.ndarray:
    """Soft coloured blobs, no text: (h, w, 3) uint8."""
    noise = np.random.default_rng(1).integers(0, 256, (9, 16, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) // 2


def write(bgr: np.ndarray, text: str, height_share: float, at: tuple[float, float]) -> np.ndarray:
    """`text` in white on black outlines; letters about `height_share` of the image high."""
    rows, columns = bgr.shape[:2]
    scale = rows * height_share / 22
    corner = (int(at[0] * columns), int(at[1] * rows))
    out = bgr.copy()
    for colour, extra in (((0, 0, 0), 2), ((255, 255, 255), 0)):
        thickness = max(1, round(2 * scale)) + extra
        cv2.putText(out, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness)
    return out


def stage(folder: Path, frames: list[np.ndarray], ocr: OcrEngine, **clip) -> tuple[OcrStage, dict]:
    """The stage and a video's row with one clip whose key frames lie in `folder`."""
    segments = []
    for number, bgr in enumerate(frames):
        cv2.imwrite(str(folder / f"{number}.jpg"), bgr)
        segments.append({"start_s": 3.0 * number, "key_frame": f"{number}.jpg"})
    text = OcrStage()
    text._ledger, text._ocr = Folder(str(folder)), ocr
    return text, {
        "video": "v",
        "clips": [{"prefilter": None, "num_frames": 9, "segments": segments, **clip}],
    }


def scored(text: OcrStage, row: dict) -> dict:
    [clip] = text.process([row])[0]["clips"]
    return clip


def test_caption_has_an_area_and_a_scene_without_text_has_none(tmp_path, ocr):
    plain = scene()
    titled = write(plain, "Where are you going?", 0.06, (0.1, 0.9))
    assert scored(*stage(tmp_path, [plain] * 5, ocr))["text_share"] == 0.0
    assert 0.01 < scored(*stage(tmp_path, [titled] * 5, ocr))["text_share"] < 0.06


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (608, 1080), (1739, 566)])
def test_line_of_four_percent_of_the_height_is_found_at_any_size(ocr, size):
    width, height = size
    bgr = write(scene(width, height), "breaking news", 0.04, (0.05, 0.5))
    boxes = ocr.find_text_boxes(bgr)
    assert boxes
    x, y = np.concatenate(boxes).mean(axis=0) / size
    assert 0.05 < x < 0.7
    assert 0.4 < y < 0.55


def test_readable_tall_title_counts(ocr):
    title = write(scene(), "TITLE", 0.25, (0.1, 0.6))
    assert covered_share(ocr.find_text_boxes(title), 1280, 720) > 0.1


@pytest.mark.parametrize("pitch_px", [6, 14, 40])
def test_stripes_grids_and_gravel_are_not_text(ocr, pitch_px):
    y, x = np.mgrid[0:720, 0:1280]
    stripes = np.where(x // pitch_px % 2, 200, 60)
    grid = np.where((x % pitch_px < 3) | (y % pitch_px < 3), 220, 90)
    rng = np.random.default_rng(pitch_px)
    stones = rng.integers(0, 256, (720 // pitch_px + 1, 1280 // pitch_px + 1), np.uint8)
    gravel = cv2.resize(stones, (1280, 720), interpolation=cv2.INTER_CUBIC)
    for texture in (stripes, grid, gravel):
        bgr = cv2.cvtColor(texture.astype(np.uint8), cv2.COLOR_GRAY2BGR)
        assert covered_share(ocr.find_text_boxes(bgr), 1280, 720) < 0.01


def test_page_full_of_text_has_a_high_share(tmp_path, ocr):
    page = np.full((720, 1280, 3), 20, np.uint8)
    for line in range(14):
        page = write(page, f"line {line} of a page with words", 0.04, (0.05, 0.07 * line + 0.06))
    assert scored(*stage(tmp_path, [page] * 5, ocr))["text_share"] > 0.1


def test_artifact_share_is_the_union_of_text_graphics_and_borders(tmp_path, ocr):
    mask = np.zeros((90, 160), np.uint8)
    mask[:, :40] = 255  # the left quarter
    png = cv2.imencode(".png", mask)[1].tobytes()
    frames = [scene()] * 5
    whole = scored(*stage(tmp_path, frames, ocr, overlay_mask=png, borders=[0.125, 0, 0.25, 0]))
    assert whole["artifact_share"] == pytest.approx(0.5, abs=0.01)
    assert whole["text_share"] == 0.0


def test_overlapping_boxes_count_once():
    box = np.array([[0, 0], [64, 0], [64, 90], [0, 90]], np.float32)
    assert covered_share([box], 320, 180) == pytest.approx(0.1, abs=0.01)
    assert covered_share([box, box], 320, 180) == covered_share([box], 320, 180)
    assert covered_share([box], 320, 180, borders=[0.1, 0, 0, 0]) == pytest.approx(0.15, abs=0.01)


def test_clip_that_fails_the_prefilter_has_a_null_reason(ocr):
    text = OcrStage()
    text._ledger, text._ocr = Folder("/nowhere"), ocr
    clip = scored(
        text,
        {
            "clips": [
                {
                    "prefilter": "too dark",
                    "num_frames": 9,
                    "segments": [{}],
                    "null_reasons": {"a": "b"},
                }
            ]
        },
    )
    assert clip["text_share"] is clip["artifact_share"] is None
    assert clip["null_reasons"]["text_share"] == "failed the prefilter: too dark"
    assert clip["null_reasons"]["a"] == "b"


@pytest.mark.parametrize("broken", [b"", b"no image", None])
def test_missing_or_unreadable_key_frame_decides_about_no_clip_and_no_video(tmp_path, ocr, broken):
    """The same run has stored it: the output is being removed, or its storage fails."""
    text, row = stage(tmp_path, [scene()] * 5, ocr)
    (tmp_path / "1.jpg").unlink()
    if broken is not None:
        (tmp_path / "1.jpg").write_bytes(broken)
    with pytest.raises(TransientError, match=r"1\.jpg is (not a readable image|missing)"):
        scored(text, row)


def test_failed_storage_of_a_key_frame_stops_the_run_and_decides_about_no_clip(tmp_path, ocr):
    text, row = stage(tmp_path, [scene()] * 5, ocr)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "1.jpg").mkdir()  # any error of the storage
    with pytest.raises(OutputError, match=r"can't read .*1\.jpg"):
        scored(text, row)


def test_missing_key_frame_gives_a_null_with_its_reason(tmp_path, ocr):
    text, row = stage(tmp_path, [scene()] * 5, ocr)
    row["clips"][0]["segments"][3]["key_frame"] = None
    reason = scored(text, row)["null_reasons"]["text_share"]
    assert reason == "no key frame was stored for the segment at 9.0 s"


def test_video_without_clips_is_accepted():
    assert OcrStage().process([{"video": "v", "clips": None}]) == [{"video": "v", "clips": []}]


def test_key_frames_are_evenly_spaced():
    assert evenly_spaced([0, 1, 2, 3, 4], 2) == [1, 3]
    assert evenly_spaced([0, 1, 2, 3, 4], 3) == [0, 2, 4]
    assert evenly_spaced([0, 1], 5) == [0, 1]


def test_reading_returns_text_confidence_and_box(ocr):
    bgr = write(scene(), "Goal 42", 0.06, (0.6, 0.2))
    [(text, confidence, box)] = ocr.read_lines(bgr)
    assert text == "Goal 42"
    assert confidence > 0.9
    assert 0.6 < box[:, 0].mean() / 1280 < 0.8
    assert 0.1 < box[:, 1].mean() / 720 < 0.25


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (4, 900)])
def test_images_of_extreme_aspect_have_no_text(ocr, size):
    assert ocr.find_text_boxes(np.zeros((size[1], size[0], 3), np.uint8)) == []


def frames_of(name: str, at_s: tuple[float, ...]) -> list[np.ndarray]:
    if not (VIDEOS / name).exists():
        pytest.skip(f"no labelled videos at {VIDEOS} (set LONGTAKE_VIDEOS)")
    found = []
    with av.open(str(VIDEOS / name)) as container:
        stream = container.streams.video[0]
        for second in at_s:
            container.seek(int(second / stream.time_base), stream=stream)
            decoded = (f for f in container.decode(stream) if f.time >= second)
            frame = next(decoded).to_ndarray(format="bgr24")
            scale = 768 / max(frame.shape[:2])
            found.append(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "take_robot_dog_park_static_1080p.mp4",
        "take_highway_traffic_static_720p.mp4",
        "take_jackal_corridor_handheld_1080p.mp4",
        "take_robot_arm_fridge_720p.mp4",
        "take_robot_arm_sink_720p.mp4",
        "cut_locobot_plaza_2shots_1080p.mp4",
    ],
)
def test_real_long_takes_have_almost_no_text(ocr, name):
    for bgr in frames_of(name, (2, 8, 14)):
        assert covered_share(ocr.find_text_boxes(bgr), bgr.shape[1], bgr.shape[0]) < 0.03


@pytest.mark.parametrize(
    "name", ["text_slides_method_animation_1080p.mp4", "text_terminal_recording_566p_vp9.webm"]
)
def test_real_slides_and_terminals_have_text(ocr, name):
    for bgr in frames_of(name, (4, 10)):
        assert covered_share(ocr.find_text_boxes(bgr), bgr.shape[1], bgr.shape[0]) > 0.1


def test_text_detection_takes_little_cpu_time(ocr):
    bgr = write(scene(768, 432), "LIVE", 0.05, (0.1, 0.1))
    started = time.process_time()
    for _ in range(5):
        ocr.find_text_boxes(bgr)
    # CPU time, which other load does not change; with the default scaling it is 15 times higher
    assert (time.process_time() - started) / 5 < 0.6


def test_video_of_many_clips_has_time_for_each_and_reports_its_progress(tmp_path, ocr, monkeypatch):
    text, row = stage(tmp_path, [scene()] * 5, ocr)
    row["clips"] *= 4
    reports = []
    monkeypatch.setattr(heartbeat, "INTERVAL_S", -1.0)
    monkeypatch.setattr(heartbeat, "_send", lambda: reports.append(1))
    text.process([row])
    assert len(reports) == 4
    assert text.row_timeout_s({"clips": [{}] * 3000}) > 3000 * text.stall_timeout_s
