"""A model's processor; where torchvision is missing, one for pictures alone."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,  # 5.17's top level has a stand-in
)
from transformers.models.auto.processing_auto import (
    PROCESSOR_MAPPING_NAMES,
    processor_class_from_name,
)


def load_processor(source: str, revision: str | None, config: Any) -> Any:
    """The whole processor; or one for pictures alone, where its part for videos or a package for that is missing.

    Args:
        source: folder or hub id.
        revision: of a hub id.
        config: of the model.

    Raises:
        ImportError, ValueError, OSError: transformers' own, if it is not videos that are in the way.
    """
    part, reason = None, None
    try:
        whole = AutoProcessor.from_pretrained(source, revision=revision)
        if not _is_part(whole, config):
            return whole
        part = whole
    except (ImportError, ValueError, OSError) as error:
        reason = error
    try:
        name = processor_name(source, revision, config)
        if name is not None and (missing_packages() or "video processor" in str(reason)):
            return _pictures_only(_class(name), source, revision)
    except (
        ImportError,
        ValueError,
        OSError,
    ):  # the picture processor or the tokenizer is in the way, too
        pass
    if reason is not None:
        raise reason
    return part


def missing_packages() -> list[str]:
    """The packages that whole processors of some families want, for videos, and that are not installed."""
    return [name for name in ("torchvision", "num2words") if importlib.util.find_spec(name) is None]


def pictures_only(processor: Any) -> bool:
    """Whether the family's processor takes videos, too, but this one was built without that part."""
    return isinstance(getattr(processor, "video_processor", None), _NoVideos)


def pictures_only_note(processor: Any) -> str:
    """What to say of a processor for which `pictures_only` holds."""
    missing = processor.video_processor.missing
    return "its processor takes pictures only" + (
        f"; videos need {' and '.join(missing)}" if missing else ""
    )


def processor_name(source: str, revision: str | None, config: Any) -> str | None:
    """The class that the processor's own files name, else the one of the model's family."""
    try:
        said, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
    except OSError:
        said = {}
    return said.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(config.model_type)


def _is_part(processor: Any, config: Any) -> bool:
    """Whether transformers gave a tokenizer or a picture processor for a family that has a whole processor."""
    return (
        not isinstance(processor, ProcessorMixin) and config.model_type in PROCESSOR_MAPPING_NAMES
    )


class _NoVideos:
    """Stands where a video processor would be.

    Attributes:
        missing: packages that videos need, and that are not installed.
        num_frames, fps: SmolVLM's chat template asks for them.
        model_input_names: none of the model's inputs comes from here; transformers adds up those of all parts.
        _auto_class: transformers asks for it when it saves a processor.
    """

    num_frames, fps = 1, 1
    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    def __init__(self, missing: list[str]) -> None:
        self.missing = missing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"this processor was built for pictures only; videos need {' and '.join(self.missing)}"
        )


def _class(name: str) -> Any:
    """The processor class, from its own module where `transformers` has only a stand-in that asks for torchvision."""
    kinds = [kind for kind, known in PROCESSOR_MAPPING_NAMES.items() if known == name]
    for kind in (*kinds, name.removesuffix("Processor").lower()):
        found = getattr(_module(kind.replace("-", "_")), name, None)
        if found is not None:
            return found
    return processor_class_from_name(name)


def _module(family: str) -> Any:
    """The module of a family's processor; None if the family takes another's.

    Pixtral's takes one function from the picture processor that needs torchvision. The picture processor that does
    not has the same function, and stands in for it while the module is imported.
    """
    place = f"transformers.models.{family}"
    try:
        return importlib.import_module(f"{place}.processing_{family}")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            return None
    wanted = f"{place}.image_processing_{family}"
    sys.modules[wanted] = importlib.import_module(f"{place}.image_processing_pil_{family}")
    try:
        return importlib.import_module(f"{place}.processing_{family}")
    finally:
        del sys.modules[wanted]


def _pictures_only(kind: Any, source: str, revision: str | None) -> Any:
    """A processor of the class with tokenizer and picture processor from `source`, and no video processor."""

    class PicturesOnly(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, _NoVideos):
                return _NoVideos
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            return {
                k: v
                for k, v in super().to_dict().items()
                if not isinstance(getattr(self, k, v), _NoVideos)
            }

    # under the family's name, by which others know it; the signature says which parts the class takes
    PicturesOnly.__name__ = kind.__name__
    PicturesOnly.__qualname__ = kind.__qualname__
    said, _ = kind.get_processor_dict(source, revision=revision)
    loaders = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    home = sys.modules[kind.__module__]
    parts = []
    for part in inspect.signature(kind.__init__).parameters:
        if part in loaders:
            parts.append(loaders[part].from_pretrained(source, revision=revision))
        elif part == "video_processor":
            parts.append(
                _NoVideos([p for p in missing_packages() if p == "torchvision" or hasattr(home, p)])
            )
    with _numbers_unspoken(kind):
        return PicturesOnly.from_args_and_dict(parts, said)


@contextmanager
def _numbers_unspoken(kind: Any) -> Iterator[None]:
    """Lets SmolVLM's processor be built without num2words, which it wants at once and uses for videos alone."""
    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", "") is not None:
        yield
        return
    module.num2words = str  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.num2words = None  # type: ignore[attr-defined]
