"""Drawn videos whose numbers are known."""

import html
import json
import shlex
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from curation.torchvision_fix import fix_torchvision
from training import evaluate
from training.config import SampleConfig
from training.evaluate import BadSample, Video, is_dynamic, main, motion_and_steps, summarize
from training.sample import mp4_metadata, write_mp4
from training.text_to_video import Prompt
from training.weights import BadWeights

rng = np.random.default_rng(1)
PATTERN = rng.integers(0, 256, (40, 60, 3), np.uint8)


def picture(x: float, of: np.ndarray = PATTERN, size=(160, 96)) -> np.ndarray:
    """The pattern, scaled up four times, shifted to the left by x px."""
    import cv2

    big = cv2.resize(of, (240, 160), interpolation=cv2.INTER_CUBIC)
    return cv2.warpAffine(big, np.float32([[1, 0, -x], [0, 1, -20]]), size)


def panning(px: float, frames: int = 24) -> np.ndarray:
    return np.stack([picture(px * i) for i in range(frames)])


def moves_by(px):
    return lambda one, two: np.full((*one.shape[:2], 2), [px, 0], np.float32)


@pytest.mark.parametrize(
    ("fps", "frames", "px", "dynamic"),
    [
        (8, 16, 2.26, True),  # the threshold: 6 x 96 / 256 = 2.25 px
        (8, 16, 2.24, False),
        (15, 16, 2.26, True),  # every second frame: 8 kept, 7 pairs, of which 2 must move
        (24, 5, 2.26, True),  # two kept; round(0.5) is 0 in Python, so everything is dynamic
        (24, 5, 0.0, True),
    ],
)
def test_dynamic_degree_equals_vbench_s_formula(fps, frames, px, dynamic):
    video = np.zeros((frames, 96, 160, 3), np.uint8)
    found, top = is_dynamic(video, fps, moves_by(px))
    assert found == dynamic
    assert top == pytest.approx(px, abs=1e-5)


def test_a_video_is_dynamic_if_a_quarter_of_its_kept_frames_moves():
    video = np.zeros((16, 96, 160, 3), np.uint8)
    for moving, dynamic in ((3, False), (4, True)):
        steps = iter([100.0] * moving + [0.0] * 20)
        assert is_dynamic(video, 8, lambda a, b: moves_by(next(steps))(a, b))[0] == dynamic  # noqa: B023


def test_dynamic_degree_uses_the_fastest_pixels_only():
    def flow(one, two):
        by = np.zeros((*one.shape[:2], 2), np.float32)
        by[:, :8] = 40  # a twentieth of the width
        return by

    video = np.zeros((8, 96, 160, 3), np.uint8)
    assert is_dynamic(video, 8, flow)[1] == pytest.approx(np.hypot(40, 40))


def video_of(frames, borders=(), fps=8.0, path="x.mp4"):
    ends = [*borders, len(frames) / fps]
    spans = list(zip([0.0, *borders], ends, strict=True))
    return Video(path, fps, frames, spans, [f"part {i}" for i in range(len(spans))])


def test_motion_is_in_pixels_per_second_at_320_px_wide():
    motion, _ = motion_and_steps(video_of(panning(1.5)))
    assert motion == pytest.approx(1.5 * 2 * 8, rel=0.15)
    assert motion_and_steps(video_of(panning(0)))[0] < 0.5


def test_a_cut_at_a_border_has_a_high_border_step_and_a_steady_pan_has_not():
    smooth = panning(1.5)
    other = np.stack([picture(1.5 * i, PATTERN[::-1, ::-1]) for i in range(24)])
    cut = np.concatenate([smooth[:12], other[12:]])
    (steady,) = motion_and_steps(video_of(smooth, [1.5]))[1]
    (abrupt, later) = motion_and_steps(video_of(cut, [1.5, 2.5]))[1]
    assert steady < 2
    assert abrupt > 5
    assert later < 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sampled videos")
    for name, px in (("still", 0.0), ("moving", 3.0)):
        prompt = Prompt([(0.0, 1.5), (1.5, 3.0)], [f"a {name} pattern", "<b>the same</b>"])
        path = out / f"{name}.mp4"
        write_mp4(
            torch.from_numpy(panning(px)), path, 3.0, mp4_metadata(prompt, "x", SampleConfig())
        )
    return out


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_reference_without_the_videos_is_refused(tmp_path, folder, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=rf"BadSample: reference is '.*{name}': no file there has"):
        main([str(folder), str(tmp_path / "out"), f"reference={tmp_path / name}"])


