"""Diff: prints the clips that another output, policy or setting gains and loses, by rule.

    python -m pipelines.diff A B                  two outputs, also captions that differ
    python -m pipelines.diff OUT CONFIG           OUT, and the policy of CONFIG on its scores
    python -m pipelines.diff OUT CONFIG CONFIG2   two policies on the scores of OUT
    python -m pipelines.diff OUT 'select.policy.static_share={max: 0.8}'

A, B and OUT are folders or URLs, CONFIG is a YAML file of settings. Settings change those of the
last CONFIG; without any, those that OUT was selected with. Nothing is written or decoded.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import yaml

from curation import config
from curation.cli import Arguments, NoSettings, UsageError, find_config, is_setting, run_command
from curation.funnel import rules_of
from curation.ledger import recorded_settings
from curation.storage import Folder
from pipelines import select
from pipelines.outdated import MANIFEST, read_manifest
from pipelines.selection_ranges import stream_selection
from pipelines.settings import Settings
from pipelines.tables import CLIPS, open_clips, rows_of, written_by_older_version
from stages.report.difference import COMPARED, compare_clips, format_difference


def work(given: Arguments[NoSettings]) -> None:
    changes = [value for value in given.values if is_setting(value)]
    names = [value for value in given.values if not is_setting(value)]
    if not names or (len(names) == 1 and not changes) or len(names) > 3:
        raise UsageError("expected A B, OUT CONFIG, OUT CONFIG CONFIG2 or OUT key=value")
    out, others = Folder(names[0]), names[1:]
    if len(others) == 1 and not others[0].endswith((".yaml", ".yml")):
        if changes:
            raise UsageError(f"{changes[0]}: two outputs are compared as they are")
        a, b = read_output(out), read_output(Folder(others[0]))
    elif not others:
        a, b = read_output(out), select_with(out, None, changes)
    elif len(others) == 1:
        a, b = read_output(out), select_with(out, others[0], changes)
    else:
        a, b = select_with(out, others[0], []), select_with(out, others[1], changes)
    print(format_difference(compare_clips(a, b)))


def read_output(out: Folder) -> pa.Table:
    """COMPARED of its clips. Raises PlanError."""
    if "rule" not in open_clips(out).schema.names:
        raise written_by_older_version(out)
    return out.read_table(CLIPS, list(COMPARED))


def settings_of(out: Folder, path: str | None, changes: list[str]) -> Settings:
    """The settings of a selection: of a configuration; None: of the last one, with the changes.

    Raises PlanError, ConfigError.
    """
    captions = []
    if out.exists(MANIFEST):  # the set of captions that the output has
        captions = [f"caption.name={read_manifest(out)['config']['caption']['name']}"]
    if path is not None:
        return config.load(Settings, find_config(path), [*captions, *changes])
    recorded = {"select": recorded_settings(out / "ledger", "selection") or {}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "selection.yaml"
        file.write_text(yaml.safe_dump(recorded))
        return config.load(Settings, file, [*captions, *changes])


def select_with(out: Folder, path: str | None, changes: list[str]) -> pa.Table:
    """COMPARED of the clips as selected with `settings_of`. Raises PlanError, ConfigError."""
    settings = settings_of(out, path, changes)
    select.check(settings, out)
    tables = []
    for found in stream_selection(settings, out):
        captioned = rows_of(found.clips["clip_id"], found.captions, "clip_id")
        columns = {
            "clip_id": found.clips["clip_id"],
            "status": found.selection["status"],
            "rule": rules_of(found.selection["reason"].combine_chunks()),
            "duration_s": found.clips["duration_s"],
            "caption": captioned["caption"],
            "sub_captions": captioned["sub_captions"],
        }
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def main(argv: Sequence[str]) -> None:
    run_command(__doc__, work, argv, arguments="OUT [B_OR_SETTING]...")


if __name__ == "__main__":
    main(sys.argv[1:])
