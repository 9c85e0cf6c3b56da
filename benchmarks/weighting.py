"""Weighted and averaged tokens: how far each method is from the unpruned model, off, weighted, averaged, both.

    python benchmarks/weighting.py run scenes zoo      # divergences of a group of methods; goes on where it stopped
    python benchmarks/weighting.py summary scenes      # docs/results/weighting-scenes.json
    python benchmarks/weighting.py reasons scenes      # attention paid to the picture, and how near the nearest is
    python benchmarks/weighting.py left smol           # what positions and later layers have to do with what is left
    python benchmarks/weighting.py time                # of prefill and decode step, with and without weights
    python benchmarks/weighting.py page                # tables of docs/weighting-tables.md and docs/weighting.md; plots

Divergences are of `foveate.eval.divergence`, on descriptions, captions and questions of test pictures that no other
table uses. What each answer gave is kept in runs/weighting/, a line for every method and sample.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track

import foveate
from foveate import Kind
from foveate.core.weighing import AtCut, Nearest
from foveate.cost.configurations import config_of
from foveate.cost.plan import request
from foveate.engine.assumptions import cache_name
from foveate.eval.divergence import divergence, reference
from foveate.eval.intervals import estimate
from foveate.eval.tasks.bundled import bundled
from foveate.explore.canvas import save, subplots
from foveate.inspect.attention import attention_shares
from foveate.methods import parse
from foveate.timing.race import build, faster, in_turn
from foveate.timing.race import inputs as race_inputs
from foveate.versions import versions
from foveate.world.language import KINDS

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "weighting"
RESULTS = ROOT / "docs" / "results"
GUIDE, TABLES = ROOT / "docs" / "weighting.md", ROOT / "docs" / "weighting-tables.md"
TASKS = ["descriptions", "captions", "questions"]
FIRST = 30000  # of the test pictures; other tables begin at 1000, 3000, 7000 and 10000
KEEPS = (0.5, 0.25, 0.125, 0.0625)
VARIANTS = {
    "off": "",
    "averaged": "merge=mean",
    "weighted": "weigh=nearest",
    "both": "weigh=nearest,merge=mean",
}
BEFORE = (  # before the decoder
    "divprune", "cdpruner", "visionzip", "vispruner", "flowcut", "vscan1", "tome", "downsample:layer=0",
    "random:layer=0",
)  # fmt: skip
WITHIN = ("fastv:layer=2", "fastv:layer=2,ranking=received", "dart:layer=2", "random:layer=2")
STAGED = (
    "pdrop",
    "vscan1:keep=0.5+vscan2:keep=0.5",
    "prumerge",
    "prumerge_plus",
    "dymu",
    "fitprune",
)
MERGING = ("tome", "visionzip", "vscan1", "prumerge", "dymu")  # whose own clusters can be weighed
FEW = ("cdpruner", "visionzip", "tome", "fastv:layer=2", "random:layer=0", "downsample:layer=0")
CUTOFFS = (-1.0, 0.5, 0.8, 0.9)
MIXED = ("mixed,place=0.3", "mixed,place=1", "mixed,place=3", "mixed,place=10")

MODELS = ("scenes", "smol")
SHORT = (  # of the guide; all rows are in the tables' own page
    "unpruned", "divprune:keep=0.25", "divprune:keep=0.25,weigh=nearest,merge=mean", "divprune:keep=0.125",
    "divprune:keep=0.125,weigh=nearest,merge=mean", "divprune:keep=0.0625",
    "divprune:keep=0.0625,weigh=nearest,merge=mean",
)  # fmt: skip

app = typer.Typer(add_completion=False, help=__doc__)


def joined(spec: str, knobs: str) -> str:
    """`spec` with further knobs, on each of the methods that it joins."""
    if not knobs:
        return spec
    return "+".join(f"{one}{',' if ':' in one else ':'}{knobs}" for one in spec.split("+"))


def varied(bases: Iterable[str]) -> Iterator[str]:
    """Methods, each in every variant."""
    for base in bases:
        yield from (joined(base, knobs) for knobs in VARIANTS.values())


def zoo() -> Iterator[str]:
    """All methods at all counts, and those that merge with the weights of their own clusters."""
    yield from varied(joined(name, f"keep={keep}") for keep in KEEPS for name in (*BEFORE, *WITHIN))
    yield from varied(STAGED)
    for name in MERGING:
        for base in [name] if name in STAGED else [f"{name}:keep={keep}" for keep in KEEPS]:
            yield joined(base, "weigh=clusters")


def few() -> Iterator[str]:
    """For models that are slow."""
    yield from varied(f"divprune:keep={keep}" for keep in KEEPS[1:])
    for name in FEW:
        yield from (joined(joined(name, "keep=0.25"), knobs) for knobs in ("", VARIANTS["both"]))
    yield "tome:keep=0.25,weigh=clusters"


def kinds() -> Iterator[str]:
    """Whom a dropped token joins."""
    for keep in KEEPS[1:]:
        for weigh in ("nearest", "cell", "uniform", *MIXED):
            yield f"divprune:keep={keep},weigh={weigh}"
            yield f"divprune:keep={keep},weigh={weigh},merge=mean"


def knobs() -> Iterator[str]:
    """Strength, cutoff, and the layer of the cut."""
    for keep in KEEPS[1:]:
        base = f"divprune:keep={keep},weigh=nearest,merge=mean"
        yield from (f"{base},strength={strength}" for strength in (0.5, 0.75, 1.25))
        yield from (f"{base},cutoff={cutoff}" for cutoff in CUTOFFS)
        yield from (base.replace(":", f":layer={layer},") for layer in (1, 2, 3, 4))
    yield from (f"fastv:layer=2,keep=0.25,weigh=nearest,merge=mean,cutoff={c}" for c in CUTOFFS)


def pact() -> Iterator[str]:
    """PACT's clusters: as published, without weights, and with this library's weights and means."""
    for important in (0.55, 1.0):
        for cutoff in (0.05, 0.1, 0.21):
            base = f"pact:layer=2,important={important},cutoff={cutoff}"
            yield from (joined(base, knobs) for knobs in ("", "weigh=none", VARIANTS["both"]))


GROUPS = {"zoo": zoo, "pact": pact, "few": few, "kinds": kinds, "knobs": knobs}


def specs(group: str) -> Iterator[str]:
    """The methods of a group."""
    if group not in GROUPS:
        raise typer.BadParameter(f"{group!r}; expected one of {', '.join(GROUPS)}")
    return GROUPS[group]()


@app.command()
def run(
    model: str,
    group: str,
    pictures: Annotated[int, typer.Option(help="Each gives a sample of every task.")] = 100,
    only: Annotated[str, typer.Option(help="Methods whose text holds this.")] = "",
) -> None:
    """Takes divergences of a group of methods; what is there already is not taken again."""
    torch.set_num_threads(1)
    loaded = foveate.load(model)
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / f"{model}.jsonl"
    known = {(row["spec"], row["sample"]) for row in rows(path)}
    wanted = [spec for spec in dict.fromkeys(specs(group)) if only in spec]
    with path.open("a") as out:
        samples = list(bundled(TASKS, pictures, FIRST))
        for sample in track(samples, description=f"{model}, {len(wanted)} methods"):
            left = [spec for spec in wanted if (spec, sample.key) not in known]
            if not left:
                continue
            inputs = loaded.inputs(sample.images(), sample.prompt)
            given = reference(loaded, inputs, sample.max_new_tokens)
            for spec in left:
                found = divergence(loaded, given, parse(spec))
                row = {"spec": spec, "sample": sample.key, "group": sample.group, **found._asdict()}
                out.write(json.dumps(row) + "\n")
            out.flush()


def rows(path: Path) -> list[dict[str, Any]]:
    """Lines of a run; a last line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


