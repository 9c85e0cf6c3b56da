"""What the engine takes for granted about transformers: a name taken away is a clear error before anything runs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from transformers import AutoModelForImageTextToText, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama import modeling_llama

import foveate
from foveate.cli.app import run
from foveate.doctor.examine import examine
from foveate.engine import assumptions
from foveate.engine.assumptions import UnsupportedTransformersError
from foveate.methods import fastv, random
from foveate.versions import TORCH, TRANSFORMERS, public, versions
from models.families import FAMILIES
from models.tiny import CACHE, Layout, batch, cache_in, held, llava, model

ONE = Layout(((3, 0, 5),))
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def fresh() -> Any:
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(llava()).eval()


def decoder(made: Any) -> Any:
    return made.model.language_model


def without(module: Any, argument: str, instead: str | None = None, annotation: Any = None) -> None:
    """Gives one module a class of its own, whose `forward` calls an argument by another name (or has none of it)."""
    kind = type(module)
    original = kind.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    shown = inspect.signature(original)
    taken = []
    for parameter in shown.parameters.values():
        if parameter.name != argument:
            taken.append(parameter)
        elif instead is not None:
            named = parameter.replace(name=instead)
            taken.append(named if annotation is None else named.replace(annotation=annotation))
    forward.__signature__ = shown.replace(parameters=taken)  # type: ignore[attr-defined]
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def every_layer(change: Callable[[Any], None]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def changed(made: Any, patch: pytest.MonkeyPatch) -> None:
        for layer in decoder(made).layers:
            change(layer)

    return changed


def second_cache(module: Any) -> None:
    """An argument of `forward` beside the known one that brings a cache, as a future release may have it."""
    kind = type(module)
    shown = inspect.signature(kind.forward)
    extra = inspect.Parameter(
        "store", inspect.Parameter.KEYWORD_ONLY, annotation=DynamicCache | None
    )
    places = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD]
    last = [p for p in shown.parameters.values() if p.kind is p.VAR_KEYWORD]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.forward(self, *args, **kwargs)

    forward.__signature__ = shown.replace(parameters=[*places, extra, *last])  # type: ignore[attr-defined]
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})


def other_output(made: Any, patch: pytest.MonkeyPatch) -> None:
    """The decoder says that it returns a class without a field for the cache."""
    fields = [("last_hidden_state", Any, None), ("store", Any, None)]
    kind = dataclasses.make_dataclass("FutureOutput", fields)
    module = decoder(made)
    original = type(module).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    shown = inspect.signature(original)
    forward.__signature__ = shown.replace(return_annotation=kind)  # type: ignore[attr-defined]
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def no_attribute(name: str) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def change(made: Any, patch: pytest.MonkeyPatch) -> None:
        for layer in decoder(made).layers:
            delattr(layer.self_attn, name)

    return change


def no_norm(made: Any, patch: pytest.MonkeyPatch) -> None:
    for layer in decoder(made).layers:
        del layer.input_layernorm


def no_rotary(made: Any, patch: pytest.MonkeyPatch) -> None:
    patch.delattr(modeling_llama, "apply_rotary_pos_emb")


def other_rotary(made: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, angles: (q, k))


def no_flag(made: Any, patch: pytest.MonkeyPatch) -> None:
    """Neither decoder nor layers say any more whether they run twice."""
    del decoder(made).gradient_checkpointing
    base = next(
        k for k in type(decoder(made).layers[0]).__mro__ if "gradient_checkpointing" in vars(k)
    )
    patch.delattr(base, "gradient_checkpointing")


TAKEN_AWAY: dict[str, tuple[Callable[[Any, pytest.MonkeyPatch], Any], str]] = {
    "body: attention_mask": (
        lambda made, _: without(made.model, "attention_mask"),
        "attention_mask",
    ),
    "body: input_ids renamed": (
        lambda made, _: without(made.model, "input_ids", "tokens"),
        "input_ids",
    ),
    "decoder: position_ids": (
        lambda made, _: without(decoder(made), "position_ids"),
        "position_ids",
    ),
    "decoder: use_cache": (lambda made, _: without(decoder(made), "use_cache"), "use_cache"),
    "decoder: the cache renamed": (
        lambda made, _: without(decoder(made), CACHE, "store"),
        "no KV cache under a name",
    ),
    "decoder: a second cache": (
        lambda made, _: second_cache(decoder(made)),
        "second KV cache, 'store'",
    ),
    "decoder: output without a cache": (
        other_output,
        f"FutureOutput, which has no field '{CACHE}'",
    ),
    "layer: the cache renamed": (
        every_layer(lambda one: without(one, CACHE, "store")),
        "no KV cache under a name",
    ),
    "layer: a second cache": (every_layer(second_cache), "second KV cache, 'store'"),
    "layer: position_embeddings": (
        every_layer(lambda one: without(one, "position_embeddings")),
        "position_embeddings",
    ),
    "layer: attention_mask": (
        every_layer(lambda one: without(one, "attention_mask", "mask")),
        "attention_mask",
    ),
    "layer: hidden_states": (
        every_layer(lambda one: without(one, "hidden_states", "states")),
        "hidden_states",
    ),
    "layer: input_layernorm": (no_norm, "input_layernorm"),
    "layer: gradient_checkpointing": (no_flag, "gradient_checkpointing"),
    "attention: the cache renamed": (
        every_layer(lambda one: without(one.self_attn, CACHE, "store")),
        "no KV cache under a name",
    ),
    "attention: q_proj": (no_attribute("q_proj"), "q_proj"),
    "attention: k_proj": (no_attribute("k_proj"), "k_proj"),
    "attention: head_dim": (no_attribute("head_dim"), "head_dim"),
    "attention: scaling": (no_attribute("scaling"), "scaling"),
    "attention: config": (no_attribute("config"), "config"),
    "attention: rotary embedding": (no_rotary, "apply_rotary_pos_emb"),
    "attention: rotary arguments": (other_rotary, "apply_rotary_pos_emb takes other arguments"),
    "cache: crop": (lambda made, patch: patch.delattr(DynamicLayer, "crop"), "no method crop"),
    "cache: offloading": (
        lambda made, patch: patch.setattr(
            assumptions, "DynamicCache", lambda **_: types.SimpleNamespace(layers=[])
        ),
        "DynamicCache has no offloading",
    ),
}


@pytest.mark.parametrize("what", TAKEN_AWAY)
def test_a_name_that_is_missing_is_an_error_at_apply_and_in_doctor(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = TAKEN_AWAY[what]
    made = fresh()
    with foveate.apply(made, random(layer=1, keep=0.5)):
        pass  # it was fine before
    change(made, monkeypatch)
    with pytest.raises(UnsupportedTransformersError, match=re.escape(said)) as caught:
        foveate.apply(made, random(layer=1, keep=0.5))
    assert public(transformers.__version__) in str(caught.value)
    found = examine("mine", foveate.Loaded(made))
    assert not found.supported and said in (found.reason or "")


def test_a_deepstack_whose_features_come_under_other_names_is_refused() -> None:
    torch.manual_seed(0)
    made = AutoModelForImageTextToText.from_config(FAMILIES["qwen3_vl"].config()).eval()
    foveate.apply(made, random(layer=1, keep=0.5))
    without(made.model.language_model, "deepstack_visual_embeds", "features")
    with pytest.raises(UnsupportedTransformersError, match="DeepStack"):
        foveate.apply(made, random(layer=1, keep=0.5))


def test_versions_outside_of_the_range_are_told_how_to_get_one_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assumptions, "versions", lambda: {"transformers": "5.99.0"})
    said = str(assumptions.unsupported("LlamaModel.forward takes no argument 'x'"))
    assert (
        "transformers 5.99.0 is installed" in said
        and f'pip install "transformers{TRANSFORMERS}"' in said
    )
    monkeypatch.setattr(assumptions, "versions", lambda: {"transformers": "5.20.2"})
    assert "own code" in str(assumptions.unsupported("x"))


def test_the_command_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(modeling_llama, "apply_rotary_pos_emb")
    picture = Path(__file__).parents[2] / "docs" / "results" / "attention-smol.png"
    assert (
        run(
            [
                "generate",
                str(picture),
                "What is it?",
                "--method",
                "random:layer=1,keep=0.5",
                "--repeats",
                "1",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "apply_rotary_pos_emb" in said and "bug" not in said and "Traceback" not in said
    assert run(["doctor", "scenes"]) == 1
    assert "apply_rotary_pos_emb" in " ".join(capsys.readouterr().out.split())


def test_an_import_that_transformers_no_longer_has_says_which_versions_work() -> None:
    code = "import transformers.cache_utils as c; del c.DynamicSlidingWindowLayer; import foveate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode == 1
        and "DynamicSlidingWindowLayer" in last
        and public(transformers.__version__) in last
    )


def swallowed(module: Any) -> None:
    """Attention that fills another cache than the one it is given: what a silent rename comes to."""
    store = DynamicCache()
    original = type(module).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **{**kwargs, CACHE: store})

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def test_a_cache_that_is_not_the_one_filled_is_an_error_in_the_first_forward() -> None:
    made, inputs = fresh(), batch("llava", ONE).inputs
    for layer in decoder(made).layers:
        swallowed(layer.self_attn)
    with torch.no_grad(), foveate.apply(made, random(layer=1, keep=0.5)):
        with pytest.raises(
            UnsupportedTransformersError, match="not the one that its attention used"
        ):
            made(**inputs, use_cache=True)
        made(**inputs, use_cache=False)  # where none is asked for, none can be missed
        with pytest.raises(UnsupportedTransformersError):
            made.generate(**inputs, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("kind", ["states", "cache"])
def test_an_output_without_states_or_cache_is_an_error(kind: str) -> None:
    made, inputs = fresh(), batch("llava", ONE).inputs

    def other(module: Any, args: Any, output: Any) -> Any:
        if kind == "states":
            return types.SimpleNamespace(states=output[0])
        return (output[0],)  # a tuple in which the cache is not

    handle = decoder(made).register_forward_hook(other)
    with torch.no_grad(), foveate.apply(made, random(layer=1, keep=0.5)):
        said = "no last_hidden_state" if kind == "states" else "has not the cache"
        with pytest.raises(UnsupportedTransformersError, match=said):
            decoder_call(made, inputs)
    handle.remove()


def decoder_call(made: Any, inputs: dict[str, Any]) -> Any:
    return made(**inputs, use_cache=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position_embeddings": None}, "no position_embeddings"),
        ({"position_embeddings": torch.zeros(1, 24, 8)}, "another form"),
        ({"attention_mask": torch.zeros(24)}, "attention_mask of 1 dim"),
        ({"attention_mask": object()}, "attention_mask of type object"),
    ],
)
def test_a_layer_that_is_called_otherwise_is_an_error(change: dict[str, Any], said: str) -> None:
    made, inputs = fresh(), batch("llava", ONE).inputs
    hook = (
        decoder(made)
        .layers[1]
        .register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, **change}), with_kwargs=True
        )
    )
    with (
        torch.no_grad(),
        foveate.apply(made, random(layer=2, keep=0.5)),
        pytest.raises(UnsupportedTransformersError, match=said),
    ):
        made(**inputs)
    hook.remove()


# Users' calls in either spelling

NEW = CACHE == "cache"
SPELLINGS = ["past_key_values", *(["cache"] if NEW else [])]


@contextlib.contextmanager
def users_own_warnings() -> Iterator[None]:
    """Transformers warns whoever uses an old name; that is between the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_cache_of_the_users_own_by_either_name(spelling: str) -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    with torch.no_grad(), users_own_warnings():
        with foveate.apply(made, random(layer=1, keep=0.5)):
            want = made.generate(**inputs, max_new_tokens=4, do_sample=False)
        for cache in (foveate.KeptCache(made.config), DynamicCache(config=made.config)):
            with foveate.apply(made, random(layer=1, keep=0.5)) as trace:
                got = made.generate(
                    **inputs, max_new_tokens=4, do_sample=False, **{spelling: cache}
                )
            assert torch.equal(got, want) and trace.prefill()[1] == [8]
            assert [layer.length for layer in cache.layers] == [8 + 16 + 3, *[8 + 8 + 3] * 3]
        cache = foveate.KeptCache(made.config)
        assert (
            made.generate(**inputs, max_new_tokens=4, do_sample=False, **{spelling: cache}).shape
            == want.shape
        )
        with foveate.apply(made, random(layer=1, keep=0.5)):
            out = made(**inputs, **{spelling: foveate.KeptCache(made.config)})
            carried = getattr(out, spelling)
            more = made(input_ids=torch.tensor([[7]]), **{spelling: carried})
            again = made(input_ids=torch.tensor([[8]]), **held(cache_in(more)))
    assert (
        cache_in(again) is carried and carried.get_seq_length() == inputs["input_ids"].shape[1] + 2
    )


