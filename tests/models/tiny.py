"""Tiny random-weight models of real config classes, and batches of every layout for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
    VipLlavaConfig,
)

IMAGE, PAD, VOCAB, LAYERS = 63, 0, 64, 4
VIDEO, START, END, ROW = 62, 61, 60, 59  # of families that have such
WORDS = 55  # ids from 3 to here are words in every family
SIDE, PATCH = 16, 4
RELEASE = tuple(map(int, transformers.__version__.split(".")[:2]))
NEWEST = RELEASE >= (5, 23)  # see `make test-oldest`
CACHE = (
    "cache" if RELEASE >= (5, 24) else "past_key_values"
)  # said here apart from the engine, which finds it out
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=16,
    )  # fmt: skip


def llava() -> Any:
    """LLaVA 1.5's structure: 16 tokens an image."""
    return LlavaConfig(
        vision_config=_vision(), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-1,
        image_seq_length=16,
    )  # fmt: skip


def vipllava() -> Any:
    """Features of several tower layers."""
    return VipLlavaConfig(
        vision_config=_vision(), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )  # fmt: skip


def llava_next() -> Any:
    """An overview and tiles: the number of tokens depends on the image's shape."""
    text = MistralConfig(**TEXT, sliding_window=None)
    return LlavaNextConfig(
        vision_config=_vision(), text_config=text, image_token_id=IMAGE, vision_feature_layer=-1,
        image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "llava_next": llava_next,
    "vipllava": vipllava,
}


