"""The architecture of ``scenes``: transformers' own LLaVA, small, and its tokenizer and processor."""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foveate.world import language
from foveate.world.scenes import (
    BACKGROUNDS,
    COLORS,
    GRID,
    PATCH,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    TEXTURES,
)
from lab.conversations import Dialect

SYSTEM = "you look at pictures and answer in a few words ."
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
VISUAL = GRID * GRID  # visual tokens of a picture
CHAT_TEMPLATE = (
    "{{ '<s> " + SYSTEM + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ ' <user> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image> ' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% else %}{{ ' <assistant> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{{ ' </s>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)
_MORE_WORDS = """
a an and are among any as at background big biggest bottom can caption center color colour contain describe detail
different does each else every few first for from how i image in is it kind large last left list many me more most
much name no not object objects of on one one-sentence or other out over picture pictures please present provide
provided right say scene see shape shapes short show shows single size small smallest some tell than that the them
there these they thing things this to top total two under us very what where which white who why with word words
write yes you your above below rectangle pink
"""


def vocabulary() -> list[str]:
    """The words of the model, special tokens first; everything that the texts of this package can say is in it."""
    words = set(_MORE_WORDS.split()) | {".", ",", "?", "!", ":", ";", "'"}
    for group in (SHAPES, COLORS, TEXTURES, SIZES, BACKGROUNDS, PLACES, language.NUMBERS):
        words.update(word for phrase in group for word in phrase.split())
    for text in (SYSTEM, *language.CAPTION_PROMPTS, *language.DESCRIPTION_PROMPTS):
        words.update(re.findall(r"[\w-]+|[^\w\s]", text.lower()))
    words.update(str(n) for n in range(10))
    return [*SPECIAL, *sorted(words)]


def build_processor() -> LlavaProcessor:
    """Word tokenizer, CLIP image processor and chat template, as transformers' `LlavaProcessor`."""
    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"<\w+>|</s>|[\w-]+|[^\w\s]"), behavior="removed", invert=True
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
        model_max_length=2048,
    )
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaConfig:
    """LLaVA with a CLIP tower of 4 layers and a Llama of 8 layers (grouped queries, tied embeddings)."""
    words = vocabulary()
    special = {token: words.index(token) for token in SPECIAL}
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=special["<pad>"],
        bos_token_id=special["<s>"],
        eos_token_id=special["</s>"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=special["<image>"],
        image_seq_length=VISUAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=special["<pad>"],
        bos_token_id=special["<s>"],
        eos_token_id=special["</s>"],
    )


def build_model() -> LlavaForConditionalGeneration:
    """A freshly initialised model (torch's global seed decides the weights)."""
    model = AutoModelForImageTextToText.from_config(build_config())
    model.generation_config.max_new_tokens = 64
    model.generation_config.do_sample = False
    return model


def dialect() -> Dialect:
    """How `CHAT_TEMPLATE` writes a conversation."""
    words = vocabulary()
    ids = {word: i for i, word in enumerate(words)}
    pad, bos, eos, unknown, image, user, assistant = (ids[token] for token in SPECIAL)

    def encode(text: str) -> list[int]:
        return [ids.get(word, unknown) for word in re.findall(r"[\w-]+|[^\w\s]", text.lower())]

    return Dialect(
        encode=encode,
        prefix=(bos, *encode(SYSTEM), user, *([image] * VISUAL)),
        opening=(user,),
        asked=(assistant,),
        answered=(eos,),
        pad=pad,
        grid=GRID,
        text=288,
    )
