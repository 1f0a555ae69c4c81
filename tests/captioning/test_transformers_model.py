"""Tiny random models of the real classes: what they say is nonsense, what they are shown is not."""

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
from pipelines.settings import CaptionSettings
from stages.captioning.captioner import Captioner
from stages.captioning.checks import failed_check
from stages.captioning.conversation import Message, Picture, Request
from stages.captioning.openai_server import OpenAI
from stages.captioning.transformers_model import Transformers
from stages.captioning.vllm_engine import Vllm
from tests.support.drawn_stills import drawn_clip, jpeg
from tests.support.tiny_vlm import save_tiny, tokenizer

KINDS = ("qwen2_5_vl", "qwen3_vl", "smolvlm")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> Transformers:
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    stage = Transformers(model=str(folder), max_tokens=12, attempts=1)
    stage.check()
    stage.setup(RunContext())
    return stage


def request(first: int = 0, seed: int = 1, temperature: float = 1.0) -> Request:
    """Two pictures and few words, so that even these models feel the pictures."""
    pictures = [Picture(jpeg(first + number)) for number in range(2)]
    asked = (Message("system", ("You.",)), Message("user", (*pictures, "What?")))
    return Request(asked, {}, seed, max_tokens=12, temperature=temperature)


def test_the_model_is_shown_the_pictures_and_draws_by_the_seed(model):
    def said(*args, **more) -> str:
        return asyncio.run(model.say(request(*args, **more))).text

    assert said() == said()
    assert said(seed=1) != said(seed=2)
    assert said(temperature=0.0) == said(temperature=0.0, seed=2)
    assert len({said(first=first) for first in range(4)}) > 1


def test_a_clip_goes_through_the_model_and_its_nonsense_is_refused(model, tmp_path):
    Captioner.setup(model, RunContext(str(tmp_path)))
    [row] = model.process([drawn_clip(tmp_path, 0)])
    assert row["error"] is None
    assert row["rejected"].startswith("caption ")
    made = json.loads(row["provenance"])
    assert made["requests"] == 1
    assert 0 < made["output_tokens"] <= 12
    assert made["prompt_tokens"] > 300


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_missing_weights_are_told_with_where_it_looked_and_the_command(kind, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = CaptionSettings(captioner=kind)
    chosen = settings.chosen
    with pytest.raises(ConfigError, match=rf"caption\.{kind}\.model: which model"):
        chosen.check()
    assert isinstance(chosen, Transformers | Vllm)
    chosen.model, chosen.revision = "Qwen/Qwen2.5-VL-7B-Instruct", "abc"
    with pytest.raises(PlanError) as error:
        chosen.check()
    told = str(error.value)
    assert f"caption.{kind}.model: no " in told
    assert "Qwen/Qwen2.5-VL-7B-Instruct (revision abc) is not in " in told
    assert told.endswith("hf download Qwen/Qwen2.5-VL-7B-Instruct --revision abc")


def test_vllm_that_is_not_installed_is_told_with_the_command(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PlanError, match=r"caption.vllm: the package is not there; pip install"):
        Vllm(model=str(tmp_path)).check()


def test_the_length_of_a_text_is_counted_by_t5s_tokenizer_where_it_is_given(tmp_path):
    words = tokenizer(("<|endoftext|>", "</s>"), "</s>")
    words.save_pretrained(tmp_path / "t5")
    stage = OpenAI(url="http://127.0.0.1:9/v1", t5_tokenizer=str(tmp_path / "t5"))
    stage.setup(RunContext())
    text = "the camera pans to the right " * 90
    assert stage._limits.count_tokens(text) == len(words(text).input_ids) > 512
    assert failed_check(text, stage._limits).startswith(
        f"too long: {len(words(text).input_ids)} T5"
    )
    stage.t5_tokenizer = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"t5_tokenizer: no tokenizer in .*none(.|\n)*hf"):
        stage.setup(RunContext())