def test_a_folder_of_videos_gives_a_table_and_a_page(tmp_path, folder, capsys):
    real = tmp_path / "real"
    real.mkdir()
    comment = {"comment": "A comment of a camera."}
    write_mp4(torch.from_numpy(panning(3.0)), real / "moving.mp4", 3.0, comment)
    main([str(folder), str(tmp_path / "out"), f"reference={real}"])
    assert "2 videos, dynamic by DIS 50%" in capsys.readouterr().out
    rows = {r["video"]: r for r in pq.read_table(tmp_path / "out/evaluation.parquet").to_pylist()}
    moving, still = rows["moving.mp4"], rows["still.mp4"]
    assert (moving["dynamic_dis"], still["dynamic_dis"]) == (True, False)
    assert moving["psnr"] > 40
    assert moving["ssim"] > 0.99
    assert still["psnr"] is None
    assert still["clip_similarity"] is None
    assert len(moving["border_steps"]) == 1
    text = (tmp_path / "out/evaluation.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert f"--videos_path {shlex.quote(str(folder))} --dim" in html.unescape(text)
    assert "motion: static" in text
    assert "<b>the same" not in text


def test_real_video_is_compared_at_the_same_shares_of_the_time_without_all_its_frames(tmp_path):
    frames = panning(1.0, 300)
    write_mp4(torch.from_numpy(frames), tmp_path / "real.mp4", 30.0, {"comment": "a camera"})
    video = video_of(frames[5::10])
    tracemalloc.start()
    psnr, ssim = evaluate.fidelity(video, tmp_path / "real.mp4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert psnr > 35
    assert ssim > 0.99
    assert peak < frames.nbytes / 3
    for content in (b"", b"nonsense"):
        (tmp_path / "real.mp4").write_bytes(content)
        with pytest.raises(BadSample, match=r"real\.mp4: .*; expected a real video"):
            evaluate.fidelity(video, tmp_path / "real.mp4")


def test_the_summary_counts_videos_and_skips_missing_measures():
    base = {"duration_s": 14.0, "width": 1280, "height": 720, **dict.fromkeys(evaluate.MEANS)}
    rows = [
        base | {"motion_px_s": 1.0, "sharpness": 10.0, "border_steps": [1.0, 3.0]},
        base | {"motion_px_s": 100.0, "sharpness": 30.0, "border_steps": [], "height": 2276},
    ]
    table = {line["group"]: line for line in summarize(rows)}
    assert set(table) == {
        "all", "motion: static", "motion: fast", "aspect: 16:9", "aspect: 9:16", "length: 15 s",
    }  # fmt: skip
    assert table["all"]["sharpness"] == 20
    assert table["all"]["border_steps"] == 2
    assert table["all"]["ssim"] is None
    assert table["motion: fast"]["videos"] == 1


def test_clip_similarity_is_a_cosine_per_segment(tmp_path, folder):
    fix_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {w: i for i, w in enumerate(["<unk>", "<end>", "a", "still", "moving", "pattern"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<end>", eos_token="<end>"
    ).save_pretrained(tmp_path)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    text = small | {"vocab_size": 6, "max_position_embeddings": 8, "eos_token_id": 1}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    rows = evaluate.evaluate_folder(
        folder, tmp_path / "out", evaluate.EvaluateConfig(clip=str(tmp_path))
    )
    values = [v for row in rows for v in row["clip_similarity"]]
    assert len(values) == 4
    assert len({round(v, 5) for v in values}) > 1
    assert all(-1 <= v <= 1 for v in values)
    with pytest.raises(BadWeights, match="hf download openai/clip-vit-large-patch14"):
        evaluate.ClipModel(str(tmp_path / "none"))


@pytest.mark.slow  # RAFT on a CPU
def test_raft_s_flow_has_the_size_of_the_frames(tmp_path):
    fix_torchvision()
    flows = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(0)
    torch.save(flows.raft_large().state_dict(), tmp_path / "raft.pth")
    calc = evaluate.load_raft(str(tmp_path / "raft.pth"))
    one, two = (picture(x, size=(150, 131)) for x in (0, 4))
    by = calc(one, two)
    assert by.shape == (131, 150, 2)
    assert np.isfinite(by).all()
    assert np.abs(by).max() > 0


def test_a_video_that_can_not_be_measured_is_reported(tmp_path):
    with pytest.raises(BadSample, match=r"no \.mp4 in it"):
        evaluate.evaluate_folder(tmp_path, tmp_path / "out", evaluate.EvaluateConfig())
    (tmp_path / "a.mp4").write_bytes(b"nonsense")
    with pytest.raises(SystemExit, match=r"BadSample: .*a\.mp4"):
        main([str(tmp_path), str(tmp_path / "out")])
    endless = {"start_s": 0, "end_s": 10**400, "text": "a"}
    for comment in (json.dumps({"captions": 7}), json.dumps({"captions": [endless]}), "[" * 50_000):
        frames = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
        write_mp4(frames, tmp_path / "a.mp4", 1.0, {"comment": comment})
        with pytest.raises(BadSample, match=r"expected an mp4 of training\.sample"):
            evaluate.read_video(tmp_path / "a.mp4")
    for span in ((-5.0, 1.0), (0.0, -1e6), (0.0, 9.0), (0.0, float("inf")), (float("nan"), 1.0)):
        captions = [{"start_s": span[0], "end_s": span[1], "text": "a"}]
        write_mp4(frames, tmp_path / "a.mp4", 1.0, {"comment": json.dumps({"captions": captions})})
        with pytest.raises(BadSample, match=r"a caption's span is .*; the video has 1 s"):
            evaluate.read_video(tmp_path / "a.mp4")
    with pytest.raises(BadWeights, match="RAFT can't be loaded"):
        evaluate.load_raft(str(tmp_path / "none.pth"))
