import pytest

from curation.atomic import atomic_path, write_atomic


def test_file_appears_whole_under_its_name_in_a_new_folder(tmp_path):
    target = tmp_path / "new" / "table.json"
    with atomic_path(target, durable=True) as part:
        part.write_text("half")
        assert not target.exists()
        part.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "table.json"
    write_atomic(target, "old")

    def fail() -> None:
        with atomic_path(target) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_text_is_written_as_utf_8(tmp_path):
    write_atomic(tmp_path / "a", "naïve")
    assert (tmp_path / "a").read_bytes() == "naïve".encode()
