"""How well cuts are found: precision, recall and F1 per kind on the labelled videos, beside other detectors, in one run.

    python benchmarks/shots.py [--transnet] [--synthesise] [--sweep]

Reads the labelled videos at LONGTAKE_VIDEOS (default ../shared/videos). All detectors see the same decoded frames,
320 px wide. CPU is each detector's own seconds over those of decoding. A cut is found within 0.15 s, a gradual
transition where the intervals overlap or lie within 0.3 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.shots_truth import Truth, read_labels, synthesised  # noqa: E402  (needs the path above)
from curation.stage import Planes, VideoFacts  # noqa: E402
from curation.video import Reader  # noqa: E402
from stages import shots as rules  # noqa: E402
from stages.shots import Shots, Transitions  # noqa: E402

TOLERANCE_S = 0.15
APART_S = 0.3
