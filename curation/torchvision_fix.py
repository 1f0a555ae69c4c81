"""Makes `import torchvision` work where its wheel was built for another torch.

The public torchvision wheel is a CUDA build: with a CPU torch its operators don't load, and its
import fails. transformers and diffusers only check whether it is installed, so that all their
models fail too. Call `fix_torchvision` before importing either of them; where torchvision works or
is absent, it changes nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_library: torch.library.Library | None = None  # the definitions live as long as this reference


def fix_torchvision() -> None:
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch  # here, because curation without models is installed without torch

    try:
        for operators in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(operators)
    except OSError:  # it needs libraries of a CUDA torch
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
