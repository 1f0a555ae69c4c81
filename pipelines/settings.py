"""The settings of a whole run, and the one command line that every pipeline has."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from curation import config
from curation.config import ConfigError
from curation.policy import Policy
from curation.progress import shown
from curation.runner import Cluster, RunError
from curation.stage import OutputError, PlanError, Row
from curation.storage import Folder, InputError
from stages.captioner import Captioner
from stages.measured import Measured
from stages.text import Text
from stages.watch import Watch

COMMIT_S = 5.0  # results are committed this often
DEFAULT_CONFIG = "configs/local.yaml"
STOPPED = (ConfigError, PlanError, InputError, OutputError, RunError)  # said in one line, exit 1


@dataclass
class ScoreSettings:
    watch: Watch = field(default_factory=Watch)
    text: Text = field(default_factory=Text)


@dataclass
class SelectSettings:
    policy: Policy = field(default_factory=Policy)
    validation_share: Annotated[float, Ge(0), Le(0.5)] = 0.05  # of the source videos
    seed: int = 0  # of the split


@dataclass
class CaptionSettings:
    captioner: Literal["measured"] = "measured"
    measured: Measured = field(default_factory=Measured)

    def build(self, ledger_url: str) -> Captioner:
        """The captioner that `captioner` names."""
        chosen: Captioner = getattr(self, self.captioner)
        chosen.ledger_url = ledger_url
        return chosen


@dataclass
class ExportSettings:
    shard_mb: Annotated[float, Gt(0)] = 500.0
    shard_clips: Annotated[int, Ge(1)] = 1000
    seed: str = ""  # of the order of clips in the shards
    presto: bool = True  # also write presto/, what the authors' released trainer reads


@dataclass
class Settings:
    input: str | None = None  # folder, file, pattern, or .txt / .parquet list; s3:// and gs:// too
    output: str = "out/dataset"
    retry_failed: bool = False  # score the videos that failed in an earlier run once more
    max_failed_share: Annotated[float, Gt(0), Le(1)] = 0.2  # of the videos; above it the run stops
    cluster: Cluster = field(default_factory=Cluster)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    export: ExportSettings = field(default_factory=ExportSettings)


def main(doc: str, run: Callable[[Settings, Folder], int | None], argv: Sequence[str]) -> None:
    """`[CONFIG] [key=value …]`; a mistake ends in one plain message and exit code 1."""
    if "-h" in argv or "--help" in argv:
        print(help_text(doc))
        return
    path = argv[0] if argv and "=" not in argv[0] else DEFAULT_CONFIG
    try:
        settings = config.load(Settings, path, [a for a in argv if a != path])
        sys.exit(run(settings, Folder(settings.output)) or 0)
    except STOPPED as e:
        lines = [shown(line, 1000) for line in str(e).splitlines()]
        sys.exit(f"{type(e).__name__}: " + "\n".join(lines))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")


def help_text(doc: str) -> str:
    lines = [doc.strip(), "", f"CONFIG is a YAML file of settings (default {DEFAULT_CONFIG}).", ""]
    lines += ["Settings and their defaults; any can be given as key=value:"]
    lines += [f"  {name}={value}" for name, value in _flat(config.as_dict(Settings()))]
    return "\n".join(lines)


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            shown_value = "null" if value is None else str(value).lower()
            found.append((prefix + name, shown_value if not isinstance(value, str) else value))
    return found


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows in lists, one every few seconds; what came before a failure is not lost with it."""
    batch: list[Row] = []
    since = time.monotonic()
    try:
        for row in rows:
            batch.append(row)
            if time.monotonic() - since > COMMIT_S:
                yield batch
                batch, since = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        yield batch
        raise
    yield batch
