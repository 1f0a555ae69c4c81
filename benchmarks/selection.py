"""Selection from a synthetic ledger: CPU seconds, peak memory, share of planted duplicates found.

    python -m benchmarks.selection [number of clips, default 1,000,000; embeddings: a twentieth]

A tenth of the clips are from a thousand static cameras (each with one background and different
moving objects; the most frequent has a tenth of these clips). Two in a hundred are copies of
another clip, shifted by 0 to 10 s, with 8 % of the bits of motion and 3 % of those of the image
flipped, as re-encoding does. The table stays in memory; nothing is written.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np
import pyarrow as pa

from curation.policy import Policy, Range, decide_table
from stages.meters.fingerprint import CODE, SIGNS
from stages.selection.clip_selection import select_clips
from stages.selection.near_duplicates import find_pairs, read_fingerprints
from stages.selection.semantic_duplicates import find_semantic_duplicates

TICKS = 60
POLICY = Policy(
    duration_s=Range(min=15),
    width=Range(min=1280),
    brightness=Range(min=20, max=235),
    static_share=Range(max=0.9),
    text_share=Range(max=0.1),
)
MOVES = SIGNS + np.uint64(1)


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """uint64 array in which about `share` of the bits are set."""
    out = np.zeros(shape, np.uint64)
    for bit in range(64):
        hit = rng.random(shape, np.float32) < share
        out |= hit.astype(np.uint64) << np.uint64(bit)
    return out


def random_fingerprints(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, TICKS) CODE: image and motion change by a tenth of their bits per tick."""
    out = np.empty((n, TICKS), CODE)
    out["motion"][:, 0] = rng.integers(0, 2**64, n, np.uint64)
    out["picture"][:, 0] = rng.integers(0, 2**64, n, np.uint64)
    # noise is taken from one pool, rotated at random, because drawing it is slow
    pool = random_bits(rng, (1 << 16,), 0.1)
    for tick in range(1, TICKS):
        for part in ("motion", "picture"):
            noise = pool[rng.integers(0, len(pool), n)]
            turn = rng.integers(0, 64, n).astype(np.uint64)
            noise = (noise << turn) | (noise >> ((np.uint64(64) - turn) & np.uint64(63)))
            out[part][:, tick] = out[part][:, tick - 1] ^ noise
    camera = np.flatnonzero(rng.random(n) < 0.1)
    backgrounds = rng.integers(0, 2**64, 1000, np.uint64)
    out["picture"][camera] = backgrounds[(1000 * rng.random(len(camera)) ** 3).astype(int), None]
    out["motion"] |= MOVES
    return out


def synthetic_ledger(rng: np.random.Generator, n: int) -> tuple[pa.Table, np.ndarray]:
    """The clips' table, and the planted pairs (P, 2) as row numbers."""
    prints = random_fingerprints(rng, n)
    copies = rng.permutation(n)[: n // 50 * 2].reshape(2, -1)
    shift = rng.integers(0, 41, copies.shape[1])
    for k in np.unique(shift):
        one, two = copies[:, shift == k]
        prints[two, : TICKS - k] = prints[one, k:]
    noisy = copies[1]
    prints["motion"][noisy] ^= random_bits(rng, (len(noisy), TICKS), 0.08) & SIGNS
    # a bit that is near its threshold differs in all ticks
    prints["picture"][noisy] ^= random_bits(rng, (len(noisy), 1), 0.02)
    prints["picture"][noisy] ^= random_bits(rng, (len(noisy), TICKS), 0.01)

    ids = [f"{v:024x}" for v in rng.permutation(n)]
    offsets = pa.array(np.arange(n + 1) * TICKS * CODE.itemsize, pa.int64())
    data = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), n, [None, offsets.buffers()[1], pa.py_buffer(prints.reshape(-1))]
    )
    columns = {
        "clip_id": pa.array(ids),
        "sha256": pa.array([f"{v:064x}" for v in rng.permutation(n)]),  # one clip per source
        "width": rng.choice(np.array([640, 1280, 1920], np.int32), n, p=[0.1, 0.6, 0.3]),
        "height": np.full(n, 720, np.int32),
        "duration_s": rng.uniform(14.5, 30, n),
        "packet_bytes": rng.integers(10**5, 10**7, n),
        "fingerprint": data,
    }
    for name, high in (("brightness", 260), ("static_share", 1), ("text_share", 0.12)):
        columns[name] = rng.uniform(0, high, n).astype(np.float32)
    columns["sharpness"] = rng.uniform(10, 500, n).astype(np.float32)
    return pa.table(columns), copies.T


def measure_semantic_duplicates(rng: np.random.Generator, n: int) -> None:
    """Semantic duplicates among n random embeddings of CLIP's size, 0.5 % of them planted."""
    v = rng.standard_normal((n, 768), np.float32)
    copies = rng.permutation(n)[: n // 100 * 2].reshape(2, -1)
    v[copies[1]] = v[copies[0]] + 0.1 * v[copies[1]]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    start = time.process_time()
    duplicate_of, _ = find_semantic_duplicates(v, np.arange(n), 0.95)
    spent = time.process_time() - start
    print(
        f"semantic duplicates among {n} clips: {spent:.0f} CPU-s, {(duplicate_of >= 0).sum()} of "
        f"{copies.shape[1]} planted found; scaled with the square, a million clips take "
        f"{spent * (1e6 / n) ** 2 / 3600:.1f} CPU-h"
    )


def main(n: int) -> None:
    rng = np.random.default_rng(0)
    clips, planted = synthetic_ledger(rng, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n} clips, fingerprints {clips['fingerprint'].nbytes / 2**30:.2f} GiB")

    start = time.process_time()
    decide_table(clips, POLICY)
    print(f"policy: {time.process_time() - start:.1f} CPU-s")

    start = time.process_time()
    prints = read_fingerprints(clips["fingerprint"])
    edges = find_pairs(prints, np.arange(n))
    spent = time.process_time() - start
    expected = {(min(p), max(p)) for p in planted.tolist()}
    pairs = {tuple(p) for p in edges.tolist()}
    found = len(expected & pairs)
    print(
        f"duplicates among all clips: {spent:.0f} CPU-s, {found} of {len(expected)} "
        f"planted pairs found ({found / len(expected):.4f}), {len(pairs) - found} others"
    )

    start = time.process_time()
    selection = select_clips(clips, Policy(POLICY))
    kept = selection["status"].to_pylist().count("kept")
    print(
        f"select, whole: {time.process_time() - start:.0f} CPU-s, {kept} kept, {n - kept} rejected"
    )
    measure_semantic_duplicates(rng, n // 20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {peak:.1f} GiB ({before:.1f} GiB of it for the synthetic ledger)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
