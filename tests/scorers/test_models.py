"""The scorers with weights: tiny random ones of the real classes."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from curation.torchvision_fix import fix_torchvision

fix_torchvision()
pytest.importorskip("open_clip")
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from curation import config
from curation.images import DamagedFrame
from curation.stage import OutputError, PlanError, RunContext
from curation.storage import Folder
from curation.weights import load_tensors, locate_model, locate_weights
from pipelines import score, select
from pipelines.settings import DEFAULT_CONFIG, Settings
from pipelines.tables import SELECTION, embeddings_ledger, read_clips, videos_ledger
from stages.scorers.clip import (
    ClipScorer,
    load_aesthetics_head,
    load_image_encoder,
    resize_and_crop,
    scores_from_embeddings,
)
from stages.scorers.lpips import FEATURE_LAYERS, RGB_SCALE, RGB_SHIFT, LpipsScorer, load_lpips
from stages.scorers.models import Models
from stages.scorers.raft import RaftScorer, nearest_input_side
from stages.scorers.scorer import ClipImages
from tests.support.small_input import SETTINGS, scene, write_video
from tests.support.tiny_models import (
    HEAD_SHAPES,
    LINEAR_SHAPES,
    save_random_lpips,
    save_random_raft,
    save_tiny_clip,
    save_tiny_head,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    clip, clip_file = save_tiny_clip(folder)
    alexnet, linear = save_random_lpips(folder)
    raft, raft_file = save_random_raft(folder)
    head = save_tiny_head(folder)
    named = {"clip": clip_file, "head": head, "alexnet": alexnet, "linear": linear}
    return {**named, "raft": raft_file, "nets": {"clip": clip, "raft": raft}}


def draw_image(seed: int, width: int = 320, height: int = 180) -> np.ndarray:
    """Coarse and fine texture, RGB."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (6, 8, 3), np.uint8)
    large = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + rng.normal(0, 10, large.shape), 0, 255).astype(np.uint8)


def stored(folder: Path, clip_id: str, seeds: list[int], size=(320, 180), pairs=False) -> dict:
    """A clip with a key frame per seed, as `score` stores it."""
    ledger = Folder(str(folder))
    segments = []
    for number, seed in enumerate(seeds):
        segment = {"start_s": 3.0 * number, "key_frame_s": 3.0 * number + 1.5}
        for which, shift in (("key_frame", 0), ("next_frame", 6))[: 1 + pairs]:
            name = f"key_frames/{clip_id}_{number}_{which}.jpg"
            shown = np.roll(draw_image(seed, *size), shift, axis=1)
            done, jpeg = cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            assert done
            ledger.write(name, jpeg.tobytes())
            segment[which] = name
        segment["next_frame_s"] = segment["key_frame_s"] + 0.125 if pairs else None
        segments.append(segment)
    return {
        "clip_id": clip_id,
        "prefilter": None,
        "num_frames": 9,
        "null_reasons": {},
        "segments": segments,
    }


def models_of(folder: Path, **scorers) -> Models:
    models = Models(gpus=0.0, **scorers)
    models.setup(RunContext(str(folder), weights=models.find_versions()))
    return models


def clip_of(files, aesthetics: bool = True) -> ClipScorer:
    return ClipScorer(
        weights=str(files["clip"]), aesthetics=str(files["head"]) if aesthetics else None
    )


def lpips_of(files) -> LpipsScorer:
    return LpipsScorer(weights=str(files["alexnet"]), linear=str(files["linear"]))


def test_published_head_has_these_weights():
    assert HEAD_SHAPES["layers.0.weight"] == (1024, 768)
    assert [name for name in HEAD_SHAPES if name.endswith("weight")] == [
        *("layers.0.weight", "layers.2.weight", "layers.4.weight"),
        *("layers.6.weight", "layers.7.weight"),
    ]


