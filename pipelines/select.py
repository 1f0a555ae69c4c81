"""Select: a policy turns scores into kept or rejected -> ledger/selection.parquet. No decode.

    python -m pipelines.select [CONFIG] output=OUT [select.policy.NAME='{min: 1, max: 2}' …]

Run it again with another policy: it takes seconds, and brings the tables and the report up to
date. pipelines.caption and pipelines.export then write the shards of the new selection.
"""

from __future__ import annotations

import sys

import pyarrow.compute as pc

from curation import config, records
from curation.ledger import record_settings, recorded_settings
from curation.policy import check_columns, check_prefilter
from curation.runner.cluster import Cluster
from curation.stage import PlanError
from curation.storage import Folder
from pipelines.publish import made_with, publish, tables
from pipelines.settings import ScoreSettings, Settings, main
from pipelines.tables import (
    SELECTION,
    captions_ledger,
    read_clips,
    read_vectors,
    recorded_policy,
    videos_ledger,
)
from stages.selection.clip_selection import apply_caption_rules, select_clips

MEASURED = tuple(c.name for c in records.SCORES if not c.model)


def costly_scores(settings: ScoreSettings) -> dict[str, str]:
    """The scores that only clips above the prefilter have -> the stage that computes them."""
    by_models = [column.name for column in records.SCORES if column.model]
    return {
        **dict.fromkeys(settings.decode.costly_scores, type(settings.decode).__name__),
        **dict.fromkeys(settings.ocr.writes, type(settings.ocr).__name__),
        **dict.fromkeys([*by_models, "semantic_similarity"], type(settings.models).__name__),
    }


def check(settings: Settings, out: Folder, will_score: bool = False) -> None:
    """Refuses a policy that the ledger can't answer, before anything starts.

    will_score: `score` runs first, so what its settings measure counts as well.
    """
    by_models = _by_models(settings, out, will_score)
    known = {*MEASURED, *by_models, *settings.caption.chosen.scores}
    check_columns(settings.select.policy, known)
    also = () if settings.select.semantic_similarity is None else ("semantic_similarity",)
    if also and "richness_clip_l14" not in by_models:  # made of the embeddings, in the same look
        raise PlanError(
            f"select.semantic_similarity needs the clips' embeddings, and {out.url} has none\n"
            "  fix: run pipelines.score with score.models.clip.weights (docs/models.md; it takes "
            "no decode), or set select.semantic_similarity=null"
        )
    recorded = recorded_settings(out / "ledger", "videos")
    if recorded is not None:
        prefilter = recorded_policy(recorded["decode"]["prefilter"])
    else:
        prefilter = settings.score.decode.prefilter
    check_prefilter(settings.select.policy, prefilter, costly_scores(settings.score), also)


def _by_models(settings: Settings, out: Folder, will_score: bool) -> set[str]:
    """The scores that models are to give, or gave, to the clips of this output."""
    scorers = settings.score.models.enabled_scorers().values() if will_score else ()
    asked = {column for scorer in scorers for column in scorer.writes}
    given = videos_ledger(out).read(["weights"])["weights"].combine_chunks()
    return {*asked, *pc.unique(given.keys).to_pylist()}


def run(settings: Settings, out: Folder, _: Cluster | None = None) -> None:
    check(settings, out)
    chosen = settings.select
    clips = read_clips(out)
    compared = chosen.semantic_similarity is not None
    selection = select_clips(
        clips,
        chosen.policy,
        semantic_similarity=chosen.semantic_similarity,
        embeddings=read_vectors(out, clips["clip_id"]) if compared else None,
        seed=chosen.seed,
        validation_share=chosen.validation_share,
    )
    captions = captions_ledger(out, settings.caption.set_name).read()
    selection = apply_caption_rules(selection, captions, chosen.policy)
    (out / "ledger").write_table(SELECTION, selection)
    record_settings(out / "ledger", "selection", config.as_dict(chosen))
    kept = pc.sum(pc.equal(selection["status"], "kept")).as_py() or 0
    print(f"select  {kept} of {selection.num_rows} clips kept", file=sys.stderr)


def select_and_publish(settings: Settings, out: Folder, _: Cluster) -> None:
    run(settings, out)
    videos, clips = tables(settings, out)
    kept = clips.filter(pc.equal(clips["status"], "kept"))
    waiting = kept["shard"].null_count
    facts = {"kept clips in no shard yet": waiting}
    print(publish(out, videos, clips, made_with(settings, out), facts))
    if waiting:
        print(f"{waiting} kept clips are in no shard yet: run pipelines.caption, pipelines.export")
    print(f"look at {out.path('report.html')}")


if __name__ == "__main__":
    main(__doc__, select_and_publish, sys.argv[1:])
