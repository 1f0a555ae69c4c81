"""The latent cache: its content equals what training computes without it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("safetensors")

from curation.config import ConfigError
from tests.support import tiny_allegro
from tests.support.drawn_clips import dataset, row
from tests.support.tiny_run import CLIPS, SYSTEM, tiny_config
from training import precompute
from training.clips import BadData, ShardedClips
from training.codecs import sample_posterior
from training.config import AllegroConfig, Size, T5Config
from training.data import LocalBatch, stream_batches
from training.latent_cache import LatentCache, cache_key
from training.pretrained import AllegroCodec, T5Encoder, clean_caption, free_memory
from training.text_to_video import Prompt, System
from training.train import train
from training.weights import BadWeights

ROWS = [row(i, "validation" if i > 4 else "train") for i in range(6)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("dataset"), ROWS, most=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_allegro.save(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The true tile takes seconds for a single one."""
    monkeypatch.setattr(AllegroConfig, "tile", (8, 32, 32))
    monkeypatch.setattr(AllegroConfig, "stride", (4, 16, 24))


def configured(folder, packed, system=SYSTEM, **changes):
    base = tiny_config(folder / "run", system=system, steps=2, **changes)
    data = replace(base.data, dataset=str(packed), cache=str(folder / "cache"))
    return replace(base, data=data)


def of_allegro(weights, **changes):
    allegro, t5 = (
        AllegroConfig(str(weights)),
        T5Config(str(weights), tiny_allegro.TEXT_DIM, 16),
    )
    model = replace(SYSTEM.model, patch_size=2)
    return replace(SYSTEM, size=Size(8, 32, 80), codec=allegro, text=t5, model=model, **changes)


def run(cfg, rank=0, ranks=1):
    precompute.precompute(cfg.system, cfg.data, rank, ranks)


def test_training_from_the_cache_equals_training_from_the_shards(tmp_path, packed, capsys):
    """Pixel latents are not sampled and the text encoder is trained: losses are bit-equal."""
    cfg = configured(tmp_path, packed)
    run(cfg)
    assert "6 clips in 4 shards" in capsys.readouterr().out
    cached = [LatentCache(cfg.system, cfg.data, split) for split in ("train", "validation")]
    straight = [ShardedClips(packed, split, SYSTEM.size) for split in ("train", "validation")]
    assert [list(c.clip_ids) for c in cached] == [list(s.clip_ids) for s in straight]
    there = train(replace(cfg, run_dir=str(tmp_path / "straight")), *straight)
    assert train(cfg, *cached) == there


def test_a_cached_clip_has_its_latents_and_caption_tokens(tmp_path, packed, weights):
    cfg = configured(tmp_path, packed, of_allegro(weights))
    run(cfg)
    source = ShardedClips(packed, "train", cfg.system.size)
    for index, clip in enumerate(source[i] for i in range(3)):
        cached = LatentCache(cfg.system, cfg.data, "train")[index]
        encoded = AllegroCodec(cfg.system.codec).encode(clip.video[None])
        assert cached.latents.shape == (2, 4, 2, 4, 10)
        assert torch.allclose(cached.latents.float(), encoded[0], atol=2e-3, rtol=1e-3)
        assert encoded[0, 0].std() > 1e-3
        assert set(cached.texts) == {"", clip.caption, *clip.sub_captions}
        for caption, tokens in cached.texts.items():
            assert torch.allclose(tokens, T5Encoder(cfg.system.text)([[caption]]).tokens, atol=1e-5)
        assert (cached.sub_captions, cached.spans) == (clip.sub_captions, clip.spans)
    # samples differ in the noise of the posterior
    twice = torch.stack([encoded[0], encoded[0]])
    first, second = sample_posterior(twice, [torch.Generator().manual_seed(i) for i in (1, 2)])
    assert not torch.equal(first, second)
    assert torch.allclose(first, encoded[0, 0], atol=6 * (encoded[0, 1] / 2).exp().max().item())


def test_training_from_a_cache_needs_no_pretrained_weights(tmp_path, packed, weights, capsys):
    cfg = configured(tmp_path, packed, of_allegro(weights), keep_activations="attention")
    run(cfg)
    gone = replace(
        cfg.system, codec=AllegroConfig("gone"), text=replace(cfg.system.text, t5="gone")
    )
    cfg = replace(cfg, system=gone)
    held_out = LatentCache(cfg.system, cfg.data, "validation")
    assert len(train(cfg, LatentCache(cfg.system, cfg.data, "train"), held_out)) == 2
    assert "no samples of this run: gone: no vae/ in it" in capsys.readouterr().err
    with pytest.raises(BadWeights, match="gone: no text_encoder/ and no tokenizer/ in it"):
        train(cfg, CLIPS)


