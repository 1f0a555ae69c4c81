"""Lists the videos of the input: a folder, a file, a pattern or a list, on disk or in a store."""

from __future__ import annotations

import codecs
import glob
import os
import re
import stat
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.objects import read_object
from curation.urls import (
    InputError,
    UnreachableError,
    file_system,
    is_remote,
    is_url,
    join_path,
    local_path,
    url_of,
)
from curation.video_files import STORAGE_ERRNOS

VIDEO_SUFFIXES = tuple(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mp4v", "mov", "qt", "3gp", "3g2", "mj2", "f4v", "ismv"),
        *("mkv", "mk3d", "webm", "avi", "divx", "xvid", "flv", "asf", "wmv", "wtv", "rm", "rmvb"),
        *("ts", "m2t", "mts", "m2ts", "trp", "tp", "mpg", "mpeg", "mpe", "mpv", "m1v"),
        *("m2v", "m2p", "vob", "vro", "evo", "mod", "tod", "ogv", "ogm", "mxf", "nut", "dv"),
        *("dif", "ivf", "obu", "y4m", "h264", "264", "avc", "h26l", "h265", "265", "hevc"),
    )
)
LIST_SUFFIXES = (".txt", ".parquet")
# Tried for a name that is no UTF-8; the first that gives an existing file counts.
LIST_ENCODINGS = ("cp1252", "mac-roman", "cp850", "cp1250", "cp1251", "gb18030", "cp932", "cp949")
MAX_CONCURRENT_STATS = 32  # for the files of a list: a request to a store takes milliseconds


class FileError(IntEnum):
    """Why a listed file can't be read. Stored in the column `bytes` instead of a size."""

    MISSING = -1
    NOT_A_FILE = -2
    UNREACHABLE = -3  # for now: its row stays open, and the next run reads it
    UNREADABLE_FOLDER = -4
    NOT_A_URL = -5


ERROR_TEXTS = {
    FileError.MISSING: "no such file",
    FileError.NOT_A_FILE: "not a file",
    FileError.UNREACHABLE: "can't be reached",
    FileError.UNREADABLE_FOLDER: "a folder that can't be read",
    FileError.NOT_A_URL: "not a URL of an object",
}


@dataclass(frozen=True)
class VideoFile:
    """One file of the input. Its fields are columns of the ledger."""

    video: str  # path or URL
    bytes: int  # size, or a FileError
    version: str  # changes when the file does


def file_error(size: int) -> str | None:
    """Returns the text of a FileError in the column `bytes`; None if it is a size."""
    return ERROR_TEXTS[FileError(size)] if size < 0 else None


def list_videos(source: str, skipped: Counter[str] | None = None) -> Iterator[VideoFile]:
    """Yields the videos of a folder (recursive), a file, a glob, or a .txt or .parquet list.

    A folder gives the files with a suffix of VIDEO_SUFFIXES, and `skipped` counts the others by
    suffix; a list or a glob gives every file. A missing file of a list and a folder that can't be
    read are yielded with a FileError, so that their rows fail with that reason.
    Raises InputError if the source does not exist or matches nothing.
    """
    skipped = Counter() if skipped is None else skipped
    if is_remote(source):
        yield from _list_url(source, skipped)
        return
    path = local_path(source)
    if os.path.isdir(path):
        yield from _walk_videos(path, skipped)
    elif os.path.isfile(path) and path.lower().endswith(LIST_SUFFIXES):
        yield from _stat_videos(_read_list(pafs.LocalFileSystem(), path, path))
    elif os.path.lexists(path):
        yield stat_video(path)
    elif glob.has_magic(path):
        found = sorted(p for p in glob.iglob(path, recursive=True) if not os.path.isdir(p))
        if not found:
            raise InputError(f"{source}: no file matches this pattern")
        yield from map(stat_video, found)
    else:
        raise InputError(
            f"{source}: no such file or folder; expected a folder, a video, a pattern like "
            "'in/*.mp4', or a .txt or .parquet list"
        )


