"""With a tiny random model of the real class: its similarities have no meaning."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

from curation.torchvision_fix import fix_torchvision

fix_torchvision()
import torch
from transformers import BertConfig, BertModel

from curation.stage import PlanError, RunContext
from stages.captioning.openai_server import OpenAICaptioner
from stages.captioning.sentence_model import SentenceModel
from tests.support.chat_server import ChatServer
from tests.support.drawn_key_frames import IdentifyingModel, make_clip
from tests.support.tiny_vlm import make_tokenizer

TEXTS = ["A dog runs to the left.", "the camera pans", "A dog, and a dog again, runs and runs."]
# of the model's documentation
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
EXPECTED = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """all-MiniLM-L6-v2's architecture, small."""
    folder = tmp_path_factory.mktemp("minilm")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(("<|endoftext|>", "[CLS]", "[SEP]"), "[SEP]")
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), intermediate_size=48, **shape)).save_pretrained(
        folder
    )
    return folder


def test_similarity_is_the_cosine_of_mean_states_without_the_padding(folder):
    sentences = SentenceModel(str(folder), "x")
    found = sentences.similarity(TEXTS)
    model = BertModel.from_pretrained(folder).eval()
    means = []
    for text in TEXTS:  # one at a time: no padding
        ids = torch.tensor([sentences._tokenizer(text).input_ids])
        means.append(model(input_ids=ids).last_hidden_state[0].mean(0).detach().double().numpy())
    for i, a in enumerate(means):
        for j, b in enumerate(means):
            expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert found[i, j] == pytest.approx(expected, abs=1e-5)


def test_similarity_by_the_sentence_model_has_its_own_column_and_limit(folder, tmp_path):
    def captioned(limit: float | None) -> dict:
        with ChatServer(IdentifyingModel(1)) as server:
            stage = OpenAICaptioner(url=server.url, model="tiny", minilm=str(folder), attempts=1)
            stage.check()
            stage.setup(RunContext(str(tmp_path), similarity_limit=limit))
            [row] = stage.process([make_clip(tmp_path, 0)])
        return row

    row = captioned(None)
    texts = [part["text"] for part in row["sub_captions"]]
    similarities = np.diagonal(SentenceModel(str(folder), "x").similarity(texts), offset=1)
    assert row["text_similarity_minilm"] == pytest.approx(similarities.max())
    assert row["text_similarity_tfidf"] < row["text_similarity_minilm"]
    assert OpenAICaptioner(minilm=str(folder)).similarity_column == "text_similarity_minilm"
    assert json.loads(row["provenance"])["minilm"] == str(folder)
    assert "too similar to the one before" in captioned(float(similarities[0]) - 0.01)["rejected"]


def test_missing_weights_are_an_error_with_the_command_that_gets_them(tmp_path):
    with pytest.raises(
        PlanError, match=r"caption\.openai\.minilm: no .*/config\.json(.|\n)*get it"
    ):
        OpenAICaptioner(
            url="http://127.0.0.1:9/v1", minilm=str(tmp_path / "none")
        )._load_sentence_model()


def test_published_model_gives_the_similarities_of_its_documentation():
    try:
        sentences = SentenceModel("sentence-transformers/all-MiniLM-L6-v2", "x")
    except PlanError as missing:
        pytest.skip(str(missing).splitlines()[0])
    np.testing.assert_allclose(sentences.similarity(SENTENCES), EXPECTED, atol=1e-4)
