"""Checkpoints on disk."""

import errno
import pickle
import random
import shutil
import subprocess

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")

from pipelines import verify
from tests.support.ranks import on_ranks
from training import checkpoint
from training.checkpoint import CheckpointError
from training.parallel import init_distributed


def save(folder, step, keep=1, best=False):
    tensors = {"x": torch.arange(1000.0) + step}
    return checkpoint.save(folder, step, tensors, {"step": step}, keep, best)


def without_hashes(path):
    """Makes a checkpoint one of an older version."""
    (path / "rank-0.sha256").unlink()
    state = (path / "state.json").read_text()
    (path / "state.json").write_text(state.replace('"format": 3', '"format": 2'))


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path):
    for step, best in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        save(tmp_path, step, 2, best)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-00000002", "step-00000004", "step-00000005"]
    assert checkpoint.read_state(tmp_path / "checkpoints" / "best")["step"] == 2
    assert torch.equal(
        checkpoint.read_tensors(tmp_path / "checkpoints" / "best")["x"], torch.arange(1000.0) + 2
    )


def test_another_rank_may_create_the_folder_before_the_first_rank_does(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def remove_then_create(path, ignore_errors):
        remove(path, ignore_errors=ignore_errors)
        if path.suffix == ".part":  # what PyTorch does on each rank
            path.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", remove_then_create)
    assert torch.equal(checkpoint.read_tensors(save(tmp_path, 1))["x"], torch.arange(1000.0) + 1)


def test_folder_that_can_not_be_made_is_named_with_the_last_checkpoint(tmp_path):
    (tmp_path / "checkpoints").symlink_to("/nowhere")
    with pytest.raises(CheckpointError, match=r"step-00000001: .*; the last good .*: none yet"):
        checkpoint.save(tmp_path, 1, {"a": torch.zeros(3)}, {}, keep=1)


def test_a_full_disk_leaves_the_last_checkpoint_complete(tmp_path):
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
        checkpoint.read_tensors(checkpoint.list_checkpoints(tmp_path)[-1])["x"][:2],
        torch.tensor([1.0, 2]),
    )


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def test_an_interrupt_while_a_checkpoint_is_written_or_read_is_no_error_of_it(
    tmp_path, monkeypatch
):
    path = save(tmp_path, 1)
    monkeypatch.setattr(torch.distributed.checkpoint.FileSystemWriter, "write_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.setattr(checkpoint, "_check_hashes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.read_tensors(path)


def test_a_checkpoint_that_the_storage_does_not_return_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path, 1)

    def fail(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "file_sha256", fail)
    for read in (checkpoint.read_state, checkpoint.read_tensors):
        with pytest.raises(CheckpointError, match=r"can't be read \(OSError: .*error\)$"):
            read(path)


def save_with_a_failing_rank(folder):
    """The error of a rank where rank 1 can't write its hashes."""

    def fail(_path, _data, **_options):
        raise OSError(errno.ENOSPC, "No space left")

    if init_distributed().rank == 1:
        checkpoint.write_atomic = fail
    with pytest.raises(CheckpointError) as raised:
        save(folder, 1)
    return str(raised.value)


def test_a_rank_that_can_not_write_stops_all_with_its_error(tmp_path):
    messages = on_ranks(2, save_with_a_failing_rank, tmp_path)
    assert messages[0] == messages[1]
    assert "No space left" in messages[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def last_seen_late(folder):
    if init_distributed().rank == 1:
        checkpoint.list_checkpoints = lambda run_dir: []
    return checkpoint.last_checkpoint(folder)


def test_all_ranks_resume_from_the_checkpoint_that_the_first_one_finds(tmp_path):
    assert checkpoint.last_checkpoint(tmp_path) is None
    path = save(tmp_path, 1)
    assert on_ranks(2, last_seen_late, tmp_path) == [path, path]


def save_in_own_folder(folder):
    rank = init_distributed().rank
    with pytest.raises(CheckpointError) as raised:
        save(folder / str(rank), 1)
    return str(raised.value)


def test_ranks_that_do_not_share_the_folder_are_refused(tmp_path):
    messages = on_ranks(2, save_in_own_folder, tmp_path)
    assert all("rank 1 are not there: all hosts must share run_dir" in m for m in messages)


def test_a_damaged_checkpoint_is_reported_and_code_in_it_does_not_run(tmp_path):
    path = save(tmp_path, 1)
    (data,) = path.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:900])
    with pytest.raises(CheckpointError, match=r"01: damaged or incomplete"):
        checkpoint.read_tensors(path)

    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    (path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match=r"\(ValueError: .metadata is not the file that"):
        checkpoint.read_tensors(path)
    without_hashes(path)
    with pytest.raises(CheckpointError, match=r"incomplete \(UnpicklingError: it names "):
        checkpoint.read_tensors(path)
    assert not (tmp_path / "harm").exists()
    for text, message in (
        ("{", "incomplete"),
        ("[1]", "JSON object"),
        ("{}", "not a checkpoint of"),
    ):
        (path / "state.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.read_state(path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read_state(tmp_path / "none")


def test_flipped_bit_or_missing_file_is_found_when_a_checkpoint_is_read(tmp_path):
    good = save(tmp_path / "good", 1)
    files = sorted(path.name for path in good.iterdir())
    assert files == [".metadata", "__0_0.distcp", "rank-0.sha256", "state.json"]
    assert (
        subprocess.run(["sha256sum", "-c", "rank-0.sha256"], cwd=good, check=False).returncode == 0
    )
    rng = random.Random(0)
    for number in range(60):
        bad = tmp_path / f"bad{number}"
        shutil.copytree(good, bad)
        file = bad / files[number % 4]
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
            checkpoint.read_state(bad), checkpoint.read_tensors(bad)
    for name in files:
        bad = tmp_path / f"no{name}"
        shutil.copytree(good, bad)
        (bad / name).unlink()
        with pytest.raises(CheckpointError, match=r"damaged|no such checkpoint"):
            checkpoint.read_state(bad), checkpoint.read_tensors(bad)
    assert checkpoint.read_state(good)["step"] == 1


def test_checkpoint_of_an_older_version_without_hashes_is_read(tmp_path):
    path = save(tmp_path, 1)
    without_hashes(path)
    assert checkpoint.read_state(path)["step"] == 1
    assert len(checkpoint.read_tensors(path)["x"]) == 1000


def test_verify_names_a_damaged_checkpoint_with_the_command(tmp_path, capsys):
    save(tmp_path, 1, keep=2), save(tmp_path, 2, keep=2)
    verify.main([str(tmp_path)])
    path = tmp_path / "checkpoints/step-00000002"
    (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes()[:-1])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        verify.main([str(tmp_path)])
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{path}/__0_0.distcp is not the file that was written; "
        f"fix: rm -r {path}; training then resumes from the checkpoint before"
    )
