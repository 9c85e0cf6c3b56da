"""Pictures as every family is given them, and the tokens that stand for them in a prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.tiny import END, IMAGE, ROW, START, VIDEO

Pixels = dict[str, Tensor]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def concatenated(samples: list[list[Pixels]]) -> Pixels:
    """All pictures of the batch one after another, padded to the largest."""
    every = [pixels for sample in samples for pixels in sample]
    names = dict.fromkeys(name for pixels in every for name in pixels)
    found = {}
    for name in names:
        parts = [pixels[name] for pixels in every if name in pixels]
        largest = [max(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
        found[name] = torch.cat([_grown(p, largest) for p in parts])
    return found


def _grown(values: Tensor, sizes: list[int]) -> Tensor:
    out = values.new_zeros(values.shape[0], *sizes)
    out[tuple(slice(0, s) for s in values.shape)] = values
    return out


def per_sample(samples: list[list[Pixels]]) -> Pixels:
    """Idefics: (B, most pictures, ...), filled with empty pictures."""
    most = max(len(s) for s in samples)
    shape = next(p["pixel_values"].shape[1:] for s in samples for p in s)
    out = torch.zeros(len(samples), most, *shape)
    for i, sample in enumerate(samples):
        for j, pixels in enumerate(sample):
            out[i, j] = pixels["pixel_values"][0]
    return {"pixel_values": out}


def square(side: int = 16) -> Callable[[str, int], Pixels]:
    return lambda kind, seed: {"pixel_values": noise(seed, 1, 3, side, side)}


def framed(kind: str, count: int) -> list[int]:
    return [START, *[IMAGE] * count, END]


def tiles(kind: str, seed: int) -> Pixels:
    """LLaVA-NeXT and -OneVision: an overview and two tiles; the size says how much of them is padding."""
    if kind == "v":
        return {"pixel_values_videos": noise(seed, 1, 2, 3, 16, 16)}
    size = [16, 32] if kind == "a" else [28, 16]
    return {"pixel_values": noise(seed, 1, 3, 3, 16, 16), "image_sizes": torch.tensor([size])}


def sized(kind: str, seed: int) -> Pixels:
    """Pixtral: pictures of any size, padded to the largest."""
    h, w = (16, 16) if kind == "a" else (8, 16)
    return {"pixel_values": noise(seed, 1, 3, h, w), "image_sizes": torch.tensor([[h, w]])}


def patches(depth: int, merge: int = 2) -> Callable[[str, int], Pixels]:
    """Qwen and GLM: rows of flattened patches, and the grid (time, height, width) that they form."""

    def picture(kind: str, seed: int) -> Pixels:
        grid = {
            "a": (1, 2 * merge, 2 * merge),
            "b": (1, merge, 3 * merge),
            "v": (2, merge, 2 * merge),
        }[kind]
        count = grid[0] * grid[1] * grid[2]
        name = "video" if kind == "v" else "image"
        pixels = noise(seed, count, depth)
        return {
            "pixel_values" + "_videos" * (kind == "v"): pixels,
            f"{name}_grid_thw": torch.tensor([grid]),
        }

    return picture


def stamped(kind: str, count: int) -> list[int]:
    """Qwen3-VL: two frames of a video stand apart, each after a timestamp."""
    if kind != "v":
        return framed(kind, count)
    return [5, START, *[VIDEO] * (count // 2), END, 6, START, *[VIDEO] * (count // 2), END]


def modality(ids: Tensor) -> Pixels:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def in_rows(kind: str, count: int) -> list[int]:
    """Pixtral's layout: a break after each row of two tokens, an end in place of the last."""
    found: list[int] = []
    for _ in range(count // 2):
        found += [IMAGE, IMAGE, ROW]
    return [*found[:-1], END]


def eight_frames(kind: str, seed: int) -> Pixels:
    if kind == "v":
        return {"pixel_values_videos": noise(seed, 1, 8, 3, 16, 16)}
    return {"pixel_values_images": noise(seed, 1, 3, 16, 16)}


def in_frames(kind: str, count: int) -> list[int]:
    """GLM: frames of a video have the image's id, each between image markers. (No images beside videos.)"""
    return [58, *[START, *[IMAGE] * (count // 2), END, 5] * 2, 57]


def in_video(ids: Tensor) -> Pixels:
    return {"mm_token_type_ids": 2 * (ids == IMAGE).int()}


def pooled_tiles(kind: str, seed: int) -> Pixels:
    name = "pixel_values" + "_videos" * (kind == "v")
    return {name: noise(seed, 1, 2, 3, 16, 16)}


def merged(kind: str, seed: int) -> Pixels:
    """VideoLLaMA 3: patches with their grid, and by how much each picture is merged."""
    found = patches(48)(kind, seed)
    name = "video" if kind == "v" else "image"
    found[f"{name}_merge_sizes"] = torch.tensor([2])
    return found
