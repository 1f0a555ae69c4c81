"""Presto: a video diffusion transformer whose captions are bound to spans of time."""

import os

# OpenMP reads this when torch is imported. Threads that wait then sleep; where other programs use
# the same cores, spinning ones take several times the CPU time of the work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
