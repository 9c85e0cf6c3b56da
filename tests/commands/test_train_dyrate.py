"""The training of DyRate's predictor: resumable, on budget, on any data, on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import foveate
from foveate.artefacts.weighting import Weighting
from foveate.cli.app import run
from foveate.core.predictor import RatePredictor
from foveate.core.weighing import Mean, Nearest
from foveate.cost.flops import cost_of_trace, shapes
from foveate.engine.anatomy import anatomy_of
from foveate.methods import dyrate
from foveate.tune.examples import encode, file_examples, folder_examples
from foveate.tune.train.dyrate import gradients
from foveate.tune.train.dyrate.flops import flops_ratio
from foveate.tune.train.dyrate.judge import calibrate, judge, likeliest
from foveate.tune.train.dyrate.plan import Plan
from foveate.tune.train.dyrate.rollout import batch_of, roll_out
from foveate.tune.train.dyrate.train import train
from foveate.world.draw import draw
from foveate.world.scenes import sample
from models.tiny import cache_in, held

PLAN = Plan(budget=0.7, layer=2, num_rates=5, steps=3, batch=2)


@pytest.mark.parametrize(
    "plan",
    [PLAN, replace(PLAN, layer=1, budget=0.5, decode=False, exact=True)],
    ids=["masks", "exact"],
)
def test_a_training_that_was_stopped_ends_with_the_same_predictor(
    plan: Plan, scenes: Any, examples: Any, tmp_path: Path
) -> None:
    whole = train(scenes, examples, plan, tmp_path / "whole", save_every=1)

    def stop(seen: dict[str, float]) -> None:
        if seen["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(scenes, examples, plan, tmp_path / "part", stop, save_every=1)
    done: list[float] = []
    resumed = train(
        scenes,
        examples,
        plan,
        tmp_path / "part",
        lambda seen: done.append(seen["step"]),
        save_every=1,
    )
    assert done == [3]
    assert torch.equal(whole.linear.weight, resumed.linear.weight)
    assert whole.linear.weight.abs().max() > 0
    assert all(p.requires_grad for p in scenes.model.parameters()), "the model is as it was"
    with pytest.raises(ValueError, match=r"another (plan|layer)"):
        train(scenes, examples, replace(plan, budget=0.8, layer=3), tmp_path / "part")
    with pytest.raises(ValueError, match="other data"):
        train(scenes, examples[1:], plan, tmp_path / "part")


def test_a_budget_out_of_reach_is_refused(scenes: Any, examples: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"before layer 6 still costs 0\.\d+ .*before layer 0, .*before layer 5"
    ):
        train(scenes, examples, Plan(budget=0.2, layer=6), tmp_path)
    with pytest.raises(ValueError, match="layer=8"):
        train(scenes, examples, Plan(layer=8), tmp_path)


def test_before_layer_0_low_budgets_are_in_reach_and_the_prefill_alone_can_learn(
    scenes: Any, examples: Any, tmp_path: Path
) -> None:
    plan = Plan(budget=0.3, layer=0, ranking="tower", num_rates=20, steps=2, batch=2, decode=False)
    predictor = train(scenes, examples, plan, tmp_path)
    assert predictor.linear.weight.abs().max() > 0
    found = judge(scenes, predictor, examples[:2], plan)
    assert len(set(found.kept_by_step)) == 1, "nothing leaves after the prefill"


def test_the_budgets_ratio_is_that_of_a_recorded_run(scenes: Any, examples: Any) -> None:
    """`flops_ratio` on the teacher-forced counts equals the cost model on a trace of decoding the same words."""
    torch.manual_seed(1)
    predictor = RatePredictor(6, (0.0, 0.3, 0.6, 0.9))
    torch.nn.init.normal_(predictor.linear.weight, std=6.0)
    predictor.linear.bias.data.copy_(torch.tensor([-9.0, 0.0, 0.0, 0.0]))
    model = scenes.model
    batch, text, total = batch_of(scenes, examples[:1])
    with torch.no_grad():
        found = roll_out(
            model, predictor, foveate.core.scores.RANKINGS["last"], 2, batch, likeliest
        )
    ratio = float(flops_ratio(shapes(model), 2, text, total, found.kept, batch.answered))
    costs = []
    for methods in ((dyrate(predictor, layer=2),), ()):
        inputs = {
            k: v[:, : batch.prompt] if k != "pixel_values" else v for k, v in batch.inputs.items()
        }
        with torch.no_grad(), foveate.apply(model, *methods) as trace:
            cache = cache_in(model(**inputs, use_cache=True))
            for column in range(batch.prompt, batch.inputs["input_ids"].shape[1] - 1):
                upto = {"attention_mask": batch.inputs["attention_mask"][:, : column + 1]}
                upto["position_ids"] = batch.inputs["position_ids"][:, column : column + 1]
                model(
                    input_ids=batch.inputs["input_ids"][:, column : column + 1],
                    **held(cache),
                    **upto,
                )
        cost = cost_of_trace(shapes(model), trace)
        costs.append(cost.prefill + cost.decode)
    assert found.kept.min() < total.min() < 197
    assert ratio == pytest.approx(costs[0] / costs[1], rel=1e-6)
    assert ratio < 0.95


def test_calibration_meets_the_budget_with_the_likeliest_rates(scenes: Any, examples: Any) -> None:
    torch.manual_seed(0)
    predictor = RatePredictor(6, tuple(k / 20 for k in range(20)))
    torch.nn.init.normal_(predictor.linear.weight, std=1.0)
    predictor.linear.bias.data.copy_(torch.linspace(20, 0, 20))
    plan = Plan(budget=0.6, layer=2, batch=3)
    before = judge(scenes, predictor, examples, plan).ratio
    after = calibrate(scenes, predictor, examples, plan)
    assert abs(after - 0.6) < 0.02 < abs(before - 0.6)


def test_rows_of_a_file_are_used_or_named(tmp_path: Path, scenes: Any) -> None:
    draw(sample("train", 0)).image.save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "prompt": "What is it?", "response": "a star"},
        {"image": "gone.png", "prompt": "What is it?", "response": "a star"},
        {
            "images": ["a.png", "a.png"],
            "prompt": "And these?",
            "response": "two stars and more words than before",
        },
        {"image": "a.png", "prompt": "What is it?", "response": " "},
        {"image": "a.png", "prompt": "What is it?"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*(json.dumps(row) for row in rows), "{", ""]))
    found = file_examples(path)
    assert [e.answer for e in found.rows] == ["a star", "two stars and more words than before"]
    assert [reason.split(":")[1] for reason in found.unusable] == ["2", "4", "5", "6"]
    inputs, prompt = encode(scenes, found.rows)
    visual = (inputs["input_ids"] == anatomy_of(scenes.model).image_token).sum(1)
    assert visual.tolist() == [196, 392] and inputs["pixel_values"].shape[0] == 3
    assert inputs["attention_mask"][:, prompt - 1].tolist() == [1, 1], "prompts end together"
    path.write_text("{}")
    with pytest.raises(ValueError, match="no usable row"):
        file_examples(path)


def test_a_folder_of_chats_gives_every_answer_with_what_came_before(
    tmp_path: Path, scenes: Any
) -> None:
    draw(sample("train", 0)).image.save(tmp_path / "a.png")
    said = [
        ("human", "<image>\nWhat is it?"),
        ("gpt", "a star"),
        ("human", "And its color?"),
        ("gpt", "red"),
    ]
    llava = {
        "image": "a.png",
        "conversations": [{"from": who, "value": what} for who, what in said],
    }
    parts = [{"type": "image"}, {"type": "text", "text": "Describe it."}]
    openai = [{"role": "system", "content": "x"}, {"role": "user", "content": parts}]
    (tmp_path / "a.json").write_text(
        json.dumps([llava, {"image": "gone.png", "conversations": []}, {"image": "a.png"}])
    )
    lines = [
        json.dumps(
            {"images": ["a.png"], "messages": [*openai, {"role": "assistant", "content": "stars"}]}
        ),
        "{",
        json.dumps({"messages": [*openai]}),
        json.dumps({"messages": [*openai, {"role": "assistant", "content": ""}]}),
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    found = folder_examples(tmp_path)
    turns = [(e.prompt, e.answer, e.earlier, len(e.images())) for e in found.rows]
    assert turns == [
        ("What is it?", "a star", (), 1),
        ("And its color?", "red", (("What is it?", "a star"),), 1),
        ("Describe it.", "stars", (), 1),
    ]
    named = [reason.split(": ")[0] for reason in found.unusable]
    assert named == ["a.json:2", "a.json:3", "b.jsonl:2", "b.jsonl:3", "b.jsonl:4"]
    inputs, prompt = encode(scenes, found.rows[1:2])
    text = scenes.processor.tokenizer.decode(inputs["input_ids"][0, :prompt])
    places = [text.index(words) for words in ("what is it", "a star", "and <unk> color")]
    assert places == sorted(places), "in the chat's order"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.json"):
        folder_examples(tmp_path / "empty")
    (tmp_path / "empty" / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="no usable chat"):
        folder_examples(tmp_path / "empty")


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    scenes: Any, examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where parts are alike and rates are not sampled, so that nothing else may differ."""
    monkeypatch.setattr(gradients, "_gumbel", lambda logits, uniform, tau: _straight(logits))
    plan = Plan(budget=0.5, layer=1, steps=1, batch=4, num_rates=4, drop_all=True)
    whole = train(scenes, examples[:1], plan, tmp_path / "whole")
    parted = train(
        scenes, examples[:1], replace(plan, parts=9), tmp_path / "parts"
    )  # more than there are
    ours, theirs = whole.linear.weight.grad, parted.linear.weight.grad
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert ours is not None and ours.abs().max() > 0.01 and whole.rates == (0, 0.25, 0.5, 0.75, 1)


