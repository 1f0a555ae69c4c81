"""Folders of an output, on a local disk or in an object store: their files, tables and lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from curation.atomic import TEMPORARY, sync_folder, write_atomic
from curation.checksums import file_sha256
from curation.errors import UserError
from curation.lease import LEASE, NOT_APART, FileLock, Lease, LeaseLost, take_lease
from curation.objects import (
    ATTEMPTS,
    check_size,
    list_folder,
    read_chunks,
    read_object,
    read_range,
    retry_cut_off,
    write_object,
)
from curation.parquet import TableWriter, batches, parquet_bytes
from curation.stage import OutputError
from curation.storage_errors import storage_errors
from curation.texts import is_utf8
from curation.urls import InputError, file_system, is_inside, is_url, join_path, split_url

if TYPE_CHECKING:
    import pyarrow.dataset as ds

UPLOADED_BYTES = 8 << 20  # of a local file at a time
OPEN_OBJECTS = 256  # kept by a process that reads parts of them; each is its URL and size

ACCESS_TOKEN = f"{TEMPORARY}access"  # the names of the files of access checks begin so


class Folder:
    """A folder of the output, local or remote. Each file in it is complete or absent.

    Every failure of the storage raises OutputError, which stops the run; it can be resumed.
    """

    def __init__(self, url: str, lease: Lease | FileLock | None = None) -> None:
        """lease: checked before each write."""
        self.url, self.lease = url, lease
        self.is_local = not is_url(url)
        if self.is_local:
            self.url = os.path.abspath(url)
            if not is_utf8(self.url):  # which pyarrow expects of every path
                raise OutputError(
                    f"{self.url}: the name of this folder is not UTF-8\n  fix: rename it"
                )
            self._fs: pafs.FileSystem = pafs.LocalFileSystem()
            self._root = self.url
        else:
            try:
                self._fs, self._root = file_system(url)
            except InputError as e:
                raise OutputError(str(e)) from None

    def __truediv__(self, name: str) -> Folder:
        self._place(name)
        return Folder(self.path(name), self.lease)

    def path(self, name: str) -> str:
        """Returns the path or URL of a file."""
        return join_path(self.url, name)

    def _place(self, name: str) -> str:
        """Returns the path in the file system. Raises OutputError where it is outside this folder:
        names come from tables, receipts and manifests, which others may have written."""
        if not is_inside(name):
            raise OutputError(f"{name!r:.200} is not the name of a file in {self.url}")
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        return self._file_info(name).type == pafs.FileType.File

    def size(self, name: str) -> int:
        """Returns the size in bytes, 0 of a missing file."""
        return self._file_info(name).size or 0

    def _file_info(self, name: str) -> pafs.FileInfo:
        with storage_errors("access", self.path(name)):
            return self._fs.get_file_info(self._place(name))

    def names(self, subfolder: str = "") -> list[str]:
        """Returns the sorted names of the finished files directly in this folder or a subfolder."""
        found = self._listed(subfolder)
        files = [f.base_name for f in found if f.type == pafs.FileType.File]
        return sorted(n for n in files if not n.startswith(TEMPORARY))

    def subfolders(self) -> list[str]:
        """Returns the sorted names of the folders directly in this one."""
        return sorted(f.base_name for f in self._listed() if f.type == pafs.FileType.Directory)

    def _listed(self, subfolder: str = "") -> list[pafs.FileInfo]:
        root = self._place(subfolder).rstrip("/")
        with storage_errors("list", self.path(subfolder) if subfolder else self.url):
            if not self.is_local:
                return list_folder(self._fs, root)
            return self._fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))

    def read(self, name: str) -> bytes:
        path = self._place(name)
        with storage_errors("read", self.path(name)):
            if not self.is_local:
                return read_object(self._fs, path)
            with self._fs.open_input_stream(path, compression=None) as stream:
                return stream.read()

    def sha256(self, name: str) -> str | None:
        """Returns 64 hex digits; None of a missing file."""
        path = self._place(name)

        def hash_object() -> str:
            digest, count = hashlib.sha256(), 0
            for chunk in read_chunks(self._fs, path):
                digest.update(chunk)
                count += len(chunk)
            check_size(self._fs, path, count)
            return digest.hexdigest()

        try:
            with storage_errors("read", self.path(name)):
                return file_sha256(Path(path)) if self.is_local else retry_cut_off(hash_object)
        except FileNotFoundError:
            return None

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Returns those of the columns that the file has; None: all columns."""
        with self._parquet(name) as file:
            return file.read(columns)

    def table_batches(self, name: str, columns: list[str]) -> Iterator[pa.Table]:
        """Yields the rows, some at a time. columns: also fields of structs in lists, `clips.take`;
        those that the file lacks are left out."""
        with self._parquet(name) as file:
            yield from batches(file, columns)

    @contextmanager
    def table_writer(self, name: str, schema: pa.Schema) -> Iterator[TableWriter]:
        """Yields a writer of tables; the file appears when the block ends without an error. An
        error of the block itself is raised as it is."""
        place = self._root if self.is_local else tempfile.gettempdir()
        scratch = Path(place) / f"{TEMPORARY}{uuid.uuid4().hex}.parquet"
        try:
            with storage_errors("write", self.path(name)):
                os.makedirs(place, exist_ok=True)
                file = pq.ParquetWriter(
                    scratch, schema, compression="zstd", write_page_checksum=True
                )
            try:
                writer = TableWriter(file, self.path(name))
                yield writer
                writer.flush()
            finally:
                with storage_errors("write", self.path(name)):
                    file.close()
            self._check_lease()
            with storage_errors("write", self.path(name)):
                if self.is_local:
                    with scratch.open("rb") as written:
                        os.fsync(written.fileno())
                    os.replace(scratch, self._place(name))
                    sync_folder(Path(self._root))
                else:
                    self.upload(name, scratch)
        finally:
            with suppress(OSError):
                scratch.unlink()

    def dataset(self, name: str) -> ds.Dataset:
        """Returns a Parquet file of which only the columns that are asked for are read, with the
        checksums of their pages. Read it by `scan` or `find_rows`."""
        import pyarrow.dataset as ds  # takes 0.25 s, in every worker: it imports pandas

        verified = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        parquet = ds.ParquetFileFormat(default_fragment_scan_options=verified)
        with storage_errors("read", self.path(name)):
            return ds.dataset(self._place(name), format=parquet, filesystem=self._fs)

    def read_part(self, name: str, offset: int, size: int) -> bytes:
        """Returns fewer bytes where the file ends before. Of an object, one range request, and one
        more of the process's first part of it; both are repeated where an answer is cut off."""
        path = self._place(name)
        with storage_errors("read", self.path(name)):
            if self.is_local:
                with self._fs.open_input_file(path) as file:
                    return file.read_at(max(0, min(size, file.size() - offset)), offset)
            for _ in range(ATTEMPTS - 1):
                with suppress(OSError):
                    return self._read_object_part(name, offset, size)
                _open_object.cache_clear()  # its size may be that of a cut answer, or outdated
            return self._read_object_part(name, offset, size)

    def _read_object_part(self, name: str, offset: int, size: int) -> bytes:
        file, lock = _open_object(self.path(name))
        with lock:  # read_range moves the file's position
            count = min(size, file.size() - offset)
            data = bytes(read_range(file, offset, count)) if count > 0 else b""
        if len(data) < size:
            length = self._fs.get_file_info(self._place(name)).size
            if not length or length > offset + len(data):
                raise OSError(f"{len(data)} of {size} bytes at {offset} arrived")
        return data

    def read_schema(self, name: str) -> pa.Schema:
        with self._parquet(name) as file:
            return file.schema_arrow

    @contextmanager
    def _parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        path = self._place(name)
        with storage_errors("read", self.path(name)), self._fs.open_input_file(path) as file:
            if not self.is_local:
                check_size(self._fs, path, file.size())
            yield pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)

    def write(self, name: str, data: bytes, durable: bool = True) -> None:
        """Writes the whole file or none: by a rename, or by the PUT of an object store.

        durable=False: without rename and fsync. For many small files whose row, with their hash,
        is stored later; the hash is checked when they are read.
        """
        target = self._place(name)
        self._check_lease()
        with storage_errors("write", self.path(name)):
            if not self.is_local:
                write_object(self._fs, target, [data])
                return
            if durable:
                write_atomic(Path(target), data, durable=True)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            # Never emptied: two workers that have copies of a video write the same bytes to it,
            # and one of them may read it meanwhile.
            with open(os.open(target, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
                file.write(data)
                file.truncate()

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write(name, parquet_bytes(table))

    @contextmanager
    def locked(
        self,
        next_parts: Callable[[], dict[str, int]] = dict,
        report: Callable[[str], None] = lambda _: None,
    ) -> Iterator[None]:
        """Keeps other runs from this output: by a lock on a disk, by a lease in S3. Both end with
        the process. Where there are neither, `report` gets a line: the user must start only one run
        at a time.

        next_parts: as take_lease has it. Raises OutputError if another run has the output,
        LeaseLost if another took it over meanwhile.
        """
        if self.is_local:
            with self._locked_on_disk(report), self._loss_named():
                yield
            return
        scheme, bucket, path, options = split_url((self / "ledger").path(LEASE))
        if scheme != "s3":
            report(f"{self.url}: {NOT_APART}")
            yield
            return
        self.lease = lease = take_lease((bucket, path, options), next_parts, report)
        if lease is None:
            yield
            return
        try:
            with self._loss_named():
                yield
        finally:
            with suppress(OutputError):
                lease.release()

    @contextmanager
    def _loss_named(self) -> Iterator[None]:
        """Raises LeaseLost in place of an error that the loss of the output may have caused."""
        try:
            yield
        except KeyboardInterrupt:
            if isinstance(self.lease, Lease) and self.lease.is_lost:
                self.lease.check()
            raise
        except UserError:
            if self.lease is not None:
                try:
                    self.lease.check(at_once=True)
                except LeaseLost:
                    raise
                except OutputError:
                    pass  # the store fails: the error stays
            raise

    @contextmanager
    def _locked_on_disk(self, report: Callable[[str], None]) -> Iterator[None]:
        folder = f"{self._root}/ledger"
        try:
            os.makedirs(folder, exist_ok=True)
            file = open(f"{folder}/.lock", "a")  # noqa: SIM115 (closed below)
        except OSError as e:
            raise OutputError(f"can't write to {folder}: {e.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"another run is writing to {self.url}; wait for it") from None
            except OSError:  # a file system without locks
                report(f"{self.url}: {NOT_APART}")
            else:
                lock = FileLock(file.name, os.fstat(file.fileno()))
                with suppress(LeaseLost):  # a file system in which files have no fixed numbers
                    lock.check()
                    self.lease = lock
            yield

    def delete_unfinished(self, skip: str) -> None:
        """Deletes the unfinished files of killed processes in this folder and its subfolders.

        skip: name of subfolders that never contain unfinished files but too many others to list.
        An object appears complete: in a store only the files of the access checks are left.
        """
        if not self.is_local:
            for info in self._listed():
                if info.base_name.startswith(ACCESS_TOKEN):
                    self.delete(info.base_name)
            return
        for current, folders, files in os.walk(self._root):
            for name in (n for n in [*folders, *files] if n.startswith(TEMPORARY)):
                _remove(os.path.join(current, name))
            folders[:] = [n for n in folders if n != skip and not n.startswith(TEMPORARY)]

    def upload(self, name: str, local: str | os.PathLike[str]) -> None:
        """Copies a local file to this folder, in chunks: the whole file or nothing."""
        self._check_lease()
        with storage_errors("write", self.path(name)):
            write_object(self._fs, self._place(name), _local_chunks(local))

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def delete(self, name: str) -> None:
        self._check_lease()
        if self.exists(name):
            with storage_errors("delete", self.path(name)):
                self._fs.delete_file(self._place(name))

    def delete_all(self) -> None:
        """Deletes this folder with all files in it; does nothing if there is no such folder."""
        self._check_lease()
        with storage_errors("delete", self.url), suppress(FileNotFoundError):
            self._fs.delete_dir(self._root)


def _local_chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(UPLOADED_BYTES):
            yield chunk


@lru_cache(maxsize=OPEN_OBJECTS)
def _open_object(url: str) -> tuple[pa.NativeFile, threading.Lock]:
    fs, path = file_system(url)
    return fs.open_input_file(path), threading.Lock()


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass  # finished meanwhile, by the thread that writes the status
    except OSError as e:
        raise OutputError(f"can't remove {path}: {e.strerror}") from None
