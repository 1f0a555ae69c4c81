"""Settings of training: checked without torch. That each number has a range is in
tests/pipelines/test_settings.py."""

import subprocess
import sys

import pytest

from curation import config
from curation.config import ConfigError
from tests.support.paths import REPOSITORY
from training.config import TrainConfig


def test_settings_are_read_without_importing_torch():
    code = (
        "import sys; from curation import config; from training.config import TrainConfig; "
        "config.load(TrainConfig, 'configs/train/smoke.yaml'); "
        "print([name for name in ('torch', 'numpy', 'pyarrow', 'cv2') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        "lr=0",
        "betas=[0.9, 1]",
        "data.workers=-1",
        "diffusion.flow_shift=0",
        "system.size.frames=0",
        "system.model.attention_head_dim=20",
        "sample.guidance=-1",
    ],
)
def test_a_number_outside_its_range_is_refused_with_its_name(wrong):
    with pytest.raises(ConfigError, match=f"command line: {wrong.partition('=')[0]}"):
        config.load(TrainConfig, None, [wrong])


def test_settings_that_contradict_each_other_are_refused():
    for wrong, match in (
        ("system.codec.frames=3", "expected multiples of the codec's patch"),
        ("system.text.heads=7", "expected a multiple of 7 heads"),
        ("weights=somewhere", r"to T5.*set system\.text\.t5"),
    ):
        with pytest.raises(ConfigError, match=match):
            config.load(TrainConfig, None, [wrong])
