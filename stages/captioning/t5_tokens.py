"""The number of T5 tokens of a text: by T5's tokenizer, or by an estimate where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from curation.config import ConfigError


def estimate_t5_tokens(text: str) -> int:
    """An upper estimate of T5's tokens in English text.

    One token per three letters of a word (English words have 1.3 tokens on average, rare ones one
    per three to four letters), one per digit and other character, and the end token. The estimate
    is about 200 for a text of 100 words, which has about 130.
    """
    tokens = 1
    for run in re.findall(r"[^\W\d_]+|[^\s]", text):
        tokens += math.ceil(len(run) / 3) if run.isascii() else len(run.encode()) // 2 + 1
    return tokens


def load_t5_token_count(folder: str, setting: str) -> Callable[[str], int]:
    """Returns the exact count by the tokenizer in a folder. Raises ConfigError."""
    try:
        from curation.torchvision_fix import fix_torchvision

        fix_torchvision()
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: no tokenizer in {folder} ({str(error).splitlines()[0]}); get it: "
            "hf download google/t5-v1_1-xxl spiece.model tokenizer_config.json "
            "special_tokens_map.json --local-dir FOLDER, and pip install -e '.[train]'"
        ) from None
    return lambda text: len(tokenizer(text).input_ids)
