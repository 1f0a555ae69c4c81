import math
import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from curation.torchvision_fix import fix_torchvision
from training import sca
from training.attention import usable_backends
from training.config import ModelConfig
from training.layers import position_table, rope_table, rotate
from training.log import report_recompile_limit
from training.model import Presto, SequenceShard, Text, forward_flops

SMALL = ModelConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=10,
)
CPU = torch.device("cpu")
FIVE = [(3.0 * i, 3.0 * i + 3) for i in range(5)]


def built(cfg=SMALL, dtype=torch.float64, seed=0) -> Presto:
    torch.manual_seed(seed)
    return Presto(cfg).to(dtype)


def drawn(lengths, frames=5, size=(4, 6), dtype=torch.float64, seed=1):
    """latents, t, text and an overlapped schedule for each sample."""
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(lengths), 4, frames, *size, generator=rng, dtype=dtype)
    t = torch.randint(1000, (len(lengths),), generator=rng).float()
    tokens = torch.randn(sum(map(sum, lengths)), 10, generator=rng, dtype=dtype)
    schedules = [sca.schedule(FIVE[: len(n)], frames) for n in lengths]
    return latents, t, Text(tokens, lengths), schedules


class Count(TorchDispatchMode):
    """How often self-attention and the feed-forward's second product run."""

    def __init__(self):
        super().__init__()
        self.attention = self.feed_forward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.presto.attention.default:
            self.attention += args[0].shape[1] == args[1].shape[1]
        if func is torch.ops.aten.addmm.default:
            self.feed_forward += args[2].shape == (4 * 24, 24)
        return func(*args, **(kwargs or {}))


def diffusers_model(model: Presto):
    """diffusers' model with our weights, and its rotary argument."""
    fix_torchvision()
    diffusers = pytest.importorskip("diffusers")
    cfg = model.cfg
    other = diffusers.AllegroTransformer3DModel(
        num_attention_heads=cfg.num_attention_heads,
        attention_head_dim=cfg.attention_head_dim,
        num_layers=cfg.num_layers,
        cross_attention_dim=cfg.cross_attention_dim,
        caption_channels=cfg.caption_channels,
    )
    other = other.to(model.proj_out.weight.dtype)
    other.load_state_dict(model.state_dict())  # strict: the names and shapes are the same
    return other


def diffusers_rope(cfg: ModelConfig, grid):
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    *tables, t, h, w = get_3d_rotary_pos_embed_allegro(
        cfg.attention_head_dim, ((0, 0), grid[1:]), grid[1:], grid[0], cfg.scales
    )
    at = torch.cartesian_prod(t.long(), h.long(), w.long()).T.reshape(3, 1, -1)
    return tables, at.contiguous()


# theirs turns heads by fp32 positions whatever the dtype, so float64 agrees to fp32's rounding
# there
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_forward_and_gradients_equal_those_of_diffusers(dtype, bound):
    model = built(dtype=dtype)
    other = diffusers_model(model)
    latents, t, text, schedules = drawn([[7], [4]], dtype=dtype)
    padded, mask = torch.zeros(2, 7, 10, dtype=dtype), torch.zeros(2, 7, dtype=dtype)
    padded[0], padded[1, :4] = text.tokens[:7], text.tokens[7:]
    mask[0], mask[1, :4] = 1, 1
    ours = model(latents, t, text, schedules)
    rope = diffusers_rope(model.cfg, (5, 2, 3))
    theirs = other(latents, padded, t, None, mask, rope, return_dict=False)[0]
    assert ours.shape == latents.shape
    assert (ours - theirs).abs().max() < bound
    grad = torch.randn_like(ours)
    ours.backward(grad)
    theirs.backward(grad)
    expected = dict(other.named_parameters())
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert (p.grad - expected[name].grad).abs().max() < bound * expected[
            name
        ].grad.abs().max().clamp(min=1), name


