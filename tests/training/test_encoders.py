"""The codec and the text encoder without pretrained weights."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from training.codecs import PixelCodec
from training.config import (
    BytesConfig,
    PixelConfig,
    Size,
)
from training.text_encoder import ByteEncoder, byte_tokens


def test_the_pixel_codec_is_lossless():
    video = torch.randint(0, 256, (2, 6, 8, 12, 3), dtype=torch.uint8)
    latents = PixelCodec(PixelConfig(3, 2)).encode(video)
    assert latents.shape == (2, 36, *PixelConfig(3, 2).latent_size(Size(6, 8, 12)))
    assert latents.abs().max() <= 1
    assert torch.equal(PixelCodec(PixelConfig(3, 2)).decode(latents), video)
    moved = video.clone()
    moved[0, 4, 5, 7] ^= 255
    changed = (PixelCodec(PixelConfig(3, 2)).encode(moved) != latents).any(1).nonzero()
    assert changed.tolist() == [[0, 1, 2, 3]]  # its own patch and no other


def test_a_caption_s_tokens_do_not_depend_on_other_captions():
    torch.manual_seed(0)
    encoder = ByteEncoder(BytesConfig(width=12, heads=2, layers=2, max_bytes=20))
    text = encoder([["a red boat", ""], ["ä", "x" * 50]])
    assert text.lengths == [[11, 1], [3, 21]]
    alone = encoder([["ä"]])
    assert torch.allclose(text.tokens[12:15], alone.tokens, atol=1e-6)
    assert not torch.allclose(encoder([["ab"]]).tokens[:2], encoder([["ba"]]).tokens[[1, 0]])


def test_words_with_the_same_first_letter_differ_and_case_is_ignored():
    """The mean of a word's vectors, which a network has before it learns to read letters."""
    torch.manual_seed(0)
    encoder = ByteEncoder(BytesConfig(width=12, heads=2, layers=0))
    first = [encoder([[word]]).tokens[0] for word in ("red", "reed", "red boat")]
    assert not torch.allclose(first[0], first[1])
    assert torch.allclose(first[0], first[2])
    assert (byte_tokens("Red", 9)[:, 1:] == byte_tokens("red", 9)[:, 1:]).all()
