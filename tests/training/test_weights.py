import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from curation.torchvision_fix import fix_torchvision
from training.config import ModelConfig
from training.model import Presto
from training.weights import (
    BadWeights,
    export_presto,
    load_presto,
    load_weights,
    read_config,
    tensor_files,
)

SMALL = ModelConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=10,
    interpolation_scale_t=1.0,
)


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_exported_weights_load_without_change(tmp_path):
    model = Presto(SMALL)
    export_presto(model, tmp_path, torch.float32)
    again = load_presto(tmp_path)
    assert again.cfg == SMALL
    assert same(again.state_dict(), model.state_dict())
    assert not list(tmp_path.glob("*.part"))


def test_diffusers_reads_our_export_and_we_read_theirs_in_several_files(tmp_path):
    fix_torchvision()
    diffusers = pytest.importorskip("diffusers")
    model = Presto(SMALL)
    export_presto(model, tmp_path / "ours", torch.float32)
    theirs = diffusers.AllegroTransformer3DModel.from_pretrained(tmp_path / "ours")
    assert same(theirs.state_dict(), model.state_dict())
    assert theirs.config.interpolation_scale_t == 1.0
    theirs.save_pretrained(tmp_path / "pipe" / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "pipe" / "transformer").glob("*.safetensors"))) > 1
    again = load_presto(tmp_path / "pipe")  # the folder of a pipeline
    assert again.cfg == SMALL
    assert same(again.state_dict(), model.state_dict())


def test_the_field_names_of_the_original_config_are_read(tmp_path):
    original = {
        "num_layers": 32,
        "num_attention_heads": 24,
        "attention_head_dim": 96,
        "norm_type": "ada_norm_single",
        "sample_size": [46, 80],
        "sample_size_t": 10,
        "patch_size_t": 1,
        "interpolation_scale_t": 1.0,
        "interpolation_scale_h": 1.0,
        "interpolation_scale_w": 1.0,
        "dropout": 0.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(original))
    cfg = read_config(tmp_path)
    assert (cfg.sample_frames, cfg.sample_height, cfg.sample_width) == (10, 46, 80)
    assert cfg == replace(
        ModelConfig(),
        interpolation_scale_t=1.0,
        interpolation_scale_h=1.0,
        interpolation_scale_w=1.0,
        sample_frames=10,
        sample_height=46,
        sample_width=80,
    )


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path):
    export_presto(Presto(SMALL), tmp_path, torch.float32)
    return tmp_path


def test_tensors_that_do_not_fit_are_named(folder):
    change(folder, num_layers=3)
    with pytest.raises(BadWeights, match=r"missing transformer_blocks\.2\..* and 16 more"):
        load_presto(folder)
    change(folder, num_layers=1)
    with pytest.raises(BadWeights, match=r"unknown transformer_blocks\.1\."):
        load_presto(folder)
    change(folder, num_layers=2, caption_channels=11)
    with pytest.raises(BadWeights, match=r"linear_1\.weight is \(24, 10\), expected \(24, 11\)"):
        load_presto(folder)


def test_a_config_of_another_network_is_refused(folder):
    change(folder, activation_fn="geglu")
    with pytest.raises(BadWeights, match="activation_fn is 'geglu'; only 'gelu-approx"):
        load_presto(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_layers", "two"), ("patch_size", 0), ("attention_head_dim", 16), ("sample_size", [1])],
)
def test_a_config_with_an_impossible_value_is_refused(folder, name, value):
    change(folder, **{name: value})
    if name == "sample_size":
        change(folder, sample_height=None)
    path = folder / "config.json"
    read = {k: v for k, v in json.loads(path.read_text()).items() if v is not None}
    path.write_text(json.dumps(read))
    with pytest.raises(BadWeights, match=rf"config\.json: {name} is .*; download it again"):
        load_presto(folder)


def test_weights_of_another_width_name_the_setting(folder):
    network = Presto(replace(SMALL, num_attention_heads=4, cross_attention_dim=48))
    with pytest.raises(BadWeights, match=r"is 4; set system\.model\.num_attention_heads=2"):
        load_weights(network, folder)


def test_a_damaged_or_missing_file_is_named(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    complete = file.read_bytes()
    file.write_bytes(complete[:-100])
    with pytest.raises(BadWeights, match=r"model\.safetensors: .*; download it again"):
        load_presto(folder)
    file.unlink()
    with pytest.raises(BadWeights, match=r"no \.safetensors file"):
        load_presto(folder)
    with pytest.raises(BadWeights, match=r"no transformer's config\.json"):
        load_presto(folder / "nowhere")


@pytest.mark.parametrize("text", ['{"num_layers": 2', "[]", "[" * 100_000])
def test_a_torn_config_or_index_is_named(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadWeights, match=r"index\.json: .*; download it again"):
        tensor_files(folder)
    (folder / "config.json").write_text(text)
    with pytest.raises(BadWeights, match=r"config\.json: .*; download it again"):
        read_config(folder)


def test_a_network_that_diffusers_can_not_run_is_not_exported(tmp_path):
    with pytest.raises(BadWeights, match=r"model\.positions is space; diffusers"):
        export_presto(Presto(replace(SMALL, positions="space")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_into_a_folder_of_several_files_is_refused(folder):
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(BadWeights, match="already holds weights in several files"):
        export_presto(Presto(SMALL), folder)


def test_an_index_that_names_files_elsewhere_is_refused(folder):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file(weights, folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {name: "../elsewhere.safetensors" for name in weights}}
    for names in (index, {"weight_map": {"a": 5}}, {"weight_map": {"a": ["b"]}}):
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(names))
        with pytest.raises(BadWeights, match="names a file outside its folder"):
            load_presto(folder)
