"""Where files live: a local path or a URL (`s3://`, `gs://`), through pyarrow's file systems.

`Folder` is the output: a file is there whole or not at all. `list_videos` is the input.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
import tempfile
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.atomic import TEMPORARY, write_atomic
from curation.errors import UserError
from curation.stage import BadVideo, OutputError

VIDEO_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "ts", "mts", "m2ts"),
        *("mpg", "mpeg", "vob", "wmv", "flv", "ogv", "mxf"),
    )
)
LIST_SUFFIXES = (".txt", ".parquet")


GONE, NO_FILE, UNREACHABLE = -1, -2, -3  # "sizes" of what is listed and is no file to read
WRONG = {GONE: "no such file", NO_FILE: "not a file", UNREACHABLE: "can't be reached"}
LOOK_AT_ONCE = 32  # files of a list: a store answers after some milliseconds each


class InputError(UserError):
    """The input can't be listed: which, and what was expected."""


@dataclass(frozen=True)
class Listed:
    """One file of the input. `version` changes when the file does."""

    video: str
    bytes: int
    version: str


def is_url(path: str) -> bool:
    return "://" in path


def below(folder: str, name: str) -> str:
    """The path or URL of what lies in a folder. A URL's options stay at its end."""
    base, mark, options = folder.partition("?") if is_url(folder) else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


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
    if _is_remote(source):
        yield from _list_url(source)
        return
    path = local_path(source)
    if os.path.isdir(path):
        yield from (look_at(p) for p in _walk(path))
    elif os.path.isfile(path) and path.lower().endswith(LIST_SUFFIXES):
        yield from _look_at_all(_read_list(pafs.LocalFileSystem(), path, path))
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


def _read_list(fs: pafs.FileSystem, inner: str, source: str) -> list[str]:
    """The names in a list; what is no URL and no absolute path is meant from the list's folder."""
    if inner.lower().endswith(".parquet"):
        try:
            names = pq.read_schema(inner, filesystem=fs).names
        except (pa.ArrowException, OSError) as e:
            raise InputError(f"{source}: not a Parquet list: {e}") from None
        column = next((c for c in ("video", "path", "url") if c in names), None)
        if column is None:
            raise InputError(f"{source}: expected a column video, path or url; found {names}")
        lines = pq.read_table(inner, columns=[column], filesystem=fs)[column].to_pylist()
    else:
        with fs.open_input_stream(inner) as stream:
            lines = os.fsdecode(stream.read()).splitlines()
        lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if is_url(source):
        folder = _url(source, os.path.dirname(inner))
        return [n if is_url(n) else below(folder, urllib.parse.quote(n)) for n in lines]
    root = os.path.dirname(os.path.abspath(source))
    return [n if is_url(n) else os.path.join(root, n) for n in lines]


def _look_at_all(paths: list[str]) -> Iterator[Listed]:
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        for first in range(0, len(paths), 10_000):
            yield from pool.map(look_at, paths[first : first + 10_000])


def look_at(path: str) -> Listed:
    """Size and version of a listed file as they are now."""
    if _is_remote(path):
        try:
            fs, inner = _file_system(path)
            info = fs.get_file_info(inner)
        except (InputError, OSError, pa.ArrowException):
            return Listed(path, UNREACHABLE, "")
        size = info.size if info.type == pafs.FileType.File else GONE
        return Listed(path, size, str(info.mtime_ns))
    path = os.path.abspath(local_path(path))
    try:
        info = os.stat(path)
    except OSError:
        return Listed(_name(path), GONE, "")
    size = info.st_size if stat.S_ISREG(info.st_mode) else NO_FILE
    return Listed(_name(path), size, str(info.st_mtime_ns))


def _is_remote(path: str) -> bool:
    return is_url(path) and not path.startswith("file://")


