import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from curation import config
from curation.config import ConfigError
from tests.support import tiny_allegro
from tests.support.drawn_clips import clip, dataset, row
from training import checkpoint
from training.checkpoint import CheckpointError
from training.clips import Listed
from training.codecs import PixelCodec
from training.config import (
    AllegroConfig,
    BytesConfig,
    DiffusionConfig,
    ModelConfig,
    PixelConfig,
    SampleConfig,
    Size,
    SystemConfig,
    T5Config,
    TrainConfig,
)
from training.data import Batch, generator
from training.export import main as export_main
from training.model import Presto
from training.parallel import World
from training.resume import build
from training.sample import main as sample_main
from training.sample import open_system, read_script, sample, write_mp4
from training.text_encoder import ByteEncoder, spelled
from training.text_to_video import Script, System
from training.train import Diverged, batch_loss, dropped, main, train, validation_loss
from training.weights import BadWeights, export, load

SYSTEM = SystemConfig(
    size=Size(4, 16, 16),
    codec=PixelConfig(2, 4),
    text=BytesConfig(width=12, heads=2, layers=1, max_bytes=40),
    model=ModelConfig(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        interpolation_scale_t=1.0,
        interpolation_scale_h=1.0,
        interpolation_scale_w=1.0,
    ),
)
torch.set_num_threads(1)  # threads that wait for each other take longest where cores are busy
CLIPS = Listed([clip(i) for i in range(5)])
ALONE = World(torch.device("cpu"))
HELD_OUT = Listed([clip(i) for i in range(10, 12)])


def settings(folder, **changes) -> TrainConfig:
    base = TrainConfig(
        run_dir=str(folder),
        steps=6,
        batch=2,
        accumulate=2,
        lr=1e-2,
        warmup_steps=2,
        precision="fp32",
        save_every=3,
        validation_clips=2,
        system=SYSTEM,
        sample=SampleConfig(steps=2),
    )
    return replace(base, data=replace(base.data, workers=0), **changes)


def state(folder, step=6) -> tuple[dict, dict]:
    """What is no tensor, without the settings; and the tensors, as numbers."""
    path = checkpoint.path_of(folder, step)
    told = {k: v for k, v in checkpoint.told(path).items() if k != "settings"}
    return told, {name: t.tolist() for name, t in checkpoint.load(path).items()}


# ---------------------------------------------------------------- going on


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(settings(folder), CLIPS, HELD_OUT)


@pytest.mark.parametrize("first", [2, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, whole, first):
    folder, losses = whole
    before = train(settings(tmp_path, steps=first), CLIPS, HELD_OUT)
    after = train(settings(tmp_path), CLIPS, HELD_OUT)
    assert len(before) == first
    assert before + after == losses
    assert state(folder) == state(tmp_path)


def test_a_run_that_was_killed_between_checkpoints_goes_on_from_the_last(tmp_path, whole):
    _, losses = whole
    stopped = []

    class Cut(Listed):
        def __getitem__(self, index):
            stopped.append(index)
            if len(stopped) > 18:  # in step 5
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path), Cut(CLIPS.clips), HELD_OUT)
    assert train(settings(tmp_path), CLIPS, HELD_OUT) == losses[3:]
    logged = (tmp_path / "metrics.csv").read_text()
    assert [line for line in logged.splitlines() if ",loss," in line] == [
        f"{step},loss,{loss!r}" for step, loss in enumerate(losses, 1)
    ]


def test_workers_change_no_loss(tmp_path, whole):
    two = settings(tmp_path, steps=3)
    two = replace(two, data=replace(two.data, workers=2))
    assert train(two, CLIPS, HELD_OUT) == whole[1][:3]


def test_micro_batches_change_the_loss_by_rounding_alone(tmp_path, whole):
    one_by_one = train(settings(tmp_path, batch=1, accumulate=4, steps=3), CLIPS, HELD_OUT)
    assert one_by_one == pytest.approx(whole[1][:3], rel=1e-4)


def test_a_finished_run_does_nothing_more(whole):
    folder, _ = whole
    assert train(settings(folder), CLIPS, HELD_OUT) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"seed: 0 -> 1"),
        ({"batch": 4}, r"samples a step, of all processes: 4 -> 8"),
        ({"system": replace(SYSTEM, mode="isolated")}, r"system.mode: 'overlapped' -> 'isolated'"),
        ({"diffusion": DiffusionConfig("v")}, r"diffusion.objective: 'epsilon' -> 'v'"),
    ],
)
def test_a_run_can_t_go_on_as_another(whole, change, said):
    with pytest.raises(ConfigError, match=said + r".*undo that, or give a new run_dir"):
        train(settings(whole[0], **change), CLIPS, HELD_OUT)


