"""`foveate advise`: the known limits, a bound that no device can pass, and plain words."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.cli.advise import advise
from foveate.cli.app import run
from foveate.cli.bench import benchmark
from foveate.cli.cost import cost
from foveate.cli.options import Asked
from foveate.cost.architecture import Architecture, architecture
from foveate.cost.configurations import config_of
from foveate.cost.devices import DEVICES, Device, device_of
from foveate.cost.flops import cost_of_counts
from foveate.cost.plan import Request, request
from foveate.cost.roofline import caps, hard_cap, held, least_keep, read_by, times
from foveate.engine.anatomy import hollow

CONFIG = config_of("llava-1.5-7b")
MODEL = architecture(CONFIG)


def asked(new: int = 1, many: int = 1) -> Request:
    return request(CONFIG, text=64, images=1, new_tokens=new, batch=many)


@pytest.mark.parametrize(("many", "want"), [(1, 1.02), (32, 1.63), (128, 2.77)])
def test_decode_gains_only_what_the_cache_weighs(many: int, want: float) -> None:
    assert round(caps(MODEL, DEVICES["a100"], asked(128, many), [0] * 32).decode, 2) == want


@pytest.mark.parametrize(("name", "want"), [("a100", 4.2), ("h100", 2.2), ("h200", 3.1)])
def test_below_the_ridge_fewer_tokens_save_nothing(name: str, want: float) -> None:
    assert round(caps(MODEL, DEVICES[name], asked(), [64] * 32).prefill, 1) == want


@pytest.mark.parametrize(("new", "want"), [(16, 1.22), (64, 1.07)])
def test_long_answers_leave_little(new: int, want: float) -> None:
    assert round(caps(MODEL, DEVICES["a100"], asked(new), [64] * 32).total, 2) == want


@given(
    st.floats(10, 16),
    st.floats(9, 14),
    st.integers(1, 64),
    st.integers(0, 576),
    st.integers(2, 200),
)
def test_no_device_passes_the_hard_cap(
    flops: float, bandwidth: float, many: int, keep: int, new: int
) -> None:
    device, wanted = Device("any", 10**flops, 10**bandwidth), asked(new, many)
    found = caps(MODEL, device, wanted, [keep] * 32)

    for step, gain in (
        (False, found.prefill),
        (True, caps(MODEL, device, asked(2, many), [keep] * 32).decode),
    ):
        small = wanted if not step else asked(2, many)
        read = [read_by(MODEL, small, [count] * 32, step) for count in (576, keep)]
        cap = hard_cap((_flops(MODEL, 576, step), _flops(MODEL, keep, step)), *read)
        assert 1 - 1e-9 <= gain <= cap * (1 + 1e-6)


def _flops(model: Architecture, count: int, step: bool) -> float:
    cost = cost_of_counts(model.shapes, [count] * 32, text=64, new_tokens=2)
    return cost.decode if step else cost.prefill + cost.head / 2


def test_the_least_keep_is_where_the_floor_is() -> None:
    device, wanted = DEVICES["h100"], asked()
    least = least_keep(MODEL, device, wanted, "prefill")

    def seconds(count: int) -> float:
        return times(MODEL, device, wanted, [count] * 32).prefill.best

    assert seconds(least) <= 1.02 * seconds(0) < seconds(least + 1)
    assert (
        least_keep(MODEL, DEVICES["a100"], wanted, "prefill") < least
    )  # the ridge is at fewer tokens there


def test_the_verdict_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["advise", "llava-1.5-7b", "--device", "A100", "--method", "fastv"]
    assert run([*args, "--output-tokens", "64", "--json"]) == 0
    short = json.loads(capsys.readouterr().out)
    assert (
        "not worth it here" in " ".join(short["verdict"])
        and short["phases"]["decode"]["bound"] == "bytes"
    )
    assert short["caps"]["fastv"]["total"] < short["caps"]["keep 0 from layer 0"]["total"] < 1.1
    assert run([*args, "--batch", "32", "--output-tokens", "8"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "no visual-token method can give more than" in said
        and "nothing more is to be gained" in said
    )
    assert run([*args, "--batch", "400", "--json"]) == 0
    assert "does not fit" in " ".join(json.loads(capsys.readouterr().out)["verdict"])


@pytest.mark.parametrize("name", ["llava-1.5-7b", "smol"])
def test_weights_are_those_of_the_model_whether_its_head_is_tied_or_not(name: str) -> None:
    config = config_of(name)
    model = architecture(config, "bfloat16")
    there = sum(p.numel() for p in hollow(config).parameters())
    weights = (
        held(model, Request(1, 0, 1), [-1] * len(model.shapes.layers)) / 2
    )  # a cache of nothing
    assert weights == pytest.approx(there, rel=1e-3)  # all but norms and biases


def test_commands_share_the_options_of_a_request() -> None:
    names = {field.name for field in fields(Asked)}
    for command, without in ((advise, set()), (cost, set()), (benchmark, {"visual_tokens"})):
        assert names & set(inspect.signature(command).parameters) == names - without


def test_this_machine_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = device_of("measure", "float32")
    assert found.flops > 1e8 and found.bandwidth > 1e7 and 0 < found.launch < 1e-2
    assert run(["advise", "tiny-20m", "--device", "measure", "--launch-us", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["launches"] == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["llava-1.5-7b", "--device", "abacus"], "unknown device 'abacus'"),
        (["llava-1.5-7b", "--images", "0"], "no visual tokens"),
        (["llava-1.5-7b", "--method", "dyrate"], "dyrate needs predictor"),
        (["internvl2-8b", "--tiles", "0"], "tiles"),
        (["/nowhere/at/all"], "neither a known shape"),
        (["llava-1.5-7b", "--dtype", "float8"], "unknown dtype"),
        (["llava-1.5-7b", "--device", "a100", "--dtype", "float32"], "figures known of A100"),
        (["llava-1.5-7b", "--device", "t4", "--dtype", "bfloat16"], "measure it there"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["advise", *args]) == 2
    err = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err).split())
    assert said.lower() in err.lower() and "Traceback" not in err and "error:" in err