def test_steps_of_an_answer_share_their_noise() -> None:
    """Alike steps take one rate; over answers, rates are taken as often as the softmax says."""
    uniform = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 3)
    first, second = (gradients._gumbel(logits, uniform, tau).argmax(-1) for tau in (2.0, 0.5))
    assert torch.equal(first, second)
    often = torch.bincount(first, minlength=3) / 4000
    torch.testing.assert_close(often, logits[0].softmax(-1), atol=0.03, rtol=0)


def _straight(logits: torch.Tensor) -> torch.Tensor:
    soft = logits.softmax(-1)
    return likeliest(logits) + soft - soft.detach()


def test_the_command_trains_reports_and_its_predictor_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    argv = [
        "train",
        "dyrate",
        "--steps",
        "2",
        "--batch",
        "2",
        "--held-out",
        "4",
        "--budget",
        "0.7",
        "--out",
        str(out),
    ]
    assert run([*argv, "--num-rates", "5"]) == 0
    said = capsys.readouterr()
    assert "held out (4 examples)" in said.out and f"dyrate:predictor={out}" in said.err
    card = json.loads((out / "predictor.json").read_text())
    assert card["training"]["held out"]["unpruned_loss"] > 0 and card["model"] == "scenes"
    picture = tmp_path / "a.png"
    draw(sample("test", 0)).image.save(picture)
    answer = [
        "generate",
        str(picture),
        "Describe the image in detail.",
        "--repeats",
        "1",
        "--max-new-tokens",
        "8",
    ]
    assert run([*answer, "--method", f"dyrate:predictor={out}"]) == 0
    assert run([*argv, "--ranking", "nothing"]) == 2
    assert run([*argv, "--exact"]) == 2
    assert run([*argv, "--answers", str(tmp_path / "a.safetensors")]) == 2
    assert run([*argv, "--data", "nowhere.jsonl"]) == 2
    assert run([*argv, "--budget", "0.01"]) == 2