def test_the_full_size_network_has_allegro_s_parameters():
    with torch.device("meta"):
        state = Presto().state_dict()
    assert len(state) == 687
    assert sum(t.numel() for t in state.values()) == 2_771_907_856
    block = {n.split(".", 2)[2]: tuple(t.shape) for n, t in state.items() if ".31." in n}
    attention = {
        f"{part}.{kind}"
        for part in ("to_q", "to_k", "to_v", "to_out.0")
        for kind in ("weight", "bias")
    }
    assert set(block) == {
        "scale_shift_table",
        *(f"{a}.{n}" for a in ("attn1", "attn2") for n in attention),
        *(f"ff.net.{n}" for n in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")),
    }
    assert block["ff.net.0.proj.weight"] == (9216, 2304)
    top = {n: tuple(t.shape) for n, t in state.items() if "blocks" not in n}
    assert top == {
        "pos_embed.proj.weight": (2304, 4, 2, 2),
        "pos_embed.proj.bias": (2304,),
        "scale_shift_table": (2, 2304),
        "proj_out.weight": (16, 2304),
        "proj_out.bias": (16,),
        "adaln_single.emb.timestep_embedder.linear_1.weight": (2304, 256),
        "adaln_single.emb.timestep_embedder.linear_1.bias": (2304,),
        "adaln_single.emb.timestep_embedder.linear_2.weight": (2304, 2304),
        "adaln_single.emb.timestep_embedder.linear_2.bias": (2304,),
        "adaln_single.linear.weight": (13824, 2304),
        "adaln_single.linear.bias": (13824,),
        "caption_projection.linear_1.weight": (2304, 4096),
        "caption_projection.linear_1.bias": (2304,),
        "caption_projection.linear_2.weight": (2304, 2304),
        "caption_projection.linear_2.bias": (2304,),
    }


def five_times(text: Text) -> Text:
    """One sample's caption for all five segments, its K and V copied."""
    assert text.kv is not None
    kv = tuple((k.repeat(5, 1, 1), v.repeat(5, 1, 1)) for k, v in text.kv)
    return Text(text.tokens.repeat(5, 1), [list(text.lengths[0]) * 5], kv)


def test_one_caption_in_all_segments_equals_a_single_caption():
    model, frames = built(), 22
    latents, t, text, _ = drawn([[7]], frames, size=(8, 8))
    text = model.cache_text(text)  # a product may round differently with more rows: copy its result
    one = model(latents, t, text, [sca.schedule([(0, 15)], frames, "single")])
    assert torch.equal(model(latents, t, five_times(text), [sca.schedule(FIVE, frames)]), one)


def test_a_sample_does_not_depend_on_others_of_its_batch():
    model = built()
    latents, t, text, schedules = drawn([[3, 5, 2, 4, 6], [7, 2]])
    both = model(latents, t, text, schedules)
    parts = text.tokens.split([20, 9])
    for i in range(2):
        alone = Text(parts[i], [text.lengths[i]])
        one = model(latents[i : i + 1], t[i : i + 1], alone, [schedules[i]])
        assert (one[0] - both[i]).abs().max() < 1e-12


def test_cached_text_gives_the_same_prediction():
    model = built()
    latents, t, text, schedules = drawn([[3, 5, 2, 4, 6]])
    cached = model.cache_text(text)
    other = cached._replace(tokens=torch.full_like(text.tokens, math.nan))  # not used any more
    assert torch.equal(model(latents, t, other, schedules), model(latents, t, text, schedules))


# two blocks: a second run shows in both
@pytest.mark.parametrize(
    ("policy", "attention", "feed_forward"),
    [("all", 2, 2), ("products", 2, 2), ("attention", 2, 4), ("nothing", 4, 4)],
)
def test_recompute_policies_change_no_gradient_and_recompute_what_they_do_not_keep(
    policy, attention, feed_forward
):
    model = built(dtype=torch.float32)
    inputs = drawn([[3, 5, 2, 4, 6], [7, 2]], dtype=torch.float32)
    want = torch.autograd.grad(model(*inputs).square().sum(), list(model.parameters()))
    model.set_recompute_policy(policy)
    with Count() as count:
        got = torch.autograd.grad(model(*inputs).square().sum(), list(model.parameters()))
    assert (count.attention, count.feed_forward) == (attention, feed_forward)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def self_attentions(profile: torch.profiler.profile) -> int:
    """How often attention ran over tokens that meet themselves; no caption is as long as they."""
    ran = [e for e in profile.events() if e.name == "presto::attention"]
    assert ran  # cross-attention is always recomputed in backward
    return sum(e.input_shapes[0] == e.input_shapes[1] for e in ran)


@pytest.mark.slow  # the compiler, not the network
@pytest.mark.parametrize(("policy", "kept"), [("products", True), ("nothing", False)])
def test_compiled_blocks_give_equal_gradients_and_keep_attention(policy, kept):
    model = built(replace(SMALL, num_layers=1), torch.float32)
    inputs = drawn([[3, 5, 2, 4, 7]], dtype=torch.float32)
    want = torch.autograd.grad(model(*inputs).square().sum(), list(model.parameters()))
    model.set_recompute_policy(policy)
    torch._dynamo.reset()
    model.compile_blocks()
    out = model(*inputs)
    with torch.profiler.profile(record_shapes=True) as profile:
        got = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    assert (self_attentions(profile) == 0) == kept
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1)


