"""Tiny random vision-language models of the real classes: their texts are nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.torchvision_fix import fix_torchvision

fix_torchvision()

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
QWEN_TOKENS += ("<|image_pad|>", "<|video_pad|>")
SMOL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>")
SMOL_TOKENS += ("<image>", "<global-img>", "<row_1_col_1>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_CHAT = QWEN_CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")


def make_tokenizer(special: tuple[str, ...], end: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, for any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["the camera pans to the right and a dog runs to the left"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, pad_token="<|endoftext|>")


def save_tiny(kind: str, folder: Path) -> Path:
    """Saves a model and its processor. kind: qwen2_5_vl | qwen3_vl | smolvlm."""
    torch.manual_seed(0)
    model, processor = {"qwen2_5_vl": _qwen2_5, "qwen3_vl": _qwen3, "smolvlm": _smol}[kind]()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4 if weight.ndim > 1 else 1  # otherwise images hardly change the answer
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"{name}_token_id": name for name in ("vision_start", "vision_end")}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "eos_token_id": 2,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
}
IMAGE_AREAS_PX = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}


def _qwen_text(tokenizer: PreTrainedTokenizerFast, **more: int) -> dict[str, Any]:
    """New dictionaries for each model: a configuration adds to them."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    return TEXT_CONFIG | {"vocab_size": len(tokenizer), "rope_parameters": rope, **more}


def _qwen2_5() -> tuple[Any, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = make_tokenizer(QWEN_TOKENS, "<|im_end|>")
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(tokenizer),
        vision_config=QWEN_VISION | {"fullatt_block_indexes": [1]},
        **_qwen_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=IMAGE_AREAS_PX),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=IMAGE_AREAS_PX),
        chat_template=QWEN_CHAT,
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3() -> tuple[Any, Any]:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = make_tokenizer(QWEN_TOKENS, "<|im_end|>")
    config = Qwen3VLConfig(
        text_config=_qwen_text(tokenizer, head_dim=16),
        vision_config=QWEN_VISION
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
        **_qwen_ids(tokenizer),
    )
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=IMAGE_AREAS_PX, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=IMAGE_AREAS_PX),
        chat_template=QWEN_CHAT,
    )
    return Qwen3VLForConditionalGeneration(config), processor


def _smol() -> tuple[Any, Any]:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = make_tokenizer(SMOL_TOKENS, "<end_of_utterance>")
    config = SmolVLMConfig(
        text_config=TEXT_CONFIG | {"model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    small = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(do_image_splitting=False, **small),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**small),
        image_seq_len=4,
        chat_template=SMOL_CHAT,
    )
    return SmolVLMForConditionalGeneration(config), processor