def _is_video_name(name: str, skipped: Counter[str]) -> bool:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return True
    skipped[suffix] += 1
    return False


def _walk_videos(folder: str, skipped: Counter[str]) -> Iterator[VideoFile]:
    """Depth first, sorted by name. Enters each folder once, also in symlink loops."""
    entered: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        try:
            info = os.stat(current)
            entries = sorted(os.scandir(current), key=lambda e: e.name)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as e:
            path = _encode_path(os.path.abspath(current))
            is_storage = e.errno in STORAGE_ERRNOS
            error = FileError.UNREACHABLE if is_storage else FileError.UNREADABLE_FOLDER
            yield VideoFile(path, error, "")
            continue
        if (info.st_dev, info.st_ino) in entered:
            continue
        entered.add((info.st_dev, info.st_ino))
        folders = []
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                folders.append(entry.path)
            elif _is_video_name(entry.name, skipped):
                yield stat_video(entry.path)
        stack.extend(reversed(folders))


def _read_list(fs: pafs.FileSystem, fs_path: str, source: str) -> list[str]:
    """Returns the paths or URLs in a list. Relative ones are relative to the list's folder."""
    try:
        if fs_path.lower().endswith(".parquet"):
            lines = _read_parquet_list(fs, fs_path, source)
        else:
            lines = _read_text_list(fs, fs_path, source)
    except (pa.ArrowException, OSError) as e:
        raise InputError(f"{source}: can't be read as a list: {e}") from None
    if is_url(source):
        folder = url_of(os.path.dirname(fs_path), source)
        quoted = [n if is_url(n) else urllib.parse.quote(os.fsencode(n)) for n in lines]
        return [n if is_url(n) else join_path(folder, n) for n in quoted]
    root = os.path.dirname(os.path.abspath(source))
    return [n if is_url(n) else os.path.join(root, n) for n in lines]


def _read_parquet_list(fs: pafs.FileSystem, fs_path: str, source: str) -> list[str]:
    names = pq.read_schema(fs_path, filesystem=fs).names
    column = next((c for c in ("video", "path", "url") if c in names), None)
    if column is None:
        raise InputError(f"{source}: expected a column video, path or url; found {names}")
    lines = pq.read_table(fs_path, columns=[column], filesystem=fs)[column].to_pylist()
    if not all(isinstance(line, str) for line in lines):
        raise InputError(f"{source}: expected texts in the column {column}, none of them null")
    return lines


def _read_text_list(fs: pafs.FileSystem, fs_path: str, source: str) -> list[str]:
    if is_url(source):
        text = decode_list(read_object(fs, fs_path))
    else:
        with fs.open_input_stream(fs_path) as stream:
            text = decode_list(stream.read())

    def exists(name: str) -> bool:
        path = os.path.join(os.path.dirname(fs_path), name)
        if re.match(r"\w+://", name):  # a comment may hold a URL too
            return True
        if is_url(source):
            return fs.get_file_info(path).type != pafs.FileType.NotFound
        return os.path.lexists(path)

    return read_lines(text, exists)


