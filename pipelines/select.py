"""Select: a policy decides which clips are kept -> ledger/selection.parquet. Decodes nothing.

    python -m pipelines.select [CONFIG] output=OUT [select.policy.NAME='{min: 1, max: 2}' …]

With another policy it takes seconds, updates the tables and the report, and prints which clips it
gains and loses, by rule. Where the shards are then of an earlier selection, it prints the commands
that write them again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config, records
from curation.ledger import record_settings, recorded_settings
from curation.partitions import Partitions, as_bytes
from curation.policy import check_columns, check_decoded, check_prefilter
from curation.runner.cluster import Cluster
from curation.stage import PlanError
from curation.storage import Folder, scan
from pipelines.outdated import ExportedShards, OutdatedShards, record_outdated
from pipelines.publish import clips_schema, recorded_config, write_report, write_tables
from pipelines.reviews import flag_reasons, read_reviews, stream_captions
from pipelines.settings import ScoreSettings, SelectSettings, Settings, main
from pipelines.subset import (
    CAPTION_COLUMNS,
    EMBEDDINGS,
    check_subset,
    inside_where,
    reads_captions,
    where_columns,
    with_captions,
)
from pipelines.tables import (
    CLIPS,
    SELECTION,
    clip_partitions,
    clip_schema,
    read_embeddings,
    read_not_decoded,
    recorded_policy,
    rows_of,
    stream_clips,
    videos_ledger,
    videos_of_input,
)
from stages.header_rules import HEADER_RULES
from stages.report.difference import (
    COMPARED,
    Difference,
    compare_clips,
    format_difference,
    join_differences,
)
from stages.selection.clip_selection import (
    OUTSIDE_BY_CAPTION,
    OVER_LIMIT,
    SCHEMA,
    CaptionCounts,
    ClipSelector,
    apply_caption_rules,
    reject_clips,
    selected_columns,
)
from stages.selection.subset import clips_over_limit, column_groups, embedding_groups

# Of captions, what the selection depends on.
CAPTION_SCHEMA = pa.schema(
    [
        field
        for field in records.schema(records.CAPTION)
        if field.name in ("clip_id", "error", "rejected", *CAPTION_COLUMNS)
    ]
)
SCORES_WITHOUT_MODEL = tuple(c.name for c in records.SCORES if not c.model)


def costly_scores(settings: ScoreSettings) -> dict[str, str]:
    """Score that only clips that pass the prefilter have -> the stage that computes it."""
    by_models = [column.name for column in records.SCORES if column.model]
    return {
        **dict.fromkeys(settings.decode.costly_scores, type(settings.decode).__name__),
        **dict.fromkeys(settings.ocr.writes, type(settings.ocr).__name__),
        **dict.fromkeys([*by_models, "semantic_similarity"], type(settings.models).__name__),
    }


def check(settings: Settings, out: Folder, will_score: bool = False) -> None:
    """Raises PlanError for a policy that needs scores which the ledger does not have, SqlError and
    ConfigError for a subset that can't be formed.

    will_score: `score` runs before; the scores that its settings add count too.
    """
    by_models = _scores_by_models(settings, out, will_score)
    known = {*SCORES_WITHOUT_MODEL, *by_models, *settings.caption.chosen.scores}
    check_columns(settings.select.policy, known)
    also = () if settings.select.semantic_similarity is None else ("semantic_similarity",)
    if also and "richness_clip_l14" not in by_models:  # computed with the embeddings
        raise PlanError(
            f"select.semantic_similarity needs the clips' embeddings, and {out.url} has none\n"
            "  fix: run longtake score with score.models.clip.weights (docs/models.md), which "
            "decodes no video again, or set select.semantic_similarity=null"
        )
    check_subset(settings.select, "richness_clip_l14" in by_models)
    recorded = recorded_settings(out / "ledger", "videos")
    if recorded is not None:
        prefilter = recorded_policy(recorded["decode"]["prefilter"])
    else:
        prefilter = settings.score.decode.prefilter
    policy = settings.select.policy
    check_prefilter(policy, prefilter, costly_scores(settings.score), also)
    not_decoded = None if will_score else read_not_decoded(out, list(HEADER_RULES))
    check_decoded(policy, prefilter, HEADER_RULES, not_decoded)


def _scores_by_models(settings: Settings, out: Folder, will_score: bool) -> set[str]:
    """The scores that models computed in this output, or will."""
    scorers = settings.score.models.enabled_scorers().values() if will_score else ()
    planned = {column for scorer in scorers for column in scorer.writes}
    recorded = videos_ledger(out).batches(["video", "weights"])
    return planned.union(
        *(pc.unique(c.keys).to_pylist() for table in recorded for c in table["weights"].chunks)
    )


@dataclass(frozen=True)
class SelectedRange:
    """The selection of the clips of one range of clip_ids, in order, and what it depends on."""

    clips: pa.Table  # selected_columns of the policy but the fingerprint, and those of where
    selection: pa.Table  # records.SELECTION
    captions: pa.Table  # CAPTION_SCHEMA of clips in the range, not only of these


class _Ranges:
    """The clips and captions of an output, range by range."""

    def __init__(self, settings: Settings, out: Folder, partitions: Partitions) -> None:
        chosen = settings.select
        where = where_columns(chosen)
        balanced = [] if chosen.balance in (None, EMBEDDINGS) else [chosen.balance]
        names = [*selected_columns(chosen.policy), *where, *balanced]
        self.columns = [n for n in dict.fromkeys(names) if n != "fingerprint"]
        self._partitions = partitions
        partitions.write(
            stream_clips(out, [*self.columns, "fingerprint"]),
            {"clips": self.columns, "fingerprints": ["clip_id", "fingerprint"]},
        )
        captions = stream_captions(out, settings.caption.set_name)
        partitions.write(captions, {"captions": CAPTION_SCHEMA.names})

    def __iter__(self) -> Iterator[tuple[int, pa.Table, pa.Table]]:
        """How many clips come before, the clips of a range, and captions."""
        first = 0
        for number in range(len(self._partitions)):
            clips = self._partitions.read("clips", number, clip_schema(self.columns))
            captions = self._partitions.read("captions", number, CAPTION_SCHEMA)
            yield first, clips, captions
            first += clips.num_rows

    def fingerprints(self) -> Iterator[pa.ChunkedArray]:
        schema = clip_schema(["clip_id", "fingerprint"])
        for number in range(len(self._partitions)):
            yield self._partitions.read("fingerprints", number, schema)["fingerprint"]


def stream_selection(settings: Settings, out: Folder) -> Iterator[SelectedRange]:
    """The selection of all clips, range by range in order of clip_id.

    select.limit counts before captions are written: a drawn clip that a rule on captions rejects is
    not replaced. Where select.where reads captions, it counts once every kept clip has some.
    """
    with clip_partitions(out) as partitions:
        yield from _select_ranges(settings, out, _Ranges(settings, out, partitions))


def _select_ranges(settings: Settings, out: Folder, ranges: _Ranges) -> Iterator[SelectedRange]:
    chosen = settings.select
    by_caption = chosen.where is not None and reads_captions(chosen.where)
    inside = [] if by_caption else inside_where(chosen, (clips for _, clips, _ in ranges))
    selector, group = _decide_by_measurements(chosen, out, ranges, inside)
    over = np.empty(0, np.int64)
    if chosen.limit is not None and not by_caption:
        over = _over_limit(chosen, group, **selector.kept)
    counts = None if chosen.max_equal_captions is None else CaptionCounts()

    def before_captions(number: int, first: int, clips: pa.Table) -> pa.Table:
        found = selector.rows(clips, first, inside[number] if inside else None)
        return _reject(found, over, first, OVER_LIMIT) if not by_caption else found

    def after_captions(number: int, first: int, clips: pa.Table, captions: pa.Table) -> pa.Table:
        found = apply_caption_rules(
            before_captions(number, first, clips),
            captions,
            chosen.policy,
            chosen.max_equal_captions,
            counts,
        )
        if not by_caption:
            return found
        captioned = rows_of(clips["clip_id"], captions, "clip_id")
        [is_inside] = inside_where(chosen, [with_captions(clips, captioned)])
        has_text = pc.is_valid(captioned["caption"])
        is_outside = pc.and_(
            pc.and_(pc.equal(found["status"], "kept"), has_text),
            pc.invert(pc.fill_null(is_inside, False)),
        )
        return reject_clips(found, np.flatnonzero(is_outside.to_numpy()), OUTSIDE_BY_CAPTION)

    if counts is not None:
        for number, (first, clips, captions) in enumerate(ranges):
            if captions.num_rows:
                counts.add(before_captions(number, first, clips), captions)
    if chosen.limit is not None and by_caption:
        over = _over_limit_by_caption(chosen, group, ranges, after_captions)
    for number, (first, clips, captions) in enumerate(ranges):
        found = after_captions(number, first, clips, captions)
        if by_caption:
            found = _reject(found, over, first, OVER_LIMIT)
        yield SelectedRange(clips, found, captions)


def _decide_by_measurements(
    chosen: SelectSettings, out: Folder, ranges: _Ranges, inside: list[pa.ChunkedArray]
) -> tuple[ClipSelector, np.ndarray | None]:
    """The selector, which has decided about all clips but for their captions, and `_groups`."""
    selector = ClipSelector(
        chosen.policy,
        np.unique(as_bytes(videos_of_input(out)["sha256"])),
        semantic_similarity=chosen.semantic_similarity,
        seed=chosen.seed,
        validation_share=chosen.validation_share,
        flags=flag_reasons(read_reviews(out)) if chosen.reject_flagged else None,
    )
    balanced: list[pa.ChunkedArray] = []
    embeddings = None
    if chosen.semantic_similarity is not None or chosen.balance == EMBEDDINGS:
        ids = [chunk for _, clips, _ in ranges for chunk in clips["clip_id"].chunks]
        embeddings = read_embeddings(out, pa.chunked_array(ids, pa.string()))
    for number, ((first, clips, _), codes) in enumerate(
        zip(ranges, ranges.fingerprints(), strict=True)
    ):
        selector.add(
            clips.append_column("fingerprint", codes),
            inside[number] if inside else None,
            None if embeddings is None else embeddings[first : first + clips.num_rows],
        )
        if chosen.balance not in (None, EMBEDDINGS):
            balanced.append(clips[chosen.balance])
    selector.decide()
    return selector, _groups(chosen, balanced, embeddings)


def _groups(
    chosen: SelectSettings, balanced: list[pa.ChunkedArray], embeddings: np.ndarray | None
) -> np.ndarray | None:
    """The group of each clip that select.balance shares the limit among; None where it is off."""
    if chosen.balance == EMBEDDINGS:
        assert embeddings is not None
        return embedding_groups(embeddings, chosen.seed)
    if balanced:
        return column_groups(pa.chunked_array([c for part in balanced for c in part.chunks]))
    return None


def _over_limit(
    chosen: SelectSettings,
    group: np.ndarray | None,
    number: np.ndarray,
    clip_id: np.ndarray,
    held_out: np.ndarray,
) -> np.ndarray:
    """The numbers of the kept clips that are not drawn, ascending. The arrays are of kept clips."""
    assert chosen.limit is not None
    of_kept = None if group is None else group[number]
    over = clips_over_limit(clip_id, held_out, chosen.limit, chosen.seed, of_kept)
    return number[over].astype(np.int64)


def _over_limit_by_caption(
    chosen: SelectSettings,
    group: np.ndarray | None,
    ranges: _Ranges,
    select_range: Callable[[int, int, pa.Table, pa.Table], pa.Table],
) -> np.ndarray:
    """As `_over_limit`, for the clips that the condition on captions keeps. Empty while a clip that
    passes the rules has no captions."""
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, (first, clips, captions) in enumerate(ranges):
        found = select_range(number, first, clips, captions)
        rows = np.flatnonzero(pc.equal(found["status"], "kept").to_numpy())
        of_kept = found.take(pa.array(rows))
        if rows_of(of_kept["clip_id"], captions, "clip_id")["clip_id"].null_count:
            return np.empty(0, np.int64)
        held_out = pc.equal(of_kept["split"], "validation").to_numpy()
        kept.append((first + rows, as_bytes(of_kept["clip_id"]), held_out))
    numbers, ids, held_out = map(np.concatenate, zip(*kept, strict=True))
    return _over_limit(chosen, group, numbers, ids, held_out)


def _reject(selection: pa.Table, numbers: np.ndarray, first: int, reason: str) -> pa.Table:
    """reject_clips of those of the numbers, counted over all ranges, that are in this one."""
    span = slice(*np.searchsorted(numbers, [first, first + selection.num_rows]))
    return reject_clips(selection, numbers[span] - first, reason)


def run(settings: Settings, out: Folder, _: Cluster | None = None) -> OutdatedShards | None:
    """Returns how the shards of the last export differ from the selection."""
    check(settings, out)
    shards = ExportedShards(out)
    kept = clips = 0
    with (out / "ledger").table_writer(SELECTION, SCHEMA) as writer:
        for found in stream_selection(settings, out):
            shards.compare(found.selection, found.captions)
            writer.write(found.selection)
            clips += found.selection.num_rows
            kept += pc.sum(pc.equal(found.selection["status"], "kept")).as_py() or 0
        outdated = shards.difference()
        record_outdated(out, outdated)  # first: an interruption must not leave a note out
    record_settings(out / "ledger", "selection", config.as_dict(settings.select))
    print(f"select  {kept} of {clips} clips kept", file=sys.stderr)
    return outdated


def select_and_publish(settings: Settings, out: Folder, _: Cluster) -> None:
    with clip_partitions(out) as partitions:
        compared = _has_compared_columns(out)
        if compared:
            partitions.write(scan(out.dataset(CLIPS), [*COMPARED]), {"before": [*COMPARED]})
        outdated = run(settings, out)
        written = write_tables(settings, out)
        unpacked = written.not_in_shards
        facts: dict[str, object] = {"kept clips in no shard yet": unpacked}
        if outdated:
            facts["outdated"] = str(outdated)
            for number, command in enumerate(outdated.commands, 1):  # long texts are cut there
                facts[f"command {number} to run"] = command
        print(write_report(out, written, recorded_config(settings, out), facts))
        if compared:
            partitions.write(scan(out.dataset(CLIPS), [*COMPARED]), {"now": [*COMPARED]})
            changed = _compare_ranges(partitions)
            print(f"compared with the previous tables: {format_difference(changed)}")
    if outdated:
        print(f"{outdated}\n  fix: {outdated.fix}")
    elif unpacked:
        print(f"{unpacked} kept clips are in no shard yet: run longtake caption, longtake export")
    print(f"report: {out.path('report.html')}")


def _has_compared_columns(out: Folder) -> bool:
    """Whether there are tables, which are not of an older version."""
    return out.exists(CLIPS) and {*COMPARED} <= {*out.dataset(CLIPS).schema.names}


def _compare_ranges(partitions: Partitions) -> Difference:
    schema = pa.schema([clips_schema().field(name) for name in COMPARED])
    pairs = (
        [partitions.read(name, number, schema) for name in ("before", "now")]
        for number in range(len(partitions))
    )
    return join_differences(compare_clips(*pair) for pair in pairs)


if __name__ == "__main__":
    main(__doc__, select_and_publish, sys.argv[1:])