def test_tokens_that_a_gpu_cached_in_bf16_train_on_a_cpu(tmp_path):
    system = System(replace(SYSTEM, text=T5Config("no weights", width=8)))
    tokens = {"": torch.randn(1, 8).bfloat16(), "a": torch.randn(3, 8).bfloat16()}
    latents = torch.randn(1, system.cfg.codec.channels, *system.cfg.latent_size(SYSTEM.size))
    out = system(latents, torch.tensor([3.0]), [Prompt([(0, 1)], ["a"], tokens)])
    assert out.shape == latents.shape


def test_captions_longer_than_t5_reads_are_counted(tmp_path, packed, weights, capsys):
    cfg = configured(tmp_path, packed, of_allegro(weights))
    long = replace(cfg.system, text=replace(cfg.system.text, max_tokens=8))
    run(replace(cfg, system=long))
    out, err = capsys.readouterr()
    assert "of which 8 are read (system.text.max_tokens)" in err
    assert re.search(r"train-000000.tar: \d+ captions are cut off after 8 tokens", out)


def test_each_rank_writes_its_shards_and_the_last_the_table(tmp_path, packed):
    cfg = configured(tmp_path, packed)
    run(cfg, 0, 2)
    with pytest.raises(BadData, match=": incomplete"):
        LatentCache(cfg.system, cfg.data, "train")
    run(cfg, 1, 2)
    two = {p.name: p.read_bytes() for p in (tmp_path / "cache" / "shards").iterdir()}
    run(configured(tmp_path / "one", packed))
    one = {p.name: p.read_bytes() for p in (tmp_path / "one" / "cache" / "shards").iterdir()}
    assert one == two
    assert len(LatentCache(cfg.system, cfg.data, "train").clip_ids) == 5


def test_a_damaged_receipt_has_its_shard_computed_again(tmp_path, packed, capsys):
    cfg = configured(tmp_path, packed)
    run(cfg)
    receipt = min((tmp_path / "cache/shards").glob("*.json"))
    complete = json.loads(receipt.read_text())
    for damaged in (
        {"bytes": complete["bytes"]},
        complete | {"rows": [{}]},
        complete | {"rows": 1},
    ):
        receipt.write_text(json.dumps(damaged))
        capsys.readouterr()
        run(cfg)
        assert f"{receipt.stem}: " in capsys.readouterr().out
        assert json.loads(receipt.read_text()) == complete


def test_an_interrupted_precompute_resumes_at_the_clip(tmp_path, packed, monkeypatch):
    cfg = configured(tmp_path, packed)
    encoded_ids, encode_clip = [], precompute.encode_clip

    def stops(codec, text, clip):
        encoded_ids.append(clip.clip_id)
        if len(encoded_ids) == 4:
            raise KeyboardInterrupt
        return encode_clip(codec, text, clip)

    monkeypatch.setattr(precompute, "encode_clip", stops)
    with pytest.raises(KeyboardInterrupt):
        run(cfg)
    run(cfg)
    assert len(encoded_ids) == 7  # six clips, and the one that was interrupted
    before = sorted((tmp_path / "cache").rglob("*"))
    run(cfg)
    assert len(encoded_ids) == 7
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_a_cache_of_other_settings_or_weights_is_refused(tmp_path, packed, weights):
    cfg = configured(tmp_path, packed, of_allegro(weights))
    run(cfg)
    for system, message in (
        (replace(cfg.system, size=Size(12, 32, 80)), r"sizes: .*'frames': 8.*'frames': 12"),
        (SYSTEM, r"codec.kind: 'Allegro' -> 'Pixel'"),
        (replace(cfg.system, text=replace(cfg.system.text, max_tokens=8)), r"text.max_tokens"),
        (
            replace(cfg.system, codec=replace(cfg.system.codec, precision="bf16")),
            "codec.precision: None -> 'bf16'",
        ),
    ):
        for use in (
            lambda s: LatentCache(s, cfg.data, "train"),
            lambda s: run(replace(cfg, system=s)),
        ):
            with pytest.raises(BadData, match=message + r".*give another data\.cache"):
                use(system)
    bf16 = replace(cfg.system, codec=replace(cfg.system.codec, precision="bf16"))
    Path(cfg.data.cache, "key.json").write_text(json.dumps(cache_key(bf16)))
    with pytest.raises(BadData, match=r"codec\.precision: 'bf16' -> None"):
        LatentCache(cfg.system, cfg.data, "train")
    Path(cfg.data.cache, "key.json").write_text(json.dumps(cache_key(cfg.system)))
    other = tiny_allegro.save(tmp_path / "other", seed=1)
    with pytest.raises(BadData, match=r"codec\.weights: '\w+' -> '\w+'; text\.weights"):
        LatentCache(of_allegro(other), cfg.data, "train")
    with pytest.raises(BadData, match="no latent cache there"):
        LatentCache(SYSTEM, replace(cfg.data, cache=str(tmp_path)), "train")