def captions_and_sizes(seed):
    """A batch of two clips of one of three sizes, with 1 to 10 captions of 1 to 9 tokens each."""
    rng = random.Random(seed)
    frames, height, width = rng.choice([(5, 4, 6), (6, 8, 4), (12, 4, 4)])
    lengths = [[rng.randint(1, 9) for _ in range(rng.randint(1, 10))] for _ in "ab"]
    if seed % 9 == 1:  # one caption, of one token: sizes that torch.compile treats apart
        lengths = [[1], [1]]
    latents, t = torch.randn(2, 4, frames, height, width), torch.tensor([3.0, 500.0])
    spans = [[(i / len(n), (i + 1) / len(n)) for i in range(len(n))] for n in lengths]
    text = Text(torch.randn(sum(map(sum, lengths)), 10), lengths)
    return latents, t, text, [sca.schedule(s, frames) for s in spans]


def test_sixty_steps_of_three_sizes_and_one_to_ten_captions_take_at_most_four_graphs():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model = built(replace(SMALL, num_layers=1), torch.float32)
    model.set_recompute_policy("products")
    torch._dynamo.reset()
    model.compile_blocks(backend)
    for step in range(60):
        model(*captions_and_sizes(step)).square().sum().backward()
    assert 1 <= len(graphs) <= 4


def test_reaching_the_compiler_s_limit_is_reported_in_one_line(capfd):
    model = built(replace(SMALL, num_layers=1), torch.float32)
    torch._dynamo.reset()
    report_recompile_limit()
    model.compile_blocks("eager")
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for batch in (1, 2):
            model(*drawn([[3, 5]] * batch, dtype=torch.float32))
    (line,) = [x for x in capfd.readouterr().err.splitlines() if "hit config" in x]
    assert line.startswith("warning: torch._dynamo hit config.recompile_limit (1): batches of new")
    assert "last reason: " in line
    assert "compile=false" in line


class RecordedKeys:
    """Sequence shards in one process, without ranks.

    The k and v of all tokens are recorded in an unsharded pass; each shard then uses them in place
    of the collective operations.
    """

    def __init__(self):
        self.keys_values: list = []

    def record(self, attend):
        def wrapped(q, k, v):
            self.keys_values.append((k, v))
            return attend(q, k, v)

        return wrapped

    def replay(self, attend):
        keys = iter(self.keys_values)
        return lambda q, k, v: attend(q, *next(keys))


def test_a_sequence_shard_of_incomplete_frames_computes_its_part():
    model = built()
    inputs = drawn([[3, 5, 2, 4, 6], [7, 2]])
    tokens, recorded, outputs = 5 * 2 * 3, RecordedKeys(), []
    catch = SequenceShard((0, tokens), recorded.record, lambda x: outputs.append(x) or x)
    model.shard_sequence = lambda _: catch
    model(*inputs)
    for a, b in [(0, 7), (7, 16), (16, 30)]:

        def pad(x, a=a, b=b):
            outputs.append(x)
            return torch.nn.functional.pad(x, (0, 0, a, tokens - b))

        shard = SequenceShard((a, b), recorded.replay, pad)
        model.shard_sequence = lambda _, shard=shard: shard
        model(*inputs)
    assert (torch.cat(outputs[1:], 1) - outputs[0]).abs().max() < 1e-12


