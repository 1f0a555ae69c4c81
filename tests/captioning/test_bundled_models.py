"""With real weights from Python packages: their answers are a real, weak model's."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from benchmarks.caption_checks import PROMPTS
from curation.stage import RunContext
from pipelines.settings import CaptionSettings, Settings
from pipelines.split import split
from stages.captioning.sentence_model import SentenceModel
from tests.captioning.test_sentence_model import EXPECTED, SENTENCES
from tests.support.bundled_models import INSTALL, SmolLM2Captioner, minilm_folder, smollm2_file
from tests.support.drawn_key_frames import make_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_minilm_of_a_package_gives_the_similarities_of_its_documentation():
    folder = minilm_folder()
    if folder is None:
        pytest.skip(f"MiniLM is not installed: {INSTALL}")
    found = SentenceModel(str(folder), "caption.openai.minilm").similarity(SENTENCES)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-4)


@pytest.fixture(scope="module")
def smollm2():
    if smollm2_file() is None:
        pytest.skip(f"SmolLM2 is not installed: {INSTALL}")
    minilm = minilm_folder()
    return SmolLM2Captioner(max_tokens=24, attempts=1, minilm=str(minilm) if minilm else None)


def test_split_by_a_weak_model_gives_five_checked_texts_or_a_reason(smollm2):
    settings = Settings(caption=CaptionSettings(captioner="transformers"))
    settings.caption.transformers = smollm2
    [row] = split(settings, PROMPTS[:1])
    if "cap" in row:
        assert len(row["cap"]) == 5
        assert all(len(text.split()) >= smollm2.min_words for text in row["cap"])
    else:
        assert not row["error"].startswith(("TypeError", "ValueError", "KeyError"))


def test_caption_by_a_weak_model_is_stored_with_the_check_that_it_fails(smollm2, tmp_path):
    smollm2.setup(RunContext(str(tmp_path)))
    [row] = smollm2.process([make_clip(tmp_path, 0)])
    assert row["error"] is None
    assert row["sub_captions"]
    assert row["rejected"] is None or row["rejected"].startswith("caption ")