def test_a_changed_caption_refuses_the_cache_until_its_shard_is_computed_again(tmp_path, packed):
    cfg = configured(tmp_path, packed)
    run(cfg)
    texts = [part | {"text": f"klip {part['text'][5:]}"} for part in ROWS[0]["sub_captions"]]
    changed = [ROWS[0] | {"sub_captions": texts}, *ROWS[1:]]  # not a byte longer
    new = dataset(tmp_path / "new", changed, most=2)
    cfg = replace(cfg, data=replace(cfg.data, dataset=str(new)))
    with pytest.raises(BadData, match=rf"1 of 5 clips .*, for example {ROWS[0]['clip_id']}; "):
        LatentCache(cfg.system, cfg.data, "train")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "shards").glob("*.tar")}
    run(cfg)
    assert sum(p.stat().st_mtime_ns != at for p, at in kept.items()) == 1
    source = LatentCache(cfg.system, cfg.data, "train")
    index = list(source.clip_ids).index(ROWS[0]["clip_id"])
    assert source[index].sub_captions[0] == "klip 0, part 0"


def test_a_damaged_shard_of_the_cache_is_reported(tmp_path, packed):
    cfg = configured(tmp_path, packed)
    run(cfg)
    source = LatentCache(cfg.system, cfg.data, "train")
    shard = sorted((tmp_path / "cache" / "shards").glob("train*.tar"))[0]
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadData, match=r"clip \w+ in .*train-000000.tar: .*delete this shard"):
        source[0]