def test_head_is_linear_in_all_layers(files):
    head, state = load_aesthetics_head(files["head"]), load_tensors(files["head"])
    x = torch.randn(3, 768, dtype=torch.float64)
    expected = x
    for layer in (0, 2, 4, 6, 7):
        weight, bias = (state[f"layers.{layer}.{part}"].double() for part in ("weight", "bias"))
        expected = expected @ weight.T + bias
    torch.testing.assert_close(head(x.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_embeddings_equal_those_of_open_clip(files):
    from open_clip import image_transform

    frames = [draw_image(seed, 322, 181) for seed in range(3)]
    clip = clip_of(files, aesthetics=False)
    clip.setup({"weights": files["clip"]}, "cpu")
    prepare = image_transform(56, is_train=False)
    inputs = torch.stack([prepare(Image.fromarray(f)) for f in frames])
    with torch.inference_mode():
        expected = files["nets"]["clip"].encode_image(inputs, normalize=True)
    [found] = clip.score([np.stack([resize_and_crop(f, 56) for f in frames])])
    np.testing.assert_allclose(
        found["embeddings"], expected.numpy(), atol=1e-3
    )  # stored as float16
    spread = 1 - float(expected[0] @ expected[1])
    assert spread > 0.01  # the images differ for it
    with torch.inference_mode():
        bare = clip._embed(torch.from_numpy(np.stack([resize_and_crop(f, 56) for f in frames])))
    torch.testing.assert_close(bare, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(320, 180), (180, 320), (56, 56), (1000, 57)])
def test_crop_equals_that_of_open_clip(size):
    from open_clip import image_transform

    frame = draw_image(1, *size)
    own = resize_and_crop(frame, 56)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    theirs = image_transform(56, is_train=False)(Image.fromarray(frame)).numpy()
    undone = theirs * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    np.testing.assert_allclose(own, undone * 255, atol=0.51)


def test_richness_and_coherence_follow_their_definition():
    angles = np.radians([0, 60, 60, 90])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    scores = scores_from_embeddings(embeddings, np.array([5.0, 4.0, 6.0, 5.0]))
    assert scores["richness_clip_l14"] == pytest.approx((0.5 + 0 + 1 - np.cos(np.pi / 6)) / 3)
    assert scores["coherence_clip_l14"] == pytest.approx(0, abs=1e-6)
    assert scores["aesthetic_laion_l14"] == 5.0
    assert scores["aesthetic_laion_l14_min"] == 4.0
    assert scores_from_embeddings(embeddings[:1], None) == {
        "richness_clip_l14": None,
        "coherence_clip_l14": None,
    }


def reference_lpips(a: np.ndarray, b: np.ndarray, alexnet: dict, linear: dict) -> float:
    """The published formula, layer by layer in float64. a, b: (h, w, 3) uint8."""
    from torch.nn.functional import conv2d, max_pool2d, relu

    convolutions = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # name, stride, pad
    total = 0.0
    shift, scale = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (RGB_SHIFT, RGB_SCALE)
    )
    x = torch.stack([torch.from_numpy(p).double().permute(2, 0, 1) / 127.5 - 1 for p in (a, b)])
    x = (x - shift) / scale
    for number, (name, stride, pad) in enumerate(convolutions):
        weight, bias = (alexnet[f"features.{name}.{p}"].double() for p in ("weight", "bias"))
        x = relu(conv2d(x, weight, bias, stride, pad))
        unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        counts = linear[f"lin{number}.model.1.weight"].double()
        total += float(((unit[0] - unit[1]).square() * counts[0]).sum(0).mean())
        if number in (0, 1):
            x = max_pool2d(x, 3, 2)
    return total


def test_lpips_equals_the_published_formula(files):
    assert len(FEATURE_LAYERS) == 5
    lpips = lpips_of(files)
    lpips.setup({"weights": files["alexnet"], "linear": files["linear"]}, "cpu")
    frames = np.stack([draw_image(seed) for seed in (1, 2, 3)])
    other = np.stack([draw_image(seed, 320, 200) for seed in (4, 4)])
    found = [s["key_lpips"] for s in lpips.score([frames, other, frames[:1]])]
    alexnet, linear = load_tensors(files["alexnet"]), load_tensors(files["linear"])
    expected = [reference_lpips(*frames[i : i + 2], alexnet, linear) for i in (0, 1)]
    assert found[0] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found[0] > 0.01
    assert found[1] == 0  # the same image twice
    assert found[2] is None  # no neighbour


