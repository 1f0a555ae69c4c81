"""Show: prints the funnel, scores and hardest rules of an output, one clip, or clips by SQL.

    python -m pipelines.show OUT
    python -m pipelines.show OUT CLIP_ID
    python -m pipelines.show OUT --where "rule = 'static_share'" --sample 20

OUT is a folder or a URL. CLIP_ID may be its beginning. Options:
  --where SQL     lists the clips for which a condition on columns of clips.parquet is true
  --sample N      lists N of them, drawn at random; --seed S draws others
  --format F      table, csv or json; with csv and without a clip or --where: the funnel
  --open          plays the clip, or the one that --where or --sample finds
The key frames are drawn in terminals that state 24-bit colour (COLORTERM=truecolor).
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from curation.cli import MAX_LINE_CHARS, Arguments, NoSettings, UsageError, run_command
from curation.images import DamagedFrame, read_image
from curation.ledger import recorded_settings
from curation.parquet import find_rows
from curation.policy import Policy
from curation.progress import printable
from curation.records import SCORE_NAMES
from curation.sql import quote, run_select
from curation.stage import BadVideo, PlanError, Row, TransientError
from curation.storage import Folder
from curation.video_files import local_copy
from pipelines.outdated import MANIFEST, SHARDS, read_manifest
from pipelines.status import outdated_lines
from pipelines.tables import CLIPS, open_clips, recorded_policy, written_by_older_version
from stages.report.examples import one_paragraph
from stages.report.histogram import format_value
from stages.report.rule_losses import columns_read, format_loss, rule_losses
from stages.report.terminal import align, draw_images, draws_images

FORMATS = ("table", "csv", "json")
LISTED = ("clip_id", "status", "rule", "duration_s", "video", "start_s", "caption")
PERCENTILES = ("p01", "p05", "p25", "p50", "p75", "p95", "p99")
MAX_LISTED = 100  # clips in a table
MAX_DRAWN = 20  # clips of a list whose key frames are drawn
MAX_MATCHES = 5  # clips named where the beginning of an id is of several
OPTIONS = ("--where SQL", "--sample N", "--seed S", "--format F", "--open")
PLAYERS = {  # command -> its arguments for a span
    "mpv": "--start={start} --length={length} --",
    "ffplay": "-autoexit -ss {start} -t {length} -loglevel error -nostats -i",
    "xdg-open": "",
    "open": "",
}


def work(given: Arguments[NoSettings]) -> None:
    options = given.option_values
    kind = options.get("--format", "table")
    if kind not in FORMATS:
        raise UsageError(f"--format is {kind!r:.60}: expected one of {', '.join(FORMATS)}")
    sample = given.whole_number("--sample", 0) if "--sample" in options else None
    seed = given.whole_number("--seed", 0)
    where, play = options.get("--where"), "--open" in given.options
    out = Folder(given.values[0])
    clips = open_clips(out)
    if len(given.values) > 1:
        if where is not None or sample is not None:
            raise UsageError("expected a clip or --where and --sample, found both")
        rows = [find_clip(out, given.values[1])]
    elif where is None and sample is None:
        if play:
            raise UsageError("--open needs a clip")
        show_output(out, clips, kind)
        return
    else:
        found = list_clips(out, where, sample, seed)
        if kind == "table" and not play:
            _print_list(out, found, sample is not None)
            return
        rows = found.to_pylist()
    if play:
        if len(rows) != 1:
            raise UsageError(f"--open needs one clip, found {len(rows)}; add --sample 1")
        play_clip(out, find_clip(out, rows[0]["clip_id"]))
    elif kind == "json":
        print(json.dumps(rows if len(given.values) == 1 else rows[0], indent=1, default=str))
    elif kind == "csv":
        _write_csv(rows)
    else:
        print(describe_clip(out, rows[0]))


# ---- the output ----


def show_output(out: Folder, clips: ds.Dataset, kind: str) -> None:
    """Prints the funnel, the percentiles of each score, and the rules by what they cost."""
    missing = [n for n in ("funnel.parquet", "stats.parquet") if not out.exists(n)]
    if missing or "rules" not in clips.schema.names:
        raise written_by_older_version(out)
    funnel = out.read_table("funnel.parquet")
    if kind == "csv":
        _write_csv(funnel.to_pylist())
        return
    stats = out.read_table("stats.parquet", ["score", "status", "count", "nulls", *PERCENTILES])
    stats = stats.filter(pc.is_in(stats["status"], pa.array(["all", "kept"])))
    policy = selected_with(out)
    columns = [name for name in columns_read(policy) if name in clips.schema.names]
    losses = rule_losses(out.read_table(CLIPS, columns), policy)
    if kind == "json":
        found = {"funnel": funnel, "percentiles": stats}
        tables = {name: table.to_pylist() for name, table in found.items()}
        print(json.dumps(tables | {"rules": [vars(loss) for loss in losses]}, indent=1))
        return
    header = ["", "count", "any reason", "hours"]
    print(align([header, *_funnel_rows(funnel.to_pylist())]))
    print("\nscores: percentiles of all clips, of the kept clips, and the policy's range")
    print(align(_score_rows(stats.to_pylist(), policy)))
    print("\nhardest rules: clips that no other rule rejects")
    print(
        "\n".join(f"  {printable(format_loss(loss), MAX_LINE_CHARS)}" for loss in losses)
        or "  none rejects a clip"
    )
    unused = [r for r in funnel.to_pylist() if r["unit"] == "videos" and r["reason"]]
    if n := sum(row["count"] for row in unused):
        hours = sum(row["hours"] for row in unused)
        print(f"  {n} videos, {hours:.2g} h, gave no clip: failed, or the same bytes as another")
    print("  a clip that passes a looser rule may still be a duplicate, or fail by its captions")
    if notice := outdated_lines(out):
        print("\n".join(["", *notice]))


def selected_with(out: Folder) -> Policy:
    """The policy of the last selection; without the ledger, that of the manifest."""
    recorded = recorded_settings(out / "ledger", "selection")
    if recorded is None and out.exists(MANIFEST):
        recorded = read_manifest(out)["config"]["select"]
    return recorded_policy((recorded or {}).get("policy", {}))


def _funnel_rows(rows: list[Row]) -> list[list[object]]:
    found: list[list[object]] = []
    for row in rows:
        indent = "" if row["status"] == "all" else "  " if row["reason"] is None else "    "
        label = row["reason"] or (row["unit"] if row["status"] == "all" else row["status"])
        any_reason = row["any"] if row["reason"] and row["status"] == "rejected" else None
        found.append([indent + label, row["count"], any_reason, row["hours"]])
    return found


def _score_rows(rows: list[Row], policy: Policy) -> list[list[object]]:
    of = {(row["score"], row["status"]): row for row in rows}
    header: list[object] = [
        "score",
        "clips",
        *PERCENTILES[1:-1],
        "kept p05",
        "kept p50",
        "kept p95",
        "policy",
    ]
    found = [header]
    for score in dict.fromkeys(row["score"] for row in rows):
        of_all, kept = of[score, "all"], of[score, "kept"]
        if of_all["count"] > of_all["nulls"]:
            values = [of_all[p] for p in PERCENTILES[1:-1]]
            values += [kept[p] for p in ("p05", "p50", "p95")]
            measured = of_all["count"] - of_all["nulls"]
            found.append([score, measured, *values, str(policy.get(score) or "")])
    return found


# ---- clips by SQL ----


def list_clips(out: Folder, where: str | None, sample: int | None, seed: int) -> pa.Table:
    """The columns LISTED, and those that the condition names. A sample is the same in each run."""
    clips = out.dataset(CLIPS)
    words = set(re.findall(r"\w+", where or ""))
    columns = [n for n in clips.schema.names if n in LISTED or n in words]
    columns.sort(key=lambda name: LISTED.index(name) if name in LISTED else 3.5)
    drawn = f"ORDER BY sha256(concat({seed}, ':', clip_id)) LIMIT {sample}"
    tail = drawn if sample is not None else ""
    return run_select(clips, [quote(name) for name in columns], where, "--where", tail)


def _print_list(out: Folder, found: pa.Table, is_sample: bool) -> None:
    if not found.num_rows:
        print("no clip matches")
        return
    shown = (found if is_sample else found.slice(0, MAX_LISTED)).to_pylist()
    print(align([found.column_names, *([_flat(v) for v in row.values()] for row in shown)]))
    if more := found.num_rows - len(shown):
        print(f"… and {more} clips; --format csv lists all, --sample N draws some")
    if draws_images(sys.stdout) and len(shown) <= MAX_DRAWN:
        for row in shown:
            print(f"\n{printable(row['clip_id'])}")
            print(_draw_key_frames(out, find_clip(out, row["clip_id"])))


def _flat(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, list | dict | tuple) else value


def _write_csv(rows: list[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, list(rows[0]) if rows else ["clip_id"])
    writer.writeheader()
    writer.writerows({name: _flat(value) for name, value in row.items()} for row in rows)


# ---- one clip ----


def find_clip(out: Folder, beginning: str) -> Row:
    """The row of the clip whose id begins so. Raises PlanError where none or several do."""
    clips = out.dataset(CLIPS)
    beginning = printable(beginning, 60)  # changes no text with which an id begins
    found = [beginning] if find_rows(clips, pc.field("clip_id") == beginning, ["clip_id"]) else []
    if not found:
        begins = pc.starts_with(pc.field("clip_id"), beginning)
        found = [row["clip_id"] for row in find_rows(clips, begins, ["clip_id"])]
    if len(found) != 1:
        names = ", ".join(found[:MAX_MATCHES]) + (" …" if len(found) > MAX_MATCHES else "")
        what = f"{len(found)} clips begin with it: {names}" if found else "no clip of this id"
        raise PlanError(f"{beginning}: {what} in {out.url}")
    [row] = find_rows(clips, pc.field("clip_id") == found[0])
    return row


def describe_clip(out: Folder, clip: Row) -> str:
    policy = selected_with(out)
    where = ", ".join(str(v) for v in (clip["status"], clip["split"], clip["shard"]) if v)
    lines = [
        printable(f"{clip['clip_id']}  {where}"),
        f"{printable(clip['video'])}  {clip['start_s']:.2f} to {clip['end_s']:.2f} s, "
        f"{clip['width']}x{clip['height']}, {clip['fps']:.3g} fps",
        *(f"rejected: {printable(reason)}" for reason in clip["reasons"] or []),
    ]
    if draws_images(sys.stdout):
        lines += ["", _draw_key_frames(out, clip)]
    else:
        files = [s["key_frame"] for s in clip["segments"] or [] if s["key_frame"]]
        lines += [printable(f"key frame: {out.path('ledger/' + n)}", MAX_LINE_CHARS) for n in files]
    if clip["caption"]:
        lines += ["", one_paragraph(clip["caption"]), f"  by {printable(clip['captioner'], 80)}"]
    for part in clip["sub_captions"] or []:
        span = f"{part['start_s']:.1f} to {part['end_s']:.1f} s"
        lines.append(f"  {span}: {one_paragraph(part['text'])}")
    why = dict(clip["null_reasons"] or {})
    scores: list[list[object]] = [["score", "value", "policy"]]
    for name in SCORE_NAMES:
        value = clip.get(name)
        text = f"null: {why.get(name, '')}" if value is None else format_value(value)
        scores.append([name, text, str(policy.get(name) or "")])
    return "\n".join([*lines, "", align(scores)])


def _draw_key_frames(out: Folder, clip: Row) -> str:
    images = []
    for segment in clip["segments"] or []:
        try:
            images.append(read_image((out / "ledger").read, segment))
        except (ValueError, DamagedFrame) as error:
            return f"key frames can't be shown: {printable(error)}"
    return draw_images(images, shutil.get_terminal_size().columns)


def play_clip(out: Folder, clip: Row) -> None:
    """Plays the mp4 of the shard; a clip in no shard from its source. Raises PlanError."""
    if clip["shard"]:
        found = find_rows(out.dataset(SHARDS), pc.field("clip_id") == clip["clip_id"])
        if not found:  # an export that did not finish
            raise PlanError(
                f"{clip['clip_id']} is not in {out.path(SHARDS)}, but in {clip['shard']} by "
                f"{CLIPS}: run longtake export CONFIG output={shlex.quote(out.url)}"
            )
        at = found[0]
        folder = tempfile.mkdtemp(prefix="longtake-")  # the player may outlive us
        path = Path(folder, f"{Path(clip['clip_id']).name}.mp4")
        path.write_bytes(out.read_part(f"shards/{at['shard']}", at["offset"], at["bytes"]))
        _play(str(path), 0.0, clip["duration_s"])
        return
    with local_copy(clip["video"]) as source:
        _play(source, clip["start_s"], clip["duration_s"])


def _play(path: str, start_s: float, length_s: float) -> None:
    player = next((name for name in PLAYERS if shutil.which(name)), None)
    span = f"{path} from {start_s:.2f} s, {length_s:.2f} s"
    if player is None:
        raise PlanError(f"no player found; install mpv, or play {printable(span)}")
    if not os.path.exists(path):
        raise PlanError(f"{printable(path)}: no such file; the clip is in no shard")
    print(f"{player}: {printable(span)}")
    arguments = PLAYERS[player].format(start=f"{start_s:.3f}", length=f"{length_s:.3f}").split()
    subprocess.run([player, *arguments, path], check=False)


def main(argv: Sequence[str]) -> None:
    errors = (BadVideo, TransientError)
    run_command(__doc__, work, argv, arguments="OUT [CLIP_ID]", options=OPTIONS, user_errors=errors)


if __name__ == "__main__":
    main(sys.argv[1:])
