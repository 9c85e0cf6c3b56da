"""Defines two operators of torchvision's that its CUDA wheel lacks on a CPU torch, just before it is imported."""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; it only notices that torchvision is looked for."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch  # noqa: PLC0415 - every Python process of the environment loads this module

            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", BOXES)


sys.meta_path.insert(0, Finder())