def test_raft_equals_torchvisions_and_speeds_are_in_px_per_s_at_320_px(files):
    raft = RaftScorer(weights=str(files["raft"]))
    raft.setup({"weights": files["raft"]}, "cpu")
    a, b = (np.roll(draw_image(5, 128, 128), shift, axis=1) for shift in (0, 4))
    x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
    with torch.inference_mode():
        flow = files["nets"]["raft"](x, y, num_flow_updates=12)[-1]
        mean = float(flow.norm(dim=1).mean())
    to_speed = np.array([[10.0, 10.0]], np.float32)
    [found] = raft.score([(np.stack([a, b])[None], to_speed)])
    assert found["motion_raft"] == pytest.approx(10 * mean, rel=1e-3)


@pytest.mark.parametrize("size", [(1280, 720), (1080, 1920), (640, 90)])
def test_speed_does_not_depend_on_the_image_size(tmp_path, size):
    clip = stored(tmp_path, "a", [1, 2], size, pairs=True)
    raft = RaftScorer()
    image_pairs, to_speed = raft.prepare(ClipImages(clip, Folder(str(tmp_path)).read))
    height, width = image_pairs.shape[2:4]
    assert height % 8 == width % 8 == 0
    assert min(height, width) >= 128
    # the images were shifted by 6 of their own px in 0.125 s
    shift = 6 * width / size[0]
    assert shift * to_speed[0, 0] == pytest.approx(6 * 320 / max(size) / 0.125)


def test_all_clips_get_all_scores_and_an_image_that_was_not_stored_affects_one_clip(
    files, tmp_path, monkeypatch
):
    monkeypatch.setattr("stages.scorers.raft.FLOW_UPDATES", 1)  # seconds on a CPU otherwise
    models = models_of(
        tmp_path,
        clip=clip_of(files),
        lpips=lpips_of(files),
        raft=RaftScorer(weights=str(files["raft"])),
    )
    good = stored(tmp_path, "good", [1, 2, 3], (160, 128), pairs=True)
    good["null_reasons"] = {"aesthetic_laion_l14": "no scorer configured", "text_share": "other"}
    lonely = stored(tmp_path, "lonely", [4, 5], (160, 128))  # scored before there were pairs
    broken = stored(tmp_path, "broken", [6, 7], (160, 128), pairs=True)
    broken["segments"][1]["key_frame"] = None
    below = {
        "clip_id": "below",
        "prefilter": "9.3 s < 15 s",
        "num_frames": 9,
        "null_reasons": {},
        "segments": [],
    }
    rows = [{"clips": [good, below]}, {"clips": [lonely, broken]}, {"clips": []}]
    done = models.process(rows)
    [found, not_seen], [alone, unread], [] = (row["clips"] for row in done)
    names = {"aesthetic_laion_l14", "aesthetic_laion_l14_min", "richness_clip_l14"}
    names |= {"coherence_clip_l14", "key_lpips", "motion_raft"}
    assert all(isinstance(found[name], float) for name in names)
    assert found["null_reasons"] == {"text_share": "other"}
    assert found["aesthetic_laion_l14_min"] <= found["aesthetic_laion_l14"]
    assert not_seen["null_reasons"] == dict.fromkeys(names, "failed the prefilter: 9.3 s < 15 s")
    assert alone["key_lpips"] is not None
    assert alone["motion_raft"] is None
    assert "no pair of frames" in alone["null_reasons"]["motion_raft"]
    assert set(unread["null_reasons"]) == names
    assert unread["null_reasons"]["key_lpips"].startswith("no key frame was stored")
    assert all(unread[name] is None for name in names)
    assert [e["clip_id"] for row in done for e in row["embeddings"]] == ["good", "lonely"]
    kept = np.stack(done[0]["embeddings"][0]["key_frames"])
    assert kept.shape == (3, 768)
    assert kept.dtype == np.float16
    assert all(not models.missing_scorers(row, models.find_versions()) for row in done)
    alone_again = models.process([{"clips": [good]}])[0]["clips"][0]
    for name in names:  # a clip's scores do not depend on the other clips
        assert alone_again[name] == pytest.approx(found[name], rel=1e-4, abs=1e-5)