def test_rotary_positions_rotate_each_third_of_a_head_by_its_axis():
    cos, sin = rope_table(12, (3, 2, 2), (1.0, 2.0, 4.0), CPU, torch.float32)
    x = torch.zeros(1, 12, 1, 12)
    x[..., 0] = x[..., 4] = x[..., 8] = 1  # the first pair of each third
    turned = rotate(x, cos, sin)[0, 11, 0]  # token t=2, h=1, w=1
    for third, angle in enumerate((2.0, 1 / 2, 1 / 4)):
        assert turned[4 * third].item() == pytest.approx(math.cos(angle))
        assert turned[4 * third + 2].item() == pytest.approx(math.sin(angle))


@pytest.mark.parametrize(("positions", "axes"), [("relative", set()), ("space", {1, 2})])
def test_tokens_of_equal_latents_differ_along_the_axes_with_position_codes(positions, axes):
    """With equal latents everywhere only position codes distinguish tokens. Rotary positions
    do not: the mean of equal values is that value with any weights."""
    model = built(replace(SMALL, positions=positions))
    latents, t, text, schedules = drawn([[7]])
    out = model(torch.ones_like(latents), t, text, schedules)[0]
    out = out.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # c t h ph w pw
    differ = {axis for axis, dim in enumerate((1, 2, 4)) if out.diff(dim=dim).abs().max() > 1e-6}
    assert axes <= differ
    assert axes or not differ


def test_position_codes_divide_the_width_equally_and_are_distinct():
    table = position_table(26, (3, 4, 5), CPU).view(3, 4, 5, 26)
    assert torch.equal(table, table[:1].expand_as(table))
    assert torch.equal(table[..., :12], table[:, :, :1, :12].expand(-1, -1, 5, -1))
    assert torch.equal(table[..., 12:24], table[:, :1, :, 12:24].expand(-1, 4, -1, -1))
    assert table[..., 24:].abs().max() == 0
    far = torch.cdist(table[0].flatten(0, 1), table[0].flatten(0, 1)) + 9 * torch.eye(20)
    assert far.min() > 0.5


def test_bf16_angles_have_the_error_of_allegro_s_code():
    """Facts of Allegro at 88 x 720 x 1280: up to 0.058 rad on w, 0.029 on h."""
    full, scales = (1, 45, 80), (2.2, 2.0, 2.0)
    exact, rounded = (
        torch.atan2(
            *(x[:, :, 1] for x in reversed(rope_table(96, full, scales, CPU, kind)))
        ).float()
        for kind in (torch.float32, torch.bfloat16)
    )
    off = (exact - rounded + math.pi) % (2 * math.pi) - math.pi
    assert 0.05 < off[:, 2].abs().max() < 0.08
    assert off[:, 0].abs().max() == 0
    assert 1e-4 < off.abs().mean() < 5e-3


def test_the_flops_of_a_full_size_step_are_as_computed_by_hand():
    """2.24 PFLOP forward at 88 x 720 x 1280, 512 text tokens; 82.6 % in self-attention."""
    total = forward_flops(ModelConfig(), (22, 45, 80), 512)
    assert total == pytest.approx(2.24e15, rel=0.01)
    assert 32 * 4 * 79200**2 * 2304 / total == pytest.approx(0.826, abs=0.005)


def test_the_flops_agree_with_pytorch_s_counter():
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    model, inputs = built(dtype=torch.float32), drawn([[9]], dtype=torch.float32)
    with flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    n, d = 5 * 2 * 3, 24
    unseen = 2 * 4 * n * (n + 9) * d  # attention is an operator of ours
    extra = 2 * (10 * d * 9 + d * d * 9) + 2 * 4 * 9 * d * d  # the captions' own layers
    extra += 2 * (256 * d + d * d + 6 * d * d)  # the time's
    counted = counter.get_total_flops() + unseen
    assert forward_flops(model.cfg, (5, 2, 3), 9) == pytest.approx(counted - extra, rel=1e-6)