def test_what_is_trained_with_weights_and_means_runs_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p"
    argv = [
        "train",
        "dyrate",
        "--steps",
        "1",
        "--batch",
        "2",
        "--held-out",
        "2",
        "--num-rates",
        "5",
    ]
    argv += ["--budget", "0.7", "--out", str(out), "--merge", "mean"]
    assert run([*argv, "--weigh", "mixed", "--place", "0.5"]) == 0
    card = json.loads((out / "predictor.json").read_text())
    assert card["weighting"] == {"weigh": "mixed", "merge": "mean", "place": 0.5}
    method = dyrate(str(out))
    assert (method.weigh, method.merge) == (Nearest(place=0.5), Mean(Nearest(place=0.5)))
    capsys.readouterr()
    assert run([*argv, "--weigh", "nearest"]) == 2
    assert "another plan" in capsys.readouterr().err
    assert run([*argv, "--place", "1"]) == 2
    assert "place=1.0 goes with weigh=mixed" in " ".join(capsys.readouterr().err.split())


def test_plans_without_weights_and_means_are_written_as_ever() -> None:
    assert "weighting" not in PLAN.facts
    assert replace(PLAN, weighting=Weighting("cell")).facts["weighting"]["weigh"] == "cell"


def test_the_judge_and_calibration_weigh_and_average(scenes: Any, examples: Any) -> None:
    torch.manual_seed(1)
    predictor = RatePredictor(6, (0.0, 0.3, 0.6, 0.9))
    predictor.linear.bias.data.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    weighted = replace(PLAN, weighting=Weighting("nearest", "mean"))
    ours, plain = (judge(scenes, predictor, examples[:2], plan) for plan in (weighted, PLAN))
    assert ours.ratio == plain.ratio and ours.loss != plain.loss
    assert ours.unpruned_loss == plain.unpruned_loss