@app.command()
def summary(model: str) -> None:
    """Means with 95 % intervals over pictures: of the zoo on all samples, of other groups on those they share."""
    by_spec: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows(RUNS / f"{model}.jsonl"):
        by_spec.setdefault(row["spec"], {})[row["sample"]] = row
    found = {}
    for name, group in {
        "zoo": [*GROUPS["zoo"](), *GROUPS["few"]()],
        "others": [*GROUPS["kinds"](), *GROUPS["knobs"](), *GROUPS["pact"]()],
    }.items():
        ran = {spec: by_spec[spec] for spec in dict.fromkeys(group) if spec in by_spec}
        if not ran:
            continue
        most = max(map(len, ran.values()))
        ran = {spec: samples for spec, samples in ran.items() if 4 * len(samples) > most}
        shared = sorted(set.intersection(*(set(samples) for samples in ran.values())))
        found[name] = {
            "samples": len(shared),
            "methods": {
                spec: figures([samples[key] for key in shared]) for spec, samples in ran.items()
            },
        }
        typer.echo(f"{name}: {len(ran)} methods on {len(shared)} samples")
    body = {"model": model, "first": FIRST, "tasks": TASKS, "versions": versions(), **found}
    (RESULTS / f"weighting-{model}.json").write_text(json.dumps(body, indent=1) + "\n")


