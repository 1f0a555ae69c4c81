"""Whether the shards hold the selected clips; where they do not, the manifest states it."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.json_text import parse_object
from curation.stage import PlanError
from curation.storage import Folder
from pipelines.checksums import update_checksums
from pipelines.tables import rows_of

SHARDS = "shards.parquet"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class OutdatedShards:
    """How the last export differs from the selection."""

    missing: int  # kept clips that are in no shard
    not_kept: int  # clips in shards that are no longer kept
    other_split: int  # kept clips in a shard of the other split
    commands: list[str]  # that write the shards of the selection, in order; CONFIG: of the run

    @property
    def fix(self) -> str:
        return " && ".join(self.commands)

    def __str__(self) -> str:
        counts = (
            (self.missing, "kept clips are in no shard"),
            (self.not_kept, "clips in shards are not kept"),
            (self.other_split, "are in shards of the other split"),
        )
        return "shards and manifest are of an earlier selection: " + ", ".join(
            f"{n} {what}" for n, what in counts if n
        )


class ExportedShards:
    """Compares the shards of the last export with a selection that comes table by table.

    Clips whose captions or export failed belong in no shard.
    """

    def __init__(self, out: Folder) -> None:
        self._out = out
        columns = ["clip_id", "split", "error"]
        self._shards = out.read_table(SHARDS, columns) if out.exists(SHARDS) else None
        self._missing = self._other_split = self._still_kept = 0
        self._has_no_captions = False

    def compare(self, selection: pa.Table, captions: pa.Table) -> None:
        """captions: those of the clips in the selection, and maybe others."""
        if self._shards is None:
            return
        kept = selection.filter(pc.equal(selection["status"], "kept"))
        in_shards = self._shards.filter(pc.is_in(self._shards["clip_id"], kept["clip_id"]))
        of_kept = rows_of(kept["clip_id"], in_shards, "clip_id")
        captioned = rows_of(kept["clip_id"], captions, "clip_id")
        in_no_shard = pc.and_(pc.is_null(of_kept["clip_id"]), pc.is_null(captioned["error"]))
        moved = pc.and_(pc.is_null(of_kept["error"]), pc.not_equal(of_kept["split"], kept["split"]))
        self._missing += _count(in_no_shard)
        self._other_split += _count(moved)
        self._still_kept += _count(pc.is_null(in_shards["error"]))
        self._has_no_captions |= _count(pc.and_(in_no_shard, pc.is_null(captioned["clip_id"]))) > 0

    def difference(self) -> OutdatedShards | None:
        """The differences; None where there is none, or nothing was exported yet."""
        if self._shards is None:
            return None
        not_kept = _count(pc.is_null(self._shards["error"])) - self._still_kept
        if not (self._missing or not_kept or self._other_split):
            return None
        phases = ("caption", "export") if self._has_no_captions else ("export",)
        place = shlex.quote(self._out.url)
        commands = [f"longtake {phase} CONFIG output={place}" for phase in phases]
        return OutdatedShards(self._missing, not_kept, self._other_split, commands)


def _count(mask: pa.ChunkedArray) -> int:
    return int(np.count_nonzero(pc.fill_null(mask, False).to_numpy()))


def read_manifest(out: Folder) -> dict[str, Any]:
    """Returns manifest.json. Raises PlanError if it is damaged, FileNotFoundError if there is
    none."""
    try:
        return parse_object(out.read(MANIFEST))
    except ValueError as error:
        raise PlanError(
            f"{out.path(MANIFEST)} is damaged: {error}\n  fix: delete it; longtake export writes "
            "it again"
        ) from None


def exported_captions(out: Folder) -> str | None:
    """The name of the captions of the last export; None before the first. Raises PlanError."""
    return read_manifest(out).get("captioner") if out.exists(MANIFEST) else None


def record_outdated(out: Folder, found: OutdatedShards | None) -> None:
    """Writes the differences to the manifest, as `outdated_shards`; without any, removes them."""
    if not out.exists(MANIFEST):
        return
    manifest = read_manifest(out)
    recorded = manifest.pop("outdated_shards", None)
    if found is not None:
        manifest["outdated_shards"] = asdict(found) | {"what": str(found), "fix": found.fix}
    if recorded != manifest.get("outdated_shards"):
        out.write(MANIFEST, manifest_bytes(manifest))
        update_checksums(out, [MANIFEST])


def manifest_bytes(manifest: dict[str, object]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()
