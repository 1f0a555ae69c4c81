"""Names of version 0.1.0 and their present names: for messages about old files, and for comparing.

CHANGELOG.md has the tables for users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

OLD_VERSION = "0.1.0"

SCORES = {"still_share": "static_share", "fake_motion": "ken_burns_share"}
COLUMNS = {
    **SCORES,
    "gate": "prefilter",
    "causes": "null_reasons",
    "copy_start": "starts_on_keyframe",
    "neighbours": "frame_samples",
}
SETTINGS = {
    "score.watch": "score.decode",
    "score.watch.gate": "score.decode.prefilter",
    "score.watch.neighbours": "score.decode.frame_samples",
    "score.watch.shots": "score.decode.learned",
    "score.watch.stills": "score.decode.key_frames",
    "score.watch.motion.looks_per_s": "score.decode.motion.samples_per_s",
    "score.watch.motion.still_below_px_s": "score.decode.motion.static_below_px_s",
    "score.watch.motion.fake_least_s": "score.decode.motion.min_ken_burns_s",
    "score.watch.light.looks_per_s": "score.decode.light.samples_per_s",
    "score.watch.freeze.least_s": "score.decode.freeze.min_freeze_s",
    "score.watch.overlay.looks_per_s": "score.decode.overlay.samples_per_s",
    "score.watch.overlay.most_looks": "score.decode.overlay.max_samples",
    "score.text": "score.ocr",
    "caption.openai.clips_in_flight": "caption.openai.max_clips_in_flight",
    "caption.openai.patience_s": "caption.openai.max_outage_s",
    "caption.openai.pause_s": "caption.openai.backoff_s",
    "caption.vllm.clips_in_flight": "caption.vllm.max_clips_in_flight",
    "caption.vllm.engine": "caption.vllm.engine_args",
    **{f"select.policy.{old}": f"select.policy.{new}" for old, new in SCORES.items()},
}


def new_setting(name: str) -> str:
    """The present name of a setting of any version, dotted."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if new := SETTINGS.get(".".join(parts[:end])):
            return ".".join([new, *parts[end:]])
    return name


def old_settings(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of renamed settings in nested plain data."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if name in SETTINGS:
            yield name
        if isinstance(value, dict):
            yield from old_settings(value, f"{name}.")
