"""From scores and counts to the set that stays."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def places(scores: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Each entry's place in its row's order, from 0: the highest-scored first, of equals the
    earlier, fills last.
    """
    # ranked[b, p] is the entry in place p. It is sorted twice, and stably: by score, then fills
    # behind all others, as a real entry may score -inf, too.
    ranked = (
        scores.float().masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    )
    ranked = ranked.gather(1, (~mask).long().gather(1, ranked).argsort(dim=1, stable=True))
    place = torch.empty_like(ranked)  # the inverse permutation: place[b, ranked[b, p]] = p
    return place.scatter_(
        1, ranked, torch.arange(ranked.shape[1], device=ranked.device).expand_as(ranked)
    )


def top(
    scores: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], counts: Int[Tensor, B]
) -> Bool[Tensor, "B N"]:
    """The `counts` highest-scored entries of each row within `mask`; of equal scores the earlier
    wins.
    """
    return (places(scores, mask) < counts[:, None]) & mask


def quotas(counts: Int[Tensor, B], sizes: Int[Tensor, "B I"]) -> Int[Tensor, "B I"]:
    """Splits each row's count over its images in proportion to their sizes, by largest remainder."""
    total = sizes.sum(1, keepdim=True).clamp(min=1)
    exact = counts[:, None] * sizes  # the fair share times `total`, so that all stays whole numbers
    base = exact // total
    missing = counts - base.sum(
        1
    )  # fewer than there are images: one more each for the largest remainders
    remainder = torch.where(sizes > 0, exact % total, -1)  # an image without tokens gets none
    return base + top(remainder.double(), remainder >= 0, missing).long()


def top_per_image(
    scores: Float[Tensor, "B N"],
    mask: Bool[Tensor, "B N"],
    counts: Int[Tensor, B],
    image: Int[Tensor, "B N"],
) -> Bool[Tensor, "B N"]:
    """As `top`, with each image keeping its share: `quotas` of the entries alive in it."""
    images = int(torch.where(mask, image, -1).max()) + 1
    member = torch.stack([mask & (image == i) for i in range(images)], 1)  # (B I N)
    share = quotas(counts, member.sum(2))
    keep = torch.zeros_like(mask)
    for i in range(images):
        keep |= top(scores, member[:, i], share[:, i])
    return keep
