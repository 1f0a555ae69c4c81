"""The settings of a run, and the command line that all phases share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from annotated_types import Ge, Gt, Le, Lt
from pydantic import StringConstraints

from curation import config
from curation.cli import Arguments, print_to_stderr, run_command
from curation.config import ConfigError
from curation.ledger import locked
from curation.policy import Policy
from curation.runner.cluster import Cluster
from curation.runner.settings import ClusterSettings
from curation.stage import Row, RunError
from curation.status import StatusWriter
from curation.storage import Folder
from pipelines.output_folder import check_output_folder
from stages.captioning.captioner import Captioner
from stages.captioning.measured import MeasuredCaptioner
from stages.captioning.openai_server import OpenAICaptioner
from stages.captioning.transformers_model import TransformersCaptioner
from stages.captioning.vllm_engine import VllmCaptioner
from stages.decode_pass import DecodePass
from stages.scorers.models import Models
from stages.scorers.ocr import OcrStage

COMMIT_INTERVAL_S = 5.0
MIN_ROWS_TO_STOP = 100  # with fewer, a general failure can't be distinguished from single bad rows
DEFAULT_CONFIG = str(Path(__file__).parent.parent / "configs/local.yaml")
EXIT_CODE = (
    "Exit code 0: the command has finished; a video or clip that failed has a row with its error.\n"
    "Exit code 1: an error has stopped it, or all videos or all clips failed.\n"
    "Exit code 130: Ctrl-C or SIGTERM has stopped it."
)
KEY_FRAMES = "key_frames"  # its million files are never renamed, so none is unfinished


@dataclass
class ScoreSettings:
    decode: DecodePass = field(default_factory=DecodePass)
    ocr: OcrStage = field(default_factory=OcrStage)
    models: Models = field(default_factory=Models)  # each is off until it has weights


@dataclass
class SelectSettings:
    policy: Policy = field(default_factory=Policy)
    # of clips whose embeddings have a cosine above it, one is kept; null: they are not compared
    semantic_similarity: Annotated[float, Gt(0), Lt(1)] | None = None
    # most clips with the same caption; if there are more, all are rejected; null: no limit
    max_equal_captions: Annotated[int, Ge(1)] | None = 20
    reject_flagged: bool = False  # rejects the clips that were flagged in longtake browse
    validation_share: Annotated[float, Ge(0), Le(0.5)] = 0.05  # share of the source videos
    # keeps clips for which this SQL condition is true: "motion_dis > 3 AND caption ILIKE '%dog%'"
    where: str | None = None
    limit: Annotated[int, Ge(1)] | None = None  # most clips that are kept, drawn at random
    # a column: the limit keeps as many clips of each of its values or ranges; `embeddings`: of each
    # group of clips that look alike
    balance: str | None = None
    seed: Annotated[int, Ge(0)] = 0  # of the split and of the clips that `limit` draws

    def __post_init__(self) -> None:
        if self.balance is not None and self.limit is None:
            raise ConfigError("balance: expected a limit with it, as in select.limit=1000")


@dataclass
class CaptionSettings:
    # measured, openai, vllm or transformers, whose settings are below; null: openai if
    # caption.openai.url is given, else measured
    captioner: str | None = None
    # of this set of captions (ledger/captions/NAME); null: the captioner's name
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    # each sub-caption also has the fields subject, action, camera, light and style
    structured: bool = False
    measured: MeasuredCaptioner = field(default_factory=MeasuredCaptioner)
    openai: OpenAICaptioner = field(default_factory=OpenAICaptioner)
    vllm: VllmCaptioner = field(default_factory=VllmCaptioner)
    transformers: TransformersCaptioner = field(default_factory=TransformersCaptioner)

    def __post_init__(self) -> None:
        if self.captioner is not None:
            config.check_choice("captioner", self.captioner, config.fields_of(self, Captioner))

    @property
    def chosen(self) -> Captioner:
        """The captioner that writes the captions."""
        name = self.captioner or ("openai" if self.openai.url else "measured")
        captioner: Captioner = getattr(self, name)
        captioner.structured = self.structured
        return captioner

    @property
    def set_name(self) -> str:
        """The name of this set of captions."""
        return self.name or self.chosen.captioner


@dataclass
class ExportSettings:
    shard_mb: Annotated[float, Gt(0), Le(1e6)] = 500.0  # approximate size of a shard
    shard_clips: Annotated[int, Ge(1)] = 1000  # most clips in a shard
    seed: str = ""  # changes the order of the clips in the shards
    presto: bool = False  # also writes presto/, for the trainer that Presto's authors released
    tone_map: bool = False  # clips of HDR video (PQ, HLG) are encoded as SDR


@dataclass
class PlanSettings:
    videos: Annotated[int, Ge(0)] = 12  # number that is scored; with more, ranges are narrower


@dataclass
class Settings:
    input: str | None = None  # folder, file, pattern, or .txt / .parquet list; s3:// and gs:// too
    output: str = "out/dataset"  # folder of the dataset, local or a URL
    retry_failed: bool = False  # tries videos and captions again that failed in an earlier run
    # if a larger share of the videos, or of the clips to caption, fails, the run stops
    max_failed_share: Annotated[float, Gt(0), Le(1)] = 0.2
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    caption: CaptionSettings = field(default_factory=CaptionSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)


def main(doc: str, run: Callable[[Settings, Folder, Cluster], None], argv: Sequence[str]) -> None:
    """The command line of a phase: `[CONFIG] [key=value …]`.

    EXIT_CODE describes the exit codes.
    """

    def work(given: Arguments[Settings]) -> None:
        settings = given.settings
        out = Folder(settings.output)
        check_output_folder(out, settings.input)
        run_on = Cluster(settings.cluster, out.path("logs"), out.url)
        status = StatusWriter(out, doc.partition(":")[0].strip().lower(), lambda: run_on.pools)
        with run_on as cluster, locked(out, print_to_stderr), status:
            out.delete_unfinished(skip=KEY_FRAMES)
            run(settings, out, cluster)

    run_command(
        f"{doc.strip()}\n\n{EXIT_CODE}",
        work,
        argv,
        settings=Settings,
        default_config=DEFAULT_CONFIG,
        stopped="the same command resumes from here",
    )


def timed_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yields the rows in lists, one every COMMIT_INTERVAL_S, and the last before an error too."""
    batch: list[Row] = []
    since = time.monotonic()
    try:
        for row in rows:
            batch.append(row)
            if time.monotonic() - since > COMMIT_INTERVAL_S:
                yield batch
                batch, since = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        yield batch
        raise
    yield batch


def stop_if_too_many_fail(failed: Counter[str], done: int, max_share: float, unit: str) -> None:
    """Raises RunError where more than `max_share` fail. failed: error -> how many."""
    if done >= MIN_ROWS_TO_STOP and failed.total() > max_share * done:
        worst = "; ".join(f"{error} ({n})" for error, n in failed.most_common(3))
        raise RunError(
            f"{failed.total()} of {done} {unit} failed, more than {max_share:.0%}: {worst}\n  fix: "
            "remove the cause and run again with retry_failed=true, or set max_failed_share=1"
        )


def stop_if_all_failed(errors: pa.ChunkedArray, unit: str) -> None:
    """Raises RunError where each unit has an error, also of an earlier run: the cause is rarely in
    the inputs. errors: null where a unit has none."""
    if not len(errors) or errors.null_count:
        return
    worst = "; ".join(f"{e} ({n})" for e, n in Counter(errors.to_pylist()).most_common(3))
    raise RunError(
        f"all {len(errors)} {unit} failed: {worst}\n  fix: remove the cause and run again, with "
        "retry_failed=true unless the files have changed"
    )
