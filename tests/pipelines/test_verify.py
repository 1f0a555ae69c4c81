"""`longtake verify`: damage of every kind is found, and the named command repairs it."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.json_text import with_hash
from curation.ledger import damaged_parts
from curation.storage import Folder
from pipelines import damage, verify
from pipelines.tables import INPUT, embeddings_ledger, videos_ledger
from stages.export.shards import Receipt, to_json
from tests.curation.test_resume import run_all, settings
from tests.support.paths import REPOSITORY
from tests.support.small_input import SETTINGS
from tests.support.whole_run import differences, start, wait_for_end


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.fixture
def out(dataset, tmp_path) -> Path:
    return Path(shutil.copytree(dataset.out, tmp_path / "out"))


def found(out: Path) -> list[str]:
    return [finding.name for finding in verify.find(Folder(str(out)))]


def kind_of(path: Path, out: Path) -> str:
    """Its place, without clip ids and numbers."""
    return re.sub(r"[0-9a-f]{8,}|/[0-9a-f]{2}(?=/)|\d", "*", str(path.relative_to(out)))


def files_by_kind(out: Path) -> dict[str, Path]:
    folders = ("ledger", "shards", "presto")
    files = [p for p in out.glob("*") if p.is_file()]
    files += [p for folder in folders for p in (out / folder).rglob("*") if p.is_file()]
    unhashed = ("README.md", "ledger/.lock", "ledger/.tmp-access", "status.json", "status.prom")
    kinds = {kind_of(path, out): path for path in sorted(files)}
    return {kind: path for kind, path in kinds.items() if kind not in unhashed}


def test_intact_output_has_no_finding(dataset, capsys):
    verify.main([str(dataset.out)])
    assert capsys.readouterr().out == f"{dataset.out}: nothing is damaged or missing\n"


def test_every_flipped_bit_in_the_parts_of_the_ledger_is_found(out):
    rng = random.Random(0)
    parts = [p for p in (out / "ledger").rglob("part-*.parquet")]
    assert {p.parent.name for p in parts} == {"videos", "measured"}
    for number in range(150):
        part = parts[number % len(parts)]
        before = part.read_bytes()
        flip_bit(part, rng)
        assert [*damaged_parts(Folder(str(part.parent)))] == [part.name]
        part.write_bytes(before)


@pytest.mark.parametrize("damage", [flip_bit, truncate, remove])
def test_damage_of_every_kind_of_file_is_found(out, damage):
    rng, kinds = random.Random(damage.__name__), files_by_kind(out)
    assert {"manifest.json", "shards.parquet", "ledger/selection.parquet"} < kinds.keys()
    missed = []
    for kind, path in kinds.items():
        before = path.read_bytes()
        damage(path, rng)
        name, names = str(path.relative_to(out)), found(out)
        if damage is remove and kind.startswith(
            "ledger/"
        ):  # its rows are named, or nothing needs it
            pass
        elif name not in names and not _reads_as_before(path, before, out):
            missed.append(kind)
        path.write_bytes(before)
    assert missed == []
    assert found(out) == []


def _reads_as_before(path: Path, before: bytes, out: Path) -> bool:
    """Whether a table has the same content in spite of the damage, as in an unused byte."""
    if path.suffix != ".parquet" or not path.exists():
        return False
    good = out.parent / "good.parquet"
    good.write_bytes(before)
    return pq.read_table(path).equals(pq.read_table(good))


def test_missing_rows_are_named_with_the_phase_that_writes_them(out):
    for part in (out / "ledger").rglob("part-*.parquet"):
        part.unlink()
    findings = verify.find(Folder(str(out)))
    assert [(finding.name, finding.what, finding.phase) for finding in findings] == [
        ("ledger/videos", "lacks 7 of 7 videos of the input", "score"),
        ("ledger/captions/measured", "lacks 4 of 4 kept clips", "caption"),
    ]


def write_videos(out: Folder, numbers: range, clips_each: int, fingerprint: bytes) -> list[str]:
    """Adds a part of scored videos whose clips have the score of the embedding model. Returns the
    clips' ids."""
    rows = []
    for number in numbers:
        ids = [f"{number:08d}{place:04d}" for place in range(clips_each)]
        clips = [{"clip_id": i, damage.EMBEDDED: 0.5, "fingerprint": fingerprint} for i in ids]
        row = {"video": f"{number}.mp4", "status": "ok", "sha256": f"{number:064d}"}
        rows.append(row | {"weights": {damage.EMBEDDED: "v1"}, "clips": clips})
    videos_ledger(out).append(rows)
    return [clip["clip_id"] for row in rows for clip in row["clips"]]


def test_clips_without_embeddings_are_counted_by_video(tmp_path):
    out = Folder(str(tmp_path))
    ids = write_videos(out, range(3), 4, b"")
    embeddings_ledger(out).append([{"clip_id": i, "model": "v1"} for i in [*ids[:4], *ids[6:9]]])
    out.write_table(f"ledger/{INPUT}", pa.table({"video": [f"{i}.mp4" for i in range(3)]}))
    findings = list(damage.check_stored_frames(out))
    assert [(finding.what, finding.video) for finding in findings] == [
        ("lacks 2 of 4 clips of 1.mp4", "1.mp4"),
        ("lacks 3 of 4 clips of 2.mp4", "2.mp4"),
    ]
    verify.mark_as_failed(out, {"2.mp4": "x lacks 3"})
    stored = videos_ledger(out).read(["status", "sha256", "weights", "clips"]).to_pylist()
    assert [row["status"] for row in stored] == ["ok", "ok", "failed"]
    assert stored[2]["sha256"] == f"{2:064d}"
    assert stored[2]["weights"] == [(damage.EMBEDDED, "v1")]
    assert (len(stored[1]["clips"]), stored[2]["clips"]) == (4, [])


