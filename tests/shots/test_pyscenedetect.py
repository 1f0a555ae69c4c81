"""PySceneDetect's detectors give the cuts that its own `detect` gives."""

import csv
from collections import Counter

import pytest
import scenedetect

from curation.stage import BadVideo
from curation.video.reader import Reader
from stages.decode_pass import DecodePass
from stages.shots.pyscenedetect import PySceneDetector
from tests.support.paths import VIDEOS

CLASSES = {
    "content": scenedetect.ContentDetector,
    "adaptive": scenedetect.AdaptiveDetector,
    "hash": scenedetect.HashDetector,
    "histogram": scenedetect.HistogramDetector,
}
SHORT = (  # where they find cuts; one is upright and larger than its planes
    "edit_butterfly_dissolve_240p.mp4",
    "edit_nasa_telescope_dissolve_cut_multistream.mp4",
    "synthetic_colour_flash_counter_1080p.mp4",
)
real = pytest.mark.skipif(
    not (VIDEOS / "labels.csv").is_file(), reason=f"no labelled videos at {VIDEOS}"
)


def cuts_of(file: str, *detectors: PySceneDetector) -> list[list[float]]:
    """Of each detector; the file is read once."""
    with Reader(str(VIDEOS / file)) as reader:
        for detector in detectors:
            detector.start(reader.header.info())
        for t_s, planes in reader.frames():
            for detector in detectors:
                detector.process_frame(t_s, planes)
    found = [detector.transitions() for detector in detectors]
    assert all(transitions.gradual == [] for transitions in found)
    return [transitions.cuts_s for transitions in found]


def cuts_by_command(detector: scenedetect.SceneDetector, file: str) -> list[float]:
    """Times from the first frame."""
    scenes = scenedetect.detect(str(VIDEOS / file), detector, backend="pyav")
    return [start.seconds - scenes[0][0].seconds for start, _ in scenes[1:]]


def detectors() -> dict[str, PySceneDetector]:
    found = {k: d for k, d in DecodePass().detectors.items() if isinstance(d, PySceneDetector)}
    assert found.keys() == CLASSES.keys()
    return found


@real
def test_each_detector_gives_the_cuts_of_scenedetect_detect():
    chosen, counts = detectors(), Counter[str]()
    for file in SHORT:
        for name, cuts_s in zip(chosen, cuts_of(file, *chosen.values()), strict=True):
            expected = cuts_by_command(CLASSES[name](), file)
            assert cuts_s == pytest.approx(expected, abs=1e-3), (file, name)
            counts[name] += len(cuts_s)
    assert min(counts[name] for name in CLASSES) >= 1


@real
def test_parameters_reach_the_detector():
    default, content = detectors()["content"], detectors()["content"]
    content.threshold, content.min_scene_len = 8.0, 3
    file = "edit_nasa_telescope_dissolve_cut_multistream.mp4"
    expected = cuts_by_command(scenedetect.ContentDetector(8.0, 3), file)
    found, found_by_default = cuts_of(file, content, default)
    assert found == pytest.approx(expected, abs=1e-3)
    assert len(found) > len(found_by_default)


@real
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CLASSES)
def test_detector_gives_the_cuts_of_scenedetect_detect_on_all_labelled_videos(name):
    with (VIDEOS / "labels.csv").open(newline="") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    compared = 0
    for file in files:
        try:
            [found] = cuts_of(file, detectors()[name])
        except BadVideo:
            continue  # damaged: PySceneDetect reads on where this reader stops
        expected = cuts_by_command(CLASSES[name](), file)
        assert found == pytest.approx(expected, abs=1e-3), file
        compared += 1
    assert compared >= 30