def figures(found: list[dict[str, Any]]) -> dict[str, float]:
    """Mean divergence with its interval, and agreement, of one method."""
    parts = np.array([(row["kl"], 1.0) for row in found])
    groups = [row["group"] for row in found]
    kl = estimate(parts, groups, lambda sums: sums[..., 0] / sums[..., 1])
    agreement = float(np.mean([row["agreement"] for row in found]))
    return {"kl": kl.value, "low": kl.low, "high": kl.high, "agreement": agreement}


@app.command()
def reasons(model: str, pictures: int = 20) -> None:
    """Attention that answers pay to the picture, and the cosine between dropped tokens and their nearest kept one."""
    torch.set_num_threads(1)
    loaded = foveate.load(model)
    samples = list(bundled(["captions"], pictures, FIRST))
    inputs = [loaded.inputs(sample.images(), sample.prompt) for sample in samples]
    bases = [f"{name}:keep={keep}" for keep in (0.25, 0.125) for name in ("divprune", "random")]
    attention = {}
    for spec in ("", *(joined(base, knobs) for base in bases for knobs in LOOKED_AT)):
        shares = [
            attention_shares(loaded.model, given, 40, *(parse(spec) if spec else ()))
            for given in track(inputs, description=spec or "unpruned")
        ]
        attention[spec or "unpruned"] = float(np.mean([s[..., Kind.IMAGE].mean() for s in shares]))
    nearness = {}
    for name in BEFORE:
        spec = joined(name, "keep=0.25")
        found = torch.cat([cosines(loaded, given, parse(spec)[0]) for given in inputs])
        nearness[spec] = {"mean": float(found.mean()), "worst tenth": float(found.quantile(0.1))}
    body = {"model": model, "pictures": pictures, "attention": attention, "nearness": nearness}
    (RESULTS / f"weighting-why-{model}.json").write_text(json.dumps(body, indent=1) + "\n")


LOOKED_AT = ("", "weigh=uniform", "weigh=nearest", "weigh=nearest,merge=mean")


@torch.inference_mode()
def cosines(loaded: foveate.Loaded, inputs: dict[str, Any], method: foveate.Method) -> torch.Tensor:
    """Of each token that leaves before layer 0, the cosine with the kept token that is most like it."""
    found: list[torch.Tensor] = []

    def look(view: foveate.View) -> None:
        selected = method.select(view) if view.layer == 0 else None
        if selected is not None:
            found.append(AtCut.of_view(view, selected.keep).cosines().amax(2)[0])

    # The method is applied too, so that the engine looks at the vision tower for it.
    with foveate.apply(loaded.model, method, watch=look):
        loaded.model(**inputs)
    return torch.cat(found)


@app.command()
def left(model: str, pictures: int = 12, keep: float = 0.25) -> None:
    """Divergence of DivPrune with weights and means, and of a model in which all tokens run but share states."""
    torch.set_num_threads(1)
    loaded = foveate.load(model)
    spec = f"divprune:keep={keep},weigh=nearest,merge=mean,cutoff=-1.0"
    found: dict[str, list[float]] = {}
    for sample in track(list(bundled(TASKS, pictures, FIRST)), description=model):
        inputs = loaded.inputs(sample.images(), sample.prompt)
        given = reference(loaded, inputs, sample.max_new_tokens)
        columns, into, means = joins(loaded, inputs, parse(spec)[0])
        rows = {"weighted and averaged": divergence(loaded, given, parse(spec)).kl}
        for name, everywhere in (("states shared at first", False), ("at every layer", True)):
            with sharing(loaded, columns, into, means, everywhere):
                rows[name] = divergence(loaded, given, ()).kl
        for name, kl in rows.items():
            found.setdefault(name, []).append(kl)
    for name, kls in found.items():
        typer.echo(f"{name:24s} {np.mean(kls):.4f} ({len(kls)} answers)")


