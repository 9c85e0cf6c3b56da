"""lmms-eval's Hugging Face wrappers with ``method=`` among their arguments: ``--model foveate_llava_hf``.

The classes are made when lmms-eval asks for them by name, from whatever version of it is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from ..engine.apply import apply
from ..methods import parse

WRAPPED = {  # our name: the module and class of lmms-eval 0.7.3
    "foveate_llava_hf": ("lmms_eval.models.chat.llava_hf", "LlavaHf"),
    "foveate_qwen2_5_vl": ("lmms_eval.models.chat.qwen2_5_vl", "Qwen2_5_VL"),
    "foveate_qwen3_vl": ("lmms_eval.models.chat.qwen3_vl", "Qwen3_VL"),
    "foveate_internvl_hf": ("lmms_eval.models.chat.internvl_hf", "InternVLHf"),
    "foveate_huggingface": ("lmms_eval.models.chat.huggingface", "Huggingface"),
}


class Failed(BaseException):
    """Carries an exception of `generate` past lmms-eval, which would score it as an empty answer."""


def manifests() -> list[Any]:
    """What lmms-eval's registry loads: one manifest for each of `WRAPPED`."""
    manifest = importlib.import_module("lmms_eval.models.registry_v2").ModelManifest
    return [manifest(model_id=name, chat_class_path=f"{__name__}.{name}") for name in WRAPPED]


def __getattr__(name: str) -> Any:
    if name not in WRAPPED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class(name)


@cache
def _class(name: str) -> Any:
    module, wrapped = WRAPPED[name]
    inner = getattr(importlib.import_module(module), wrapped)

    def __init__(self: Any, *args: Any, method: str = "", **kwargs: Any) -> None:  # noqa: N807
        spec = str(method).strip("'\"").replace(";", ",")
        self.methods = parse(spec) if spec else None
        inner.__init__(self, *args, **kwargs)

    def generate_until(self: Any, requests: Any) -> Any:
        model = self.model
        plain = model.generate
        model.generate = _pruned(
            model, plain, self.methods
        )  # on this object alone, and taken off again
        try:
            return inner.generate_until(self, requests)
        except Failed as failed:
            raise RuntimeError(f"generate failed: {failed.__cause__}") from failed.__cause__
        finally:
            del model.generate

    return type(
        name,
        (inner,),
        {"__init__": __init__, "generate_until": generate_until, "__module__": __name__},
    )


def _pruned(model: Any, plain: Callable[..., Any], methods: Any) -> Callable[..., Any]:
    """`generate` under the methods (None: untouched); its exceptions come out as `Failed`."""

    def generate(*args: Any, **kwargs: Any) -> Any:
        try:
            if methods is None:
                return plain(*args, **kwargs)
            with apply(model, *methods):
                return plain(*args, **kwargs)
        except Exception as error:
            raise Failed() from error

    return generate