def decode_list(data: bytes) -> str:
    """The text of a list: UTF-8 or UTF-16, with or without a byte order mark. Bytes that are no
    UTF-8 become surrogates, as in a path."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    if b"\0" in data:  # no path has one
        is_little = data[1::2].count(0) > data[::2].count(0)
        return data.decode("utf-16-le" if is_little else "utf-16-be", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def read_lines(text: str, exists: Callable[[str], bool]) -> list[str]:
    """The names in a list: one per line, without empty lines and comments (#).

    exists: whether a file has this name. A name may begin with #, be in quotes or end in a space;
    editors and spreadsheets add quotes and spaces, and may store another encoding. Of all readings
    of such a line, the first that names an existing file is taken.
    """
    names = []
    for line in text.replace("\r\n", "\n").split("\n" if "\n" in text else "\r"):
        if not line.strip():
            continue
        choices = [line, line.strip()]
        if line.isascii() and line[0] not in '#"' and choices[0] == choices[1]:
            names.append(line)
            continue
        raw = line.encode("utf-8", "surrogateescape")
        if any("\ud800" <= character <= "\udfff" for character in line):
            choices += [raw.decode(encoding, "replace") for encoding in LIST_ENCODINGS]
        choices += [unicodedata.normalize(form, line) for form in ("NFC", "NFD")]
        choices += [c[1:-1].replace('""', '"') for c in choices if c[:1] == c[-1:] == '"']
        found = next((choice for choice in choices if choice and exists(choice)), None)
        if found is not None or not line.startswith("#"):
            names.append(found or line)
    return names


def _stat_videos(paths: list[str]) -> Iterator[VideoFile]:
    with ThreadPoolExecutor(MAX_CONCURRENT_STATS) as pool:
        for first in range(0, len(paths), 10_000):
            yield from pool.map(stat_video, paths[first : first + 10_000])


def stat_video(path: str) -> VideoFile:
    """Returns the current size and version of a video."""
    if is_remote(path):
        try:
            fs, fs_path = file_system(path)
            info = fs.get_file_info(fs_path)
        except (UnreachableError, OSError, pa.ArrowException):
            return VideoFile(path, FileError.UNREACHABLE, "")
        except InputError:
            return VideoFile(path, FileError.NOT_A_URL, "")
        size = info.size if info.type == pafs.FileType.File else FileError.MISSING
        return VideoFile(path, size, str(info.mtime_ns))
    path = os.path.abspath(local_path(path))
    try:
        info = os.stat(path)
    except (OSError, ValueError) as e:  # ValueError: the name holds a NUL byte
        unreachable = isinstance(e, OSError) and e.errno in STORAGE_ERRNOS
        return VideoFile(
            _encode_path(path), FileError.UNREACHABLE if unreachable else FileError.MISSING, ""
        )
    size = info.st_size if stat.S_ISREG(info.st_mode) else FileError.NOT_A_FILE
    return VideoFile(_encode_path(path), size, str(info.st_mtime_ns))


def _list_url(url: str, skipped: Counter[str]) -> Iterator[VideoFile]:
    fs, fs_path = file_system(url)
    try:
        info = fs.get_file_info(fs_path)
        if info.type == pafs.FileType.File and fs_path.lower().endswith(LIST_SUFFIXES):
            yield from _stat_videos(_read_list(fs, fs_path, url))
            return
        found = [info] if info.type == pafs.FileType.File else []
        if info.type == pafs.FileType.Directory:
            found = fs.get_file_info(pafs.FileSelector(fs_path, recursive=True))
            files = [f for f in found if f.type == pafs.FileType.File]
            found = [f for f in files if _is_video_name(f.base_name, skipped)]
        elif not found and glob.has_magic(fs_path):
            root = fs_path[: re.search(r"[*[?]", fs_path).start()].rpartition("/")[0]  # type: ignore[union-attr]
            found = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
            files = [f for f in found if f.type == pafs.FileType.File]
            found = [f for f in files if matches_pattern(f.path.split("/"), fs_path.split("/"))]
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{url}: can't be reached: {e}") from None
    if info.type == pafs.FileType.NotFound and not found:
        raise InputError(f"{url}: no such file or folder, and no file matches it as a pattern")
    for f in sorted(found, key=lambda f: f.path):
        yield VideoFile(url_of(f.path, url), f.size, str(f.mtime_ns))


def matches_pattern(path: list[str], pattern: list[str]) -> bool:
    """Returns whether the parts of a path match a pattern's; `**` matches any number of folders."""
    if not pattern or not path:
        return not path and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return matches_pattern(path, pattern[1:]) or matches_pattern(path[1:], pattern)
    return fnmatchcase(path[0], pattern[0]) and matches_pattern(path[1:], pattern[1:])


def _encode_path(path: str) -> str:
    """Returns a path as valid UTF-8; the inverse of `local_path`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote_from_bytes(os.fsencode(path))
    return path
