"""What a model is: its parts and their sizes, from a live model or from a configuration alone. ONE place that knows.

`anatomy_of` takes any model of transformers that has a language model inside, on any device (the meta device too), and
looks nothing up but a few attributes, so it is made anew where it is needed and never goes stale: a model that was
given LoRA, another dtype or fewer layers has other sizes. `hollow` makes the model of a configuration.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from .adapters import Adapter, adapter_for
from .modules import decoder_of, multimodal_body, projectors_of, tower_of, unwrapped

Amount = TypeVar("Amount", float, Tensor)


@dataclass(frozen=True)
class LayerShape:
    """One transformer layer: the parameters of its matrices and the sizes of its attention. THE formula of its FLOPs.

    Attributes:
        matrices: parameters that one token runs through. Of a mixture of experts these are the router, shared experts,
            and as many of the others as a token is sent to.
        query: heads x head size.
        key: key-value heads x head size.
        hidden: width of the layer's input.
        left: parameters of the experts that one token is not sent to; 0 where there are none.
        idle: their share of all experts that tokens are sent to, in [0, 1).
    """

    matrices: int
    query: int
    key: int
    hidden: int
    left: int = 0
    idle: float = 0.0

    @property
    def stored(self) -> int:
        """Parameters of all its matrices, all experts included: what is in memory."""
        return self.matrices + self.left

    def read(self, tokens: float) -> float:
        """Parameters that a forward of so many tokens reads, if the router spreads them evenly over the experts.

        An expert is read if one of the tokens, at least, is sent to it.
        """
        return self.stored - self.left * self.idle ** max(tokens - 1, 0)

    def flops(self, rows: Amount, before: Amount | float = 0) -> Amount:
        """Of `rows` new tokens that attend to `before` earlier ones and to themselves; numbers or tensors alike."""
        return self.attending(rows, rows * (before + rows))

    def attending(self, rows: Amount, pairs: Amount) -> Amount:
        """Of `rows` new tokens that together attend to `pairs` (query, key), of which windows leave some out.

        Every row goes through the matrices, and every pair costs a product of a query with a key, and one of a weight
        with a value: 2 FLOPs a multiply-accumulate.
        """
        return 2 * rows * self.matrices + 4 * pairs * self.query

    def steps(self, count: float, before: float) -> float:
        """Of `count` tokens one after the other, the first of which attends to `before` earlier ones and to itself.

        FLOPs grow evenly from step to step, so all together cost `count` times the middle one.
        """
        return count * self.flops(1.0, before + (count - 1) / 2)

    def ranking(self, queries: Amount, keys: Amount, projected: Amount | float = 0) -> Amount:
        """Of `queries` attention rows recomputed against `keys` keys, of which `projected` are projected anew."""
        return 2 * queries * self.query * (self.hidden + keys) + 2 * projected * self.hidden * self.key

    def cache(self, tokens: Amount) -> Amount:
        """Numbers that the KV cache holds for so many tokens."""
        return 2 * self.key * tokens


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of a vision-language model.

    Attributes:
        model: the whole.
        body: the module that merges image features into the text and calls the decoder.
        decoder: the language model without its head.
    """

    model: Any
    body: Any
    decoder: Any

    @property
    def family(self) -> str:
        """transformers' `model_type`."""
        return str(self.model.config.model_type)

    @property
    def config(self) -> Any:
        """Of the whole model."""
        return self.body.config

    @property
    def adapter(self) -> Adapter:
        """What the engine knows of the family.

        Raises:
            ValueError: the family has no adapter.
        """
        return adapter_for(self.model)

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Ids of the placeholders of images and of video frames; raises ValueError as `adapter`."""
        return self.adapter.visual_tokens(self.config)

    @property
    def image_token(self) -> int:
        """Id of the images' placeholder; raises ValueError as `adapter`."""
        return self.adapter.image_token(self.config)

    @property
    def layers(self) -> Any:
        """The decoder's layers, in order.

        Raises:
            ValueError: it is not a stack of `layers`.
        """
        layers = getattr(self.decoder, "layers", None)
        if layers is None:
            raise ValueError(
                f"the language model is a {type(self.decoder).__name__}, which has no `layers`; supported are decoders "
                "like Llama, Mistral, Qwen2 and Qwen3"
            )
        return layers

    @property
    def depth(self) -> int:
        """Number of the decoder's layers; raises ValueError as `layers`."""
        return len(self.layers)

    @property
    def heads(self) -> int:
        """Attention heads of a decoder layer."""
        return int(self.decoder.config.num_attention_heads)

    @property
    def head(self) -> Any:
        """The language-model head, or None."""
        return self.model.get_output_embeddings()

    @property
    def words(self) -> Any:
        """The word embeddings."""
        return self.model.get_input_embeddings()

    @property
    def tower(self) -> Any:
        """The vision tower, or None where it goes by no known name."""
        return tower_of(self.body)

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """What makes the decoder's tokens of the tower's output; none where it goes by no known name."""
        return projectors_of(self.body)

    @property
    def vision(self) -> tuple[nn.Module, ...]:
        """All modules that the body has beside the decoder: towers, projectors, and what some families have more."""
        outside = {self.decoder, self.head, self.words}
        return tuple(part for part in self.body.children() if part not in outside)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Of the decoder's layers; raises ValueError as `layer_shape` and `layers`."""
        return tuple(layer_shape(layer, self.family) for layer in self.layers)

    @property
    def head_size(self) -> int:
        """Parameters of the head."""
        return 0 if self.head is None else int(self.head.weight.numel())

    @property
    def whole_head(self) -> bool:
        """Whether `generate` runs the head on every row of a prompt: a few families' forwards take no other wish."""
        return "logits_to_keep" not in inspect.signature(self.model.forward).parameters

    @property
    def word_size(self) -> int:
        """Parameters of the word embeddings; 0 where the head is the same matrix."""
        return 0 if self.head is not None and self.words.weight is self.head.weight else int(self.words.weight.numel())

    @property
    def vision_size(self) -> int:
        """Parameters of everything beside the decoder."""
        mine = {id(p): p.numel() for part in self.vision for p in part.parameters()}
        return sum(mine.values())

    @property
    def number_size(self) -> int:
        """Bytes of one number of the decoder's weights, and so of its KV cache."""
        return int(next(self.decoder.parameters()).element_size())


