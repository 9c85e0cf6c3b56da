"""ONE ENTRY PER FAMILY: tiny random models that vLLM's CPU kernels take (heads of 32), with their processors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

LAYERS = 6
TEXT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 7,
}  # fmt: skip
IMAGE, VIDEO, START, END = 250, 251, 252, 253
WEIGHTS = "model.safetensors"
WORDS = 240  # w3 to w239 are words


@dataclass(frozen=True)
class Family:
    """A family to be tested.

    Attributes:
        config: of the tiny model.
        processor: made offline of its real classes, saved into a folder.
        mark: what stands for a picture in a prompt.
        sides: of the pictures that the tests show it.
        renamed: the name that checkpoints on the hub, and so vLLM, give what this transformers saves.
    """

    config: Callable[[], Any]
    processor: Callable[[Path], None]
    mark: str = "<image>"
    sides: tuple[tuple[int, int], ...] = ((56, 56), (56, 56))
    renamed: Callable[[str], str] = lambda key: key


def tokenizer(special: dict[str, int], **named: str) -> Any:
    table = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, WORDS)}, "<unk>": WORDS, **special}
    made = Tokenizer(WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = Split(" ", "removed")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special)}),
    )  # fmt: skip


TEMPLATE = (
    "{%- for m in messages %}{%- if m['content'] is string %}{{ m['content'] }}{%- else %}{%- for c in m['content'] %}"
    "{%- if c['type'] == 'text' %}{{ c['text'] }}{%- else %}IMAGE{%- endif %} {% endfor %}{%- endif %} {% endfor %}"
)


def llava() -> Any:
    return tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**VISION, projection_dim=64), text_config=tf.LlamaConfig(**TEXT),
        image_token_id=IMAGE, image_token_index=IMAGE, image_seq_length=64, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def llava_processor(folder: Path, side: int = 56) -> None:
    size = {"height": side, "width": side}
    tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer({"<image>": IMAGE}), patch_size=7, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)  # fmt: skip


def inside(key: str) -> str:
    """Hub checkpoints have towers in a `vision_model` of their own."""
    return re.sub(r"vision_tower\.(?!vision_model)", "vision_tower.vision_model.", key)


FAMILIES: dict[str, Family] = {"llava": Family(llava, partial(llava_processor), renamed=inside)}


def build(name: str) -> Any:
    """A model whose attention is far from uniform, so that what is dropped matters."""
    torch.manual_seed(5)
    made = tf.AutoModelForImageTextToText.from_config(FAMILIES[name].config())
    with torch.no_grad():
        for part, p in made.named_parameters():
            if p.ndim > 1 and "embed" not in part and "position" not in part:
                p.mul_(5 if "q_proj" in part or "k_proj" in part else 3)
    made.generation_config.eos_token_id = None
    return made.eval()


def save(name: str, folder: Path) -> Path:
    """Puts model and processor into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[name]
    build(name).save_pretrained(folder)
    weights = {family.renamed(key): value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    family.processor(folder)
    return folder
