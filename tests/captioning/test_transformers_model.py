"""With tiny random models of the real classes: they get real input, and write nonsense."""

import asyncio
import json

import pytest

pytest.importorskip("torch")

from curation.torchvision_fix import fix_torchvision

fix_torchvision()
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from curation.config import ConfigError
from curation.stage import PlanError, RunContext
from curation.weights import locate_model
from pipelines.settings import CaptionSettings
from stages.captioning.captioner import Captioner
from stages.captioning.checks import failed_check
from stages.captioning.conversation import Message, PromptImage, Request
from stages.captioning.openai_server import OpenAICaptioner
from stages.captioning.transformers_model import TransformersCaptioner
from stages.captioning.vllm_engine import VllmCaptioner
from tests.support.drawn_key_frames import draw_jpeg, make_clip
from tests.support.tiny_vlm import make_tokenizer, save_tiny

KINDS = ("qwen2_5_vl", "qwen3_vl", "smolvlm")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> TransformersCaptioner:
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    stage = TransformersCaptioner(model=str(folder), max_tokens=12, attempts=1)
    stage.check()
    stage.setup(RunContext())
    return stage


def request(first: int = 0, seed: int = 1, temperature: float = 1.0) -> Request:
    """Two images and little text, so that the images change the answer of these models."""
    images = [PromptImage(draw_jpeg(first + number)) for number in range(2)]
    messages = (Message("system", ("You.",)), Message("user", (*images, "What?")))
    return Request(messages, {}, max_tokens=12, temperature=temperature, seed=seed)


def test_answer_depends_on_the_images_and_the_seed(model):
    def answer(*args, **more) -> str:
        return asyncio.run(model.complete(request(*args, **more))).text

    assert answer() == answer()
    assert answer(seed=1) != answer(seed=2)
    assert answer(temperature=0.0) == answer(temperature=0.0, seed=2)
    assert len({answer(first=first) for first in range(4)}) > 1


def test_nonsense_of_the_model_is_rejected(model, tmp_path):
    Captioner.setup(model, RunContext(str(tmp_path)))
    [row] = model.process([make_clip(tmp_path, 0)])
    assert row["error"] is None
    assert row["rejected"].startswith("caption ")
    provenance = json.loads(row["provenance"])
    assert provenance["requests"] == 1
    assert 0 < provenance["output_tokens"] <= 12
    assert provenance["prompt_tokens"] > 300


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_missing_weights_are_an_error_with_the_folder_and_the_command(kind, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = CaptionSettings(captioner=kind)
    chosen = settings.chosen
    with pytest.raises(ConfigError, match=rf"caption\.{kind}\.model: expected the name of a model"):
        chosen.check()
    assert isinstance(chosen, TransformersCaptioner | VllmCaptioner)
    chosen.model, chosen.revision = "Qwen/Qwen2.5-VL-7B-Instruct", "abc"
    with pytest.raises(PlanError) as error:
        chosen.check()
    message = str(error.value)
    assert f"caption.{kind}.model: no " in message
    assert "Qwen/Qwen2.5-VL-7B-Instruct (revision abc) is not in " in message
    assert message.endswith("hf download Qwen/Qwen2.5-VL-7B-Instruct --revision abc")


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ('{"w": {"data_offsets": [0, 64]}}', r"has \d+ bytes, expected \d+"),
        ('{"w": 1}', "not a file of safetensors"),
        ('{"w": {}}', "not a file of safetensors"),
        ('{"w": {"data_offsets": [0, "x"]}}', "not a file of safetensors"),
    ],
)
def test_model_with_a_damaged_file_is_refused(tmp_path, header, error):
    (tmp_path / "config.json").write_text("{}")
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(32)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(PlanError, match=f"it: .*model.safetensors: {error}; download"):
        locate_model(str(tmp_path), None, "it")


def test_missing_vllm_is_an_error_with_the_command(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PlanError, match=r"caption.vllm: the package is missing; pip install"):
        VllmCaptioner(model=str(tmp_path)).check()


def test_tokens_are_counted_by_the_given_t5_tokenizer(tmp_path):
    tokenizer = make_tokenizer(("<|endoftext|>", "</s>"), "</s>")
    tokenizer.save_pretrained(tmp_path / "t5")
    stage = OpenAICaptioner(url="http://127.0.0.1:9/v1", t5_tokenizer=str(tmp_path / "t5"))
    stage.setup(RunContext())
    text = " ".join(map(str, range(600))) + "."
    assert stage._limits.count_tokens(text) == len(tokenizer(text).input_ids) > 512
    assert failed_check(text, stage._limits).startswith(
        f"too long: {len(tokenizer(text).input_ids)} T5"
    )
    stage.t5_tokenizer = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"t5_tokenizer: no tokenizer in .*none(.|\n)*hf"):
        stage.setup(RunContext())
