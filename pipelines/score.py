"""Score: one decode pass over every video -> ledger/videos, its clips with their scores inside.

    python -m pipelines.score [CONFIG] input=VIDEOS output=OUT [key=value …]

What an earlier run has done is skipped; a file that changed is scored again.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import pyarrow as pa

from curation import config
from curation.ledger import Ledger, check_settings
from curation.progress import Progress
from curation.runner import Cluster, RunError
from curation.stage import Row, Stage, check_plan
from curation.storage import Folder, InputError, Listed, list_videos
from pipelines.settings import ScoreSettings, Settings, batches, main
from pipelines.tables import INPUT, videos_ledger
from stages.identify import Identify

SHOW_MANY = 5000  # clips below the gate that have pictures for the report, about
ENOUGH_TO_JUDGE = 100  # videos; below, failures are the videos' own


def build(settings: ScoreSettings, ledger_url: str, videos: int) -> list[Stage]:
    """The list is the architecture."""
    settings.watch.ledger_url = settings.text.ledger_url = ledger_url
    settings.watch.thumb_share = min(1.0, SHOW_MANY / max(1, videos))
    return [settings.watch, settings.text]


def run(settings: Settings, out: Folder) -> None:
    if settings.input is None:
        raise InputError("no input; give input=FOLDER, a video, a pattern or a list")
    listed = {v.video: v for v in list_videos(settings.input)}
    if not listed:
        raise InputError(f"{settings.input}: no video in it")
    stages = build(settings.score, (out / "ledger").url, len(listed))
    check_plan(stages, ["video", "bytes", "version"])
    check_settings(
        out / "ledger",
        "videos",
        config.as_dict(settings.score),
        "take these settings back, or give another output",
    )
    rows = [vars(v) for v in listed.values()]
    (out / "ledger").write_table(INPUT, pa.Table.from_pylist(rows))
    ledger = videos_ledger(out)
    todo, twins = _todo(settings, ledger, listed)
    settings.cluster.start(out.path("logs"))
    with Progress("score", len(listed), "videos") as progress:
        progress.update(done=len(listed) - len(todo) - len(twins))
        ledger.append(twins)
        progress.update(done=len(twins))
        results = settings.cluster.stream(stages, (_blank(v) for v in todo))
        for batch in batches(_finished(results, settings.max_failed_share, progress)):
            ledger.append(batch)
    ledger.compact()


def _todo(
    settings: Settings, ledger: Ledger, listed: dict[str, Listed]
) -> tuple[list[Listed], list[Row]]:
    """What is left to score, and finished rows for files that share another's bytes."""
    known = ledger.read(["bytes", "version", "status", "sha256"]).to_pylist()
    done = {}
    for row in known:
        now = listed.get(row["video"])
        same = now is not None and (now.bytes, now.version) == (row["bytes"], row["version"])
        if same and not (settings.retry_failed and row["status"] == "failed"):
            done[row["video"]] = row
    todo = [v for v in listed.values() if v.video not in done]
    twins = list(_twins(settings.cluster, todo, done, listed, settings))
    found = {row["video"] for row in twins}
    return [v for v in todo if v.video not in found], twins


def _twins(
    cluster: Cluster,
    todo: list[Listed],
    done: dict[str, Row],
    listed: dict[str, Listed],
    settings: Settings,
) -> Iterator[Row]:
    """Rows for the files of `todo` that are byte for byte another one, the first listed.

    Only files of equal size are read for it; the others can't be equal.
    """
    by_size: dict[int, list[Listed]] = defaultdict(list)
    for v in listed.values():
        by_size[v.bytes].append(v)
    new = {v.video for v in todo}
    alike = [
        v
        for size, group in by_size.items()
        if size > 0 and len(group) > 1 and any(v.video in new for v in group)
        for v in group
    ]
    if not alike:
        return
    sha256 = {v.video: done[v.video]["sha256"] for v in alike if v.video in done}
    cluster.start((Folder(settings.output)).path("logs"))
    unread = [_blank(v) for v in alike if sha256.get(v.video) is None]
    for row in cluster.stream([Identify()], unread):
        sha256[row["video"]] = row.get("sha256")
    first: dict[str, Listed] = {}
    originals = [v for v in alike if v.video in done and done[v.video]["status"] != "duplicate"]
    for v in originals + alike:
        digest = sha256.get(v.video)
        if digest is None:
            continue
        same = first.setdefault(digest, v)
        if same.video != v.video and v.video in new:
            yield _blank(v) | {
                "sha256": digest,
                "status": "duplicate",
                "error": f"same bytes as {same.video}",
                "clips": [],
            }


def _blank(v: Listed) -> Row:
    return {"video": v.video, "bytes": v.bytes, "version": v.version, "error": None}


def _finished(rows: Iterable[Row], max_failed_share: float, progress: Progress) -> Iterator[Row]:
    """Rows with their status. Raises RunError where too many fail to be the videos' own fault."""
    failed = Counter[str]()
    for done, row in enumerate(rows, 1):
        row["status"] = "ok" if row["error"] is None else "failed"
        if row["error"] is not None:
            row |= {"clips": [], "cuts_s": [], "gradual": [], "takes": []}
            failed[row["error"]] += 1
            progress.say(f"failed: {row['video']}: {row['error']}")
        progress.update(done=1, failed=int(row["error"] is not None))
        yield row
        if done >= ENOUGH_TO_JUDGE and failed.total() > max_failed_share * done:
            worst = "; ".join(f"{error} ({n})" for error, n in failed.most_common(3))
            raise RunError(
                f"{failed.total()} of {done} videos failed, more than {max_failed_share:.0%}: "
                f"{worst}\n  fix: mend the cause and run again with retry_failed=true, or go on "
                "with max_failed_share=1"
            )


if __name__ == "__main__":
    main(__doc__, run, sys.argv[1:])
