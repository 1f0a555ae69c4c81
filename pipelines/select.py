"""Select: a policy decides which clips are kept -> ledger/selection.parquet. Decodes nothing.

    python -m pipelines.select [CONFIG] output=OUT [select.policy.NAME='{min: 1, max: 2}' …]

With another policy it takes seconds, updates the tables and the report, and prints which clips it
gains and loses, by rule. Where the shards are then of an earlier selection, it prints the commands
that write them again.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import config, records
from curation.ledger import record_settings, recorded_settings
from curation.policy import check_columns, check_decoded, check_prefilter
from curation.runner.cluster import Cluster
from curation.stage import PlanError
from curation.storage import Folder
from pipelines.outdated import OutdatedShards, compare_with_shards, record_outdated
from pipelines.publish import publish, read_tables, recorded_config
from pipelines.reviews import flag_reasons, read_captions, read_reviews
from pipelines.settings import ScoreSettings, SelectSettings, Settings, main
from pipelines.subset import EMBEDDINGS, check_subset, inside_where, reads_captions, with_captions
from pipelines.tables import (
    CLIPS,
    SELECTION,
    read_clips,
    read_embeddings,
    read_not_decoded,
    recorded_policy,
    rows_of,
    videos_ledger,
)
from stages.header_rules import HEADER_RULES
from stages.report.difference import COMPARED, compare_clips, format_difference
from stages.selection.clip_selection import (
    OUTSIDE_BY_CAPTION,
    apply_caption_rules,
    reject_clips,
    select_clips,
)
from stages.selection.subset import column_groups, embedding_groups, limit_clips

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
    recorded = videos_ledger(out).read(["weights"])["weights"].combine_chunks()
    return {*planned, *pc.unique(recorded.keys).to_pylist()}


def make_selection(settings: Settings, out: Folder, clips: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The selection of all clips (`read_clips`), and the captions that it depends on.

    select.limit counts before captions are written: a drawn clip that a rule on captions rejects is
    not replaced. Where select.where reads captions, it counts once every kept clip has some.
    """
    chosen = settings.select
    needs_embeddings = chosen.semantic_similarity is not None
    by_caption = chosen.where is not None and reads_captions(chosen.where)
    selection = select_clips(
        clips,
        chosen.policy,
        semantic_similarity=chosen.semantic_similarity,
        embeddings=read_embeddings(out, clips["clip_id"]) if needs_embeddings else None,
        seed=chosen.seed,
        validation_share=chosen.validation_share,
        inside=None if by_caption else inside_where(chosen, clips),
        flags=flag_reasons(read_reviews(out)) if chosen.reject_flagged else None,
    )
    if not by_caption:
        selection = _limit(chosen, out, selection, clips)
    captions = read_captions(out, settings.caption.set_name)
    most = chosen.max_equal_captions
    selection = apply_caption_rules(selection, captions, chosen.policy, most)
    if by_caption:
        captioned = rows_of(clips["clip_id"], captions, "clip_id")
        is_kept = pc.equal(selection["status"], "kept")
        inside = inside_where(chosen, with_captions(clips, captioned))
        has_text = pc.is_valid(captioned["caption"])
        is_outside = pc.and_(pc.and_(is_kept, has_text), pc.invert(pc.fill_null(inside, False)))
        rows = np.flatnonzero(is_outside.to_numpy())
        selection = reject_clips(selection, rows, OUTSIDE_BY_CAPTION)
        if not pc.any(pc.and_(is_kept, pc.is_null(captioned["clip_id"]))).as_py():
            selection = _limit(chosen, out, selection, clips)
    return selection, captions


def _limit(chosen: SelectSettings, out: Folder, selection: pa.Table, clips: pa.Table) -> pa.Table:
    """The selection with at most select.limit kept clips."""
    if chosen.limit is None:
        return selection
    groups = None
    if chosen.balance == EMBEDDINGS:
        groups = embedding_groups(read_embeddings(out, clips["clip_id"]), chosen.seed)
    elif chosen.balance is not None:
        groups = column_groups(clips[chosen.balance])
    return limit_clips(selection, chosen.limit, chosen.seed, groups)


def run(settings: Settings, out: Folder, _: Cluster | None = None) -> OutdatedShards | None:
    """Returns how the shards of the last export differ from the selection."""
    check(settings, out)
    selection, captions = make_selection(settings, out, read_clips(out))
    outdated = compare_with_shards(out, selection, captions)
    record_outdated(out, outdated)  # first: an interruption must not leave a note out
    (out / "ledger").write_table(SELECTION, selection)
    record_settings(out / "ledger", "selection", config.as_dict(settings.select))
    kept = pc.sum(pc.equal(selection["status"], "kept")).as_py() or 0
    print(f"select  {kept} of {selection.num_rows} clips kept", file=sys.stderr)
    return outdated


def select_and_publish(settings: Settings, out: Folder, _: Cluster) -> None:
    previous = None
    if out.exists(CLIPS):
        previous = out.read_table(CLIPS, list(COMPARED))
    outdated = run(settings, out)
    videos, clips = read_tables(settings, out)
    kept = clips.filter(pc.equal(clips["status"], "kept"))
    unpacked = kept["shard"].null_count
    facts: dict[str, object] = {"kept clips in no shard yet": unpacked}
    if outdated:
        facts["outdated"] = str(outdated)
        for number, command in enumerate(outdated.commands, 1):  # long texts are cut there
            facts[f"command {number} to run"] = command
    print(publish(out, videos, clips, recorded_config(settings, out), facts))
    if previous is not None and set(previous.column_names) == {*COMPARED}:
        changed = compare_clips(previous, clips)
        print(f"compared with the previous tables: {format_difference(changed)}")
    if outdated:
        print(f"{outdated}\n  fix: {outdated.fix}")
    elif unpacked:
        print(f"{unpacked} kept clips are in no shard yet: run longtake caption, longtake export")
    print(f"report: {out.path('report.html')}")


if __name__ == "__main__":
    main(__doc__, select_and_publish, sys.argv[1:])
