"""Paths and URLs (`s3://`, `gs://`), and the file systems of pyarrow that they are in."""

from __future__ import annotations

import os
import urllib.parse
from functools import cache
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from curation.errors import UserError


class InputError(UserError):
    """The input can't be listed. The message names it and what was expected."""


class UnreachableError(InputError):
    """The store does not answer."""


def is_url(path: str) -> bool:
    return "://" in path


def join_path(folder: str, name: str) -> str:
    """Returns the path or URL of a file in a folder. A URL's options stay at its end."""
    base, mark, options = folder.partition("?") if is_url(folder) else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def is_inside(name: str) -> bool:
    """Whether the path of a file, relative to a folder, is of a file in it."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\0" in name)


def is_file_name(name: str) -> bool:
    """Whether it is the printable name of a file, without a folder."""
    return name.isprintable() and "/" not in name and name not in ("", ".", "..")


def local_path(video: str) -> str:
    """Returns the path of a listed local video. One that is not UTF-8 is listed as `file://…`."""
    if video.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(video[len("file://") :]))
    return video


def is_remote(path: str) -> bool:
    return is_url(path) and not path.startswith("file://")


def split_url(url: str) -> tuple[str, str, str, str]:
    """Returns scheme, bucket, path and options of `scheme://bucket/path?options`."""
    base, _, options = url.partition("?")
    scheme, _, location = base.partition("://")
    bucket, _, path = location.partition("/")
    return scheme, bucket, urllib.parse.unquote(path), options


def url_of(fs_path: str, sibling: str) -> str:
    """Returns the URL of a path in the file system of the URL `sibling`."""
    scheme, bucket, _, options = split_url(sibling)
    path = fs_path.removeprefix(_connect(scheme, bucket, options)[1])
    return f"{scheme}://{bucket}{urllib.parse.quote(path)}" + (f"?{options}" if options else "")


def file_system(url: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a URL, and the path in it. Raises InputError, and of it
    UnreachableError where the store does not answer."""
    scheme, bucket, path, options = split_url(url)
    if not bucket and scheme != "file":
        raise InputError(f"{url}: has no bucket; expected {scheme}://BUCKET/FOLDER")
    if ":" in bucket.rpartition("@")[0] or "secret_key=" in options:
        raise InputError(
            f"{scheme}://…: URLs are written into the dataset, so they must not contain keys; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    try:
        fs, root = _connect(scheme, bucket, options)
    except OSError as e:
        raise UnreachableError(f"{url}: can't be reached: {e}") from None
    except (pa.ArrowException, ValueError) as e:
        raise InputError(f"{url}: can't be reached: {e}") from None
    return fs, f"{root}/{path}".rstrip("/")


@cache
def _connect(scheme: str, bucket: str, options: str) -> tuple[pafs.FileSystem, str]:
    if scheme == "s3":  # with this option, a small file is written in one request
        options += "&" * bool(options) + "allow_delayed_open=true"
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{options}" if options else ""))
