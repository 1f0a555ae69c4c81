"""Checks that each worker reaches the storage that the driver uses, before its first row."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass

import pyarrow as pa

from curation.stage import OutputError
from curation.storage import ACCESS_TOKEN, Folder
from curation.storage_errors import MissingFile
from curation.urls import InputError, file_system, is_remote, local_path


@dataclass(frozen=True)
class AccessCheck:
    """Shows that a worker, on whichever node, reaches the storage that the driver uses."""

    output: str | None  # folder, in which the driver wrote the token; None: not checked
    token: str = ""
    videos: tuple[str, ...] = ()  # that the driver has listed

    @property
    def file(self) -> str:
        """The file of the token, in the output. Each run has its own."""
        return f"{ACCESS_TOKEN}-{self.token}"

    @classmethod
    def prepare(cls, output: str | None, videos: tuple[str, ...]) -> AccessCheck:
        """Writes the token. Raises OutputError."""
        check = cls(output, uuid.uuid4().hex, videos)
        if output is not None:
            Folder(output).write(check.file, check.token.encode())
        return check

    def run(self) -> None:
        """Makes the check. Raises OutputError or InputError, which name the node that lacks keys, a
        mount or permission."""
        node = f"the node {socket.gethostname()}"
        fix = "give every node the same keys, mounts and permissions as this one"
        if self.output is not None:
            folder, own = Folder(self.output), f"{self.file}-{uuid.uuid4().hex}"
            try:
                folder.write(own, folder.read(self.file))
                folder.delete(own)
            except MissingFile:
                raise OutputError(
                    f"{node} has another folder at {self.output}\n"
                    "  fix: mount the same folder on all nodes"
                ) from None
            except OutputError as e:
                raise OutputError(f"{node} can't use the output: {e}\n  fix: {fix}") from None
        errors = [error for video in self.videos if (error := _read_error(video))]
        if errors and len(errors) == len(self.videos):
            raise InputError(f"{node} can't read the input: {errors[0]}\n  fix: {fix}")


def _read_error(video: str) -> str | None:
    """Returns why the video can't be read here; None where it can. Reads at most one byte."""
    try:
        if is_remote(video):
            fs, fs_path = file_system(video)
            with fs.open_input_stream(fs_path) as stream:
                stream.read(1)
        elif not os.access(local_path(video), os.R_OK):
            return f"{video} is missing, or not readable"
    except (InputError, OSError, pa.ArrowException) as e:
        return str(e)
    return None
