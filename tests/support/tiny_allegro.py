"""Allegro's codec and text encoder, tiny and random, in the layout of the real ones."""

from pathlib import Path

import torch

from curation.torchvision_fix import fix_torchvision

TEXT_DIM = 16


def save(path: Path, seed: int = 0) -> Path:
    fix_torchvision()
    from diffusers import AutoencoderKLAllegro
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    vae = AutoencoderKLAllegro(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, latent_channels=4
    )
    vae.save_pretrained(path / "vae")
    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters += [
        (c, -1.0 - i / 100) for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyz0123456789,.☀")
    ]
    tokenizer = Tokenizer(models.Unigram(letters, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path / "tokenizer")
    config = T5Config(
        vocab_size=len(letters), d_model=TEXT_DIM, d_kv=4, d_ff=32, num_layers=2, num_heads=4
    )
    T5EncoderModel(config).save_pretrained(path / "text_encoder")
    return path
