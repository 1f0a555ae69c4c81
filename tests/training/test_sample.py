"""Sampling from checkpoints and published weights, by function and by command."""

import json
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from curation.config import ConfigError
from tests.support import tiny_allegro
from tests.support.tiny_run import CLIPS, SYSTEM, tiny_config
from training import checkpoint
from training.config import (
    AllegroConfig,
    DiffusionConfig,
    ModelConfig,
    SampleConfig,
    Size,
    T5Config,
)
from training.model import Presto
from training.sample import TEMPLATES, load_system, read_prompt, read_prompts, sample, write_mp4
from training.sample import main as sample_main
from training.text_to_video import Prompt, System
from training.train import train
from training.weights import export_presto


def test_a_run_ends_with_a_video_a_picture_and_a_plot(finished_run):
    folder, _ = finished_run
    names = {p.name for p in (folder / "samples").iterdir()}
    assert names == {"step-00000006.mp4", "step-00000006.png"}
    with av.open(str(folder / "samples" / "step-00000006.mp4")) as file:
        frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
        assert [f.shape for f in frames] == [(16, 16, 3)] * 4
        assert float(file.streams.video[0].average_rate) == 2  # four frames over two seconds
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "checkpoints" / "best").exists()


def test_the_same_seed_gives_the_same_video_and_another_seed_another(tmp_path, finished_run):
    path = str(checkpoint.folder_of_step(finished_run[0], 6))
    videos = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.mp4"
        sample_main([path, str(out), "one", "two", "steps=3", f"seed={seed}", "duration_s=2"])
        videos.append(out.read_bytes())
    assert videos[0] == videos[1] != videos[2]