def test_damaged_image_or_failed_storage_decides_about_no_clip(files, tmp_path):
    models = models_of(tmp_path, lpips=lpips_of(files))
    clip = stored(tmp_path, "broken", [6, 7])
    image = tmp_path / clip["segments"][1]["key_frame"]
    image.write_bytes(b"no image")
    with pytest.raises(DamagedFrame, match="is not a readable image; score with retry_failed=true"):
        models.process([{"clips": [clip]}])
    image.unlink()
    image.mkdir()  # any error of the storage
    with pytest.raises(OutputError, match="can't read"):
        models.process([{"clips": [clip]}])


def missing(models: Models, row: dict) -> list[str]:
    return models.missing_scorers(row, models.find_versions())


def test_other_weights_and_a_new_head_are_scored_again(files, tmp_path):
    plain = models_of(tmp_path, clip=clip_of(files, aesthetics=False))
    [row] = plain.process([{"clips": []}])
    assert not plain.missing_scorers(row, plain.find_versions())
    assert missing(models_of(tmp_path, clip=clip_of(files)), row) == ["clip"]
    assert missing(models_of(tmp_path, lpips=lpips_of(files)), row) == ["lpips"]
    assert Models().missing_scorers(row, {}) == []


def test_missing_weights_are_an_error_with_the_place_and_the_command(tmp_path):
    with pytest.raises(
        PlanError, match=r"clip.weights: no file .*none.bin; get it with\n  hf down"
    ):
        Models(clip=ClipScorer(weights=str(tmp_path / "none.bin"))).find_versions()
    name = "hf://timm/vit_large_patch14_clip_224.openai@abc/open_clip_model.safetensors"
    with pytest.raises(
        PlanError, match=r"is not in .*hub; get it with\n  hf download timm/vit_l.* "
    ):
        Models(clip=ClipScorer(weights=name)).find_versions()
    (tmp_path / "a.pth").touch()
    with pytest.raises(PlanError, match=r"lpips.linear is not set; get the file with\n  curl"):
        Models(lpips=LpipsScorer(weights=str(tmp_path / "a.pth"))).find_versions()
    with pytest.raises(PlanError, match="expected hf://OWNER/REPO@REVISION/FILE"):
        locate_weights("hf://only", "it", "x")


def test_all_missing_weights_are_in_one_error():
    every = Models(
        clip=ClipScorer(weights="/none/clip", aesthetics="/none/head"),
        lpips=LpipsScorer(weights="/none/alexnet"),
        raft=RaftScorer(weights="/none/raft"),
    )
    with pytest.raises(PlanError) as error:
        every.find_versions()
    message = str(error.value)
    for what in (
        "clip.weights",
        "clip.aesthetics",
        "lpips.weights",
        "lpips.linear",
        "raft.weights",
    ):
        assert f"score.models.{what}" in message
    assert message.count("\n  curl") + message.count("\n  hf download") == 5


def test_command_for_a_missing_file_puts_it_at_the_configured_path(tmp_path):
    name = str(tmp_path / "my weights" / "head.pth")
    with pytest.raises(PlanError) as error:
        locate_weights(name, "it", "https://host/other%2Bname.pth")
    command = shlex.split(str(error.value).splitlines()[1])
    assert command[:4] == ["curl", "-L", "--create-dirs", "-o"]
    assert command[4:] == [name, "https://host/other%2Bname.pth"]


