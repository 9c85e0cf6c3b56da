"""Whether the engine is right on a user's own weights: keep-all is the plain model, dropping is masking.

The masked model shares no code with the engine's masks: hooks of its own hide the dropped columns from the plain model.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.tokens import Kind
from ..core.view import View
from ..engine.anatomy import anatomy_of
from ..engine.apply import apply
from ..methods.fastv import fastv
from ..methods.random import random

Inputs = Mapping[str, Any]
TOLERANCE = {
    torch.float32: 2e-3,
    torch.float16: 0.05,
    torch.bfloat16: 0.2,
}  # of the logits' largest size


@dataclass(frozen=True)
class Check:
    """One finding of the self-check.

    Attributes:
        name: what was compared.
        passed: whether they agree.
        error: largest difference, as a share of the logits' largest size.
        against: how far the plain model is, likewise; a check that could not fail shows nothing.
    """

    name: str
    passed: bool
    error: float
    against: float | None = None


def placeholder_inputs(
    model: Any, images: int = 2, tokens: int = 36, text: int = 12, seed: int = 0
) -> dict[str, Tensor]:
    """A random prompt whose images are bare placeholders (1 T): for a model without its processor."""
    anatomy = anatomy_of(model)
    image = anatomy.image_token
    barred = set(anatomy.visual_tokens)
    vocabulary = anatomy.config.get_text_config().vocab_size
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(
            3, max(4, min(vocabulary, 1000)), (count,), generator=generator, device="cpu"
        ).tolist()

    ids = words(text // 2)
    for _ in range(images):
        ids += [image] * tokens + words(text)
    table = torch.tensor(
        [[token if token == image or token not in barred else 3 for token in ids]],
        dtype=torch.long,
        device="cpu",
    )
    return {"input_ids": table, "attention_mask": torch.ones_like(table)}


@torch.no_grad()
def self_check(model: Any, inputs: Inputs) -> list[Check]:
    """Runs the checks on one unpadded sample that has visual tokens.

    Args:
        model: of a supported family.
        inputs: of the model, as its processor gives them, on its device.

    Raises:
        ValueError: as `apply` does; no visual tokens; or flash or flex attention, whose masks no hook can edit.
    """
    decoder = anatomy_of(model).decoder
    depth = len(decoder.layers)
    backend = decoder.config._attn_implementation
    if backend not in ("sdpa", "eager"):
        raise ValueError(
            f"the self-check edits dense masks, which {backend} has not; run it with sdpa or eager"
        )
    plain = model(**inputs).logits[0].float()
    size = plain.abs().max().item()
    with apply(model, random(layer=0, keep=1.0), fastv(layer=min(1, depth - 1) or 1, keep=1.0)):
        whole = model(**inputs).logits[0].float()
    found = [_check("keep-all equals the plain model", whole, plain, size, model.dtype)]
    for layer in sorted({0, depth // 2}):
        seen: dict[str, Tensor] = {}
        with apply(model, random(layer=layer, keep=0.5), watch=partial(_note, seen)) as trace:
            dropped = model(**inputs).logits[0].float()
        if not trace.passes or int(trace.passes[0].total.sum()) == 0:
            raise ValueError("the prompt has no visual tokens, so there is nothing to check")
        gone = seen["gone"]
        words = seen["words"]
        masked = masked_logits(model, decoder, inputs, layer, gone)
        name = f"dropping half before layer {layer} equals masking"
        far = (plain - masked)[words].abs().max().item() / size
        found.append(_check(name, dropped[words], masked[words], size, model.dtype, far))
    return found


def _note(seen: dict[str, Tensor], view: View) -> None:
    if view.layer < view.layers:
        return
    visual = view.tokens.are(Kind.IMAGE)[0]
    alive = torch.zeros_like(visual)
    alive[view.visual[0][view.mask[0]]] = True
    seen["gone"], seen["words"] = visual & ~alive, ~visual


def masked_logits(
    model: Any, decoder: Any, inputs: Inputs, layer: int, gone: Bool[Tensor, T]
) -> Float[Tensor, "T V"]:
    """Logits of the plain model of full length, in which columns `gone` are hidden from `layer` on."""
    hidden: Int[Tensor, K] = gone.nonzero()[:, 0]

    def edit(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        given = kwargs.get("attention_mask")
        count = states.shape[1]
        if given is None:
            given = torch.ones(1, 1, count, count, dtype=torch.bool, device=states.device).tril()
        edited = given.clone()
        at = hidden.to(edited.device)
        edited[..., at] = False if edited.dtype == torch.bool else torch.finfo(edited.dtype).min
        edited[..., at, at] = (
            True if edited.dtype == torch.bool else 0
        )  # a hidden row sees itself, to stay finite
        return args, {**kwargs, "attention_mask": edited}

    with ExitStack() as hooks:
        for module in decoder.layers[layer:]:
            hooks.callback(module.register_forward_pre_hook(edit, with_kwargs=True).remove)
        logits: Tensor = model(**inputs, use_cache=False).logits[0].float()
    return logits


def _check(
    name: str,
    got: Tensor,
    want: Tensor,
    size: float,
    dtype: torch.dtype,
    against: float | None = None,
) -> Check:
    error = (got - want).abs().max().item() / size
    telling = against is None or against > 2 * error
    return Check(name, error <= TOLERANCE.get(dtype, 2e-3) and telling, error, against)
