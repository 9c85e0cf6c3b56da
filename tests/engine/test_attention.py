"""Attention shares against transformers' own attention matrices, and the command that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveate
from foveate.cli.app import run
from foveate.core.features import TYPES
from foveate.core.tokens import Kind
from foveate.core.view import View
from foveate.inspect.attention import attention_shares, mean_over_answers
from foveate.inspect.kept import kept_sets
from foveate.methods import fastv, random
from models.tiny import FAMILIES, LAYERS, Layout, batch, model

ONE = Layout(((3, 0, 4),))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_shares_are_those_of_the_whole_attention_matrices(family: str, backend: str) -> None:
    inputs = batch(family, ONE).inputs
    seen = attention_shares(model(family, backend), inputs, 5)
    made = model(family, "eager")
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    out = made.generate(**inputs, **options, output_attentions=True)
    assert seen.shape == (len(out.attentions), LAYERS, 4)
    kinds = kinds_of(family, inputs, out.sequences.shape[1])
    for step, layers in enumerate(out.attentions):
        for layer, whole in enumerate(layers):
            row = whole[0, :, -1].mean(0)
            wanted = [row[kinds[: len(row)] == int(kind)].sum().item() for kind in TYPES]
            np.testing.assert_allclose(seen[step, layer], wanted, atol=2e-6)
    np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-5)
    assert seen[:, :, 1].min() > 0
    assert seen[1:, :, 3].min() > 0
    assert (seen[0, :, 3] == 0).all()


def kinds_of(family: str, inputs: dict[str, Any], columns: int) -> torch.Tensor:
    """The kind of each column, found without the library."""
    ids = inputs["input_ids"][0]
    visual = (ids == model(family).config.image_token_id).nonzero().flatten()
    kinds = torch.full((columns,), int(Kind.RESPONSE))
    kinds[: len(ids)] = int(Kind.INSTRUCTION)
    kinds[: visual[0]] = int(Kind.SYSTEM)
    kinds[visual] = int(Kind.IMAGE)
    return kinds


def test_a_watch_sees_every_layer_and_changes_nothing() -> None:
    made, data = model("llava"), batch("llava", Layout(((3, 0, 4), (2, 0, 2, 0, 3))))
    seen: list[tuple[int, int]] = []

    def watch(view: View) -> None:
        seen.append((view.step, view.layer))
        if view.layer:
            view.attention(view.newest)

    with torch.no_grad(), foveate.apply(made, random(layer=1, keep=0.5)):
        plain = made(**data.inputs).logits
    with torch.no_grad(), foveate.apply(made, random(layer=1, keep=0.5), watch=watch):
        watched = made(**data.inputs).logits
    assert torch.equal(plain, watched)
    assert seen == [(0, layer) for layer in range(LAYERS + 1)]


def test_dropped_tokens_get_no_attention() -> None:
    inputs = batch("llava", ONE).inputs
    shares = attention_shares(model("llava"), inputs, 3, fastv(layer=2, keep=0))
    assert (shares[:, 2:, 1] == 0).all()
    assert (shares[:, :2, 1] > 0).all()


def test_one_sample_at_a_time() -> None:
    with pytest.raises(ValueError, match="2 samples"):
        attention_shares(model("llava"), batch("llava", Layout(((3, 0, 4), (3, 0, 4)))).inputs, 3)


def test_mean_takes_each_step_over_the_answers_that_reach_it() -> None:
    long, short = np.ones((3, 2, 4)), np.zeros((1, 2, 4))
    mean = mean_over_answers([long, short])
    assert mean[:, 0, 0].tolist() == [0.5, 1, 1]


def test_the_command_shows_draws_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "shares.png"
    argv = ["inspect", "attention", "--pictures", "2", "--max-new-tokens", "4"]
    assert run([*argv, "--plot", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    shares = np.array(told["shares"])
    assert shares.shape[1:] == (8, 4)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-3)
    assert picture.stat().st_size > 10_000
    assert run(argv) == 0
    assert "instruction" in capsys.readouterr().out
    assert run(["inspect", "attention", "nowhere.png"]) == 2
    assert run([*argv, "--plot", "no/such/folder.png"]) == 2
    assert run([*argv, "--plot", str(tmp_path / "shares.doc")]) == 2


def test_kept_sets_are_those_of_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, inputs = model("llava"), batch("llava", ONE).inputs
    gone = kept_sets(made, inputs, 2, random(layer=0, keep=0))
    assert gone.reached.shape[1] > 0 and not gone.reached.any(), "nothing is left, yet all are known"
    kept = kept_sets(made, inputs, 4, random(layer=1, keep=5))
    assert kept.alive.sum(1).tolist() == [5] * 4 and kept.grid == (4, 4) and len(kept.answer) == 4
    with pytest.raises(ValueError, match="no visual tokens"):
        kept_sets(
            made,
            {
                k: v
                for k, v in batch("llava", Layout(((3,),))).inputs.items()
                if k != "pixel_values"
            },
            2,
        )
    for command, name in (
        (["mask", "scene:1"], "mask.png"),
        (["rate", "--pictures", "2"], "rate.svg"),
    ):
        out = tmp_path / name
        options = [
            "--method",
            "fastv:layer=2,keep=0.25",
            "--max-new-tokens",
            "5",
            "--out",
            str(out),
        ]
        assert run(["plot", *command, *options]) == 0
        assert out.stat().st_size > 5000
    assert "49 to 49 tokens" in capsys.readouterr().err
    assert (
        run(
            ["plot", "mask", "scene:x", "--method", "vtw:layer=2", "--out", str(tmp_path / "a.png")]
        )
        == 2
    )