@torch.inference_mode()
def joins(
    loaded: foveate.Loaded, inputs: dict[str, Any], method: foveate.Method
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one prompt: columns of its visual tokens (N), the column that each joins (N), and the means (N D)."""
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def look(view: foveate.View) -> None:
        selected = method.select(view) if view.layer == 0 else None
        if selected is not None:
            at = AtCut.of_view(view, selected.keep)
            owner = Nearest().owners(at)
            means = at.means(at.features, owner, -1.0)
            found.append((view.visual[0], view.visual[0][owner[0]], means[0][owner[0]]))

    with foveate.apply(loaded.model, watch=look):
        loaded.model(**inputs)
    return found[0]


@contextmanager
def sharing(
    loaded: foveate.Loaded,
    columns: torch.Tensor,
    into: torch.Tensor,
    means: torch.Tensor,
    everywhere: bool,
) -> Iterator[None]:
    """All tokens run; before layer 0, or before every layer, a token has the state of the one that it joins."""

    def hook(index: int) -> Callable[..., Any]:
        def before(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            if hidden.shape[1] > int(columns.max()):  # the prompt; words of the answer come later
                hidden[0, columns] = means.to(hidden) if index == 0 else hidden[0, into]
            changed = {**kwargs, "hidden_states": hidden}
            return ((hidden, *args[1:]), kwargs) if args else (args, changed)

        return before

    layers = loaded.anatomy.layers if everywhere else loaded.anatomy.layers[:1]
    handles = [
        layer.register_forward_pre_hook(hook(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@app.command("time")
@torch.inference_mode()
def times(turns: int = 20) -> None:
    """Prefill and decode step with weights and means, over those of the same method without, in turn."""
    config = config_of("smol-135m")
    asked = request(config, text=64, images=1, new_tokens=1)
    model = build(config, "cpu")
    given = race_inputs(model.config, asked, model)
    for keep in (0.25, 0.125):
        specs = [f"divprune:keep={keep}{knobs}" for knobs in ("", ",weigh=nearest,merge=mean")]
        caches: dict[str, Any] = {}

        def prefill(spec: str, caches: dict[str, Any] = caches) -> Callable[[], float]:
            def run() -> float:
                with foveate.apply(model, *parse(spec)):
                    start = time.perf_counter()
                    out = model(**given, logits_to_keep=1, use_cache=True)
                    taken = time.perf_counter() - start
                caches[spec] = out[cache_name(model)]
                return taken

            return run

        def decode(spec: str, caches: dict[str, Any] = caches) -> Callable[[], float]:
            word = torch.full((1, 1), 11)

            def run() -> float:
                with foveate.apply(model, *parse(spec)):
                    start = time.perf_counter()
                    for _ in range(8):
                        held = {cache_name(model): caches[spec]}
                        model(input_ids=word, **held, use_cache=True)
                    taken = time.perf_counter() - start
                caches[spec].crop(-8)
                return taken / 8

            return run

        for what, kind in (("prefill", prefill), ("decode step", decode)):
            taken = in_turn({spec: kind(spec) for spec in specs}, turns)
            plain, weighed = (taken[spec] for spec in specs)
            ratio = 1 / faster(plain, weighed)
            typer.echo(
                f"{what}, keep={keep}: {1e3 * np.median(plain):.1f} ms, {100 * (ratio - 1):+.1f} % with both"
            )


@app.command()
def page() -> None:
    """Writes the tables of both pages between their marks, and the plots."""
    for path in (GUIDE, TABLES):
        path.write_text(filled(path))
    for model in MODELS:
        plot(model)
    plot_least()


def filled(path: Path) -> str:
    """One of the two pages, with every table between its marks; the guide has the short ones."""
    text = path.read_text()
    for model in MODELS:
        for name, table in tables(model).items():
            if (name in ("short", "least")) != (path == GUIDE):
                continue
            begin, end = f"<!-- {model} {name} -->", f"<!-- /{model} {name} -->"
            if begin not in text or end not in text:
                raise SystemExit(f"{path} lacks {begin} or {end}")
            before, after = text[: text.index(begin)], text[text.index(end) :]
            text = "\n".join([before + begin, "", *table, "", after])
    return text


def tables(model: str) -> dict[str, list[str]]:
    """The tables of a model, by the name of their mark; without those of which nothing was measured."""
    found = {}
    path = RESULTS / f"weighting-{model}.json"
    body = json.loads(path.read_text()) if path.is_file() else {}
    if "zoo" in body:
        zoo_found = body["zoo"]
        found["zoo"] = [f"{zoo_found['samples']} answers.", "", *zoo_table(zoo_found["methods"])]
    if "others" in body:
        others = body["others"]["methods"]
        found["kinds"] = [
            f"{body['others']['samples']} answers.",
            "",
            "| | divergence | next word alike |",
            "|---|---:|---:|",
            *(
                f"| `{spec}` | {kl_cell(others[spec])} | {100 * others[spec]['agreement']:.1f} % |"
                for spec in others
            ),
        ]
    answers = answered(model)
    if answers:
        found["answers"] = answers_table(answers)
        found["short"] = answers_table({s: answers[s] for s in SHORT if s in answers})
        found["least"] = least_table(settings(model))
    for group in GROUPED:
        judged = answered(model, f"{group}-")
        if judged:
            found[group] = answers_table(judged)
    path = RESULTS / f"weighting-why-{model}.json"
    if path.is_file():
        why = json.loads(path.read_text())
        found["why"] = [
            "| | attention paid to the picture |",
            "|---|---:|",
            *(f"| `{spec}` | {100 * share:.1f} % |" for spec, share in why["attention"].items()),
            "",
            "| | cosine with the nearest kept token, mean | a tenth is below |",
            "|---|---:|---:|",
            *(
                f"| `{spec}` | {row['mean']:.3f} | {row['worst tenth']:.3f} |"
                for spec, row in why["nearness"].items()
            ),
        ]
    return found


SHOWN = {
    "object recall": "descriptions object-recall",
    "precision": "descriptions object-precision",
    "CIDEr": "captions cider",
    "questions": "questions exact",
    "counting": "questions/count exact",
}


def answered(model: str, of: str = "") -> dict[str, Any]:
    """What answers came to, by method: all figures, the FLOPs of descriptions and captions, and of how many.

    A method that answered no questions has the figures of pictures alone.
    """
    paths = [RESULTS / f"weighting-{of}{part}-{model}.json" for part in ("answers", "questions")]
    if not all(path.is_file() for path in paths):
        return {}
    pictures, questions = (json.loads(path.read_text()) for path in paths)
    asked = questions["methods"]
    return {
        spec: {
            "figures": row["figures"] | (asked[spec]["figures"] if spec in asked else {}),
            "flops": row["work"]["flops"],
            "pictures": pictures["pictures"],
            "questions": questions["samples"] if spec in asked else 0,
        }
        for spec, row in pictures["methods"].items()
    }


def losses(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Paired differences of every kind of answer, in points; CIDEr in percent of the unpruned model's."""
    found = {}
    for key, figure in figures.items():
        if "difference" in figure and key in (*SHOWN.values(), *QUESTIONS):
            gap = figure["difference"]
            whole = figure["value"] - gap["value"]
            scale = 100 / whole if key == SHOWN["CIDEr"] else 1.0
            found[key] = {end: scale * gap[end] for end in ("value", "low", "high")}
    return found


def worst(figures: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The kind of answer that lost most."""
    found = losses(figures)
    name = min(found, key=lambda key: found[key]["value"])
    return name, found[name]


def title(kind: str) -> str:
    """The short name of a kind of answer."""
    return kind.replace("questions/", "").replace(" exact", "").split()[-1]


GROUPED = ("goals", "many", "dyrate")  # further runs with answers, of other samples or methods
TICKS = (1, 2, 5, 10, 20, 50)  # points that were lost, of the plot
QUESTIONS = tuple(f"questions/{kind} exact" for kind in KINDS)


def answers_table(answers: dict[str, Any]) -> list[str]:
    """Methods down; paired differences across."""
    lines = [
        f"| | FLOPs | {' | '.join(SHOWN)} | lost most |",
        "|---" + "|---:" * (len(SHOWN) + 1) + "|---|",
    ]
    for spec, found in answers.items():
        cells = [answer_cell(found["figures"].get(key)) for key in SHOWN.values()]
        last = ""
        if spec != "unpruned":
            name, gap = worst(found["figures"])
            unit = " %" if name == SHOWN["CIDEr"] else ""
            last = f"{title(name)} {gap['value']:+.1f}{unit} ({gap['low']:.1f}, {gap['high']:.1f})"
        lines.append(f"| `{spec}` | {found['flops']:.2f} | {' | '.join(cells)} | {last} |")
    return lines


def answer_cell(figure: dict[str, Any] | None) -> str:
    """A paired difference with its interval, bold where that leaves out 0; the value of the unpruned model."""
    if figure is None:
        return ""
    gap = figure.get("difference")
    if gap is None:
        return f"{figure['value']:.1f}"
    text = f"{gap['value']:+.1f} ({gap['low']:.1f}, {gap['high']:.1f})"
    return f"**{text}**" if gap["low"] > 0 or gap["high"] < 0 else text


@dataclass(frozen=True)
class Judged:
    """One setting of a method.

    Attributes:
        flops: relative to the unpruned model.
        shown: whether some kind of answer shows a loss: its interval lies below 0.
        kind: of the answers for which a larger loss can be excluded least.
        bound: a larger loss than this is excluded there, in points (CIDEr: percent).
        pictures: described.
        questions: answered.
    """

    flops: float
    shown: bool
    kind: str
    bound: float
    pictures: int
    questions: int


def settings(model: str) -> dict[tuple[str, bool], list[Judged]]:
    """All settings that were answered with, by name and whether weighted, by FLOPs.

    Of a setting that ran twice, the run on more pictures counts. Left out are weights without means, and what
    answered no questions.
    """
    by_spec: dict[str, dict[str, Any]] = {}
    for of in ("", *(f"{group}-" for group in GROUPED)):
        for spec, found in answered(model, of).items():
            if found["pictures"] >= by_spec.get(spec, found)["pictures"]:
                by_spec[spec] = found
    grouped: dict[tuple[str, bool], list[Judged]] = {}
    for spec, found in by_spec.items():
        if spec == "unpruned" or spec.endswith("weigh=nearest") or not found["questions"]:
            continue
        kinds = losses(found["figures"])
        kind = min(kinds, key=lambda key: kinds[key]["low"])
        judged = Judged(
            found["flops"],
            any(gap["high"] < 0 for gap in kinds.values()),
            title(kind),
            -kinds[kind]["low"],
            found["pictures"],
            found["questions"],
        )
        weighted = "weigh=" in spec or "-weighted" in spec
        grouped.setdefault((named(spec), weighted), []).append(judged)
    return {name: sorted(ones, key=lambda one: one.flops) for name, ones in grouped.items()}


def named(spec: str) -> str:
    """The method of a setting, without its knobs."""
    name = spec.partition(":")[0]
    later = name == "divprune" and "layer=" in spec
    return {"schedule": "G-Search", "dyrate": "DyRate"}.get(name, name) + ", later" * later


def least_table(found: dict[tuple[str, bool], list[Judged]]) -> list[str]:
    """Methods down; the smallest FLOPs without a loss that shows, as published and weighted."""
    lines = [
        "| | as published | weighted and averaged | excluded there | pictures, questions |",
        "|---|---:|---:|---|---:|",
    ]
    for name in dict.fromkeys(name for name, _ in found):
        published, weighted = (found.get((name, both), []) for both in (False, True))
        cells = [smallest(tried) for tried in (published, weighted)]
        best = next((one for one in weighted if not one.shown), None)
        unit = " %" if best is not None and best.kind == "cider" else ""
        excluded = "" if best is None else f"{best.kind} -{best.bound:.1f}{unit}"
        shown = best or (weighted or published)[-1]
        ran = f"{shown.pictures:,}, {shown.questions:,}"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {excluded} | {ran} |")
    return lines


def smallest(tried: list[Judged]) -> str:
    """The smallest FLOPs without a loss that shows, or that every setting that was tried shows one."""
    free = [one.flops for one in tried if not one.shown]
    if free or not tried:
        return f"{free[0]:.2f}" if free else ""
    ends = [f"{flops:.2f}" for flops in (tried[0].flops, tried[-1].flops)]
    return f"none of {' to '.join(dict.fromkeys(ends))}"


def plot_least() -> None:
    """FLOPs against the largest loss that cannot be excluded, of every setting; filled where no loss shows."""
    figure, grid = subplots(1, len(MODELS), (10.0, 4.6))
    for axes, model in zip(grid[0], MODELS, strict=True):
        found = settings(model)
        names = list(dict.fromkeys(name for name, _ in found))
        for (name, weighted), ones in found.items():
            color = f"C{names.index(name)}"
            line = "-" if weighted else ":"
            flops, bounds = [one.flops for one in ones], [one.bound for one in ones]
            axes.plot(flops, bounds, line, color=color, linewidth=1.2)
            for one in ones:
                fill = "none" if one.shown else color
                axes.plot(one.flops, one.bound, "o" if weighted else "s", color=color, mfc=fill)
        for name in names:
            axes.plot([], [], color=f"C{names.index(name)}", label=name)
        axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
        axes.minorticks_off()
        axes.set_title(model)
        axes.set_xlabel("FLOPs of unpruned: tower, prefill, decode and head")
        axes.legend(fontsize=7)
    grid[0, 0].set_ylabel("largest loss not excluded, of all kinds of answers:\npoints (CIDEr: %)")
    save(figure, RESULTS / "weighting-least.png")


def plot(model: str) -> None:
    """FLOPs against the kind of answer that lost most, of each method at its counts: as published, and with both."""
    answers = answered(model)
    if not answers:
        return
    figure, grid = subplots(1, 1, (7.0, 4.4))
    axes = grid[0, 0]
    colors = {
        "divprune": "C0",
        "vispruner": "C1",
        "cdpruner": "C2",
        "tome": "C3",
        "visionzip": "C4",
    }
    for spec, found in answers.items():
        name = spec.partition(":")[0]
        both = "merge=mean" in spec or "weigh=clusters" in spec
        if name not in colors or ("weigh=" in spec and not both):
            continue
        _, gap = worst(found["figures"])
        ends = [[gap["value"] - gap["low"]], [gap["high"] - gap["value"]]]
        axes.errorbar(
            found["flops"], gap["value"], yerr=ends, color=colors[name], capsize=2,
            marker="o" if both else "x", linestyle="none",
            label=f"{name}, {'weighted and averaged' if both else 'as published'}",
        )  # fmt: skip
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_xlabel("FLOPs of unpruned: tower, prefill, decode and head")
    axes.set_ylabel("the kind of answer that lost most:\npoints (CIDEr: % of unpruned)")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(
        once.values(),
        once.keys(),
        fontsize=7,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=2,
    )
    save(figure, RESULTS / f"weighting-{model}.png")


def zoo_table(methods: dict[str, Any]) -> list[str]:
    """Methods down, variants across."""
    lines = [f"| | {' | '.join([*VARIANTS, 'own clusters'])} |", "|---" + "|---:" * 5 + "|"]
    ones = [f"{name}:keep={keep}" for name in MERGING for keep in KEEPS]
    bases = dict.fromkeys(
        base for spec in specs("zoo") if (base := plain_of(spec)) in methods or base in ones
    )
    for base in bases:
        variants = [joined(base, knobs) for knobs in (*VARIANTS.values(), "weigh=clusters")]
        if not any(spec in methods for spec in variants[1:]):
            continue
        cells = [kl_cell(methods[spec]) if spec in methods else "" for spec in variants]
        lines.append(f"| `{base}` | {' | '.join(cells)} |")
    return lines


def plain_of(spec: str) -> str:
    """The method without weights and means."""
    for knobs in sorted((*VARIANTS.values(), "weigh=clusters"), key=len, reverse=True):
        if knobs:
            spec = spec.replace(f",{knobs}", "").replace(f":{knobs}", "")
    return spec


def kl_cell(row: dict[str, Any]) -> str:
    """A divergence with its interval."""
    return f"{row['kl']:.4f} ({row['low']:.4f}-{row['high']:.4f})"


if __name__ == "__main__":
    app()