def test_several_videos_of_a_prompt_have_different_seeds_and_names(tmp_path, finished_run):
    path = str(checkpoint.folder_of_step(finished_run[0], 6))
    sample_main([path, str(tmp_path / "a dog.mp4"), "one", "videos=2", "steps=1", "seed=3"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a dog-0.mp4", "a dog-1.mp4"]
    sample_main([path, str(tmp_path / "four.mp4"), "one", "steps=1", "seed=4"])
    assert (tmp_path / "a dog-1.mp4").read_bytes() == (tmp_path / "four.mp4").read_bytes()


def test_every_objective_is_sampled_with_any_number_of_captions():
    torch.manual_seed(0)
    system = System(SYSTEM)
    for objective in ("epsilon", "v", "flow", "clean"):
        for count in (1, 2, 5):
            prompt = read_prompt(["text"] * count, 15.0)
            for solver in ("euler", "dpm++"):
                cfg = SampleConfig(steps=2, solver=solver)
                video = sample(system, prompt, DiffusionConfig(objective), cfg)
                assert video.shape == (4, 16, 16, 3)


def test_presto_s_prompts_put_words_around_captions_and_avoid_the_negative_prompt():
    torch.manual_seed(0)
    system, size = System(SYSTEM), SYSTEM.size
    for weight in system.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    template, negative = TEMPLATES["presto"]
    around = [template.replace("{}", text) for text in ("one", "two")]

    def sampled(captions, **changes):
        cfg = SampleConfig(steps=2, **changes)
        return sample(system, read_prompt(captions, 15.0), DiffusionConfig("v"), cfg, size)

    plain = sampled(around, guidance=1.0)
    assert torch.equal(sampled(["one", "two"], guidance=1.0, prompts="presto"), plain)
    assert not torch.equal(sampled(["one", "two"], guidance=1.0), plain)
    # guidance 0 is the unconditional prediction alone
    avoided = sampled(["one", "two"], guidance=0.0, prompts="presto")
    assert torch.equal(avoided, sampled([negative, negative], guidance=1.0))


def test_a_video_is_sampled_at_the_size_that_is_asked_for(tmp_path, finished_run):
    path, out = str(checkpoint.folder_of_step(finished_run[0], 6)), tmp_path / "out.mp4"
    sample_main([path, str(out), "one", "steps=1", "size={frames: 6, height: 24, width: 32}"])
    with av.open(str(out)) as file:
        frames = [f.to_ndarray(format="rgb24").shape for f in file.decode(video=0)]
    assert frames == [(24, 32, 3)] * 6


def test_compiled_blocks_sample_prompts_of_any_length_with_few_graphs():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    system, cfg = System(SYSTEM), SampleConfig(steps=2)
    torch.nn.init.normal_(system.presto.proj_out.weight)
    prompts = [read_prompt(["text " * n] * count, 15.0) for n, count in ((1, 1), (3, 2), (2, 5))]
    expected = [sample(system, prompt, DiffusionConfig(), cfg) for prompt in prompts]
    torch._dynamo.reset()
    system.presto.compile_blocks(backend)
    for prompt, video in zip(prompts, expected, strict=True):
        found = sample(system, prompt, DiffusionConfig(), cfg)
        assert (found.float() - video.float()).abs().max() <= 1
    assert 1 <= len(graphs) <= 2


def test_sampling_prints_its_steps_and_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr("training.sample.PROGRESS_S", 0.0)
    prompt = read_prompt(["one"], 15.0)
    sample(System(SYSTEM), prompt, DiffusionConfig(), SampleConfig(steps=3), progress="out.mp4")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"out.mp4: step {i}/3" for i in (1, 2, 3)]
    assert lines[-1].endswith(", 0 s left")


def test_bf16_weights_give_nearly_the_same_video(finished_run):
    system, diffusion = load_system(checkpoint.folder_of_step(finished_run[0], 6))
    prompt, cfg = read_prompt(["one", "two"], 2.0), SampleConfig(steps=4)
    exact = sample(system, prompt, diffusion, cfg).float()
    rough = sample(system.to(torch.bfloat16), prompt, diffusion, cfg).float()
    assert (exact - rough).abs().mean() < 0.05 * exact.std()


FIRST = '{"start_s": 0, "end_s": 2, "text": "a"}'
LATER = '{"start_s": 3, "end_s": 5, "text": "b"}'


def test_captions_are_read_as_texts_or_with_times(tmp_path):
    path = tmp_path / "captions.json"
    for text in ('{"sub_captions": [%s]}', "[%s]"):
        path.write_text(text % '{"start_s": 0, "end_s": 4.5, "text": "a"}')
        assert read_prompt([str(path)], 15.0) == Prompt([(0.0, 4.5)], ["a"])
    path.write_text(
        '[{"start_s": 3, "end_s": 5, "text": "a"}, {"start_s": 5, "end_s": 9, "text": ""}]'
    )
    assert read_prompt([str(path)], 15.0) == Prompt([(0, 2), (2, 6)], ["a", ""])
    assert read_prompt(["a", "b"], 4.0) == Prompt([(0.0, 2.0), (2.0, 4.0)], ["a", "b"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"captions are \[\]; expected a list of texts, or of objects with start_s"),
        ("{}", "captions are None; expected"),
        ("7", "captions are 7; expected"),
        ('{"sub_captions": "a boat"}', "captions are 'a boat'; expected"),
        ("nonsense", "not valid JSON: .*line 1"),
        ("[1]", "segment 1 is 1; expected an object with start_s, end_s, text"),
        ('["a", {"start_s": 0, "end_s": 2, "text": "b"}]', "segment 1 is 'a'; expected an object"),
        ('[{"text": "a"}]', "segment 1: start_s is None; expected a number of seconds"),
        ('[{"start_s": 0, "end_s": "2", "text": "a"}]', "segment 1: end_s is '2'; expected"),
        ('[{"start_s": 0, "end_s": NaN, "text": "a"}]', "segment 1: end_s is nan; expected"),
        ('[{"start_s": 0, "end_s": true, "text": "a"}]', "segment 1: end_s is True; expected"),
        ('[{"start_s": 0, "end_s": 1e999, "text": "a"}]', "segment 1: end_s is inf; expected"),
        ('[{"start_s": 0, "end_s": 2}]', "segment 1: text is None; expected the caption"),
        ('[{"start_s": 0, "end_s": 2, "text": 5}]', "segment 1: text is 5; expected the caption"),
        ('[{"start_s": 0, "end_s": 0, "text": "a"}]', "segment 1 ends at 0 s, before or where"),
        (f"[{FIRST}, {FIRST}]", "segment 1 ends at 2 s and segment 2 starts at 0 s: .*overlap"),
        (f"[{FIRST}, {LATER}]", "segment 1 ends at 2 s and segment 2 starts at 3 s: .*; correct"),
    ],
)
def test_a_wrong_captions_file_is_refused_before_a_model_is_loaded(tmp_path, content, message):
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=rf"ConfigError: {re.escape(str(path))}: {message}"):
        sample_main([str(tmp_path / "no checkpoint"), str(tmp_path / "out.mp4"), str(path)])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "boat \udcff"], r"ConfigError: a caption is 'boat \\udcff'; expected text in UTF-8"),
        (["a", "fps=30", "duration_s=3e3"], "ConfigError: 3000 s at fps=30 have more than 10000"),
        (
            ["a", "duration_s=15000"],
            r"ConfigError: a video of 15000 s; expected 0\.1 to 3600 s: dur",
        ),
        (["a", "duration_s=1e-9"], "ConfigError: a video of 1e-09 s; expected"),
        (["a.json", "b.json"], r"UsageError: 'a\.json' is one of 2 captions; expected texts, or"),
        (["a.jsonl", "b"], r"UsageError: 'a\.jsonl' is one of 2 captions; expected texts, or one"),
    ],
)
def test_prompt_that_cannot_be_sampled_is_refused_before_a_model_is_loaded(
    tmp_path, texts, message
):
    with pytest.raises(SystemExit, match=message):
        sample_main([str(tmp_path / "no checkpoint"), str(tmp_path / "out.mp4"), *texts])


