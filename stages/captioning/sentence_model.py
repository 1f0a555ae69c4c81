"""How alike texts are in meaning, by a sentence model of the MiniLM family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.weights import model_folder

MAX_TOKENS = 256  # what these models were trained to read of a text


class Sentences:
    """all-MiniLM-L6-v2 and its like: BERT's last states, averaged over a text's tokens. On the CPU:
    a clip's five texts take some 0.05 s.

    Raises PlanError where the folder or the hub's cache has no such model.
    """

    def __init__(self, name: str, setting: str) -> None:
        folder = model_folder(name, None, setting)
        from curation.torchvision_fix import fix_torchvision

        fix_torchvision()
        from transformers import AutoModel, AutoTokenizer

        self._words: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def similarity(self, texts: Sequence[str]) -> np.ndarray:
        """(N, N) cosine of the N texts' embeddings, -1..1."""
        import torch

        read = self._words(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(**read).last_hidden_state
        share = read["attention_mask"][..., None].to(states.dtype)
        mean = (states * share).sum(1) / share.sum(1)
        unit = torch.nn.functional.normalize(mean.double(), dim=1)
        return (unit @ unit.T).numpy()
