"""Where files live: a local path or a URL (`s3://`, `gs://`), through pyarrow's file systems.

`Folder` is the output: a file is there whole or not at all. `list_videos` is the input.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.stage import BadVideo, OutputError

TEMPORARY = ".tmp-"  # names of what is being written begin so
VIDEO_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "ts", "mts", "m2ts"),
        *("mpg", "mpeg", "vob", "wmv", "flv", "ogv", "mxf"),
    )
)
LIST_SUFFIXES = (".txt", ".parquet")


GONE, NO_FILE = -1, -2  # "sizes" of what is listed and isn't there, or is a folder or a pipe


class InputError(Exception):
    """The input can't be listed: which, and what was expected."""


@dataclass(frozen=True)
class Listed:
    """One file of the input. `version` changes when the file does."""

    video: str
    bytes: int
    version: str


def is_url(path: str) -> bool:
    return "://" in path


def local_path(video: str) -> str:
    """A listed name as the system's path. `file://` names hold bytes that are no UTF-8."""
    if video.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(video[len("file://") :]))
    return video


def _name(path: str) -> str:
    """A path as text that any table can hold; the inverse of `local_path`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote_from_bytes(os.fsencode(path))
    return path


# ---------------------------------------------------------------- input


def list_videos(source: str) -> Iterator[Listed]:
    """The videos of a folder (recursive), a file, a glob, or a .txt or .parquet list, in order.

    A folder gives the files with a video's suffix; a list or a glob gives whatever it names. A
    listed file that isn't there is listed all the same, with GONE bytes: its row will say so.
    Raises InputError where there is nothing to list.
    """
    if is_url(source) and not source.startswith("file://"):
        yield from _list_url(source)
        return
    path = local_path(source)
    if os.path.isdir(path):
        yield from (look_at(p) for p in _walk(path))
    elif os.path.isfile(path) and path.lower().endswith(LIST_SUFFIXES):
        yield from (look_at(p) for p in _read_list(path))
    elif os.path.lexists(path):
        yield look_at(path)
    elif glob.has_magic(path):
        found = sorted(p for p in glob.iglob(path, recursive=True) if not os.path.isdir(p))
        if not found:
            raise InputError(f"{source}: no file matches this pattern")
        yield from map(look_at, found)
    else:
        raise InputError(
            f"{source}: no such file or folder; expected a folder, a video, a pattern like "
            "'in/*.mp4', or a .txt or .parquet list"
        )


def _walk(folder: str) -> Iterator[str]:
    """Depth first, in order of name. A folder reached twice (a symlink loop) is entered once."""
    seen: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        here = stack.pop()
        try:
            info = os.stat(here)
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError:
            continue  # a folder that vanished or may not be read holds nothing for us
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        folders = []
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                yield entry.path
        stack.extend(reversed(folders))


def _read_list(path: str) -> list[str]:
    if path.lower().endswith(".parquet"):
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError) as e:
            raise InputError(f"{path}: not a Parquet list: {e}") from None
        column = next((c for c in ("video", "path", "url") if c in names), None)
        if column is None:
            raise InputError(f"{path}: expected a column video, path or url; found {names}")
        lines = pq.read_table(path, columns=[column])[column].to_pylist()
    else:
        lines = os.fsdecode(Path(path).read_bytes()).splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("#")]
    root = os.path.dirname(os.path.abspath(path))
    return [n if is_url(n) else os.path.join(root, n) for n in lines]


def look_at(path: str) -> Listed:
    """Size and version of a listed file as they are now."""
    if is_url(path) and not path.startswith("file://"):
        fs, inner = pafs.FileSystem.from_uri(path)
        info = fs.get_file_info(inner)
        size = info.size if info.type == pafs.FileType.File else GONE
        return Listed(path, size, str(info.mtime_ns))
    path = os.path.abspath(local_path(path))
    try:
        info = os.stat(path)
    except OSError:
        return Listed(_name(path), GONE, "")
    size = info.st_size if stat.S_ISREG(info.st_mode) else NO_FILE
    return Listed(_name(path), size, str(info.st_mtime_ns))


def _list_url(url: str) -> Iterator[Listed]:
    fs, inner = _file_system(url)
    info = fs.get_file_info(inner)
    scheme = url.split("://")[0]
    if info.type == pafs.FileType.File:
        yield Listed(url, info.size, str(info.mtime_ns))
        return
    if info.type != pafs.FileType.Directory:
        raise InputError(f"{url}: no such file or folder")
    found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    for f in sorted(found, key=lambda f: f.path):
        if f.type == pafs.FileType.File and Path(f.path).suffix.lower() in VIDEO_SUFFIXES:
            yield Listed(f"{scheme}://{f.path}", f.size, str(f.mtime_ns))


def _file_system(url: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise InputError(f"{url}: can't be reached: {e}") from None


@contextmanager
def fetched(video: str) -> Iterator[str]:
    """A local path of a listed video; a remote one is copied to scratch for as long as needed."""
    if not is_url(video) or video.startswith("file://"):
        yield local_path(video)
        return
    fs, inner = _file_system(video)
    with tempfile.NamedTemporaryFile(suffix=Path(inner).suffix) as scratch:
        for chunk in _chunks(fs, inner):
            try:
                scratch.write(chunk)
            except OSError as e:
                raise OutputError(f"can't write to the scratch folder: {e}") from None
        scratch.flush()
        yield scratch.name


def _chunks(fs: pafs.FileSystem, inner: str) -> Iterator[bytes]:
    try:
        with fs.open_input_stream(inner) as stream:
            while chunk := stream.read(8 << 20):
                yield chunk
    except (OSError, pa.ArrowException) as e:
        raise BadVideo(f"can't be fetched: {e}") from None


# ---------------------------------------------------------------- output


class Folder:
    """A folder of the output, local or remote. A file in it is whole or not there.

    Every failure to write is an OutputError: the run stops, ready to go on.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.is_local = not is_url(url)
        if self.is_local:
            self.url = os.path.abspath(self.url)
            self._fs: pafs.FileSystem = pafs.LocalFileSystem()
            self._root = self.url
        else:
            self._fs, self._root = _file_system(self.url)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def path(self, name: str) -> str:
        """The path or URL of a file."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        return self._fs.get_file_info(f"{self._root}/{name}").type == pafs.FileType.File

    def size(self, name: str) -> int:
        """In bytes; 0 where there is none."""
        return self._fs.get_file_info(f"{self._root}/{name}").size or 0

    def names(self, under: str = "") -> list[str]:
        """Files directly in this folder (or one below it), sorted; not the leftovers of a crash."""
        place = f"{self._root}/{under}".rstrip("/")
        found = self._fs.get_file_info(pafs.FileSelector(place, allow_not_found=True))
        files = [f.base_name for f in found if f.type == pafs.FileType.File]
        return sorted(n for n in files if not n.startswith(TEMPORARY))

    def read(self, name: str) -> bytes:
        with self._fs.open_input_stream(f"{self._root}/{name}") as stream:
            return stream.read()

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(f"{self._root}/{name}", filesystem=self._fs, columns=columns)

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """Writes beside and renames; an object store's PUT is whole by itself.

        durable=False: straight to its place and without fsync, for many small files that a row
        names only after they are written, and that are checked by their hash when read.
        """
        target = f"{self._root}/{name}"
        try:
            if not self.is_local:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(data)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not durable:
                Path(target).write_bytes(data)
                return
            beside = (
                f"{os.path.dirname(target)}/{TEMPORARY}{os.getpid()}-{os.path.basename(target)}"
            )
            with open(beside, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(beside, target)
        except (OSError, pa.ArrowException) as e:
            raise OutputError(f"can't write {target}: {e}") from None

    def write_table(self, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises OutputError where another process holds the lock. The lock ends with its process.

        Of an object store, where nothing can be locked, one has to take care oneself.
        """
        if not self.is_local:
            yield
            return
        place = f"{self._root}/.lock"
        try:
            os.makedirs(self._root, exist_ok=True)
            file = open(place, "a")  # noqa: SIM115 (closed below)
        except OSError as e:
            raise OutputError(f"can't write to {self.url}: {e.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"another run is writing to {self.url}; wait for it") from None
            except OSError:
                pass  # a file system without locks
            yield

    def sweep(self) -> None:
        """Takes away what killed processes left half-written in this folder, not in those below."""
        if self.is_local and os.path.isdir(self._root):
            for entry in os.scandir(self._root):
                if entry.name.startswith(TEMPORARY):
                    _remove(entry)

    def put(self, name: str, local: os.PathLike[str]) -> None:
        """Copies a local file here, in pieces."""
        try:
            with (
                open(local, "rb") as source,
                self._fs.open_output_stream(f"{self._root}/{name}") as out,
            ):
                while chunk := source.read(8 << 20):
                    out.write(chunk)
        except (OSError, pa.ArrowException) as e:
            raise OutputError(f"can't write {self.path(name)}: {e}") from None

    def delete(self, name: str) -> None:
        target = f"{self._root}/{name}"
        if self._fs.get_file_info(target).type == pafs.FileType.File:
            self._fs.delete_file(target)


def _remove(entry: os.DirEntry[str]) -> None:
    try:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    except OSError as e:
        raise OutputError(f"can't remove {entry.path}: {e.strerror}") from None