def test_missing_or_damaged_weights_are_reported_in_one_line(tmp_path, packed, weights):
    cfg = configured(tmp_path, packed, of_allegro(tmp_path / "none"))
    with pytest.raises(BadWeights) as error:
        run(cfg)
    message = str(error.value)
    assert "\n" not in message
    assert f"hf download rhymes-ai/Allegro --include 'vae/*' --local-dir {tmp_path}/none" in message
    with pytest.raises(BadWeights, match=r"no text_encoder/ and no tokenizer/ in it"):
        T5Encoder(T5Config(str(tmp_path)))([["a"]])
    with pytest.raises(BadWeights, match=r"is 16 wide, text\.width is 4096"):
        T5Encoder(T5Config(str(weights)))([["a"]])
    broken = tiny_allegro.save(tmp_path / "broken")
    (file,) = Path(broken, "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(BadWeights, match=r"vae can't be read .*hf download"):
        AllegroCodec(AllegroConfig(str(broken))).encode(
            torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
        )


def test_sizes_that_the_codec_s_tiles_do_not_fill_are_refused(monkeypatch):
    monkeypatch.undo()  # the true tiles
    codec = AllegroConfig("unused")
    assert codec.latent_size(Size(88, 720, 1280)) == (22, 90, 160)
    assert codec.latent_size(Size(40, 520, 800)) == (10, 65, 100)
    for size, message in (
        (Size(88, 368, 640), r"height is 368: .* 320 and 520$"),
        (Size(88, 720, 1200), r"width is 1200: .* 1040 and 1280$"),
        (Size(16, 720, 1280), r"frames is 16: .* can take: 24$"),
    ):
        with pytest.raises(ConfigError, match=message):
            codec.latent_size(size)


def test_the_codec_s_tiles_cover_the_video(weights):
    """Latents of tiles that overlap are one picture: no row or column is left at zero."""
    codec = AllegroCodec(AllegroConfig(str(weights)))
    video = torch.randint(0, 256, (1, 12, 48, 56, 3), dtype=torch.uint8)
    encoded = codec.encode(video)
    assert encoded.shape == (1, 2, 4, 3, 6, 7)
    assert (encoded[:, 0].abs().amax((0, 1)) > 0).all()
    decoded = codec.decode(encoded[:, 0])
    assert decoded.shape == video.shape
    assert decoded.float().std() > 0


def test_a_batch_of_clips_is_encoded_and_decoded_like_each_clip_alone(weights):
    codec = AllegroCodec(AllegroConfig(str(weights)))
    videos = torch.randint(0, 256, (3, 12, 48, 56, 3), dtype=torch.uint8)
    encoded = codec.encode(videos)
    assert torch.equal(encoded, torch.cat([codec.encode(video[None]) for video in videos]))
    decoded = codec.decode(encoded[:, 0])
    assert torch.equal(decoded, torch.cat([codec.decode(x[None, 0]) for x in encoded]))
    assert not torch.equal(decoded[0], decoded[1])


def test_the_codec_computes_in_its_own_precision_under_autocast(weights):
    exact = AllegroCodec(AllegroConfig(str(weights)))
    rough = AllegroCodec(AllegroConfig(str(weights), "bf16"))
    video = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8)
    encoded = exact.encode(video)
    decoded = exact.decode(encoded[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact.encode(video), encoded)
        assert torch.equal(exact.decode(encoded[:, 0]), decoded)
    in_bf16 = rough.encode(video)
    assert in_bf16.dtype == torch.float32
    assert 0 < (in_bf16 - encoded).norm() < 0.1 * encoded.norm()
    assert exact.cfg.cache_key() != rough.cfg.cache_key()


@pytest.mark.parametrize(
    ("caption", "cleaned"),  # by the authors' code
    [
        ("A “red”  boat — at ‘dusk’ now", "a \"red\" boat - at 'dusk' now"),
        ("a <b>bold</b> sign &amp; more [4]", "a bold sign more 4"),
        ("URL https://a.com/b is here, 640x480", "url is here"),
        ("it's 5 o'clock.", "it's 5 o'clock."),
        ("", ""),
    ],
)
def test_captions_for_t5_are_cleaned_as_by_the_authors(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_t5_tokens_are_unpadded_and_of_lower_case_text(weights):
    t5 = T5Encoder(T5Config(str(weights), tiny_allegro.TEXT_DIM, 6))
    text = t5([["A red boat", "", "a red boat a red boat a red boat"]])
    assert text.lengths[0][1] == 1
    assert text.lengths[0][2] == 6
    assert len(text.tokens) == sum(text.lengths[0])
    alone = t5([["a  red BOAT"]])
    assert torch.allclose(text.tokens[: text.lengths[0][0]], alone.tokens, atol=1e-5)


def test_a_run_of_two_sizes_trains_on_both_and_resumes(tmp_path):
    tall = [r | {"clip_id": f"{i:024x}"} for i, r in enumerate(ROWS)]
    packed = dataset(tmp_path / "data", tall, most=3)
    table = tmp_path / "data" / "shards.parquet"
    rows = pq.read_table(table)
    heights = [400 if i % 2 else 96 for i in range(len(rows))]
    column = rows.schema.get_field_index("height")
    pq.write_table(
        rows.set_column(column, rows.schema.field(column), pa.array(heights, pa.int32())), table
    )
    system = replace(SYSTEM, sizes=(Size(4, 32, 16),))
    cfg = configured(tmp_path, packed, system, batch=2, accumulate=1)
    run(cfg)
    source = LatentCache(system, cfg.data, "train")
    assert sorted(set(source.size_indices)) == [0, 1]
    shapes = {tuple(source[i].latents.shape[-2:]) for i in range(len(source.clip_ids))}
    assert shapes == {(4, 4), (8, 4)}
    batches = stream_batches(source, LocalBatch(1, 1, 2), 0)
    assert {len(next(batches).clips) for _ in range(4)} == {1}
    uninterrupted = train(replace(cfg, steps=4, run_dir=str(tmp_path / "uninterrupted")), source)
    first = train(replace(cfg, steps=1), source)
    assert first + train(replace(cfg, steps=4), source) == uninterrupted
    assert json.loads((tmp_path / "cache" / "key.json").read_text())["sizes"][1]["height"] == 32


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_searched_to_decode_alone_and_not_if_pytorch_must_be_deterministic(
    weights, deterministic
):
    def searched_while(work):
        found = set()
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda *_: found.add(torch.backends.cudnn.benchmark)
        )
        with hook:
            work()
        assert not torch.backends.cudnn.benchmark
        return found

    codec = AllegroCodec(AllegroConfig(str(weights)))
    torch.use_deterministic_algorithms(deterministic)
    try:
        video = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8)
        latents = codec.encode(video)[:, 0]
        assert searched_while(lambda: codec.encode(video)) == {False}
        assert searched_while(lambda: codec.decode(latents)) == {not deterministic}
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "error"), [("tf32", 0.01), ("bf16", 0.1)])
def test_the_codec_is_compiled_once_and_close_to_fp32_on_a_cpu(weights, precision, error):
    videos = torch.randint(0, 256, (2, 12, 48, 56, 3), dtype=torch.uint8)
    with torch.compiler.set_stance("force_eager"):
        exact = AllegroCodec(AllegroConfig(str(weights)))
        encoded = exact.encode(videos)
        decoded = exact.decode(encoded[:, 0]).float()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    codec, graphs = AllegroCodec(AllegroConfig(str(weights), precision)), []
    for _ in range(2):
        found = codec.encode(videos.cuda()).cpu()
        assert (found - encoded).norm() < error * encoded.norm()
        shown = codec.decode(encoded[:, 0].cuda()).cpu().float()
        assert (shown - decoded).norm() < error * decoded.norm()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        free_memory()
    assert graphs[0] == graphs[1] >= 2  # encoder and decoder; freeing memory compiles nothing again
