"""Prompts of any layout for the families of `families`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.families import FAMILIES, Family, judge
from models.pictures import Pixels
from models.tiny import IMAGE, PAD, VIDEO, WORDS

Segment = int | str  # so many words, or a picture of a kind


@dataclass(frozen=True)
class Prompt:
    """One sample, unpadded."""

    family: Family
    ids: list[int]
    pictures: list[Pixels]
    image_of: list[int]

    def inputs(self, answer: list[int]) -> dict[str, Tensor]:
        """What the plain model is called with after `answer`."""
        return together([self], [*self.ids, *answer])


@torch.no_grad()
def features(name: str, kind: str, pixels: Pixels) -> int:
    """Tokens that the family makes of a picture."""
    made = judge(name)
    if kind == "v" and hasattr(made.model, "get_video_features"):
        first, *rest = pixels  # the first has had several names
        found = made.model.get_video_features(pixels[first], **{key: pixels[key] for key in rest})
    else:
        named = {key.removesuffix("_videos"): values for key, values in pixels.items()}
        found = made.model.get_image_features(**FAMILIES[name].join([[named]]))
    found = getattr(found, "pooler_output", found)
    count = sum(part.numel() // part.shape[-1] for part in found)
    if (
        kind == "v"
        and name == "llava_onevision"
        and count % pixels["pixel_values_videos"].shape[1] == 0
    ):
        count += 1  # older versions of transformers leave a video's newline to the forward
    return count


def prompt(name: str, segments: tuple[Segment, ...], seed: int) -> Prompt:
    family = FAMILIES[name]
    ids: list[int] = []
    pictures: list[Pixels] = []
    generator = torch.Generator().manual_seed(seed)
    for place, segment in enumerate(segments):
        if isinstance(segment, int):
            ids += torch.randint(3, WORDS, (segment,), generator=generator).tolist()
        else:
            kind = segment if segment in family.kinds else family.kinds[0]
            pictures.append(family.picture(kind, 100 * seed + place))
            ids += family.ids(kind, features(name, kind, pictures[-1]))
    return Prompt(family, ids, pictures, owners(name, ids))


def owners(name: str, ids: list[int]) -> list[int]:
    """Which image each token is of: a run of placeholders."""
    placeholders = (IMAGE, VIDEO) if "v" in FAMILIES[name].kinds else (IMAGE,)
    found, number = [], -1
    for c, token in enumerate(ids):
        visual = token in placeholders
        number += visual and (c == 0 or ids[c - 1] not in placeholders)
        found.append(number if visual else -1)
    return found


def together(
    prompts: list[Prompt], ids: list[int] | None = None, left: bool = True
) -> dict[str, Any]:
    """A padded batch; `ids` in place of those of a single prompt."""
    rows = [p.ids for p in prompts] if ids is None else [ids]
    longest = max(map(len, rows))
    table, mask = (
        torch.full((len(rows), longest), PAD),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        table[i, at], mask[i, at] = torch.tensor(row), 1
    family = prompts[0].family
    pixels = family.join([p.pictures for p in prompts]) if any(p.pictures for p in prompts) else {}
    asked = table.clone()
    if ids is not None:
        asked[:, len(prompts[0].ids) :] = PAD  # a placeholder's id in an answer is a word
    return {"input_ids": table, "attention_mask": mask, **pixels, **family.extras(asked)}
