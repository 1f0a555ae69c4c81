"""Which selected clips are rejected for their captions, and which clips are to be captioned."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.policy import Policy, decide_table
from curation.records import CAPTION_SCORES, CORRECTED
from curation.texts import split_words
from stages.selection.selection_table import OUTSIDE_BY_CAPTION, append_reasons, selection_table

NO_TEXT = 0  # the digest of an empty text
TEXT_COLUMNS = ("caption", "sub_captions")


def apply_caption_rules(
    selection: pa.Table,
    captions: pa.Table,
    policy: Policy,
    max_equal_captions: int | None = None,
    counts: CaptionCounts | None = None,
) -> pa.Table:
    """The selection, in which a kept clip is rejected if its captions fail a check or a rule.

    A kept clip without captions (not written yet, or with an `error`, which makes it a failed clip)
    stays kept. A rejected clip stays rejected. The policy's rules do not hold for captions that a
    person corrected.

    selection: records.SELECTION.  captions: records.CAPTION, in any order.  max_equal_captions:
    most clips that may have the same texts; if there are more, all of them are rejected.  counts:
    of the captions of all clips, where `captions` has only some of them.
    """
    policy = policy.without([name for name in policy if name not in CAPTION_SCORES])
    captions = captions.filter(pc.is_null(captions["error"]))
    captioned, captions = _captions_of_kept(selection, captions)
    failed_check = captions["rejected"].to_numpy()
    rejected = np.flatnonzero(pc.is_valid(captions["rejected"]).to_numpy())
    reasons = selection["reasons"].combine_chunks()
    reasons = append_reasons(reasons, captioned[rejected], failed_check[rejected])
    if max_equal_captions is not None:
        if counts is None:
            counts = CaptionCounts()
            counts.add_captions(captions)
        equal, texts = counts.repeated(captions, max_equal_captions)
        reasons = append_reasons(reasons, captioned[equal], texts)
    is_written = pc.invert(pc.fill_null(pc.equal(captions["captioner"], CORRECTED), False))
    captions, captioned = captions.filter(is_written), captioned[is_written.to_numpy()]
    by_policy = decide_table(captions, policy)
    rows = captioned[pc.list_parent_indices(by_policy).to_numpy()]
    texts = pc.list_flatten(by_policy).to_numpy(zero_copy_only=False)
    reasons = append_reasons(reasons, rows, texts)
    return selection_table(selection["clip_id"], reasons, selection["split"])


def _captions_of_kept(selection: pa.Table, captions: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """The rows of the kept clips that have captions, and these."""
    index = pc.index_in(selection["clip_id"], captions["clip_id"].combine_chunks()).to_numpy()
    is_kept = pc.equal(selection["status"], "kept").to_numpy()
    captioned = np.flatnonzero(~np.isnan(index) & is_kept)
    return captioned, captions.take(pa.array(index[captioned].astype(np.int64)))


class CaptionCounts:
    """How many kept clips have the same caption, or the same sub-captions together. Case,
    punctuation and spaces do not count; captions that failed a check are left out."""

    def __init__(self) -> None:
        self._digests: dict[str, list[np.ndarray]] = {name: [] for name in TEXT_COLUMNS}
        self._counted: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, selection: pa.Table, captions: pa.Table) -> None:
        """Counts the captions of the kept clips. selection, captions: as `apply_caption_rules`."""
        captions = captions.filter(pc.is_null(captions["error"]))
        self.add_captions(_captions_of_kept(selection, captions)[1])

    def add_captions(self, captions: pa.Table) -> None:
        """Counts captions that are all of kept clips, and have no error."""
        passed = captions.filter(pc.is_null(captions["rejected"]))
        for name, found in self._digests.items():
            found.append(_text_digests(passed[name]))

    def repeated(self, captions: pa.Table, max_clips: int) -> tuple[np.ndarray, np.ndarray]:
        """(r,) rows of captions that more than `max_clips` clips have, and (r,) the reason of each.
        captions: whose texts were all added before."""
        passed = np.flatnonzero(pc.is_null(captions["rejected"]).to_numpy())
        clips = np.zeros(captions.num_rows, np.int64)
        for name, found in self._digests.items():
            if name not in self._counted:
                self._counted[name] = np.unique(
                    np.concatenate([np.empty(0, np.uint64), *found]), return_counts=True
                )
            known, counts = self._counted[name]
            digests = _text_digests(captions[name].take(pa.array(passed)))
            of_text = np.where(digests == NO_TEXT, 0, counts[np.searchsorted(known, digests)])
            clips[passed] = np.maximum(clips[passed], of_text)
        equal = np.flatnonzero(clips > max_clips)
        return equal, np.array([f"caption repeated: on {n} clips" for n in clips[equal]], object)


def _text_digests(texts: pa.ChunkedArray) -> np.ndarray:
    """(n,) uint64: a hash of the words of each text; NO_TEXT where it has none."""
    words = map(_words_of, texts.to_pylist())
    found = [
        int.from_bytes(hashlib.blake2b("\0".join(w).encode(), digest_size=8).digest(), "big")
        if w
        else NO_TEXT
        for w in words
    ]
    return np.array(found, np.uint64)


def _words_of(text: str | list[dict[str, Any]] | None) -> tuple[str, ...]:
    texts = [part["text"] for part in text] if isinstance(text, list) else [text or ""]
    return tuple(word for text in texts for word in split_words(text))


def clips_to_caption(selection: pa.Table) -> pa.Array:
    """clip_id of the kept clips and of those rejected only for their captions: the captions of
    another captioner may pass."""
    reasons = selection["reasons"].combine_chunks()
    about_captions = rf"^(caption|{'|'.join(CAPTION_SCORES)}) |^{OUTSIDE_BY_CAPTION}$"
    others = pc.invert(pc.match_substring_regex(pc.list_flatten(reasons), about_captions))
    rejected = pc.unique(pc.list_parent_indices(reasons).filter(others))
    return (
        selection["clip_id"]
        .combine_chunks()
        .filter(pc.invert(pc.is_in(pa.array(np.arange(len(reasons))), value_set=rejected)))
    )