def test_file_in_the_hubs_cache_is_found_by_its_revision(tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "w.safetensors").write_bytes(b"x")
    (tmp_path / "models--a--b" / "refs").mkdir()
    (tmp_path / "models--a--b" / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("hf://a/b@main/w.safetensors", "hf://a/b/w.safetensors"):
        assert locate_weights(name, "it", "x") == snapshot / "w.safetensors"
    with pytest.raises(PlanError, match="revision v2"):
        locate_weights("hf://a/b@v2/w.safetensors", "it", "x")


@pytest.mark.parametrize(
    "locate",
    [
        lambda: locate_weights("hf://a/b/w.safetensors", "it", "x"),
        lambda: locate_model("a/b", None, "it"),
    ],
)
def test_without_the_hubs_package_the_error_names_what_to_install(locate, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PlanError, match=r"it: the package huggingface_hub .*\[models\]"):
        locate()


class CodeInPickle:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_file_with_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"layers.0.weight": CodeInPickle()}, "bad.pth")
    with pytest.raises(PlanError, match="can't be read as weights"):
        load_aesthetics_head(Path("bad.pth"))
    assert not Path("evil").exists()


def test_weights_of_another_network_are_an_error_with_their_names(files, tmp_path):
    with pytest.raises(PlanError, match=r"not a CLIP in open_clip's layout"):
        load_image_encoder(files["head"])
    with pytest.raises(PlanError, match=r"other weights than expected .*layers.0.bias"):
        load_aesthetics_head(files["linear"])
    assert set(load_tensors(files["linear"])) == set(LINEAR_SHAPES)
    torch.save({"lin0.model.1.weight": torch.zeros(1, 512, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(PlanError, match=r"lin0"):
        load_lpips(files["alexnet"], tmp_path / "vgg.pth")


def test_raft_sides_are_multiples_of_eight():
    assert [nearest_input_side(s) for s in (288, 100, 511)] == [288, 128, 512]


def clips_of(out: Path) -> dict[str, dict]:
    return {row["clip_id"]: row for row in read_clips(Folder(str(out))).to_pylist()}


def test_model_enabled_later_adds_its_scores_without_decoding(dataset, cluster, files, tmp_path):
    """Every video is replaced by zeros of the same size and time: none can be decoded."""
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(dataset.out, out)
    shutil.copytree(dataset.source, source)
    before = clips_of(out)
    for part in (out / "ledger/videos").iterdir():  # its rows name the videos by path
        table = pq.read_table(part)
        for name in ("video", "error"):
            moved = pc.replace_substring(table[name], str(dataset.source), str(source))
            table = table.set_column(table.column_names.index(name), name, moved)
        pq.write_table(table, part)
    rows = videos_ledger(Folder(str(out))).read().to_pylist()
    for path in dataset.videos.values():
        copy, was = source / path.relative_to(dataset.source), path.stat()
        copy.write_bytes(bytes(was.st_size))
        os.utime(copy, ns=(was.st_atime_ns, was.st_mtime_ns))
    given = [f"input={source}", f"output={out}"]
    given += ["score.models.gpus=0", f"score.models.clip.weights={files['clip']}"]
    given += [f"score.models.clip.aesthetics={files['head']}"]
    score.run(settings(*given), Folder(str(out)), cluster)
    after = clips_of(out)
    assert after.keys() == before.keys()
    names = ClipScorer(aesthetics="x").writes
    passed = [c for c in after.values() if c["prefilter"] is None]
    assert len(passed) == 5
    assert all(isinstance(c[name], float) for c in passed for name in names)
    below = [dict(c["null_reasons"]) for c in after.values() if c["prefilter"] is not None]
    assert all(
        causes[name].startswith(("failed the prefilter", "not decoded"))
        for causes in below
        for name in names
    )
    for clip_id, clip in after.items():  # all else is as it was
        rest = [c for c in clip if c not in (*names, "null_reasons", "video")]
        assert {c: clip[c] for c in rest} == {c: before[clip_id][c] for c in rest}
        causes = {k: v for k, v in dict(clip["null_reasons"]).items() if k not in names}
        was = {k: v for k, v in dict(before[clip_id]["null_reasons"]).items() if k not in names}
        assert causes == was
    kept = pq.read_table(out / "ledger/embeddings").to_pylist()
    assert {e["clip_id"] for e in kept} == {c["clip_id"] for c in passed}
    assert all(len(e["key_frames"]) == 5 and len(e["key_frames"][0]) == 768 for e in kept)
    again = videos_ledger(Folder(str(out))).read().to_pylist()
    assert [r["video"] for r in again] == [r["video"] for r in rows]
    # Now a policy may name the scores, and select needs no model for it.
    rule = "select.policy.coherence_clip_l14={min: -1}"
    select.run(settings(f"output={out}", rule), Folder(str(out)))
    with pytest.raises(PlanError, match="coherence_clip_l14"):
        select.run(settings(f"output={dataset.out}", rule), Folder(str(dataset.out)))
    # By the embeddings all five clips show the same at a limit this low.
    alike = "select.semantic_similarity=0.01"
    select.run(settings(f"output={out}", alike), Folder(str(out)))
    chosen = Folder(str(out)).read_table(f"ledger/{SELECTION}").to_pylist()
    [best] = [row["clip_id"] for row in chosen if row["status"] == "kept"]
    lost = [row["reason"] for row in chosen if (row["reason"] or "").startswith("shows the same")]
    assert lost == [f"shows the same as {best}"] * len(lost) != []
    with pytest.raises(PlanError, match=r"needs the clips' embeddings, .* has none\n  fix: run"):
        select.run(settings(f"output={dataset.out}", alike), Folder(str(dataset.out)))
    prefilter = [alike, "select.policy.width=null", "select.policy.duration_s=null"]
    with pytest.raises(PlanError, match=r"have no .*semantic_similarity, which the policy needs"):
        select.run(settings(f"output={out}", *prefilter), Folder(str(out)))
    embeddings_ledger(Folder(str(out))).append([kept[0] | {"model": "another"}])
    with pytest.raises(PlanError, match=r"of 2 models: .*another.*\n  fix: run longtake score"):
        select.run(settings(f"output={out}", alike), Folder(str(out)))


@pytest.mark.slow
def test_models_in_the_first_run_give_the_scores_of_models_added_later(cluster, files, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_video(source / "a.mp4", scene(2), width=160, height=128)
    write_video(source / "b.mp4", scene(3), 1.5, width=160, height=128)
    given = [f"input={source}", f"output={out}", "score.models.gpus=0"]
    given += [
        "score.decode.key_frames.pair_gap_s=0.1",
        f"score.models.clip.weights={files['clip']}",
    ]
    run = settings(*given)
    score.run(run, Folder(str(out)), cluster)
    rows = {c["clip_id"]: c for c in clips_of(out).values()}
    passed = [c for c in rows.values() if c["prefilter"] is None]
    assert len(passed) == 1
    for clip in passed:
        for segment in clip["segments"]:
            assert segment["next_frame_s"] - segment["key_frame_s"] == pytest.approx(0.1)
    models = models_of(out / "ledger", clip=clip_of(files, aesthetics=False))
    blank = [{"clips": [{**c, "null_reasons": {}} for c in passed]}]
    for clip in models.process(blank)[0]["clips"]:
        for name in ("coherence_clip_l14", "richness_clip_l14"):
            assert rows[clip["clip_id"]][name] == pytest.approx(clip[name], rel=1e-4, abs=1e-5)
    ledger = sorted((out / "ledger/videos").iterdir())
    score.run(run, Folder(str(out)), cluster)  # nothing is left to do
    assert sorted((out / "ledger/videos").iterdir()) == ledger


def test_run_without_weights_or_frame_pairs_stops_before_anything_starts(tmp_path, unused_cluster):
    write_video(tmp_path / "in" / "a.mp4", scene(1))
    out = Folder(f"{tmp_path}/out")
    given = [f"input={tmp_path}/in", f"output={tmp_path}/out"]
    with pytest.raises(PlanError, match="get it with"):
        score.run(settings(*given, "score.models.clip.weights=/none"), out, unused_cluster)
    (tmp_path / "raft.pth").touch()
    raft = f"score.models.raft.weights={tmp_path}/raft.pth"
    with pytest.raises(PlanError, match=r"set score.decode.key_frames.pair_gap_s=0\.1"):
        score.run(settings(*given, raft), out, unused_cluster)
    assert not (tmp_path / "out").exists()


def settings(*given: str) -> Settings:
    return config.load(Settings, DEFAULT_CONFIG, [*SETTINGS, *given])
