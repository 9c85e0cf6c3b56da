"""What a server is asked to do, and what a request may choose; these run without vLLM."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from foveate.cli.app import run
from foveate.vllm.before import Shortening, shorten
from foveate.vllm.checks import NEEDED, check_request
from foveate.vllm.settings import Settings, methods_of


def test_it_does_nothing_unless_it_is_asked() -> None:
    assert Settings.of({}) is None
    assert Settings.of({"gdn_prefill_backend": "auto"}) is None
    assert Settings.of({"foveate": "fastv"}) == Settings("fastv")
    assert methods_of("none") == ()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"methods": ["fastv"]}, "expected"),
        ({"method": "fastvv"}, "unknown method"),
        ({"method": 3}, "methods as text"),
        (
            {"method": "dyrate:predictor=scenes-0.33-decode,semantics=recompute"},
            "without a KV cache",
        ),
        ({"method": "none", "also": ["fastv:keep=2.5"]}, "keep"),
    ],
)
def test_what_cannot_be_right_is_refused(said: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Settings.of({"foveate": said})


def test_what_the_server_must_be_prepared_for() -> None:
    early = Settings("dyrate:predictor=scenes-0.33,decode=false")
    assert early.tower == () and not early.decodes and not early.weighs
    assert Settings("none", ("dyrate:predictor=scenes-0.33-decode",)).decodes
    assert Settings("st3").decodes and Settings("pact").weighs


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("schedule:/etc/passwd", "reads a file"),
        ("score=last,schedule=schedule:/etc/passwd", "reads a file"),
        ("dyrate:predictor=/somewhere", "reads a file"),
        ("visionzip", "does not watch"),
        ("pact", "no room"),
        ("st3", "not prepared"),
        ("divprune:keep=2.5", "keep"),
        ("nothing", "unknown method"),
        (0.5, "expected a method as text"),
    ],
)
def test_what_a_request_may_not_choose(chosen: object, expected: str) -> None:
    params = SimpleNamespace(extra_args={"foveate": chosen}, prompt_logprobs=None)
    with pytest.raises(ValueError, match=expected):
        check_request(Settings("fastv"), params)


def test_what_a_request_may_choose() -> None:
    settings = Settings("fastv", ("visionzip",))
    for chosen in ("none", "fastv", "divprune:keep=0.25", "visionzip", "prumerge", "vscan2+vtw"):
        check_request(
            settings, SimpleNamespace(extra_args={"foveate": chosen}, prompt_logprobs=None)
        )
    check_request(settings, SimpleNamespace(extra_args=None, prompt_logprobs=None))


def test_requests_that_would_be_wrong() -> None:
    with pytest.raises(ValueError, match="runs without"):
        check_request(None, SimpleNamespace(extra_args={"foveate": "fastv"}))
    check_request(None, SimpleNamespace(extra_args={"other": 1}))
    with pytest.raises(ValueError, match="prompt_logprobs"):
        check_request(Settings("fastv"), SimpleNamespace(extra_args=None, prompt_logprobs=1))
    check_request(Settings("none"), SimpleNamespace(extra_args=None, prompt_logprobs=1))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["serve", "some/model", "--method", "fastv:keep=0.25", "--dry-run", "--port", "8001"]
    assert run(asked) == 0
    command = shlex.split(capsys.readouterr().out)
    assert "some/model" in command
    assert set(NEEDED["inside"]) <= set(command) and command[-2:] == ["--port", "8001"]
    said = json.loads(command[command.index("--additional-config") + 1])
    assert said == {"foveate": {"method": "fastv:keep=0.25"}}
    assert run([*asked[:4], "--way", "before", "--dry-run"]) == 0
    command = shlex.split(capsys.readouterr().out)
    assert not set(NEEDED["inside"]) & set(command)
    said = json.loads(command[command.index("--additional-config") + 1])
    assert said == {"foveate": {"method": "fastv:keep=0.25", "way": "before"}}
    assert run(["serve", "some/model", "--way", "behind", "--dry-run"]) == 2
    assert run(["serve", "some/model", "--method", "fastvv", "--dry-run"]) == 2


@dataclass(frozen=True)
class Placeholders:
    """As vLLM's `PlaceholderRange`."""

    offset: int
    length: int
    is_embed: torch.Tensor | None = None


@dataclass(frozen=True)
class Feature:
    """As vLLM's `MultiModalFeatureSpec`."""

    mm_position: Placeholders
    identifier: str = "picture"
    modality: str = "image"


def admitted(ids: list[int], features: list[Feature], text: str) -> SimpleNamespace:
    params = SimpleNamespace(max_tokens=100)
    made = SimpleNamespace(prompt_token_ids=ids, mm_features=features, sampling_params=params)
    model = SimpleNamespace(
        hf_text_config=SimpleNamespace(num_hidden_layers=6), hf_config=SimpleNamespace(model_type="qwen2_vl"),
        max_model_len=64,
    )  # fmt: skip
    shorten(made, text, model)
    return made


def test_a_prompt_before_the_decoder_loses_placeholders() -> None:
    flags = torch.tensor([False, *[True] * 16, False])
    one, other = Feature(Placeholders(2, 18, flags)), Feature(Placeholders(22, 8))
    ids = [1, 2, 60, *[9] * 16, 61, 3, 4, *[9] * 8, 5]
    made = admitted(ids, [one, other], "divprune:keep=0.5")
    assert made.prompt_token_ids == [1, 2, 60, *[9] * 8, 61, 3, 4, *[9] * 4, 5]
    first, second = (feature.mm_position for feature in made.mm_features)
    assert first.is_embed is not None and first.is_embed.tolist() == [False, *[True] * 8, False]
    assert (first.offset, first.length) == (2, 10) and (second.offset, second.length) == (14, 4)
    names = [feature.identifier for feature in made.mm_features]
    assert [Shortening.of(name) for name in names] == [
        Shortening(16, "divprune:keep=0.5"),
        Shortening(8, "divprune:keep=0.5"),
    ]
    assert made.sampling_params.max_tokens == 64 - len(ids)
    assert admitted(ids, [one, other], "none").prompt_token_ids == ids


@pytest.mark.parametrize(
    ("features", "text", "expected"),
    [
        ([Feature(Placeholders(1, 15))], "divprune", "ends with a picture"),
        (
            [Feature(Placeholders(1, 8, torch.tensor([True, False] * 4)))],
            "divprune",
            "other tokens lie among",
        ),
        ([Feature(Placeholders(1, 8), modality="video")], "divprune", "images alone"),
        ([Feature(Placeholders(1, 4)), Feature(Placeholders(5, 4))], "divprune", "pictures touch"),
        (
            [Feature(Placeholders(1, 4)), Feature(Placeholders(6, 4))],
            "random",
            "shares its tokens out",
        ),
        ([Feature(Placeholders(1, 4))], "divprune:keep=0", "keeps none"),
        ([Feature(Placeholders(1, 4))], "fastv", "deeper than 0"),
    ],
)
def test_prompts_that_cannot_be_shortened(
    features: list[Feature], text: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        admitted(list(range(16)), features, text)
