import errno
import hashlib
import os
import resource
from collections import Counter

import av
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from curation.access_check import AccessCheck
from curation.cli import run_command
from curation.funnel import format_skipped
from curation.lease import NOT_APART
from curation.parquet import ROWS_PER_GROUP, find_rows, scan
from curation.sql import SqlError, run_select
from curation.stage import BadVideo, OutputError, TransientError
from curation.storage import Folder
from curation.storage_errors import MissingFile
from curation.urls import InputError, local_path
from curation.video.container import ALLOWED_FORMATS
from curation.video_files import compute_sha256, local_copy
from curation.video_list import FileError, file_error, list_videos
from tests.support.full_disk import full_disk

SCHEMA = pa.schema([("clip_id", pa.string())])


def create_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(found, folder):
    return [os.path.relpath(local_path(v.video), folder) for v in found]


def test_videos_of_a_folder_and_its_subfolders_are_listed_in_order(tmp_path):
    create_files(tmp_path, "b.MP4", "a.mkv", "notes.txt", "sub/c.webm", "sub/deep/d.mov")
    assert names(list_videos(str(tmp_path)), tmp_path) == [
        *("a.mkv", "b.MP4", "sub/c.webm", "sub/deep/d.mov")
    ]


def test_symlink_loop_is_listed_once(tmp_path):
    create_files(tmp_path, "sub/a.mp4")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert names(list_videos(str(tmp_path)), tmp_path) == ["sub/a.mp4"]


def test_videos_with_unusual_names_are_listed_and_opened(tmp_path):
    unusual = [
        "with space.mp4",
        "new\nline.mp4",
        "-dash.mp4",
        "ünï.mp4",
        "100%.mp4",
        b"\xff\xfe.mp4",
    ]
    for name in unusual:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    found = list(list_videos(str(tmp_path)))
    assert len(found) == len(unusual)
    table = pa.table({"video": [v.video for v in found]})  # a table can hold all of them
    for video in table["video"].to_pylist():
        with local_copy(video) as path, open(path, "rb") as file:
            assert file.read() == b"x"


def test_input_is_a_list_a_pattern_or_a_single_file(tmp_path):
    create_files(tmp_path, "a.mp4", "b.mp4", "c.avi")
    text = tmp_path / "list.txt"
    text.write_text(f"# a comment\nb.mp4\n\n{tmp_path}/c.avi\nmissing.mp4\n")
    listed = list(list_videos(str(text)))
    assert names(listed, tmp_path) == ["b.mp4", "c.avi", "missing.mp4"]
    assert [v.bytes for v in listed] == [1, 1, -1]
    pq.write_table(pa.table({"video": ["a.mp4"]}), tmp_path / "list.parquet")
    assert names(list_videos(str(tmp_path / "list.parquet")), tmp_path) == ["a.mp4"]
    assert names(list_videos(str(tmp_path / "*.mp4")), tmp_path) == ["a.mp4", "b.mp4"]
    assert names(list_videos(str(tmp_path / "c.avi")), tmp_path) == ["c.avi"]


def test_missing_input_is_refused_with_what_was_expected(tmp_path):
    with pytest.raises(InputError, match="no such file or folder; expected a folder, a video"):
        list(list_videos(str(tmp_path / "none")))
    with pytest.raises(InputError, match="no file matches"):
        list(list_videos(str(tmp_path / "*.mp4")))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="expected a column video, path or url"):
        list(list_videos(str(tmp_path / "list.parquet")))
    damaged = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"video": [f"{i * 7919 % 10007}.mp4" for i in range(5000)]}), damaged)
    data = bytearray(damaged.read_bytes())
    data[50:400] = bytes(350)  # of the first page; the schema is at the end
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.parquet: can't be read as a list"):
        list(list_videos(str(damaged)))


def test_a_hundred_thousand_files_are_listed_in_seconds(tmp_path):
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            os.mknod(tmp_path / str(folder) / f"{number}.mp4")
    assert sum(1 for _ in list_videos(str(tmp_path))) == 100_000


def test_unfinished_files_are_not_listed_in_the_output(tmp_path):
    folder = Folder(str(tmp_path)) / "sub"
    folder.write("a/b.txt", b"data")
    assert folder.exists("a/b.txt")
    assert folder.read("a/b.txt") == b"data"
    (tmp_path / "sub" / "a" / ".tmp-1-c.txt").write_bytes(b"half")
    assert folder.names("a") == ["b.txt"]


def test_full_disk_is_an_output_error():
    with pytest.raises(OutputError, match="can't write /dev/full"):
        Folder("/dev/full").write("a.txt", b"data")


