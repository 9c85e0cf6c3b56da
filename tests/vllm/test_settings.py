"""What a server is asked to do, and what a request may choose; these run without vLLM."""

from __future__ import annotations

import json
import shlex
from types import SimpleNamespace

import pytest

from foveate.cli.app import run
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
    assert set(NEEDED) <= set(command) and command[-2:] == ["--port", "8001"]
    said = json.loads(command[command.index("--additional-config") + 1])
    assert said == {"foveate": {"method": "fastv:keep=0.25"}}
    assert run(["serve", "some/model", "--method", "fastvv", "--dry-run"]) == 2


def test_the_command_of_the_way_before(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["serve", "some/model", "--method", "divprune", "--way", "before", "--dry-run"]
    assert run(asked) == 0
    command = shlex.split(capsys.readouterr().out)
    assert not set(NEEDED) & set(command)
    said = json.loads(command[command.index("--additional-config") + 1])
    assert said == {"foveate": {"method": "divprune", "way": "before"}}
    assert run(["serve", "some/model", "--way", "after", "--dry-run"]) == 2