def test_memory_of_tables_grows_by_less_than_200_bytes_per_clip(tmp_path):
    peaks = []
    code = (
        "import sys, pyarrow; from curation.storage import Folder; from pipelines import verify;"
        "findings = list(verify.find(Folder(sys.argv[1])));"
        "print(len(findings), pyarrow.default_memory_pool().max_memory())"
    )
    for parts in (4, 16):
        out = Folder(str(tmp_path / str(parts)))
        for part in range(parts):
            numbers = range(100 * part, 100 * part + 100)
            ids = write_videos(out, numbers, 10, random.Random(part).randbytes(1000))
            embeddings_ledger(out).append([{"clip_id": i, "model": "v1"} for i in ids])
        videos = [f"{i}.mp4" for i in range(100 * parts)]
        listed = pa.table({"video": videos, "bytes": range(100 * parts), "version": videos})
        out.write_table(f"ledger/{INPUT}", listed)
        command = [sys.executable, "-c", code, out.url]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        findings, peak = map(int, done.stdout.split())
        assert findings == 0
        peaks.append(peak)
    more_clips = (16 - 4) * 100 * 10
    assert peaks[1] - peaks[0] < 200 * more_clips, peaks  # bytes; a clip has more than 1000


def test_finding_is_one_line_with_the_command_and_exit_code_1(out, capsys):
    [shard, *_] = sorted((out / "shards").iterdir())
    flip_bit(shard, random.Random(0))
    with pytest.raises(SystemExit) as ended:
        verify.main([str(out)])
    assert ended.value.code == 1
    assert capsys.readouterr().out == (
        f"{shard} is not the file that was written; fix: python -m pipelines.verify {out} --repair"
        f" && python -m pipelines.export CONFIG output={out}\n"
        "1 findings; by the phase that repairs them: export 1\n"
    )


@pytest.mark.parametrize("name", ["../mine.txt", "{folder}/mine.txt", "shards/../../mine.txt"])
def test_repair_deletes_no_file_outside_of_the_output(name, tmp_path):
    mine, out = tmp_path / "mine.txt", Folder(str(tmp_path / "out"))
    name = name.format(folder=tmp_path)
    mine.write_text("precious")
    out.write("manifest.json", b"{}")
    out.write("SHA256SUMS", f"{'0' * 64}  {name}\n".encode())
    receipt = Receipt("", f"../{name}", 1, "0" * 64, [], [{"path": f"../{name}", "sha256": "0"}])
    out.write("ledger/shards/a.tar.json", to_json(with_hash(asdict(receipt))))
    findings = [finding.name for finding in verify.find(out, repair=True)]
    assert findings == ["ledger/shards/a.tar.json", "SHA256SUMS"]
    assert mine.read_text() == "precious"


def damage_captions_and_export(out: Path) -> None:
    rng = random.Random(1)
    for pattern in ("ledger/captions/measured/part-*", "shards/*.tar", "presto/videos/*.mp4"):
        flip_bit(sorted(out.glob(pattern))[0], rng)
    for name in ("clips.parquet", "manifest.json", "shards.parquet"):
        truncate(out / name, rng)


def test_named_phases_repair_what_was_found(dataset, out, cluster):
    damage_captions_and_export(out)
    findings = list(verify.find(Folder(str(out)), repair=True))
    assert {finding.phase for finding in findings} == {"caption", "export"}
    run_all(settings(dataset.source, out), cluster)
    assert found(out) == []
    assert differences(dataset.out, out) == []


@pytest.mark.slow
def test_named_commands_repair_what_was_found(dataset, out):
    frames = sorted((out / "ledger/key_frames").rglob("*.jpg"))
    kept = pq.read_table(out / "shards.parquet")["clip_id"].to_pylist()
    damage_captions_and_export(out)
    flip_bit(next(f for f in frames if f.name.startswith(kept[0])), random.Random(1))
    flip_bit(min((out / "ledger/videos").iterdir()), random.Random(2))
    commands: list[str] = []
    for repaired in ((), ("--repair",)):
        listed = wait_for_end(start("verify", str(out), *repaired))
        assert listed.exit_code == 1, listed.stderr
        lines = listed.stdout.splitlines()[:-1]
        commands = [line.partition("; fix: ")[2].rpartition("&& ")[2] for line in lines]
    for phase in ("score", "caption", "export"):
        for command in {c for c in commands if f"pipelines.{phase} " in c}:
            args = [a for a in shlex.split(command)[3:] if a not in ("CONFIG", "input=INPUT")]
            run = wait_for_end(start(phase, f"input={dataset.source}", *args, *SETTINGS))
            assert run.exit_code == 0, run.stderr
    last = wait_for_end(start("verify", str(out)))
    assert last.stdout == f"{out}: nothing is damaged or missing\n"
    assert differences(dataset.out, out) == []
