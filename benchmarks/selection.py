"""`select` and the tables on a synthetic ledger: seconds, memory, planted duplicates found.

    python -m benchmarks.selection [--clips 5000000] [--folder FOLDER] [--semantic 50000]
    python -m benchmarks.selection --slope 500000 1000000 2000000 [--folder FOLDER]

The ledger is written to disk first, by another process (or found in FOLDER, where it is kept), ten
clips a video, 60 ticks (960 bytes) of fingerprint a clip. Then each phase runs alone in a process
whose memory is limited to --limit-mb (RLIMIT_DATA): `select`; the tables and the report; what
`caption` does before and after its captioner; and what `export` does but for extracting and packing
clips, which have captions of a kilobyte. --slope measures the phases at several sizes, and prints
the bytes of peak memory per further clip. Memory is that of the process itself; mapped pages
of scratch files, which the system takes back when it needs them, are not counted.

A tenth of the clips are from a thousand static cameras (each with one background and different
moving objects; the most frequent has a tenth of these clips). Two in a hundred are copies of
another clip, shifted by 0 to 10 s, with 8 % of the bits of motion and 3 % of those of the image
flipped, as re-encoding does; one in a hundred is such a copy of another clip of its own video.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records
from curation.json_text import with_hash
from curation.ledger import with_schema
from curation.parquet import scan
from curation.policy import Policy, Range
from curation.records import with_schema_version
from curation.stage import Row, Stage
from curation.storage import Folder
from pipelines import caption, export, select
from pipelines.publish import recorded_config, write_report, write_tables
from pipelines.settings import Settings
from pipelines.tables import INPUT, SELECTION, captions_ledger
from stages.export.export_stages import RECEIPTS, ExtractClips
from stages.export.shards import Receipt, ShardPlan, to_json
from stages.meters.fingerprint import CODE, SIGNS
from stages.selection.semantic_duplicates import find_semantic_duplicates

TICKS = 60
CLIPS_PER_VIDEO = 10
CLIPS_PER_PART = 50_000
PLANTED = "planted.npy"  # (P, 2) numbers of clips
POLICY = Policy(
    duration_s=Range(min=15),
    width=Range(min=1280),
    brightness=Range(min=20, max=235),
    static_share=Range(max=0.9),
    text_share=Range(max=0.1),
)
MOVES = SIGNS + np.uint64(1)
PHASES = ("select", "tables", "caption", "export")
TEXT = "The camera moves to the right past a row of houses, while a red car comes into view. " * 2


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """uint64 array in which about `share` of the bits are set."""
    out = np.zeros(shape, np.uint64)
    for bit in range(64):
        hit = rng.random(shape, np.float32) < share
        out |= hit.astype(np.uint64) << np.uint64(bit)
    return out


def random_fingerprints(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, TICKS) CODE: image and motion change by a tenth of their bits per tick."""
    out = np.empty((n, TICKS), CODE)
    out["motion"][:, 0] = rng.integers(0, 2**64, n, np.uint64)
    out["picture"][:, 0] = rng.integers(0, 2**64, n, np.uint64)
    # noise is taken from one pool, rotated at random, because drawing it is slow
    pool = random_bits(rng, (1 << 16,), 0.1)
    for tick in range(1, TICKS):
        for part in ("motion", "picture"):
            noise = pool[rng.integers(0, len(pool), n)]
            turn = rng.integers(0, 64, n).astype(np.uint64)
            noise = (noise << turn) | (noise >> ((np.uint64(64) - turn) & np.uint64(63)))
            out[part][:, tick] = out[part][:, tick - 1] ^ noise
    camera = np.flatnonzero(rng.random(n) < 0.1)
    backgrounds = np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64)
    out["picture"][camera] = backgrounds[(1000 * rng.random(len(camera)) ** 3).astype(int), None]
    out["motion"] |= MOVES
    return out


