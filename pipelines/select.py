"""Select: a policy decides which clips are kept -> ledger/selection.parquet. Decodes nothing.

    python -m pipelines.select [CONFIG] output=OUT [select.policy.NAME='{min: 1, max: 2}' …]

With another policy it takes seconds, updates the tables and the report, and prints which clips it
gains and loses, by rule. Where the shards are then of an earlier selection, it prints the commands
that write them again.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from curation import config, records
from curation.cli import print_to_stderr
from curation.ledger import record_settings, recorded_settings
from curation.parquet import scan
from curation.partitions import Partitions
from curation.policy import Range, check_columns, check_decoded, check_prefilter
from curation.runner.cluster import Cluster
from curation.stage import PlanError
from curation.storage import Folder
from pipelines.outdated import (
    ExportedShards,
    OutdatedShards,
    exported_captions,
    record_outdated,
)
from pipelines.publish import clips_schema, recorded_config, write_report, write_tables
from pipelines.selection_ranges import stream_selection
from pipelines.settings import ScoreSettings, Settings, main
from pipelines.subset import check_subset
from pipelines.tables import (
    CLIPS,
    SELECTION,
    clip_partitions,
    read_not_decoded,
    recorded_policy,
    videos_ledger,
)
from stages.header_rules import HEADER_RULES
from stages.report.difference import (
    COMPARED,
    Difference,
    compare_clips,
    format_difference,
    join_differences,
)
from stages.selection.selection_table import SCHEMA

SCORES_WITHOUT_MODEL = tuple(c.name for c in records.SCORES if not c.model)


def costly_scores(settings: ScoreSettings) -> list[str]:
    """The scores that only clips that pass the prefilter have."""
    by_models = [column.name for column in records.SCORES if column.model]
    return [*settings.decode.costly_scores, *settings.ocr.writes, *by_models, "semantic_similarity"]


def check(settings: Settings, out: Folder, will_score: bool = False) -> None:
    """Raises PlanError for a policy that needs scores which the ledger does not have, SqlError and
    ConfigError for a subset that can't be formed.

    will_score: `score` runs before; the scores that its settings add count too.
    """
    by_models = _scores_by_models(settings, out, will_score)
    known = {*SCORES_WITHOUT_MODEL, *by_models, *settings.caption.chosen.scores}
    recorded = recorded_settings(out / "ledger", "videos")
    decode = settings.score.decode
    detector = decode.detector if recorded is None else recorded["decode"]["detector"]
    known -= replace(decode, detector=detector).scores_of_other_detectors
    check_columns(settings.select.policy, known)
    also = () if settings.select.semantic_similarity is None else ("semantic_similarity",)
    if also and "richness_clip_l14" not in by_models:  # computed with the embeddings
        raise PlanError(
            f"select.semantic_similarity needs the clips' embeddings, and {out.url} has none\n"
            "  fix: run longtake score with score.models.clip.weights (docs/models.md), which "
            "decodes no video again, or set select.semantic_similarity=null"
        )
    check_subset(settings.select, "richness_clip_l14" in by_models)
    if recorded is not None:
        prefilter = recorded_policy(recorded["decode"]["prefilter"])
    else:
        prefilter = decode.prefilter
    policy = settings.select.policy
    duration, shortest_s = policy.get("duration_s"), decode.clip_s
    if will_score and isinstance(duration, Range) and shortest_s < (duration.min or 0):
        print_to_stderr(
            f"score.decode.clip_s is {shortest_s:g}: clips that are shorter than "
            f"{duration.min:g} s will be rejected by select.policy.duration_s (docs/shots.md)"
        )
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


def run(settings: Settings, out: Folder, _: Cluster | None = None) -> OutdatedShards | None:
    """Returns how the shards of the last export differ from the selection."""
    check(settings, out)
    made_with = config.as_dict(settings.select)
    before = recorded_settings(out / "ledger", "selection")
    for line in config.differences(before or made_with, made_with):
        print_to_stderr(f"select  changed since the last selection: {line}")
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
    record_settings(out / "ledger", "selection", made_with)
    print_to_stderr(f"select  {kept} of {clips} clips kept")
    return outdated


def select_and_publish(settings: Settings, out: Folder, _: Cluster) -> None:
    _check_captions(settings, out)
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


def _check_captions(settings: Settings, out: Folder) -> None:
    """Raises PlanError where the tables have captions of another set, and the settings' set has
    none: the tables would lose them."""
    name = settings.caption.set_name
    before = exported_captions(out)
    if before not in (None, name) and recorded_settings(out / "ledger", f"captions/{name}") is None:
        raise PlanError(
            f"the tables of {out.url} have the captions {before!r}, and there are none of these "
            f"settings, {name!r}\n  fix: give the caption.* settings of that run, or CONFIG with "
            "them; for other captions run longtake caption with their settings first"
        )


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