def test_a_run_can_t_go_on_with_other_clips(whole):
    with pytest.raises(ConfigError, match=r"other clips in"):
        train(settings(whole[0]), HELD_OUT)


# ---------------------------------------------------------------- checkpoints


def save(folder, step, keep=1, best=False):
    tensors = {"x": torch.arange(1000.0) + step}
    return checkpoint.save(folder, step, tensors, {"step": step}, keep, best)


def test_the_last_checkpoints_and_the_best_one_are_kept(tmp_path):
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, 2, best)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-00000002", "step-00000004", "step-00000005"]
    assert checkpoint.told(tmp_path / "checkpoints" / "best")["step"] == 2
    assert torch.equal(
        checkpoint.load(tmp_path / "checkpoints" / "best")["x"], torch.arange(1000.0) + 2
    )


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    import resource

    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a file can grow no further than this: writing fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"large.* GB free there; the last good.*01"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert torch.equal(
        checkpoint.load(checkpoint.saved(tmp_path)[-1])["x"][:2], torch.tensor([1.0, 2])
    )


def test_a_damaged_checkpoint_is_named_and_code_in_it_does_not_run(tmp_path):
    path = save(tmp_path, 1)
    (data,) = path.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:900])
    with pytest.raises(CheckpointError, match=r"01: not a whole checkpoint"):
        checkpoint.load(path)

    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    (path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint \(it names "):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()
    for text, said in (("{", "not a whole checkpoint"), ("[1]", "not a checkpoint of training")):
        (path / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=said):
            checkpoint.told(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.told(tmp_path / "none")


# ---------------------------------------------------------------- stopping


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"step \d+: loss .*go on from it with a lower lr"):
        train(settings(tmp_path, lr=1e30, warmup_steps=0, save_every=1), CLIPS)
    assert checkpoint.told(checkpoint.saved(tmp_path)[-1])["step"] >= 1


def test_a_bad_sample_stops_the_run_with_its_name(tmp_path):
    folder = dataset(tmp_path / "data", [row(i) for i in range(3)])
    (folder / "shards" / "train-000000.tar").unlink()
    command = [written(tmp_path, settings(tmp_path / "run")), f"data.dataset={folder}"]
    for workers in (0, 1):
        with pytest.raises(
            SystemExit, match=r"^BadData: clip [0-9a-f]{24} in .*pack the dataset.*$"
        ):
            main([*command, f"data.workers={workers}"])


def test_a_worker_that_dies_stops_the_run_in_one_line_and_leaves_its_checkpoint(tmp_path):
    folder = dataset(tmp_path / "data", [row(i) for i in range(3)])
    path = written(tmp_path, settings(tmp_path / "run", steps=100_000, save_every=2))
    command = [sys.executable, "-m", "training.train", path, f"data.dataset={folder}"]
    running = subprocess.Popen([*command, "data.workers=1"], stderr=subprocess.PIPE, text=True)
    try:
        while not checkpoint.saved(tmp_path / "run"):
            assert running.poll() is None
            time.sleep(0.1)
        (worker,) = (int(pid) for pid in children(running.pid))
        os.kill(worker, signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "Traceback" not in said
    # the signal comes between any two lines: in those that save, it is the checkpoint's error
    assert re.search("resumes from the last checkpoint|the last good checkpoint: .*step-", said)
    checkpoint.load(checkpoint.saved(tmp_path / "run")[-1])


def children(pid):
    """Of its main thread, as the kernel lists them."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def written(tmp_path, cfg) -> str:
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict(cfg)))
    return str(path)


def test_a_wrong_setting_and_a_missing_dataset_are_said_in_one_line(tmp_path):
    path = written(tmp_path, settings(tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"ConfigError: .*leraning_rate is not a setting"):
        main([path, "leraning_rate=1"])
    with pytest.raises(SystemExit, match=r"BadData: .*shards.parquet: no such file"):
        main([path, f"data.dataset={tmp_path}"])
    folder = dataset(tmp_path / "data", [row(0)])
    with pytest.raises(SystemExit, match="size is 4 frames of 16 x 16 px: expected"):
        main([path, f"data.dataset={folder}", "system.codec.frames=3"])


def test_a_dry_run_says_what_a_run_takes_and_writes_nothing(tmp_path, capsys):
    folder = dataset(tmp_path / "data", [row(i) for i in range(5)])
    path = written(tmp_path, settings(tmp_path / "run"))
    main([path, "--dry-run", f"data.dataset={folder}"])
    said = capsys.readouterr().out
    assert "5 clips, 8 tokens a sample" in said
    assert "an epoch: 2.5 such batches" in said
    assert not (tmp_path / "run").exists()


def test_a_dry_run_draws_what_is_missing_and_says_so(tmp_path, capsys):
    system = replace(SYSTEM, text=T5Config("nowhere", 24), codec=PixelConfig(2, 4))
    cfg = settings(tmp_path / "run", weights="nowhere", system=system)
    main([written(tmp_path, cfg), "--dry-run", f"data.dataset={tmp_path}"])
    said = capsys.readouterr().out
    assert "one random clip" in said
    assert "random weights (nowhere: no transformer's config.json" in said
    assert "hf download rhymes-ai/Allegro --include 'transformer/*' --local-dir nowhere" in said
    huge = ["system.model.attention_head_dim=60000"]
    with pytest.raises(SystemExit, match=r"parameters take \d+ GB of one cpu process; \d+ GB are"):
        main([written(tmp_path, cfg), "--dry-run", *huge])


def test_the_full_size_configuration_is_the_one_that_allegro_s_weights_fit():
    cfg = config.load(TrainConfig, "configs/train/presto_2b8.yaml")
    with torch.device("meta"):
        system = System(cfg.system)
    assert sum(p.numel() for p in system.parameters()) == 2_771_907_856
    assert system.latent_size == (22, 90, 160)


def test_a_run_starts_from_weights_and_its_average_goes_out_as_such(tmp_path):
    torch.manual_seed(3)
    t5 = T5Config("nowhere", 24)
    clips = [replace(c, texts={t: torch.randn(3, 24) for t in ("", c.caption, *c.sub_captions)})
             for c in CLIPS.clips]  # fmt: skip
    cfg = settings(tmp_path / "run", system=replace(SYSTEM, text=t5), steps=1, save_every=1)
    start = build(cfg).system.presto
    torch.nn.init.normal_(start.proj_out.weight)
    export(start, tmp_path / "start", torch.float32)
    tuned = replace(cfg, weights=str(tmp_path / "start"), ema_decay=1.0, warmup_steps=1000)
    train(tuned, Listed(clips))
    export_main([str(checkpoint.saved(tmp_path / "run")[-1]), str(tmp_path / "out")])
    one, two = load(tmp_path / "start"), load(tmp_path / "out")
    changes = [(a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters())]  # noqa: B905
    assert max(changes) < 0.02  # a step at a thousandth of the rate, and bf16
    assert len(train(replace(tuned, steps=2, weights="gone"), Listed(clips))) == 1
    with pytest.raises(BadWeights, match="gone: no transformer"):
        train(replace(tuned, weights="gone", run_dir=str(tmp_path / "new")), Listed(clips))
    with pytest.raises(ConfigError, match=r"to T5.*set system\.text\.t5"):
        train(replace(tuned, system=SYSTEM, run_dir=str(tmp_path / "new")), CLIPS)


# ---------------------------------------------------------------- what is learned


def test_dropped_captions_are_empty_at_the_rates_that_were_asked():
    script = Script([(0, 1), (1, 2), (2, 3)], ["a", "b", "c"])
    drawn = [dropped(script, 0.1, 0.05, generator(0, i)).captions for i in range(4000)]
    none = sum(texts == ["", "", ""] for texts in drawn) / 4000
    some = sum(texts.count("") in (1, 2) for texts in drawn) / 4000
    assert none == pytest.approx(0.1, abs=0.015)
    assert some == pytest.approx(0.9 * (1 - 0.95**3), abs=0.02)
    assert dropped(script, 0, 0, generator(0)) == script


def test_a_sample_s_loss_does_not_depend_on_its_neighbours():
    cfg = settings("unused")
    system = build(cfg).system
    torch.nn.init.normal_(system.presto.proj_out.weight)  # silent at the start: all would be equal
    clips = CLIPS.clips
    alone = [batch_loss(system, Batch.of([i], [clips[i]]), cfg)[0].item() for i in range(3)]
    together = batch_loss(system, Batch.of([0, 1, 2], clips[:3]), cfg)[0].item()
    assert together == pytest.approx(sum(alone) / 3, rel=1e-4)
    assert len(set(alone)) == 3
    other = batch_loss(system, Batch.of([7], [clips[0]]), cfg)[0].item()
    assert other != alone[0]  # another number, another noise


def test_validation_repeats_to_the_bit_and_needs_clips():
    cfg = settings("unused")
    system = build(cfg).system
    first = validation_loss(system, HELD_OUT, cfg, ALONE)
    assert first is not None
    assert math.isfinite(first)
    assert validation_loss(system, HELD_OUT, cfg, ALONE) == first
    assert validation_loss(system, None, cfg, ALONE) is None
    assert validation_loss(system, Listed([]), cfg, ALONE) is None


def test_patches_of_pixels_come_back_to_the_bit():
    video = torch.randint(0, 256, (2, 6, 8, 12, 3), dtype=torch.uint8)
    latents = PixelCodec(PixelConfig(3, 2)).encode(video)
    assert latents.shape == (2, 36, *PixelConfig(3, 2).latent_size(Size(6, 8, 12)))
    assert latents.abs().max() <= 1
    assert torch.equal(PixelCodec(PixelConfig(3, 2)).decode(latents), video)
    moved = video.clone()
    moved[0, 4, 5, 7] ^= 255
    changed = (PixelCodec(PixelConfig(3, 2)).encode(moved) != latents).any(1).nonzero()
    assert changed.tolist() == [[0, 1, 2, 3]]  # its own patch and no other


def test_a_caption_s_tokens_do_not_depend_on_the_captions_beside_it():
    torch.manual_seed(0)
    encoder = ByteEncoder(BytesConfig(width=12, heads=2, layers=2, max_bytes=20))
    text = encoder([["a red boat", ""], ["ä", "x" * 50]])
    assert text.lengths == [[11, 1], [3, 21]]
    alone = encoder([["ä"]])
    assert torch.allclose(text.tokens[12:15], alone.tokens, atol=1e-6)
    assert not torch.allclose(encoder([["ab"]]).tokens[:2], encoder([["ba"]]).tokens[[1, 0]])


def test_words_differ_where_their_first_letters_agree_and_case_does_not_count():
    """What a network sees of a word before it has learned to read letters."""
    torch.manual_seed(0)
    encoder = ByteEncoder(BytesConfig(width=12, heads=2, layers=0))
    first = [encoder([[word]]).tokens[0] for word in ("red", "reed", "red boat")]
    assert not torch.allclose(first[0], first[1])
    assert torch.allclose(first[0], first[2])
    assert (spelled("Red", 9)[:, 1:] == spelled("red", 9)[:, 1:]).all()


# ---------------------------------------------------------------- sampling


def test_a_run_ends_with_a_video_a_picture_and_a_curve(whole):
    folder, _ = whole
    names = {p.name for p in (folder / "samples").iterdir()}
    assert names == {"step-00000006.mp4", "step-00000006.png"}
    with av.open(str(folder / "samples" / "step-00000006.mp4")) as file:
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
        assert [f.shape for f in frames] == [(16, 16, 3)] * 4
        assert float(file.streams.video[0].average_rate) == 2  # four frames over two seconds
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "checkpoints" / "best").exists()


def test_a_seed_gives_one_video_and_another_seed_another(tmp_path, whole):
    path = str(checkpoint.path_of(whole[0], 6))
    videos = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.mp4"
        sample_main([path, str(out), "one", "two", "steps=3", f"seed={seed}", "duration_s=2"])
        videos.append(out.read_bytes())
    assert videos[0] == videos[1] != videos[2]


def test_several_videos_of_a_prompt_have_seeds_and_names_of_their_own(tmp_path, whole):
    path = str(checkpoint.path_of(whole[0], 6))
    sample_main([path, str(tmp_path / "a dog.mp4"), "one", "videos=2", "steps=1", "seed=3"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a dog-0.mp4", "a dog-1.mp4"]
    sample_main([path, str(tmp_path / "four.mp4"), "one", "steps=1", "seed=4"])
    assert (tmp_path / "a dog-1.mp4").read_bytes() == (tmp_path / "four.mp4").read_bytes()


def test_all_objectives_can_be_sampled_with_any_number_of_captions():
    torch.manual_seed(0)
    system = System(SYSTEM)
    for objective in ("epsilon", "v", "flow", "clean"):
        for count in (1, 2, 5):
            script = read_script(["text"] * count, 15.0)
            video = sample(system, script, DiffusionConfig(objective), SampleConfig(steps=2))
            assert video.shape == (4, 16, 16, 3)


def test_weights_in_bf16_as_on_a_gpu_give_much_the_same_video(whole):
    system, diffusion = open_system(checkpoint.path_of(whole[0], 6))
    script, cfg = read_script(["one", "two"], 2.0), SampleConfig(steps=4)
    exact = sample(system, script, diffusion, cfg).float()
    rough = sample(system.to(torch.bfloat16), script, diffusion, cfg).float()
    assert (exact - rough).abs().mean() < 0.05 * exact.std()


def test_captions_are_read_as_texts_or_with_their_times(tmp_path):
    path = tmp_path / "captions.json"
    for text in ('{"sub_captions": [%s]}', "[%s]"):
        path.write_text(text % '{"start_s": 0, "end_s": 4.5, "text": "a"}')
        assert read_script([str(path)], 15.0) == Script([(0.0, 4.5)], ["a"])
    assert read_script(["a", "b"], 4.0) == Script([(0.0, 2.0), (2.0, 4.0)], ["a", "b"])
    for bad in ("[]", "{}", "[1]", '[{"text": "a"}]', "7", "nonsense"):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"captions are|not valid JSON"):
            read_script([str(path)], 15.0)


def test_one_caption_for_the_whole_clip_is_a_mode_of_its_own(tmp_path):
    single = settings(tmp_path, steps=1, system=replace(SYSTEM, mode="single"))
    assert len(train(single, CLIPS)) == 1
    system, diffusion = open_system(checkpoint.path_of(tmp_path, 1))
    with pytest.raises(ConfigError, match="trained with one for the whole clip"):
        sample(system, read_script(["a", "b"], 15.0), diffusion, SampleConfig(steps=1))


def test_prompts_are_sampled_one_by_one_with_frames_in_between(tmp_path, whole):
    path = tmp_path / "prompts.jsonl"
    lines = [{"name": "ants", "cap": ["one", "two"]}, {"name": "boy", "cap": ["three"] * 5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = str(checkpoint.path_of(whole[0], 6))
    sample_main([saved, str(tmp_path / "out"), str(path), "steps=1", "duration_s=2", "fps=12"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ants.mp4", "boy.mp4"]
    with av.open(str(tmp_path / "out" / "ants.mp4")) as file:
        assert len(list(file.decode(video=0))) == 24
        told = json.loads(file.metadata["comment"])
        assert file.metadata["title"] == "one"
        assert file.streams.video[0].codec_context.colorspace == 1
    assert [part["text"] for part in told["captions"]] == ["one", "two"]
    assert (told["seed"], told["checkpoint"]) == (0, "step-00000006")
    for bad in (
        '{"name": "../a", "cap": ["x"]}',
        '{"name": "a"}',
        "nonsense",
        '{"name": "a", "cap": []}',
    ):
        path.write_text(bad)
        with pytest.raises(SystemExit, match=r"ConfigError: .*line 1"):
            sample_main([saved, str(tmp_path / "out"), str(path)])


def test_published_weights_are_sampled_from_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(AllegroConfig, "tile", (8, 32, 32))
    monkeypatch.setattr(AllegroConfig, "stride", (4, 16, 24))
    folder = tiny_allegro.save(tmp_path / "allegro")
    model = ModelConfig(1, 2, 12, cross_attention_dim=24, caption_channels=tiny_allegro.TEXT_DIM,
                        sample_frames=2, sample_height=4, sample_width=10)  # fmt: skip
    export(Presto(model), folder / "transformer")
    monkeypatch.setattr(
        "training.sample.T5Config", lambda folder: T5Config(folder, tiny_allegro.TEXT_DIM)
    )
    system, diffusion = open_system(folder)
    assert (diffusion.objective, system.cfg.rounding) == ("epsilon", "floor")
    video = sample(system, read_script(["a boat", "the sea"], 15.0), diffusion, SampleConfig(2))
    assert video.shape == (8, 32, 80, 3)
    assert video.float().std() > 0


def test_a_written_video_shows_what_it_was_given(tmp_path):
    video = torch.zeros(6, 32, 48, 3, dtype=torch.uint8)
    video[3:, :, :24] = 200
    write_mp4(video, tmp_path / "out.mp4", 3.0)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.streams.video[0].duration * file.streams.video[0].time_base == 3
        frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    assert np.abs(frames.astype(int) - video.numpy()).mean() < 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a boat", "stesp=2"], "stesp is not a setting; did you mean steps?"),
        (["captions.yaml"], "not valid JSON"),
    ],
)
def test_a_mistyped_setting_or_a_file_of_another_kind_becomes_no_caption(
    tmp_path, monkeypatch, given, said
):
    monkeypatch.chdir(tmp_path)
    Path("captions.yaml").write_text("- a boat")
    with pytest.raises(SystemExit, match=re.escape(said)):
        sample_main(["checkpoint", "out.mp4", *given])


def test_a_run_that_cannot_be_written_names_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^run_dir: can't make .*: Not a directory"):
        train(settings(tmp_path / "file" / "run"), CLIPS)
