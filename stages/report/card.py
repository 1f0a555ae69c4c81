"""README.md of a dataset: a card in the format of Hugging Face's hub. Depends on the tables alone,
so that equal runs write equal cards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from curation.progress import printable
from curation.records import CLIP

MAX_TEXT_CHARS = 200
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGEST_SIZE = "n>1M"
# Licences of code and weights; docs/models.md.
LICENCES = {
    "richness_clip_l14": "MIT (CLIP)",
    "coherence_clip_l14": "MIT (CLIP)",
    "aesthetic_laion_l14": "Apache-2.0 (LAION's aesthetics head), MIT (CLIP)",
    "aesthetic_laion_l14_min": "Apache-2.0 (LAION's aesthetics head), MIT (CLIP)",
    "key_lpips": "BSD-2-Clause (LPIPS), BSD-3-Clause (AlexNet)",
    "motion_raft": "BSD-3-Clause (torchvision's RAFT)",
    "text_share": "Apache-2.0 (RapidOCR)",
}
NOT_KNOWN = "not known to longtake"


def escape(text: object) -> str:
    """Any text as literal Markdown on one line: names and errors of files may be hostile."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~$&])", r"\\\1", printable(text, MAX_TEXT_CHARS))


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; texts are escaped."""
    lines = [header, ["---"] * len(header)]
    lines += [["" if v is None else escape(v) for v in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dataset_card(
    manifest: Mapping[str, Any], funnel: pa.Table, videos: pa.Table, clips: pa.Table
) -> str:
    """Returns the text of README.md. manifest, funnel, videos, clips: as in the output."""
    kept = clips.filter(pc.equal(clips["status"], "kept"))
    select, made = manifest["config"]["select"], manifest["config"]
    splits = [name for name in ("train", "validation") if manifest["splits"].get(name)]
    return "\n\n".join(
        [
            _header(manifest, splits),
            "# Long takes with progressive captions",
            _contents(manifest, kept, splits),
            "## How the clips were chosen",
            _choice(select, made["score"]["decode"]),
            "## Funnel",
            _funnel(funnel),
            "## Models and licences",
            _models(made, videos),
            "## Limits",
            f"{_limits(made)}\n",
        ]
    )


def _header(manifest: Mapping[str, Any], splits: list[str]) -> str:
    """The YAML that the hub reads."""
    clips = manifest["shards"]["clips"]
    languages = manifest["config"]["caption"].get("languages") or ["en"]
    shards = [{"split": name, "path": f"shards/{name}-*.tar"} for name in splits]
    header = {
        "pretty_name": "Long takes with progressive captions",
        "license": "unknown",  # that of the videos
        "task_categories": ["text-to-video"],
        "language": [name for name in languages if re.fullmatch("[a-z]{2,3}", str(name))],
        "size_categories": [next((s for most, s in SIZES if clips < most), LARGEST_SIZE)],
        "tags": ["video", "webdataset", "longtake"],
        # `datasets` reads all configurations of a folder by one loader: not the tables, too
        "configs": [{"config_name": "default", "data_files": shards}] if shards else [],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _contents(manifest: Mapping[str, Any], kept: pa.Table, splits: list[str]) -> str:
    shards = manifest["shards"]
    parts = ", ".join(f"{manifest['splits'][name]} for {name}" for name in splits)
    videos = pc.count_distinct(kept["video"]).as_py()
    lines = [
        f"{shards['clips']} clips of {videos} {'video' if videos == 1 else 'videos'}, "
        f"{manifest['hours_kept']:.3g} hours in all{': ' + parts if parts else ''}. Each clip is a "
        "single take with a caption and a sub-caption for each of its segments. No source video is "
        "in both splits.",
    ]
    if kept.num_rows:
        ends = {n: pc.min_max(kept[n]).as_py() for n in ("duration_s", "width", "height", "fps")}
        spans = {
            n: f"{e['min']:.4g}" + (f" to {e['max']:.4g}" if e["max"] != e["min"] else "")
            for n, e in ends.items()
        }
        lines.append(
            f"Clips are {spans['duration_s']} s long, {spans['width']} px wide, {spans['height']} "
            f"px high, at {spans['fps']} frames per second, without sound."
        )
    lines.append(
        f"`shards/` has {shards['shards']} WebDataset tars with an mp4 and a JSON per clip; "
        "`clips.parquet` has a row for each clip, rejected ones included, with its scores, reasons "
        "and captions; the meaning of each column is in the metadata of its field."
    )
    lines.append(
        '```python\nfrom datasets import load_dataset\n\nclips = load_dataset("PATH", '
        f'split="{splits[0]}", streaming=True).decode(False)\n```'
        if splits
        else "No clip is in a shard."
    )
    return "\n\n".join(lines)


def _choice(select: Mapping[str, Any], decode: Mapping[str, Any]) -> str:
    meanings = {c.name: c.what for c in CLIP}
    rules: list[list[object]] = []
    for name, rule in select["policy"].items():
        allowed = ", ".join(f"{k}: {v}" for k, v in rule.items() if v is not None)
        rules.append([name, allowed, meanings.get(name, "")])
    lengths = sorted({decode["clip_s"], decode["max_clip_s"] or decode["clip_s"]})
    lines = [
        f"The detector `{escape(decode['detector'])}` found the takes in the videos, and clips of "
        f"{' to '.join(f'{s:g}' for s in lengths)} s were chosen in each take. A clip is kept if "
        "each score is in its range:",
        table(["score", "allowed", "meaning"], rules),
    ]
    more = {
        "where": "condition on the clips, in SQL",
        "limit": "largest number of clips, drawn at random",
        "balance": "column of whose values equal numbers are drawn",
        "semantic_similarity": "largest cosine of two clips' CLIP embeddings",
        "max_equal_captions": "largest number of clips with the same caption",
        "validation_share": "share of the source videos for validation",
        "seed": "seed of the split and of the draw",
    }
    given = [[n, select[n], what] for n, what in more.items() if select.get(n) is not None]
    lines.append(table(["setting", "value", "meaning"], given))
    lines.append(
        "Of clips that show the same images at the same speed, one is kept. `manifest.json` has "
        "all settings, versions and hashes."
    )
    return "\n\n".join(lines)


def _funnel(funnel: pa.Table) -> str:
    rows: list[list[object]] = []
    for row in funnel.to_pylist():
        hours = f"{row['hours']:.3g}"
        rows.append([row["unit"], row["status"], row["reason"], row["count"], hours])
    return table(["unit", "status", "first reason", "count", "hours"], rows)


def _models(made: Mapping[str, Any], videos: pa.Table) -> str:
    caption = made["caption"]
    writer = caption.get("model") or caption.get("captioner") or caption["name"]
    by_rules = caption.get("captioner") == "measured"
    rows: list[list[object]] = [
        ["captions", writer, caption.get("revision"), "Apache-2.0" if by_rules else NOT_KNOWN]
    ]
    detector = made["score"]["decode"]["detector"]
    rows.append(["cuts", detector, None, "MIT" if detector == "transnet" else "Apache-2.0, BSD-3"])
    rows.append(["text_share", "RapidOCR", None, LICENCES["text_share"]])
    weights = videos["weights"].combine_chunks()
    pairs = zip(weights.keys.to_pylist(), weights.items.to_pylist(), strict=True)
    for score, version in sorted(set(pairs)):
        rows.append([score, "weights", version, LICENCES.get(score, NOT_KNOWN)])
    return "\n\n".join(
        [
            table(["for", "by", "version", "licence"], rows),
            "longtake does not know the licence of the videos, which is that of their source. "
            "Check it, and name it in the header of this card, before you pass the clips on. The "
            "licences of the data that the models were trained on are not listed.",
        ]
    )


def _limits(made: Mapping[str, Any]) -> str:
    by_rules = made["caption"].get("captioner") == "measured"
    captions = (
        "Captions state only measurements: light, colours, motion of camera and subjects, text "
        "on screen. No vision model was used, and no caption names what a clip shows."
        if by_rules
        else "Captions were written by a model from a few frames of each clip and are checked for "
        "their form, not for their truth."
    )
    return "\n".join(
        f"- {line}"
        for line in (
            captions,
            "Nothing was done to find faces, names and other personal data.",
            "Nothing was filtered by topic, violence or nudity.",
            "These duplicates are not found: re-timed, mirrored and cropped copies, and clips that "
            "overlap by less than 4.25 s.",
            "The detector misses some cuts: `docs/measurements/shots.md` has the rates.",
        )
    )
