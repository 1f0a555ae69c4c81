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


def test_computation_is_in_bf16_on_a_gpu_alone_unless_the_settings_name_a_precision():
    for precision, on_gpu, on_cpu in (
        ("auto", True, False),
        ("bf16", True, True),
        ("fp32", False, False),
    ):
        cfg = config.load(TrainConfig, None, [f"precision={precision}"])
        assert (cfg.uses_bf16("cuda"), cfg.uses_bf16("cpu")) == (on_gpu, on_cpu)
    smoke = config.load(TrainConfig, REPOSITORY / "configs/train/smoke.yaml", [])
    assert smoke.precision == TrainConfig().precision == "auto"


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
        ("system.codec.frames=3", "size.frames is 88: the nearest that the codec can .* 87 and 90"),
        ("system.text.heads=7", "expected a multiple of 7 heads"),
        ("weights=somewhere", r"to T5.*set system\.text\.t5"),
    ):
        with pytest.raises(ConfigError, match=match):
            config.load(TrainConfig, None, [wrong])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["size.height=12"], "size.height is 12: .* model.patch_size=2 can take: 8 and 16"),
        (["size.width=4"], "size.width is 4: .* model.patch_size=2 can take: 8"),
        (["sizes=[{height: 12}]"], "sizes.height is 12: .* 8 and 16"),
        (["codec.allegro=a", "size.height=520"], "size.height is 520: .* 320 and 720"),
        (["codec.allegro=a", "size.height=9"], "size.height is 9: .* 320"),
        (["codec.allegro=a", "size.width=1290"], "size.width is 1290: .* 1280 and 1520"),
        (["codec.allegro=a", "model.patch_size=9"], "size.width is 1280: .* take: none"),
    ],
)
def test_a_size_that_codec_and_network_cannot_take_is_refused_with_the_nearest(given, message):
    with pytest.raises(ConfigError, match=rf"^command line: system\.{message}$"):
        config.load(TrainConfig, None, [f"system.{setting}" for setting in given])
