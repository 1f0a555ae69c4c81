"""A tiny random model of the real class: what it finds alike means nothing."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

from curation.torchvision_fix import fix_torchvision

fix_torchvision()
import torch
from transformers import BertConfig, BertModel

from curation.stage import PlanError, RunContext
from stages.captioning.openai_server import OpenAI
from stages.captioning.sentence_model import Sentences
from tests.support.chat_server import ChatServer
from tests.support.drawn_stills import Witness, drawn_clip
from tests.support.tiny_vlm import tokenizer

TEXTS = ["A dog runs to the left.", "the camera pans", "A dog, and a dog again, runs and runs."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """all-MiniLM-L6-v2's architecture, small."""
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    words = tokenizer(("<|endoftext|>", "[CLS]", "[SEP]"), "[SEP]")
    words.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), intermediate_size=48, **shape)).save_pretrained(
        folder
    )
    return folder


def test_similarity_is_the_cosine_of_mean_states_whatever_stands_beside(folder):
    sentences = Sentences(str(folder), "x")
    found = sentences.similarity(TEXTS)
    model = BertModel.from_pretrained(folder).eval()
    means = []
    for text in TEXTS:  # one at a time: no padding
        ids = torch.tensor([sentences._words(text).input_ids])
        means.append(model(input_ids=ids).last_hidden_state[0].mean(0).detach().double().numpy())
    for i, a in enumerate(means):
        for j, b in enumerate(means):
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found[i, j] == pytest.approx(expected, abs=1e-5)


def test_neighbours_are_compared_by_it_under_a_column_of_its_own(folder, tmp_path):
    def captioned(limit: float | None) -> dict:
        with ChatServer(Witness(1)) as server:
            stage = OpenAI(url=server.url, model="tiny", minilm=str(folder), attempts=1)
            stage.check()
            stage.setup(RunContext(str(tmp_path), similarity_limit=limit))
            [row] = stage.process([drawn_clip(tmp_path, 0)])
        return row

    row = captioned(None)
    texts = [part["text"] for part in row["sub_captions"]]
    beside = np.diagonal(Sentences(str(folder), "x").similarity(texts), offset=1)
    assert row["text_similarity_minilm"] == pytest.approx(beside.max())
    assert row["text_similarity_tfidf"] < row["text_similarity_minilm"]
    assert OpenAI(minilm=str(folder)).compared_by == "text_similarity_minilm"
    assert json.loads(row["provenance"])["minilm"] == str(folder)
    assert "too similar to the one before" in captioned(float(beside[0]) - 0.01)["rejected"]


def test_missing_weights_are_told_with_the_command(tmp_path):
    with pytest.raises(
        PlanError, match=r"caption\.openai\.minilm: no .*/config\.json(.|\n)*get it"
    ):
        OpenAI(url="http://127.0.0.1:9/v1", minilm=str(tmp_path / "none"))._minilm()


def test_the_published_model_gives_the_numbers_of_its_documentation():
    try:
        sentences = Sentences("sentence-transformers/all-MiniLM-L6-v2", "x")
    except PlanError as missing:
        pytest.skip(str(missing).splitlines()[0])
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    expected = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(sentences.similarity(texts), expected, atol=1e-4)
