"""The architecture of ``smol``: transformers' own LLaVA around SmolLM2, and its processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaProcessor,
)

from .base import Base

SIDE = 224  # pixels of the picture that the tower sees
PATCH = 14  # pixels of a visual token's side: 16 x 16 = 256 tokens
GRID = SIDE // PATCH
RANK, SCALE = 16, 2.0  # of the low-rank update W + SCALE * B A
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IMAGE = "<image>"
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
OPENING = f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n"  # of the template, before the first question
ASKED = "<|im_end|>\n<|im_start|>assistant\n"
ANSWERED = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\n"
    + _SYSTEM
    + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_processor(base: Base) -> LlavaProcessor:
    """SmolLM2's tokenizer with one more token, ``<image>``, a CLIP image processor, and SmolLM2's chat template."""
    tokenizer = base.tokenizer
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.padding_side = "left"
    square = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=square,
            do_center_crop=False,
            crop_size=square,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(base: Base, attention: str = "sdpa") -> Any:
    """LLaVA with a fresh tower and projector (torch's global seed decides) around the language model of `base`.

    The vocabulary has one row more than SmolLM2's, for ``<image>``, whose embedding is never read.
    """
    text = base.model.config
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    vocabulary = text.vocab_size
    config = LlavaConfig(
        vision_config=vision,
        text_config=type(text)(**{**text.to_dict(), "vocab_size": vocabulary + 1}),
        image_token_id=vocabulary,
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=0,
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
    weights = base.model.model.state_dict()
    table = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    chosen = model.generation_config
    chosen.eos_token_id = text.eos_token_id
    chosen.bos_token_id = text.bos_token_id
    chosen.pad_token_id = 0
    chosen.max_new_tokens, chosen.do_sample = 96, False
    return model


def linears(model: Any) -> dict[str, nn.Module]:
    """The decoder's linear layers that a low-rank update goes to, by name."""
    modules = model.model.language_model.named_modules()
    return {name: module for name, module in modules if name.rsplit(".", 1)[-1] in LINEAR}


@torch.no_grad()
def merge(model: Any, update: dict[str, torch.Tensor]) -> None:
    """Adds the low-rank update to the decoder: W + SCALE * B A (Hu et al. 2106.09685, eq. 3).

    Args:
        model: a LLaVA as `build_model` makes it.
        update: ``{layer}.A`` (RANK in) and ``{layer}.B`` (out RANK) for every layer of `linears`.

    Raises:
        ValueError: the update is not one for exactly these layers.
    """
    layers = linears(model)
    wanted = {f"{name}.{part}" for name in layers for part in "AB"}
    if wanted != update.keys():
        odd = sorted(wanted ^ update.keys())
        raise ValueError(
            f"the update does not fit the decoder: {len(odd)} names differ, as {odd[0]}"
        )
    for name in layers:
        layer: Any = layers[name]
        low = update[f"{name}.A"].to(layer.weight)
        high = update[f"{name}.B"].to(layer.weight)
        layer.weight += SCALE * high @ low