def test_an_initialized_network_predicts_zero_and_ignores_captions():
    model = built(dtype=torch.float32)
    model.reset_parameters()
    latents, t, text, schedules = drawn([[3, 2]], dtype=torch.float32)
    assert model(latents, t, text, schedules).abs().max() == 0
    other = text._replace(tokens=text.tokens + 1)
    with torch.no_grad():
        model.proj_out.weight.normal_()
    out = model(latents, t, text, schedules)
    assert out.abs().max() > 0
    assert torch.equal(out, model(latents, t, other, schedules))  # cross-attention starts at zero


def test_wrong_sizes_are_refused_with_the_expected_ones():
    model = built()
    latents, t, text, schedules = drawn([[3, 2]])
    with pytest.raises(ValueError, match=r"latents \(1, 4, 5, 3, 6\): expected .* multiples of 2"):
        model(latents[..., :3, :], t, text, schedules)
    with pytest.raises(ValueError, match="2 captions for a schedule of 1 segments"):
        model(latents, t, text, [sca.schedule([(0, 15)], 5)])
    with pytest.raises(ValueError, match="the schedule has 4 frames, the latents have 5"):
        model(latents, t, text, [sca.schedule(FIVE[:2], 4)])
    with pytest.raises(ValueError, match="attention_head_dim 16: expected a multiple of 6"):
        Presto(replace(SMALL, attention_head_dim=16))


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize(
    ("backend", "how"),
    [("flash4", "eager"), ("cudnn", "eager"), ("flash", "eager"), ("auto", "compiled")],
)
def test_bf16_on_a_gpu_is_close_to_float64_forward_and_gradients(backend, how):
    if backend not in ["auto", *usable_backends(torch.device("cuda"))]:
        pytest.skip(f"{backend} is not installed")
    cfg = replace(SMALL, attention_head_dim=96, cross_attention_dim=192)
    exact = built(cfg)
    inputs = drawn([[30, 50, 20, 40, 60], [70, 20]], frames=7, size=(8, 12))
    target = torch.randn_like(inputs[0])
    (exact(*inputs) * target).sum().backward()
    want = exact(*inputs).detach()
    model = built(cfg).to("cuda", torch.bfloat16)
    model.attention = backend
    model.set_recompute_policy("products")
    if how == "compiled":
        torch._dynamo.reset()
        model.compile_blocks()
    latents, t, text, schedules = inputs
    text = text._replace(tokens=text.tokens.to("cuda", torch.bfloat16))
    out = model(latents.to("cuda", torch.bfloat16), t.cuda(), text, schedules)
    (out.double() * target.cuda()).sum().backward()
    assert ((out.double().cpu() - want).norm() / want.norm()) < 0.03
    got = torch.cat([p.grad.double().cpu().flatten() for p in model.parameters()])
    right = torch.cat([p.grad.flatten() for p in exact.parameters()])
    assert (got - right).norm() / right.norm() < 0.05


@pytest.mark.gpu
@GPU
def test_one_caption_in_all_segments_equals_a_single_caption_on_a_gpu():
    cfg = replace(SMALL, attention_head_dim=96, cross_attention_dim=192)
    model = built(cfg).to("cuda", torch.bfloat16)
    latents, t, text, _ = drawn([[70]], 22, size=(16, 16))
    latents, t = latents.to("cuda", torch.bfloat16), t.cuda()
    text = text._replace(tokens=text.tokens.to("cuda", torch.bfloat16))
    with torch.no_grad():
        text = model.cache_text(text)
        one = model(latents, t, text, [sca.schedule([(0, 15)], 22, "single")])
        assert torch.equal(model(latents, t, five_times(text), [sca.schedule(FIVE, 22)]), one)


@pytest.mark.gpu
@GPU
def test_fp32_weights_train_under_autocast_on_a_gpu():
    cfg = replace(SMALL, attention_head_dim=96, cross_attention_dim=192)
    model = built(cfg, torch.float32).cuda()
    model.set_recompute_policy("attention")
    latents, t, text, schedules = drawn([[30, 50]], dtype=torch.float32)
    text = text._replace(tokens=text.tokens.cuda())
    with torch.autocast("cuda", torch.bfloat16):
        out = model(latents.cuda(), t.cuda(), text, schedules)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