@cache
def model(family: str, backend: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A model whose attention is far from uniform, so that what is dropped matters."""
    torch.manual_seed(5)
    made = AutoModelForImageTextToText.from_config(FAMILIES[family]())
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim > 1:
                p.mul_(8 if "q_proj" in name or "k_proj" in name or "embed" in name else 4)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = PAD
    made = made.eval().to(dtype)
    made.set_attn_implementation(backend)
    return made


def held(cache: Any) -> dict[str, Any]:
    """The argument that hands a model its cache, by the name that this transformers gives it."""
    return {CACHE: cache}


def cache_in(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, CACHE)


def checkpointing(made: Any, on: bool) -> None:
    """Turns gradient checkpointing on or off, by the name that this transformers gives it."""
    kind = "activation" if RELEASE >= (5, 24) else "gradient"
    getattr(made, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()
    if not on:  # it leaves hooks behind that make embeddings want gradients, for whoever uses the model next
        for hook in getattr(made, "_require_grads_hooks", ()):
            hook.remove()


@dataclass(frozen=True)
class Layout:
    """A batch: per sample a list of segments, text lengths (> 0) and images (0). Padding on one side."""

    samples: tuple[tuple[int, ...], ...]
    left: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """`inputs` for the model; per sample, its unpadded embeddings (T D) and image numbers, and its columns."""

    inputs: dict[str, Tensor]
    embeds: list[Tensor]
    image_of: list[list[int]]
    columns: list[slice]


def _pixels(family: str, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    if family != "llava_next":
        return torch.randn(images, 3, SIDE, SIDE, generator=generator), None
    sizes = [(SIDE, 2 * SIDE) if i % 2 else (2 * SIDE - 4, SIDE) for i in range(images)]
    return torch.randn(images, 3, 3, SIDE, SIDE, generator=generator), torch.tensor(sizes)


@dataclass(frozen=True)
class Patch:
    """What the tower knows of a patch, per layer of the tower, by transformers' own eager attention."""

    attention: list[float]  # from [CLS], mean over heads
    keys: list[Any]  # (E), mean over heads
    values: list[Any]  # (H E)
    states: list[Any]  # (D), the layer's output


PATCHES: dict[bytes, Patch] = {}  # by the bytes of the token that the projector made of it


@torch.no_grad()
def features(made: Any, pixels: Tensor, sizes: Tensor | None) -> list[Tensor]:
    """Projected features (N D) of every image; what the tower knows of them goes into `PATCHES`."""
    extra = {} if sizes is None else {"image_sizes": sizes}
    rows: list[Tensor] = []
    handle = made.model.multi_modal_projector.register_forward_hook(
        lambda m, a, out: rows.extend(out.flatten(0, 1))
    )
    found = made.model.get_image_features(pixel_values=pixels, **extra)
    handle.remove()
    if made.dtype == torch.float32:
        PATCHES.update(
            zip(
                [row.numpy().tobytes() for row in rows],
                patches(made, pixels.flatten(0, -4)),
                strict=True,
            )
        )
    found = getattr(found, "pooler_output", found)
    return list(found)


def patches(made: Any, pixels: Tensor) -> list[Patch]:
    """Every patch of pictures (I 3 H W)."""
    tower = model(made.config.model_type, "eager").model.vision_tower
    seen = tower(pixels, output_attentions=True, output_hidden_states=True)
    layers = next(m for m in tower.modules() if isinstance(m, torch.nn.ModuleList))
    found = []
    for image in range(len(pixels)):
        parts = []
        for index, layer in enumerate(layers):
            given = layer.layer_norm1(seen.hidden_states[index][image])
            keys, values = (
                getattr(layer.self_attn, name)(given).view(len(given), -1, 8)
                for name in ("k_proj", "v_proj")
            )
            parts.append(
                (
                    seen.attentions[index][image].mean(0)[0],
                    keys.mean(1),
                    values,
                    seen.hidden_states[index + 1][image],
                )
            )
        for patch in range(1, (SIDE // PATCH) ** 2 + 1):
            found.append(
                Patch(
                    [p[0][patch].item() for p in parts],
                    *([p[k][patch].double().numpy() for p in parts] for k in (1, 2, 3)),
                )
            )
    return found


@torch.no_grad()
def batch(
    family: str, layout: Layout, backend: str = "sdpa", dtype: torch.dtype = torch.float32
) -> Batch:
    """Input ids, mask and pixels of a layout."""
    made = model(family, backend, dtype)
    generator = torch.Generator().manual_seed(layout.seed)
    images = sum(segment == 0 for sample in layout.samples for segment in sample)
    pixels, sizes = _pixels(family, max(images, 1), generator)
    pixels = pixels.to(dtype)
    found = iter(features(made, pixels, sizes))
    rows, embeds, image_of = [], [], []
    for sample in layout.samples:
        ids: list[int] = []
        parts, owners, number = [], [], -1
        for segment in sample:
            if segment:
                words = torch.randint(3, IMAGE, (segment,), generator=generator)
                ids += words.tolist()
                parts.append(made.get_input_embeddings()(words))
                owners += [-1] * segment
            else:
                image = next(found)
                ids += [IMAGE] * len(image)
                parts.append(image)
                touching = (
                    family == "llava_next" and bool(owners) and owners[-1] >= 0
                )  # one image, see the adapter
                number += not touching
                owners += [number] * len(image)
        rows.append(ids)
        embeds.append(torch.cat(parts))
        image_of.append(owners)
    return Batch(
        _padded(rows, layout.left, pixels if images else None, sizes),
        embeds,
        image_of,
        _where(rows, layout.left),
    )


def _where(rows: list[list[int]], left: bool) -> list[slice]:
    longest = max(map(len, rows))
    return [slice(longest - len(r), longest) if left else slice(0, len(r)) for r in rows]


def _padded(
    rows: list[list[int]], left: bool, pixels: Tensor | None, sizes: Tensor | None
) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids, mask = (
        torch.full((len(rows), longest), PAD),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for i, (row, at) in enumerate(zip(rows, _where(rows, left), strict=True)):
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    found = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_sizes": sizes}
    return {
        k: v
        for k, v in found.items()
        if v is not None and (k != "image_sizes" or pixels is not None)
    }