def anatomy_of(model: Any) -> Anatomy:
    """The anatomy of a live model, or of a hollow one; of a PEFT wrapper, that of the model inside.

    Raises:
        ValueError: there is no language model inside that takes visual tokens.
    """
    model = unwrapped(model)
    body = multimodal_body(model)
    if not hasattr(body, "language_model") and not hasattr(body, "text_model"):
        adapter_for(model)  # says what is missing
        raise ValueError(f"{type(model).__name__} has no language model inside that its family is known by")
    return Anatomy(model, body, decoder_of(body))


def hollow(config: Any) -> Any:
    """The model of a configuration without weights: on the meta device, where nothing takes memory or time.

    Raises:
        ValueError: transformers cannot build it.
    """
    try:
        with torch.device("meta"), redirect_stderr(StringIO()):
            return AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # any library that a family needs may be missing
        raise ValueError(
            f"transformers cannot build a {config.model_type} from this configuration: {type(error).__name__}: {error}"
        ) from error


def layer_shape(layer: Any, family: str = "this model") -> LayerShape:
    """The shape of a decoder layer.

    Raises:
        ValueError: it has no `self_attn.q_proj` and `k_proj`, or experts of which no number says how many a token uses.
    """
    attention: Any = getattr(layer, "self_attn", None)
    if not hasattr(attention, "q_proj") or not hasattr(attention, "k_proj"):
        raise ValueError(
            f"the decoder layers of {family} ({type(layer).__name__}) have no self_attn.q_proj and k_proj, as Llama's, "
            "Mistral's, Qwen's and Gemma's have; their cost is not known"
        )
    query, hidden = attention.q_proj.weight.shape
    dense, experts = sum(_matrices(layer)), _experts(layer)
    if not experts:
        return LayerShape(dense, query, attention.k_proj.weight.shape[0], hidden)
    used = next((int(m.top_k) for m in layer.modules() if isinstance(getattr(m, "top_k", None), int)), None)
    if used is None:
        raise ValueError(
            f"the layers of {family} ({type(layer).__name__}) have experts, and no `top_k` says how many of them a "
            "token is sent to; their cost is not known"
        )
    count, stored = experts[0].shape[0], sum(part.numel() for part in experts)
    active = stored // count * used
    return LayerShape(
        dense + active, query, attention.k_proj.weight.shape[0], hidden, stored - active, 1 - used / count
    )


def _matrices(layer: nn.Module) -> Iterator[int]:
    """Sizes of the matrices that every token runs through: linear maps, and routers, which hold theirs bare."""
    for module in layer.modules():
        if isinstance(module, nn.Linear) or hasattr(module, "top_k"):
            yield from (p.numel() for p in module.parameters(recurse=False) if p.ndim == 2)


def _experts(layer: nn.Module) -> list[Tensor]:
    """The stacked matrices of experts (E, ., .), of which a token runs through `top_k`."""
    return [p for p in layer.parameters() if p.ndim == 3]