def test_output_folder_whose_name_is_not_utf_8_is_refused_with_the_fix(tmp_path):
    with pytest.raises(OutputError, match=r"this folder is not UTF-8\n  fix: rename it"):
        Folder(os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff"))


def test_file_that_another_process_removed_stops_the_run_with_one_line(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        run_command(None, lambda _: Folder(str(tmp_path)).read_table("clips.parquet"), [])
    assert stopped.value.code == f"MissingFile: can't read {tmp_path}/clips.parquet: no such file"


def test_table_that_is_removed_or_damaged_while_it_is_scanned_is_named(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write_table("clips.parquet", pa.table({"clip_id": ["a"]}))
    table = folder.dataset("clips.parquet")
    assert [part.num_rows for part in scan(table, ["clip_id"])] == [1]
    (tmp_path / "clips.parquet").write_bytes(b"half of a table")
    with pytest.raises(OutputError, match=r"can't read .*clips\.parquet: "):
        list(scan(table, ["clip_id"]))
    (tmp_path / "clips.parquet").unlink()
    with pytest.raises(MissingFile, match=r"can't read .*clips\.parquet: no such file"):
        list(scan(table, ["clip_id"]))


@pytest.mark.parametrize("url", ["s3://", "gs:///folder"])
def test_url_without_a_bucket_is_refused(url):
    with pytest.raises(OutputError, match=r"has no bucket; expected .*://BUCKET/FOLDER"):
        Folder(url)


# ---- what is passed over


def test_folder_gives_every_kind_of_file_that_the_reader_opens(tmp_path):
    opened = {
        suffix
        for name in ALLOWED_FORMATS.split(",")
        for suffix in av.format.ContainerFormat(name, "r").extensions
    }
    no_video = {"avif", "heic", "heif", "ism", "isma", "m4a", "m4b", "mka", "mks", "ogg", "psp"}
    named = ["asf", "rm", "wtv", "dv", "nut", "m2v", "qt", "divx", "rmvb", "trp"]
    suffixes = sorted({*named, *opened - no_video})
    create_files(tmp_path, *(f"a.{suffix}" for suffix in suffixes))
    assert names(list_videos(str(tmp_path)), tmp_path) == [f"a.{suffix}" for suffix in suffixes]


def test_skipped_files_are_counted_by_suffix(tmp_path):
    create_files(tmp_path, "a.mp4", "b.JPG", "sub/c.jpg", "sub/notes", "d.txt")
    skipped = Counter()
    assert names(list_videos(str(tmp_path), skipped), tmp_path) == ["a.mp4"]
    assert skipped == {".jpg": 2, "": 1, ".txt": 1}
    assert format_skipped(dict(skipped.most_common())) == ".jpg 2, .txt 1, no suffix 1"


def test_unreadable_folder_is_listed_with_its_error(tmp_path, monkeypatch):
    create_files(tmp_path, "a.mp4")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):  # its path is too long for the system, also for root
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    found = list(list_videos(str(tmp_path)))
    assert [file_error(v.bytes) for v in found if v.bytes < 0] == ["a folder that can't be read"]
    assert found[0].bytes == 1


def test_folder_that_the_system_fails_to_read_counts_as_unreachable(tmp_path):
    """Else its videos would be missing from a run that ends with exit code 0."""
    create_files(tmp_path, "a.mp4")
    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))  # no file can be opened
    try:
        [folder] = list_videos(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (folder.video, folder.bytes) == (str(tmp_path), FileError.UNREACHABLE)


LISTED = ["ünï cödé.mp4", "a.mp4", "naïve – ½.mp4"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]
)
def test_list_may_have_any_encoding_that_editors_write(tmp_path, encoding, ending):
    create_files(tmp_path, *LISTED)
    (tmp_path / "list.txt").write_bytes((ending.join(LISTED) + ending).encode(encoding))
    found = list(list_videos(str(tmp_path / "list.txt")))
    assert names(found, tmp_path) == LISTED
    assert [v.bytes for v in found] == [1, 1, 1]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("mac-roman", "éà.mp4"),
        ("cp1251", "привет.mp4"),
        ("gb18030", "视频.mp4"),
        ("cp932", "動.mp4"),
    ],
)
def test_name_in_another_encoding_is_found_by_the_file_that_exists(tmp_path, encoding, name):
    create_files(tmp_path, name)
    (tmp_path / "list.txt").write_bytes(name.encode(encoding))
    assert names(list_videos(str(tmp_path / "list.txt")), tmp_path) == [name]


