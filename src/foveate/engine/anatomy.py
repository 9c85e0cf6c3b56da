"""What a model is: its parts and their sizes, from a live model or from a configuration alone. ONE place that knows.

`anatomy_of` takes any model of transformers that has a language model inside, on any device (the meta device too), and
looks nothing up but a few attributes, so it is made anew where it is needed and never goes stale: a model that was
given LoRA, another dtype or fewer layers has other sizes. `hollow` makes the model of a configuration.
"""

from __future__ import annotations

import inspect
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from .adapters import Adapter, adapter_for
from .modules import decoder_of, multimodal_body, projectors_of, tower_of, unwrapped
from .sizes import LayerShape, TowerShape, layer_shape, tower_shape

_CAP = "final_logit_softcapping"


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
    def places_itself(self) -> bool:
        """Whether the model makes positions of its own, in time, height and width (M-RoPE)."""
        return "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {})

    @property
    def visual_tokens(self) -> tuple[int, ...]:
        """Ids of the placeholders of images and of video frames; raises ValueError as `adapter`."""
        return self.adapter.visual_tokens(self.config)

    @property
    def image_token(self) -> int:
        """Id of the images' placeholder; raises ValueError as `adapter`."""
        return self.adapter.image_token(self.config)

    def visual(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Which input ids stand for tokens of images or of video frames; raises ValueError as `adapter`."""
        return torch.isin(
            ids, torch.tensor(self.visual_tokens, device=ids.device, dtype=torch.long)
        )

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

    def logits(self, states: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        """Logits of the decoder's normalised states, as the whole model gives them."""
        found: Tensor = self.head(states)
        cap = getattr(self.decoder.config, _CAP, None)  # PaliGemma 2 has one
        return found if cap is None or not self._caps_logits else cap * torch.tanh(found / cap)

    @property
    def _caps_logits(self) -> bool:
        """Whether the model's forward reads the cap: before transformers 5.18, PaliGemma's does not."""
        code = inspect.unwrap(type(self.model).forward).__code__
        return _CAP in (*code.co_names, *code.co_consts)

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
        """Of the decoder's layers.

        Raises:
            ValueError: as `layer_shape` and `layers`, or the decoder has matrices outside of them.
        """
        found = tuple(layer_shape(layer, self.family) for layer in self.layers)
        inside = {*self.layers.modules(), self.head}
        outside = [
            n
            for n, m in self.decoder.named_modules()
            if isinstance(m, nn.Linear) and m not in inside
        ]
        if outside:
            raise ValueError(
                f"the decoder of {self.family} ({type(self.decoder).__name__}) has matrices outside of its layers "
                f"({', '.join(outside)}), which nobody counts; its cost is not known"
            )
        return found

    @property
    def tower_shape(self) -> TowerShape:
        """Of the vision tower, where it is a stack of transformer layers."""
        return tower_shape(
            self.vision, self.projectors, getattr(self.config, "vision_config", None)
        )

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
        return (
            0
            if self.head is not None and self.words.weight is self.head.weight
            else int(self.words.weight.numel())
        )

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
        ValueError: it is no model, or has no language model inside that takes visual tokens.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"got {type(model).__name__}; expected a model of transformers, such as `.model` of what foveate.load "
            "returns"
        )
    model = unwrapped(model)
    body = multimodal_body(model)
    if not hasattr(body, "language_model") and not hasattr(body, "text_model"):
        adapter_for(model)  # says what is missing
        raise ValueError(
            f"{type(model).__name__} has no language model inside that its family is known by"
        )
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
