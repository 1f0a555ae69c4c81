"""Files of the user are not replaced, and an output is not read as input."""

import pytest

from curation.stage import PlanError
from curation.storage import Folder
from pipelines import curate
from pipelines.output_folder import LATE_FILES, check_output_folder


def test_folder_with_other_files_is_refused_as_output_and_left_as_it_is(tmp_path, capsys):
    out = tmp_path / "notes"
    (out / "shards").mkdir(parents=True)
    (out / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match=r"PlanError: .*notes is no output .*: README.md\n  fix: "):
        curate.main(curate.__doc__, curate.run, [f"input={tmp_path}/in", f"output={out}"])
    assert (out / "README.md").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "shards"]


@pytest.mark.parametrize("inside", ["", "/out", "/a/b"])
def test_output_in_the_input_is_refused(tmp_path, inside):
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in").mkdir()
    with pytest.raises(PlanError, match="lies in the input"):
        check_output_folder(Folder(f"{tmp_path}/in{inside}"), f"{tmp_path}/link/")


IN_INPUT = [
    ("in/**/*.mp4", "in/out"),
    ("in/**", "in/out"),
    ("i*/*/*", "in/out"),
    ("in/*/*/*.mp4", "in/out"),
    ("s3://bucket/in", "s3://bucket/in/out"),
    ("s3://bucket", "s3://bucket/out?region=x"),
    ("s3://bucket/in/**/*.mp4", "s3://bucket/in/a/out"),
]
NOT_IN_INPUT = [
    ("in/*.mp4", "in/out"),
    ("in/*/*.mp4", "in/out"),
    ("in[1]/**", "in2/out"),
    ("list.txt", "out"),
    ("s3://bucket/in", "s3://bucket/in-2"),
    ("s3://bucket/in", "s3://other/in/out"),
    ("s3://bucket/in", "in/out"),
]


@pytest.mark.parametrize(("given", "out"), IN_INPUT)
def test_output_whose_files_the_input_would_include_is_refused(tmp_path, monkeypatch, given, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match="lies in the input"):
        check_output_folder(empty_folder(out), given)


@pytest.mark.parametrize(("given", "out"), NOT_IN_INPUT)
def test_output_that_the_input_does_not_include_is_accepted(tmp_path, monkeypatch, given, out):
    monkeypatch.chdir(tmp_path)
    check_output_folder(empty_folder(out), given)


def empty_folder(url: str) -> Folder:
    """A folder of that URL, which needs no store."""
    folder = Folder("out")
    folder.url = Folder(url).url if not url.startswith("s3:") else url
    return folder


def test_files_of_a_whole_run_are_known(dataset):
    found = {path.name for path in dataset.out.iterdir()}
    assert {"ledger", "README.md"} <= found
    assert found - {"ledger", "README.md"} <= LATE_FILES


def test_new_empty_and_earlier_outputs_are_accepted(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("new", "in-2"):
        check_output_folder(Folder(f"{tmp_path}/{name}"), f"{tmp_path}/in")
    (tmp_path / "removed").mkdir()
    for name in (*LATE_FILES, ".DS_Store"):
        (tmp_path / "removed" / name).touch()
    check_output_folder(Folder(f"{tmp_path}/removed"), None)
    (tmp_path / "earlier/ledger").mkdir(parents=True)
    (tmp_path / "earlier/README.md").touch()
    check_output_folder(Folder(f"{tmp_path}/earlier"), f"{tmp_path}/in/*.mp4")