def test_output_of_one_prompt_that_is_no_mp4_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(SystemExit, match=r"UsageError: OUT is .*out\.webm.*ends in \.mp4"):
        sample_main([str(tmp_path / "no checkpoint"), str(tmp_path / "out.webm"), "one"])


def test_a_network_of_single_captions_refuses_several(tmp_path):
    single = tiny_config(tmp_path, steps=1, system=replace(SYSTEM, mode="single"))
    assert len(train(single, CLIPS)) == 1
    system, diffusion = load_system(checkpoint.folder_of_step(tmp_path, 1))
    with pytest.raises(ConfigError, match="trained with one for the whole clip"):
        sample(system, read_prompt(["a", "b"], 15.0), diffusion, SampleConfig(steps=1))


def test_prompts_are_sampled_and_interpolated_with_captions_in_the_metadata(tmp_path, finished_run):
    path = tmp_path / "prompts.jsonl"
    lines = [{"name": "ants", "cap": ["one", "two"]}, {"name": "boy", "cap": ["three"] * 5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = str(checkpoint.folder_of_step(finished_run[0], 6))
    sample_main([saved, str(tmp_path / "out"), str(path), "steps=1", "duration_s=2", "fps=12"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ants.mp4", "boy.mp4"]
    with av.open(str(tmp_path / "out" / "ants.mp4")) as file:
        assert len(list(file.decode(video=0))) == 24
        comment = json.loads(file.metadata["comment"])
        assert file.metadata["title"] == "one"
        assert file.streams.video[0].codec_context.colorspace == 1
    assert [part["text"] for part in comment["captions"]] == ["one", "two"]
    assert (comment["seed"], comment["checkpoint"]) == (0, "step-00000006")
    for bad in (
        '{"name": "../a", "cap": ["x"]}',
        '{"name": "", "cap": ["x"]}',
        '{"name": "a\\u0000b", "cap": ["x"]}',
        '{"name": "a\\ud800", "cap": ["x"]}',
        json.dumps({"name": "a" * 201, "cap": ["x"]}),
        '{"name": "a"}',
        "nonsense",
        '{"name": "a", "cap": []}',
        '{"name": "a", "cap": "x"}',
        '{"name": "a", "cap": ["x", 1]}',
    ):
        path.write_text(bad)
        with pytest.raises(SystemExit, match=r"ConfigError: .*prompts.jsonl: line 1"):
            sample_main([saved, str(tmp_path / "out"), str(path)])
    for nothing in ("", "\n"):
        path.write_text(nothing)
        with pytest.raises(SystemExit, match=r"ConfigError: .*prompts.jsonl: no line"):
            sample_main([saved, str(tmp_path / "out"), str(path)])


def test_captions_may_hold_line_separators_of_unicode(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"name": name, "cap": ["one\u2028two", "three\x85"]} for name in ("a", "b")]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    prompts = read_prompts(str(path), 10.0)
    assert {name: prompt.captions for name, prompt in prompts.items()} == {
        line["name"]: line["cap"] for line in lines
    }


def test_published_weights_are_sampled_without_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(AllegroConfig, "tile", (8, 32, 32))
    monkeypatch.setattr(AllegroConfig, "stride", (4, 16, 24))
    folder = tiny_allegro.save(tmp_path / "allegro")
    model = ModelConfig(1, 2, 12, cross_attention_dim=24, caption_channels=tiny_allegro.TEXT_DIM,
                        sample_frames=2, sample_height=4, sample_width=10)  # fmt: skip
    export_presto(Presto(model), folder / "transformer")
    monkeypatch.setattr(
        "training.sample.T5Config", lambda folder: T5Config(folder, tiny_allegro.TEXT_DIM)
    )
    system, diffusion = load_system(folder)
    assert (diffusion.objective, system.cfg.rounding) == ("epsilon", "floor")
    video = sample(system, read_prompt(["a boat", "the sea"], 15.0), diffusion, SampleConfig(2))
    assert video.shape == (8, 32, 80, 3)
    assert video.float().std() > 0


def test_missing_weights_are_named_before_anything_is_sampled(tmp_path):
    with pytest.raises(SystemExit, match=r"BadWeights: .*neither a checkpoint .*hf download"):
        sample_main([str(tmp_path / "none"), str(tmp_path / "out.mp4"), "one"])
    folder = tiny_allegro.save(tmp_path / "allegro")
    model = ModelConfig(1, 2, 12, cross_attention_dim=24, caption_channels=4096,
                        sample_frames=6, sample_height=40, sample_width=40)  # fmt: skip
    export_presto(Presto(model), folder / "transformer")
    (folder / "vae").rename(folder / "elsewhere")
    with pytest.raises(SystemExit, match=r"BadWeights: .*no vae/ in it"):
        sample_main([str(folder), str(tmp_path / "out.mp4"), "one", "steps=1"])


def test_a_video_too_large_for_the_machine_is_refused_with_the_memory_it_takes(tmp_path):
    large = replace(SYSTEM, size=Size(88, 144_000, 256_000))  # 40 TB
    message = r"88 frames of 144000 x 256000 px are [\d,]+ tokens and take about [\d,]+ GB on a CPU"
    with pytest.raises(ConfigError, match=message):
        sample(System(large), read_prompt(["one"], 15.0), DiffusionConfig(), SampleConfig(1))
    with pytest.raises(ConfigError, match=message + r".*keep_activations=nothing"):
        train(tiny_config(tmp_path, system=large), CLIPS)


def test_captions_without_a_frame_and_captions_that_are_cut_off_are_reported(capsys):
    torch.manual_seed(0)
    system = System(replace(SYSTEM, mode="isolated"))
    prompt = read_prompt(["a" * 50, "b", "c", "d"], 16.0)
    sample(system, prompt, DiffusionConfig(), SampleConfig(1))
    lines = capsys.readouterr().err.splitlines()
    (unused,) = [line for line in lines if "no latent frame attends" in line]
    assert re.search(r"to caption \d, \d of 4: 2 latent frames, segments from 0 to 4, ", unused)
    assert sum("a caption has 50 bytes, of which 40 are read" in line for line in lines) == 1
    assert system.text.cut.summary().startswith("1 captions are cut off after 40 bytes")


def test_a_written_video_shows_the_given_frames(tmp_path):
    video = torch.zeros(6, 32, 48, 3, dtype=torch.uint8)
    video[3:, :, :24] = 200
    write_mp4(video, tmp_path / "out.mp4", 3.0)
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert file.streams.video[0].duration * file.streams.video[0].time_base == 3
        frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    assert np.abs(frames.astype(int) - video.numpy()).mean() < 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a boat", "stesp=2"], "stesp is not a setting; did you mean steps?"),
        (["captions.yaml"], "not valid JSON"),
    ],
)
def test_a_mistyped_setting_or_a_yaml_file_is_not_taken_for_a_caption(
    tmp_path, monkeypatch, given, message
):
    monkeypatch.chdir(tmp_path)
    Path("captions.yaml").write_text("- a boat")
    with pytest.raises(SystemExit, match=re.escape(message)):
        sample_main(["checkpoint", "out.mp4", *given])
