"""Several processes compute what one process computes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")

from torch.utils._pytree import tree_leaves

from curation.config import ConfigError
from tests.support.drawn_clips import clip
from tests.support.ranks import on_ranks
from tests.support.tiny_run import SYSTEM, children, tiny_config
from training import checkpoint, parallel
from training.clips import ClipList
from training.config import Size, T5Config
from training.data import LocalBatch, stream_batches
from training.parallel import World, init_distributed, shard_model
from training.resume import build, run_tensors
from training.sample import main as sample_main
from training.text_to_video import System
from training.train import batch_loss, sample_training_clip, train, validation_loss
from training.weights import export_presto

pytestmark = pytest.mark.timeout(900)  # four ranks on two busy cores

# 2 x 3 x 3 = 18 tokens do not divide by four ranks, and two frames do not either
MANY = replace(
    SYSTEM,
    size=Size(4, 24, 24),
    model=replace(SYSTEM.model, num_attention_heads=4, attention_head_dim=6),
)
CLIPS = ClipList([clip(i, 4, 24, 24) for i in range(5)])
HELD_OUT = ClipList([clip(i, 4, 24, 24) for i in range(10, 13)])


def cfg(folder, sequence=1, replicas=1, **changes):
    return tiny_config(
        folder, system=MANY, sequence_ranks=sequence, batch=4 // replicas, accumulate=1, **changes
    )


def gradients(folder, start, sequence, shard_ranks=0):
    """Loss, gradients and validation loss of one batch of four, from the weights in `start`."""
    replicas = int(os.environ.get("WORLD_SIZE", "1")) // sequence
    one = cfg(folder, sequence, replicas, shard_ranks=shard_ranks)
    run = build(one)
    checkpoint.load_tensors(start, run_tensors(run))
    share = LocalBatch(one.batch, run.world.replica, run.world.replicas)
    loss, _ = batch_loss(run.system, next(stream_batches(CLIPS, share, 0)), one)
    loss.backward()
    found = {}
    for name, weight in run.system.named_parameters():
        grad = weight.grad
        assert grad is not None, name
        found[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).tolist()
    validation = validation_loss(run.ema, HELD_OUT, one, run.world)
    return run.world.mean(loss.item()), found, validation


def each_way(folder, start, sequences):
    found = [gradients(folder, start, sequence) for sequence in sequences]
    if int(os.environ["WORLD_SIZE"]) == 4:  # parameters sharded in pairs
        found.append(gradients(folder, start, 2, 2))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A checkpoint with random weights everywhere, and the gradients of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run = build(cfg(folder))
    torch.manual_seed(1)
    for weight in [*run.system.parameters(), *run.ema.parameters()]:
        torch.nn.init.normal_(weight, std=0.2)
    start = checkpoint.save(folder, 1, run_tensors(run), {}, 1)
    return start, gradients(folder, start, 1)


@pytest.mark.parametrize(("ranks", "sequences"), [(2, [1, 2]), (4, [1, 4])])
def test_gradients_of_several_ranks_equal_those_of_one_process(tmp_path, alone, ranks, sequences):
    start, (loss, grads, validation) = alone
    for ways in on_ranks(ranks, each_way, tmp_path, start, sequences):
        for sequence, (loss_here, grads_here, validation_here) in zip(
            [*sequences, 2], ways, strict=False
        ):
            assert loss_here == pytest.approx(loss, rel=1e-5)
            assert validation_here == pytest.approx(validation, rel=1e-5)
            assert grads_here.keys() == grads.keys()
            for name, expected in grads.items():
                one, two = torch.tensor(expected), torch.tensor(grads_here[name])
                assert torch.allclose(one, two, rtol=1e-3, atol=2e-6 + 1e-4 * one.abs().max()), (
                    f"{name}, {ranks} ranks, {sequence} of them a sequence"
                )


def trained(folder, steps, sequence):
    replicas = int(os.environ.get("WORLD_SIZE", "1")) // sequence
    one = cfg(folder, sequence, replicas, steps=steps, save_every=2, keep_activations="attention")
    return train(one, CLIPS, HELD_OUT)


def trained_in_pairs(folder, steps):
    one = cfg(folder, 1, 4, steps=steps, shard_ranks=2, save_every=2)
    return train(one, CLIPS, HELD_OUT)


def uninterrupted_and_resumed(folder):
    parts = [trained(folder / "parts", steps, 2) for steps in (2, 4)]
    return trained(folder / "uninterrupted", 4, 2), *parts


def test_a_run_on_several_ranks_resumes_with_equal_losses_and_on_one_process(tmp_path):
    (uninterrupted, before, after), second = on_ranks(2, uninterrupted_and_resumed, tmp_path)
    assert second == (uninterrupted, before, after)
    assert before + after == uninterrupted
    (tmp_path / "parts" / "checkpoints" / "step-00000004").rename(tmp_path / "last")
    assert trained(tmp_path / "parts", 4, 1) == pytest.approx(after, rel=1e-4)
    names = {p.name for p in (tmp_path / "uninterrupted").iterdir()}
    assert names == {"checkpoints", "samples", "loss.png", "metrics.csv", "tensorboard"}


def trained_from_weights(folder):
    """The loss of a run that has a checkpoint, which the first rank does not find."""
    if init_distributed().rank == 0:
        checkpoint.list_checkpoints = lambda run_dir: []
    texts = [{text: torch.ones(3, 24) for text in ("", c.caption, *c.sub_captions)} for c in CLIPS]
    clips = ClipList([replace(c, texts=t) for c, t in zip(CLIPS, texts, strict=True)])
    one = cfg(folder / "run", replicas=2, steps=1)
    system = replace(MANY, text=T5Config("nowhere", 24))
    return train(replace(one, system=system, weights=str(folder / "weights")), clips)


def test_ranks_begin_with_the_weights_also_where_a_late_one_finds_a_checkpoint(tmp_path):
    start = System(replace(MANY, text=T5Config("nowhere", 24))).presto
    torch.nn.init.normal_(start.proj_out.weight)
    export_presto(start, tmp_path / "weights", torch.float32)
    expected = on_ranks(2, trained_from_weights, tmp_path)
    shutil.rmtree(tmp_path / "run")
    checkpoint.folder_of_step(tmp_path / "run", 9).mkdir(parents=True)
    assert on_ranks(2, trained_from_weights, tmp_path) == expected


def test_a_run_sharded_within_pairs_resumes_on_one_process(tmp_path):
    before = on_ranks(4, trained_in_pairs, tmp_path / "run", 2)[0]
    after = trained(tmp_path / "run", 4, 1)
    assert before + after == pytest.approx(trained(tmp_path / "alone", 4, 1), rel=1e-4)


def sampled(saved, out, prompts, sequence):
    sample_main([saved, out, prompts, "steps=2", "duration_s=2", f"sequence_ranks={sequence}"])


def sampled_while_training(folder):
    run = build(cfg(folder, 1, 2))
    sample_training_clip(cfg(folder, 1, 2), 1, run, CLIPS)


def test_ranks_sample_prompts_by_turns_or_share_the_tokens_of_a_video(tmp_path):
    train(cfg(tmp_path / "run", steps=1), CLIPS)
    saved = str(checkpoint.folder_of_step(tmp_path / "run", 1))
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"name": n, "cap": [n, "b"]}) + "\n" for n in "pqr"))
    sampled(saved, str(tmp_path / "alone"), str(path), 1)
    for sequence in (1, 2):
        on_ranks(2, sampled, saved, str(tmp_path / str(sequence)), str(path), sequence)
    alone = {p.name: p.read_bytes() for p in (tmp_path / "alone").iterdir()}
    assert len(alone) == 3
    for way in ("1", "2"):
        assert {p.name: p.read_bytes() for p in (tmp_path / way).iterdir()} == alone


def test_during_training_each_replica_samples_another_clip(tmp_path):
    on_ranks(2, sampled_while_training, tmp_path)
    pictures = sorted((tmp_path / "samples").glob("*.png"))
    assert [p.name for p in pictures] == ["step-00000001-1.png", "step-00000001.png"]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()


SIZED = ClipList([clip(i, 4, 24, 24) for i in range(5)] + [clip(i, 4, 16, 32) for i in range(5, 8)])
SIZED.size_indices = [0] * 5 + [1] * 3


def trained_on_sizes(folder, steps, accumulate=1):
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    system = replace(MANY, sizes=(Size(4, 16, 32),))
    batch = 4 // ranks // accumulate
    one = tiny_config(
        folder, system=system, batch=batch, accumulate=accumulate, steps=steps, save_every=2
    )
    return train(one, SIZED)


def test_a_run_of_several_sizes_resumes_with_other_ranks_and_splits(tmp_path):
    uninterrupted = trained_on_sizes(tmp_path / "one", 8)
    parts = trained_on_sizes(tmp_path / "parts", 2, 2)
    for ranks, steps in ((2, 4), (4, 6)):
        parts += on_ranks(ranks, trained_on_sizes, tmp_path / "parts", steps)[0]
    parts += trained_on_sizes(tmp_path / "parts", 8, 4)
    assert parts == pytest.approx(uninterrupted, rel=1e-4)
    with pytest.raises(ConfigError, match="samples a step, of all processes: 4 -> 8"):
        on_ranks_of_twice_the_batch(tmp_path / "parts")


def on_ranks_of_twice_the_batch(folder):
    system = replace(MANY, sizes=(Size(4, 16, 32),))
    train(tiny_config(folder, system=system, batch=4, accumulate=2, steps=9), SIZED)


def test_fsdp_finds_the_tokens_in_the_text_encoder_s_output():
    text = System(SYSTEM).text([["a red boat"]])
    assert any(leaf is text.tokens for leaf in tree_leaves(text))  # as torch 2.11 does, not 2.13


def test_a_number_of_ranks_that_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="start with torchrun --nproc-per-node 2"):
        init_distributed(2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun started 4 processes"):
        init_distributed(3)
    monkeypatch.setattr(World, "is_distributed", True)
    system = System(SYSTEM)
    with pytest.raises(ConfigError, match=r"shard_ranks is 3, torchrun started 4 processes"):
        shard_model(system.presto, None, World(torch.device("cpu"), 0, 4), False, 3)
    with pytest.raises(ConfigError, match="a divisor of the network's 2 heads"):
        shard_model(system.presto, None, World(torch.device("cpu"), 0, 4, 4), False)


def seconds_of_hangs(folder):
    """Seconds until the first rank of each group raises where the others of it hang."""
    parallel.COLLECTIVE_TIMEOUT = timedelta(seconds=2)
    world = init_distributed(2)
    mesh = parallel._device_mesh(world, 2)
    seconds = []
    for group in (world.group, *mesh.get_all_groups()) if world.is_first else ():
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            torch.distributed.all_reduce(torch.ones(1), group=group)
        seconds.append(time.monotonic() - start)
    if world.is_first:
        (folder / "done").touch()
    while not (folder / "done").exists():
        time.sleep(0.1)
    return seconds


@pytest.mark.timeout(120)
def test_a_hanging_rank_stops_every_group_after_the_timeout(tmp_path):
    seconds = on_ranks(4, seconds_of_hangs, tmp_path)[0]
    assert len(seconds) == 3
    assert all(1.5 < s < 20 for s in seconds), seconds


def test_more_ranks_than_tokens_are_refused():
    with pytest.raises(ConfigError, match="sequence_ranks is 4, but a sample has 3 tokens: expec"):
        parallel._sequence_shard(World(torch.device("cpu"), 0, 4, 4), 3)


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.mark.slow  # torchrun, and two processes that import torch
def test_a_killed_rank_stops_the_run_and_the_run_resumes(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from tests.training.test_parallel import trained\n"
        "trained(sys.argv[1], 400, 2)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [*LAUNCH, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    running = subprocess.Popen(
        [*command, str(script), str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while len(checkpoint.list_checkpoints(tmp_path / "run")) < 2:
            assert running.poll() is None
            time.sleep(0.2)
        os.kill(children(running.pid)[-1], signal.SIGKILL)
        _, message = running.communicate()
    finally:
        running.terminate()  # torchrun then ends its processes
        running.wait()
    assert running.returncode != 0
    assert "exitcode  : -9" in message
    last = checkpoint.list_checkpoints(tmp_path / "run")[-1]
    step = checkpoint.read_state(last)["step"]
    assert len(on_ranks(2, trained, tmp_path / "run", step + 2, 2)[0]) == 2
