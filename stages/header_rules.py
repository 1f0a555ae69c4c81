"""Header rules: rejects a video by its header, as far as the container's index confirms it.

Headers may be wrong. The size counts if the container states it, the first frame has it and no
packet changes it; the frame rate counts if the index gives the time of each frame; the duration
counts if the index shows that nothing comes later. Otherwise the video is decoded.
"""

from __future__ import annotations

import av

from curation.policy import Policy, Range, Rule, decide
from curation.records import CLIP, NOT_DECODED, SCORE_NAMES, make_clip_id
from curation.stage import BadVideo, Row
from curation.video.container import Limits, VideoHeader
from curation.video.first_frame import FirstFrameReader, read_claims
from curation.video.source import Source

HEADER_RULES = ("width", "height", "fps", "duration_s")
MARGIN_S = 0.2  # by which a video must be too short: its last frame's duration is uncertain
MAX_CLAIM_ERROR_S = 1.0  # between the header's duration and the index's
FPS_MARGIN = 0.02  # a short clip may have one frame more or less


def header_rejection(
    source: Source, limits: Limits, prefilter: Policy
) -> tuple[VideoHeader, Policy] | None:
    """The header of a video that its header rules out, with the first rule that each clip fails.

    Raises TransientError where the store fails.
    """
    rules = Policy({name: rule for name, rule in prefilter.items() if name in HEADER_RULES})
    try:
        if not rules or not _may_fail(source, rules):
            return None
        with av.logging.Capture(), FirstFrameReader(source, limits) as reader:
            failed = _failed_rule(reader, rules)
            return (reader.header, failed) if failed else None
    except BadVideo:  # decoding it gives the reason
        return None


def _may_fail(source: Source, rules: Policy) -> bool:
    """Whether the video may fail a rule, so that it is opened. If this is wrong, it is only
    decoded."""
    return any(
        _fails_by_size(rules, claim.width, claim.height)
        or _is_too_short(claim.duration_s, rules)
        or (claim.fps is not None and _fails_at_any_rate(claim.fps, rules))
        for claim in read_claims(source)
    )


def _fails_by_size(rules: Policy, width: int, height: int) -> set[str]:
    size = {"width": width, "height": height}
    return {name for name in size if name in rules and not rules[name].passes(size[name])}


def _failed_rule(reader: FirstFrameReader, rules: Policy) -> Policy:
    """Returns the first rule that fails; empty if none does, or if the container states no
    duration."""
    header, claimed_s = reader.header, reader.header.header_duration_s
    if claimed_s is None:
        return Policy()
    is_short = _is_too_short(claimed_s, rules)
    index = reader.index(with_end=is_short)
    failed = set()
    if index.fps is not None and _fails_at_any_rate(index.fps, rules):
        failed.add("fps")
    if is_short and index.end_s is not None:
        is_confirmed = abs(index.end_s - claimed_s) < MAX_CLAIM_ERROR_S
        if is_confirmed and _is_too_short(index.end_s, rules):
            failed.add("duration_s")
    by_size = _fails_by_size(rules, header.width, header.height)
    if header.codec == "av1":  # later frames may be smaller
        by_size = {name for name in by_size if _is_below(rules[name], getattr(header, name))}
    for name, rule in rules.items():
        if name in by_size and name not in failed:
            failed |= by_size if reader.has_one_size(index.size) else set()
            by_size = set()
        if name in failed:
            return Policy({name: rule})
    return Policy()


def _is_below(rule: Rule, value: int) -> bool:
    return isinstance(rule, Range) and rule.min is not None and value < rule.min


def _is_too_short(duration_s: float, rules: Policy) -> bool:
    """A clip may be shorter than its video, so that no other rule on the duration is decided."""
    rule = rules.get("duration_s")
    return isinstance(rule, Range) and rule.min is not None and duration_s + MARGIN_S < rule.min


def _fails_at_any_rate(rates: tuple[float, float], rules: Policy) -> bool:
    rule = rules.get("fps")
    if not isinstance(rule, Range):
        return False
    lowest, highest = rates[0] * (1 - FPS_MARGIN), rates[1] * (1 + FPS_MARGIN)
    is_slow = rule.min is not None and highest < rule.min
    return is_slow or (rule.max is not None and lowest > rule.max)


def rejected_row(header: VideoHeader, failed: Policy, sha256: str | None, file_id: str) -> Row:
    """The columns of a video that is not decoded, with one clip: the whole video.

    file_id: the hash of the file's bytes, or what else identifies them.
    """
    orientation = header.geometry.orientation
    duration_s = float(header.header_duration_s or 0.0)
    columns: Row = {
        "sha256": sha256,
        "duration_s": duration_s,
        "width": header.width,
        "height": header.height,
        "fps": header.header_fps,
        "codec": header.codec,
        "pix_fmt": header.pix_fmt,
        "rotation": orientation.rotation,
        "mirrored": orientation.mirrored,
        "interlaced": None,
        "transfer": header.transfer,
        "num_frames": None,
        **dict.fromkeys(("cuts_s", "gradual", "takes", "time_jumps", "size_changes")),
    }
    clip: Row = dict.fromkeys(column.name for column in CLIP)
    clip |= {name: columns[name] for name in (*HEADER_RULES, "transfer")}
    unknown = [name for name in ("interlaced", "fps") if columns[name] is None]
    clip |= {
        "clip_id": make_clip_id(file_id, 0.0, duration_s),
        "start_s": 0.0,
        "end_s": duration_s,
        "prefilter": decide(columns, failed)[0],
        "null_reasons": dict.fromkeys((*SCORE_NAMES, *unknown), NOT_DECODED),
        "segments": [],
    }
    return columns | {"clips": [clip]}