def _list_url(url: str) -> Iterator[Listed]:
    fs, inner = _file_system(url)
    try:
        info = fs.get_file_info(inner)
        if info.type == pafs.FileType.File and inner.lower().endswith(LIST_SUFFIXES):
            yield from _look_at_all(_read_list(fs, inner, url))
            return
        found = [info] if info.type == pafs.FileType.File else []
        if info.type == pafs.FileType.Directory:
            found = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
            found = [f for f in found if Path(f.path).suffix.lower() in VIDEO_SUFFIXES]
        elif not found and glob.has_magic(inner):
            root = inner[: re.search(r"[*[?]", inner).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
            found = [f for f in found if _matches(f.path.split("/"), inner.split("/"))]
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{url}: can't be reached: {e}") from None
    if info.type == pafs.FileType.NotFound and not found:
        raise InputError(f"{url}: no such file or folder, and no file matches it as a pattern")
    for f in sorted(found, key=lambda f: f.path):
        if f.type == pafs.FileType.File:
            yield Listed(_url(url, f.path), f.size, str(f.mtime_ns))


def _matches(path: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` is any number of folders."""
    if not pattern or not path:
        return path == pattern
    if pattern[0] == "**":
        return _matches(path, pattern[1:]) or _matches(path[1:], pattern)
    return fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _parts(url: str) -> tuple[str, str, str, str]:
    """Scheme, store, path and options of `scheme://store/path?options`."""
    base, _, options = url.partition("?")
    scheme, _, place = base.partition("://")
    store, _, path = place.partition("/")
    return scheme, store, urllib.parse.unquote(path), options


def _url(like: str, inner: str) -> str:
    """The URL of a path in the file system of another URL."""
    scheme, store, _, options = _parts(like)
    path = inner.removeprefix(_connected(scheme, store, options)[1])
    return f"{scheme}://{store}{urllib.parse.quote(path)}" + (f"?{options}" if options else "")


def _file_system(url: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URL, and the path in it. Raises InputError."""
    scheme, store, path, options = _parts(url)
    if not store and scheme != "file":
        raise InputError(f"{url}: names no bucket; expected {scheme}://BUCKET/FOLDER")
    if ":" in store.rpartition("@")[0] or "secret_key=" in options:
        raise InputError(
            f"{scheme}://…: URLs are written into the dataset, so keys don't belong into them; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    try:
        fs, root = _connected(scheme, store, options)
    except (pa.ArrowException, OSError, ValueError) as e:
        raise InputError(f"{url}: can't be reached: {e}") from None
    return fs, f"{root}/{path}".rstrip("/")


@cache
def _connected(scheme: str, store: str, options: str) -> tuple[pafs.FileSystem, str]:
    if scheme == "s3":  # a file of one piece is one request
        options += "&" * bool(options) + "allow_delayed_open=true"
    return pafs.FileSystem.from_uri(f"{scheme}://{store}" + (f"?{options}" if options else ""))


def compute_sha256(path: str | Path) -> str:
    """Returns the hash of a local file, 64 hex digits. Raises BadVideo where it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise BadVideo(f"can't be read: {e.strerror}") from None


@contextmanager
def fetched(video: str) -> Iterator[str]:
    """A local path of a listed video; a remote one is copied to scratch for as long as needed."""
    if not _is_remote(video):
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
        self.url = url
        self.is_local = not is_url(url)
        if self.is_local:
            self.url = os.path.abspath(url)
            self._fs: pafs.FileSystem = pafs.LocalFileSystem()
            self._root = self.url
        else:
            try:
                self._fs, self._root = _file_system(url)
            except InputError as e:
                raise OutputError(str(e)) from None

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path(name))

    def path(self, name: str) -> str:
        """The path or URL of a file."""
        return below(self.url, name)

    def exists(self, name: str) -> bool:
        return self._look_at(name).type == pafs.FileType.File

    def size(self, name: str) -> int:
        """In bytes; 0 where there is none."""
        return self._look_at(name).size or 0

    def _look_at(self, name: str) -> pafs.FileInfo:
        with _told("look at", self.path(name)):
            return self._fs.get_file_info(f"{self._root}/{name}")

    def names(self, under: str = "") -> list[str]:
        """Files directly in this folder (or one below it), sorted; not the leftovers of a crash."""
        place = f"{self._root}/{under}".rstrip("/")
        with _told("list", self.path(under)):
            found = self._fs.get_file_info(pafs.FileSelector(place, allow_not_found=True))
        files = [f.base_name for f in found if f.type == pafs.FileType.File]
        return sorted(n for n in files if not n.startswith(TEMPORARY))

    def read(self, name: str) -> bytes:
        with (
            _told("read", self.path(name)),
            self._fs.open_input_stream(f"{self._root}/{name}") as stream,
        ):
            return stream.read()

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """The file's columns of these names, all by default; those that it lacks are left out."""
        with _told("read", self.path(name)), self._parquet(name) as file:
            return file.read(columns)

    def read_schema(self, name: str) -> pa.Schema:
        with _told("read", self.path(name)), self._parquet(name) as file:
            return file.schema_arrow

    def _parquet(self, name: str) -> pq.ParquetFile:
        path = f"{self._root}/{name}"
        return pq.ParquetFile(path, filesystem=self._fs, pre_buffer=True)

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """Writes beside and renames; an object store's PUT is whole by itself.

        durable=False: straight to its place and without fsync, for many small files that a row
        names only after they are written, and that are checked by their hash when read.
        """
        target = f"{self._root}/{name}"
        with _told("write", self.path(name)):
            if not self.is_local:
                with self._fs.open_output_stream(target) as stream:
                    stream.write(data)
                return
            if durable:
                write_atomic(Path(target), data, durable=True)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            Path(target).write_bytes(data)

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

    def sweep(self, skip: str) -> None:
        """Takes away what killed processes left half-written in this folder and those below it.

        skip: the name of folders that hold nothing of it, and too much to look through.
        """
        for here, folders, files in os.walk(self._root) if self.is_local else ():
            for name in (n for n in [*folders, *files] if n.startswith(TEMPORARY)):
                _remove(os.path.join(here, name))
            folders[:] = [n for n in folders if n != skip and not n.startswith(TEMPORARY)]

    def put(self, name: str, local: os.PathLike[str]) -> None:
        """Copies a local file here, in pieces."""
        with (
            _told("write", self.path(name)),
            open(local, "rb") as source,
            self._fs.open_output_stream(f"{self._root}/{name}") as out,
        ):
            while chunk := source.read(8 << 20):
                out.write(chunk)

    def delete(self, name: str) -> None:
        if self.exists(name):
            with _told("delete", self.path(name)):
                self._fs.delete_file(f"{self._root}/{name}")


@contextmanager
def _told(doing: str, place: str) -> Iterator[None]:
    """A failure of the storage is an OutputError; that a file isn't there stays what it is."""
    try:
        yield
    except (OSError, pa.ArrowException) as e:
        if doing == "read" and isinstance(e, FileNotFoundError):
            raise
        raise OutputError(f"can't {doing} {place}: {e}") from None


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except OSError as e:
        raise OutputError(f"can't remove {path}: {e.strerror}") from None
