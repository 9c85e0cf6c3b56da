"""FastV as it is written for transformers without a library: eager attention, whose weights the next layer looks at.

Eager is the only backend that returns weights, so the whole model runs in it. Once with a hook on the one layer whose
weights are needed, which is as good as it gets, and once with ``output_attentions=True``, which is how they are
commonly asked for and which keeps those of every layer and step until the answer ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from common import Asked, Done, Runs, build, generation, prompts, serve
from torch import Tensor


@contextmanager
def fastv(model: Any, asked: Asked) -> Iterator[None]:
    """Before layer K the visual tokens to which the last one attends least leave; later layers see what is left.

    For prompts without padding, whose pictures stand in the same columns. Original positions are kept.
    """
    layers, begin, total = (
        model.model.language_model.layers,
        asked.text // 2,
        asked.text + asked.visual,
    )
    state: dict[str, Tensor] = {}

    def look(module: Any, args: Any, output: Any) -> None:
        if output[1].shape[-2] > 1:
            state["last"] = output[1][:, :, -1, begin : begin + asked.visual].mean(1)

    def rows() -> Tensor:
        """Columns that stay, ascending (B n)."""
        best = state["last"].topk(asked.kept).indices.sort().values + begin
        text = torch.arange(total, device=best.device)
        sides = [text[:begin], text[begin + asked.visual :]]
        first, second = (side.expand(len(best), -1) for side in sides)
        return torch.cat([first, best, second], 1)

    def cut(number: int, module: Any, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] == 1:  # a step: one row that sees all that its layer's cache holds
            return (hidden,), {**_without(kwargs), "attention_mask": None}
        if number == asked.layer:
            state["rows"] = rows()
            hidden = hidden.gather(1, state["rows"][..., None].expand(-1, -1, hidden.shape[-1]))
        at, count = state["rows"], hidden.shape[1]
        cos, sin = (part.expand(len(at), -1, -1) for part in kwargs["position_embeddings"])
        index = at[..., None].expand(-1, -1, cos.shape[-1])
        mask = kwargs["attention_mask"][
            :, :, :count, :count
        ]  # causal: the part of the first n is that of any n
        rotations = (cos.gather(1, index), sin.gather(1, index))
        return (hidden,), {
            **_without(kwargs),
            "attention_mask": mask,
            "position_embeddings": rotations,
        }

    hooks = [layers[asked.layer - 1].self_attn.register_forward_hook(look)]
    for number in range(asked.layer, len(layers)):
        hooks.append(
            layers[number].register_forward_pre_hook(partial(cut, number), with_kwargs=True)
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in kwargs.items()
        if name not in ("hidden_states", "position_ids")
    }


def contestants(asked: Asked) -> Runs:
    """Plain transformers under sdpa twice and under eager, and FastV both ways."""
    model = build(asked)
    given = prompts(asked, model)
    plain = partial(generation, model, given, asked)

    def pruned(**more: Any) -> Done:
        with fastv(model, asked):
            return plain("eager", **more)

    return {
        "plain": plain,
        "plain again": plain,
        "plain, eager": partial(plain, "eager"),
        "eager FastV, a hook": pruned,
        "eager FastV, output_attentions": partial(pruned, output_attentions=True),
    }


if __name__ == "__main__":
    serve(contestants)