def test_names_that_look_like_the_syntax_of_a_list_are_found(tmp_path):
    unusual = [
        "#1 hit.mp4",
        '"quoted".mp4"',
        " spaces .mp4 ",
        "a\u2028b\x0cc\x85d.mp4",
        "e\u0301.mp4",
    ]
    create_files(tmp_path, *unusual, "b, c.mp4", 'd "e".mp4', "end.mp4")
    lines = [
        *unusual,
        "# a comment",
        "# see https://example.org/a.mp4",
        '"b, c.mp4"',
        '"d ""e"".mp4"',
        "end.mp4  ",
        "#2.mp4",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    found = list(list_videos(str(tmp_path / "list.txt")))
    assert names(found, tmp_path) == [*unusual, "b, c.mp4", 'd "e".mp4', "end.mp4"]


def test_name_in_another_unicode_form_is_found(tmp_path):
    create_files(tmp_path, "\u00e9.mp4")
    (tmp_path / "list.txt").write_text("e\u0301.mp4\n", encoding="utf-8")
    assert names(list_videos(str(tmp_path / "list.txt")), tmp_path) == ["\u00e9.mp4"]


def test_failed_disk_is_no_property_of_the_file(tmp_path):
    with pytest.raises(TransientError, match="can't read /proc/self/mem: Input/output error"):
        compute_sha256("/proc/self/mem")
    with pytest.raises(BadVideo, match="can't be read: No such file"):
        compute_sha256(tmp_path / "gone.mp4")


def test_node_with_another_folder_at_the_outputs_path_is_refused(tmp_path):
    check = AccessCheck.prepare(str(tmp_path), ())
    check.run()
    assert os.listdir(tmp_path) == [check.file]
    (tmp_path / check.file).rename(tmp_path / "of another run")
    with pytest.raises(OutputError, match=r"the node \S+ has another folder at .*\n  fix: mount"):
        check.run()
    (tmp_path / check.file).mkdir()  # as one that can't be read
    with pytest.raises(OutputError, match=r"the node \S+ can't use the output: .*\n  fix: give"):
        check.run()


def test_node_that_can_read_one_of_the_videos_is_accepted(tmp_path):
    videos = tuple(str(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    check = AccessCheck(None, videos=videos)
    with pytest.raises(InputError, match=r"can't read the input: .*a\.mp4 is missing, or not"):
        check.run()
    create_files(tmp_path, "b.mp4")
    check.run()
    AccessCheck(None).run()


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    lines: list[str] = []
    with Folder(str(tmp_path)).locked(report=lines.append):
        pass
    assert lines == [f"{tmp_path}: {NOT_APART}"]


@pytest.mark.parametrize("error", [FileNotFoundError("b.mp4"), pa.ArrowInvalid("b"), KeyError("b")])
def test_error_within_the_block_of_a_table_writer_is_raised_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, Folder(str(tmp_path)).table_writer("a", SCHEMA):
        raise error
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [0, 1000, ROWS_PER_GROUP])  # written with the footer, at the end
def test_table_on_a_full_disk_is_an_error_that_names_it(tmp_path, rows):
    ids = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(rows)]
    with (
        full_disk(100),
        pytest.raises(OutputError, match=rf"^can't write {tmp_path}/a: .*File too large"),
        Folder(str(tmp_path)).table_writer("a", SCHEMA) as writer,
    ):
        writer.write(pa.table({"clip_id": ids}, SCHEMA))
    assert list(tmp_path.iterdir()) == []


def test_table_in_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=rf"^can't write {tmp_path}/file/a: "),
        Folder(str(tmp_path / "file")).table_writer("a", SCHEMA),
    ):
        pass


def test_changed_byte_in_a_page_of_a_table_is_an_error_of_reading(tmp_path):
    ids = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(500)]
    table, out = pa.table({"clip_id": ids, "n": range(500)}), Folder(str(tmp_path))
    with out.table_writer("clips.parquet", table.schema) as writer:
        writer.write(table)
    file = tmp_path / "clips.parquet"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1  # of a clip_id
    file.write_bytes(data)
    clips = out.dataset("clips.parquet")
    for read in (
        lambda: list(scan(clips, ["clip_id"])),
        lambda: find_rows(clips, pc.field("n") == 7),
        lambda: run_select(clips, ["clip_id"], "n > 3", "--where"),
    ):
        with pytest.raises((OutputError, SqlError), match="verify page integrity"):
            read()


@pytest.mark.parametrize("name", ["../mine", "a/../../mine", "/etc/passwd", "a\0b"])
def test_name_outside_of_the_folder_is_neither_read_nor_written_nor_deleted(name, tmp_path):
    (tmp_path / "mine").write_text("precious")
    folder = Folder(str(tmp_path / "out"))
    for use in (
        *(folder.read, folder.sha256, folder.size, folder.names, folder.delete, folder.dataset),
        lambda name: folder.read_part(name, 0, 1),
        lambda name: folder / name,
        lambda name: folder.write(name, b"other"),
    ):
        with pytest.raises(OutputError, match="is not the name of a file in"):
            use(name)
    assert (tmp_path / "mine").read_text() == "precious"


def test_part_that_is_larger_than_its_file_takes_the_memory_of_the_file_alone(tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a", b"0123456789")
    assert folder.read_part("a", 7, 1 << 60) == b"789"
    assert folder.read_part("a", 1 << 60, 5) == b""