def write_ledger(out: Folder, n: int) -> None:
    """Writes the parts of a ledger of n clips, the list of its videos, and PLANTED.

    Clip i is of video i // CLIPS_PER_VIDEO. A part's copies are of clips of the part before, so
    that no part has to be read again.
    """
    rng = np.random.default_rng(0)
    planted: list[np.ndarray] = []
    before = np.empty((0, TICKS), CODE)
    videos: list[str] = []
    per_part = min(CLIPS_PER_PART, max(n // 4 // CLIPS_PER_VIDEO, 1) * CLIPS_PER_VIDEO)
    for first in range(0, n, per_part):
        count = min(per_part, n - first)
        prints = random_fingerprints(rng, count)
        # A video's second clip may repeat its first one; these two are in no other pair.
        repeated = rng.permutation(np.arange(0, count - 1, CLIPS_PER_VIDEO))[: count // 100]
        prints[repeated + 1] = _copies(rng, prints[repeated])
        planted.append(first + np.stack([repeated, repeated + 1], 1))
        if len(before):
            copied = rng.permutation(_after_second(min(count, len(before))))[: count // 50]
            place = rng.permutation(_after_second(count))[: len(copied)]
            prints[place] = _copies(rng, before[copied])
            planted.append(np.stack([first - len(before) + copied, first + place], 1))
        before = prints
        rows = _video_rows(rng, first, prints)
        videos += rows["video"].to_pylist()
        number = first // per_part
        table = rows.cast(with_schema_version(rows.schema))
        out.write_table(f"ledger/videos/part-{number:08d}.parquet", table)
    listed = {"video": videos, "bytes": np.ones(len(videos), np.int64), "version": videos}
    out.write_table(f"ledger/{INPUT}", pa.table(listed))
    np.save(Path(out.url) / PLANTED, np.concatenate([np.empty((0, 2), np.int64), *planted]))


def _after_second(n: int) -> np.ndarray:
    """The clips among n that are not the first or second of their video."""
    return np.flatnonzero(np.arange(n) % CLIPS_PER_VIDEO > 1)


def _copies(rng: np.random.Generator, prints: np.ndarray) -> np.ndarray:
    """Shifted by up to 10 s, with flipped bits."""
    found = prints.copy()
    shift = rng.integers(0, 41, len(prints))
    for k in np.unique(shift):
        found[shift == k, : TICKS - k] = prints[shift == k, k:]
        found[shift == k, TICKS - k :] = prints[shift == k, :k][:, ::-1]
    found["motion"] ^= random_bits(rng, found.shape, 0.08) & SIGNS
    # a bit that is near its threshold differs in all ticks
    found["picture"] ^= random_bits(rng, (len(found), 1), 0.02)
    found["picture"] ^= random_bits(rng, found.shape, 0.01)
    return found


def _video_rows(rng: np.random.Generator, first: int, prints: np.ndarray) -> pa.Table:
    """records.VIDEO with the columns that `select` reads; the others are null."""
    n = len(prints)
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * TICKS * CODE.itemsize)
    data = pa.BinaryArray.from_buffers(
        pa.binary(), n, [None, offsets.buffers()[1], pa.py_buffer(prints.reshape(-1))]
    )
    columns = {
        "clip_id": pa.array([clip_name(first + i) for i in range(n)]),
        "width": rng.choice(np.array([640, 1280, 1920], np.int32), n, p=[0.1, 0.6, 0.3]),
        "height": np.full(n, 720, np.int32),
        "num_frames": np.full(n, 450, np.int32),
        "fps": np.full(n, 30.0),
        "start_s": np.zeros(n),
        "end_s": np.full(n, 15.0),
        "duration_s": rng.uniform(14.5, 30, n),
        "packet_bytes": rng.integers(10**5, 10**7, n),
        "sharpness": rng.uniform(10, 500, n).astype(np.float32),
        "fingerprint": data,
    }
    for name, high in (("brightness", 260), ("static_share", 1), ("text_share", 0.12)):
        columns[name] = rng.uniform(0, high, n).astype(np.float32)
    clips = pa.table(columns).to_struct_array().combine_chunks()
    ends = np.append(np.arange(0, n, CLIPS_PER_VIDEO), n).astype(np.int32)
    numbers = range(first // CLIPS_PER_VIDEO, first // CLIPS_PER_VIDEO + len(ends) - 1)
    known = {
        "video": [f"/data/videos/part-{i // 1000:05d}/{i:09d}.mp4" for i in numbers],
        "bytes": np.ones(len(numbers), np.int64),
        "sha256": [f"{i * 0x9E3779B97F4A7C15 % 2**64:064x}" for i in numbers],
        "status": ["ok"] * len(numbers),
        "clips": pa.ListArray.from_arrays(pa.array(ends), clips),
    }
    return with_schema(pa.table(known), records.schema(records.VIDEO))


def clip_name(i: int) -> str:
    """The clip_id of clip i: as a hash, in no order of i."""
    return f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}{i % 2**32:08x}"


class PeakMemory(threading.Thread):
    """Samples the memory of this process that no file backs, kB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kb = 0

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.kb = max(self.kb, int(status.partition("RssAnon:")[2].split()[0]))
            time.sleep(0.02)


def run_phase(phase: str, folder: str, limit_mb: int) -> None:
    """Runs the phase, prints its measurements as JSON."""
    peak = PeakMemory()
    peak.start()
    limit = limit_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    settings, out = Settings(output=folder), Folder(folder)
    settings.select.policy = POLICY
    start, cpu = time.monotonic(), time.process_time()
    if phase == "select":
        select.run(settings, out)
    elif phase == "tables":
        write_report(out, write_tables(settings, out), recorded_config(settings, out), {})
    elif phase == "export":
        export.run(settings, out, _PackNothing(out))  # type: ignore[arg-type]
    elif phase == "write captions":
        write_captions(out)
    else:
        ids, is_todo = caption.find_todo(out, captions_ledger(out, "none"), retry_failed=False)
        rows = sum(1 for _ in caption.read_rows(out, ids[is_todo], "none"))
        assert rows == len(ids)
    found = {"s": time.monotonic() - start, "cpu_s": time.process_time() - cpu}
    print(json.dumps(found | {"peak_mb": peak.kb / 1024}))


def write_captions(out: Folder) -> None:
    """Of the kept clips."""
    ledger = captions_ledger(out, Settings().caption.set_name)
    row: Row = dict.fromkeys(column.name for column in records.CAPTION)
    part = dict.fromkeys(field.name for field in records.SUB_CAPTION)
    parts = [part | {"start_s": 3.0 * i, "end_s": 3.0 * i + 3, "text": TEXT} for i in range(5)]
    row |= {"captioner": "measured", "caption": TEXT, "sub_captions": parts, "provenance": "{}"}
    row["frames_sha256"] = "0" * 64
    for table in scan((out / "ledger").dataset(SELECTION), ["clip_id", "split"]):
        ids = table["clip_id"].filter(pc.is_valid(table["split"])).to_pylist()
        ledger.append([row | {"clip_id": i} for i in ids])


class _PackNothing:
    """In place of the cluster: every clip is extracted and every shard packed without its files."""

    def __init__(self, out: Folder) -> None:
        self._out = out

    def stream(self, stages: list[Stage], rows: Iterable[Row], *_: Any) -> Iterator[Row]:
        for row in rows:
            if isinstance(stages[0], ExtractClips):
                yield row | {"extracted": {clip["clip_id"]: {} for clip in row["clips"]}}
                continue
            plan = ShardPlan(**row["plan"])
            of_clip: Row = dict.fromkeys(column.name for column in records.SHARD)
            of_clip |= {"shard": plan.name, "split": plan.split, "method": "encode"}
            of_clip |= {"sha256": "0" * 64, "json_sha256": "0" * 64}
            of_shard = [of_clip | {"clip_id": clip_id} for clip_id in plan.clip_ids]
            receipt = Receipt("0" * 64, plan.name, 1, "0" * 64, of_shard, [])
            self._out.write(f"{RECEIPTS}/{plan.name}.json", to_json(with_hash(asdict(receipt))))
            yield row | {"receipt": receipt}


def found_of_planted(folder: Path) -> tuple[int, int, int]:
    """Of the planted pairs whose clips both pass the policy: of how many one is rejected as a
    duplicate of the other, how many there are; and how many other clips are rejected as copies."""
    selection = Folder(str(folder)).read_table(f"ledger/{SELECTION}", ["clip_id", "reason"])
    is_copy = pc.starts_with(selection["reason"], "duplicate of ")
    rejected = selection.filter(pc.fill_null(is_copy, False))
    passing = selection.filter(pc.or_kleene(pc.is_null(selection["reason"]), is_copy))
    planted = np.load(folder / PLANTED)
    names = [pa.array([clip_name(i) for i in column]) for column in planted.T.tolist()]
    both = pc.and_(
        *(pc.is_in(name, value_set=passing["clip_id"].combine_chunks()) for name in names)
    )
    one, two = (name.filter(both).to_pylist() for name in names)
    of = dict(zip(rejected["clip_id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))
    found = sum(
        of.get(a) == f"duplicate of {b}" or of.get(b) == f"duplicate of {a}"
        for a, b in zip(one, two, strict=True)
    )
    return found, len(one), len(of) - found


def measure_semantic_duplicates(n: int) -> None:
    """Semantic duplicates among n random embeddings of CLIP's size, 0.5 % of them planted."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((n, 768), np.float32)
    copies = rng.permutation(n)[: n // 100 * 2].reshape(2, -1)
    v[copies[1]] = v[copies[0]] + 0.1 * v[copies[1]]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    start = time.process_time()
    duplicate_of, _ = find_semantic_duplicates(v, np.arange(n), 0.95)
    spent = time.process_time() - start
    print(
        f"semantic duplicates among {n} clips: {spent:.0f} CPU-s, {(duplicate_of >= 0).sum()} of "
        f"{copies.shape[1]} planted found; scaled with the square, a million clips take "
        f"{spent * (1e6 / n) ** 2 / 3600:.1f} CPU-h"
    )


def measure(folder: Path, n: int, limit_mb: int, phase: str = "select") -> dict[str, float]:
    """The measurements of a phase alone. Raises CalledProcessError."""
    module = [sys.executable, "-m", "benchmarks.selection"]
    if not (folder / PLANTED).exists():
        subprocess.run([*module, "--write", "--clips", str(n), "--folder", str(folder)], check=True)
    if phase == "export":
        measure(folder, n, limit_mb, "write captions")
    command = [*module, "--phase", phase, "--folder", str(folder), "--limit-mb", str(limit_mb)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_slopes(sizes: list[int], limit_mb: int, folder: Path | None) -> None:
    """A line per size and phase; then the least-squares slope of each phase."""
    peaks: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for n in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            place = folder / str(n) if folder else Path(scratch)
            for phase in PHASES:
                found = measure(place, n, limit_mb, phase)
                peaks[phase].append(found["peak_mb"])
                print(
                    f"{n} clips, {phase}: {found['s']:.0f} s, {found['cpu_s']:.0f} CPU-s, "
                    f"peak memory {found['peak_mb']:.0f} MB",
                    flush=True,
                )
    for phase, found_mb in peaks.items():
        slope, constant = np.polyfit(sizes, found_mb, 1)
        print(f"{phase}: {constant:.0f} MB and {slope * 2**20:.0f} bytes a clip")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--clips", type=int, default=5_000_000)
    options.add_argument("--folder", type=Path, help="of the ledger, which is kept there")
    options.add_argument("--limit-mb", type=int, default=4000)
    options.add_argument("--semantic", type=int, default=0, metavar="CLIPS")
    options.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options.add_argument("--phase", help=argparse.SUPPRESS)
    options.add_argument("--slope", type=int, nargs="+", metavar="CLIPS", default=[])
    args = options.parse_args()
    if args.write:
        write_ledger(Folder(str(args.folder)), args.clips)
        return
    if args.phase:
        run_phase(args.phase, str(args.folder), args.limit_mb)
        return
    if args.slope:
        print_slopes(args.slope, args.limit_mb, args.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        found = measure(folder, args.clips, args.limit_mb)
        n = len(Folder(str(folder)).read_table(f"ledger/{SELECTION}", ["clip_id"]))
        hits, planted, others = found_of_planted(folder)
    print(
        f"{n} clips, fingerprints {n * TICKS * CODE.itemsize / 2**30:.2f} GiB\n"
        f"select: {found['s']:.0f} s, {found['cpu_s']:.0f} CPU-s, peak memory "
        f"{found['peak_mb']:.0f} MB\n"
        f"{hits} of {planted} planted pairs found ({hits / max(planted, 1):.4f}), {others} others"
    )
    if args.semantic:
        measure_semantic_duplicates(args.semantic)


if __name__ == "__main__":
    main()