@pytest.mark.skipif(not NEW, reason="this transformers has one name for the cache")
def test_both_names_in_one_call_mean_the_new_one_as_in_transformers() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    used, unused = foveate.KeptCache(made.config), foveate.KeptCache(made.config)
    with torch.no_grad(), users_own_warnings(), foveate.apply(made, random(layer=1, keep=0.5)):
        made(**inputs, cache=used, past_key_values=unused)
    assert used.get_seq_length() == inputs["input_ids"].shape[1] and unused.get_seq_length() == 0


def test_errors_call_the_cache_as_this_transformers_does() -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    with torch.no_grad():
        foreign = cache_in(made(**inputs, use_cache=True))
        with (
            foveate.apply(made, fastv(layer=1)),
            pytest.raises(ValueError, match=rf"^{CACHE} already holds"),
        ):
            made(input_ids=inputs["input_ids"][:, :1], **held(foreign))


def test_foveate_causes_no_warning_of_a_deprecated_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers says some of these by its logger, and once: look at every call of it."""
    said: list[str] = []
    module = sys.modules["transformers.utils.generic"]
    monkeypatch.setattr(module.logger, "warning_once", lambda text, *_: said.append(text))
    made, inputs = model("llava"), batch("llava", ONE).inputs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"do_sample": False}, {"num_beams": 2}, {"use_cache": False}):
            with foveate.apply(made, random(layer=1, keep=0.5), fastv(layer=2, keep=0.5)):
                made.generate(**inputs, max_new_tokens=3, **options)
    assert not [text for text in said if "deprecated" in text]


# Versions


def test_the_versions_that_pip_may_choose_are_those_that_were_tested() -> None:
    asked = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    assert asked["transformers"] == SpecifierSet(TRANSFORMERS) and asked["torch"] == SpecifierSet(
        TORCH
    )
    assert PROJECT["version"] == foveate.__version__
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert all(bound.partition(",")[0].strip(">=") in readme for bound in (TRANSFORMERS, TORCH))


def test_a_version_is_recorded_without_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    assert versions()["torch"] == "2.14.1"
    assert set(versions()) == {"foveate", "torch", "transformers"}


def test_a_predictor_of_another_build_loads_without_complaint(tmp_path: Path) -> None:
    from foveate.artefacts.predictors import BUNDLED, from_pretrained  # noqa: PLC0415

    for name in ("predictor.json", "predictor.safetensors"):
        (tmp_path / name).write_bytes((BUNDLED / "scenes-0.33" / name).read_bytes())
    text = (tmp_path / "predictor.json").read_text()
    (tmp_path / "predictor.json").write_text(
        re.sub(r'"torch": "[^"]*"', '"torch": "2.14.1+cu130"', text)
    )
    assert "cu130" in (tmp_path / "predictor.json").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_pretrained(tmp_path)