def test_one_file_of_answers_serves_two_budgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.safetensors"
    argv = [
        "train",
        "dyrate",
        "--exact",
        "--no-decode",
        "--ranking",
        "diverse",
        "--layer",
        "1",
        "--num-rates",
        "5",
    ]
    argv += ["--steps", "3", "--batch", "2", "--held-out", "3", "--answers", str(answers)]
    kept, times = {}, []
    for budget in ("0.5", "0.8"):
        assert run([*argv, "--budget", budget, "--out", str(tmp_path / budget)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "one rate for all" in said and "in hindsight" in said
        card = json.loads((tmp_path / budget / "predictor.json").read_text())["training"][
            "held out"
        ]
        assert card["hindsight_loss"] <= card["fixed_loss"] and card["loss"] > 0
        kept[budget] = card["kept_by_step"][0]
        times.append(answers.stat().st_mtime_ns)
    assert kept["0.5"] < kept["0.8"] and times[0] == times[1], "run once"
    assert not list(tmp_path.glob("*/answers.safetensors"))
    for other in (["--layer", "2"], ["--weigh", "cell"]):
        assert run([*argv, *other, "--out", str(tmp_path / "other")]) == 2
        assert "another layer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    ["Plan(0.7, steps=3, batch=4)", "Plan(0.7, 1, 5, steps=3, batch=2, decode=False, exact=True)"],
)
def test_two_processes_learn_the_same_predictor_as_each_other(plan: str, tmp_path: Path) -> None:
    """Under torchrun over gloo, gradients are averaged, or answers shared: both processes hold one predictor."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\n"
        "from foveate.models.load import load\nfrom foveate.tune.train.dyrate.plan import Plan\n"
        "from foveate.tune.train.dyrate.train import train\nfrom foveate.tune.examples import scene_examples\n"
        "import torch.distributed as dist\nfrom safetensors.torch import save_file\n"
        "loaded = load('scenes')\n"
        f"made = train(loaded, scene_examples('train', 6).rows, {plan}, Path(sys.argv[1]))\n"
        "save_file({'w': made.linear.weight.detach()}, f'{sys.argv[1]}/rank{dist.get_rank()}.safetensors')\n"
    )
    folder = tmp_path / "run"
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29611",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script), str(folder)], check=True, env=environment, timeout=300)
    first, second = (load_file(folder / f"rank{rank}.safetensors")["w"] for rank in range(2))
    assert torch.equal(first, second) and first.abs().max() > 0
