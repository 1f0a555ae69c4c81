"""Similarity of texts in meaning, by a sentence model of the MiniLM family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.weights import locate_model

MAX_TOKENS = 256  # of a text: these models were trained with no more


class SentenceModel:
    """all-MiniLM-L6-v2 or a similar model: BERT's last states, averaged over a text's tokens.

    It runs on the CPU: a clip's five texts take about 0.05 s. Raises PlanError where neither the
    folder nor the hub's cache has the model.
    """

    def __init__(self, name: str, setting: str) -> None:
        folder = locate_model(name, None, setting)
        from curation.torchvision_fix import fix_torchvision

        fix_torchvision()
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def similarity(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the (N, N) cosines of the N texts' embeddings, -1..1."""
        import torch

        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        unit = torch.nn.functional.normalize(mean.double(), dim=1)
        return (unit @ unit.T).numpy()
