"""The zoo: methods put together of parts, schedules over layers, and FitPrune's recipe."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.scores import RANKINGS, Even
from foveate.core.stairs import Stairs, placed
from foveate.cost.flops import kept_by
from foveate.methods import dart, fitprune, parse, pdrop, psigmoid, sparsevlm, st3, vscan2
from foveate.methods.sparsevlm.recycling import density_peaks
from foveate.tune import fit_prune
from models.tiny import LAYERS, batch, model
from oracles.layouts import LAYOUTS
from oracles.zoo import peaks


@pytest.mark.parametrize(
    "spec", ["score=dart,schedule=pdrop:keep=0.6", "schedule=pdrop:keep=0.6,score=dart:pivots=2"]
)
def test_a_method_of_parts_ranks_as_the_one_and_keeps_as_many_as_the_other(spec: str) -> None:
    (made,) = parse(spec)
    assert (
        made.schedule == pdrop(keep=0.6).schedule
        and type(made.score) is type(dart().score)
        and made.name == spec
    )
    network, data = model("llava"), batch("llava", LAYOUTS["several"])
    counts = []
    for method in (made, pdrop(keep=0.6)):
        with torch.no_grad(), foveate.apply(network, method) as trace:
            network(**data.inputs)
        counts.append(trace.prefill())
    assert counts[0] == counts[1] != [[s] for s in counts[0][0]]


def test_parts_may_be_rankings_and_bring_their_merge() -> None:
    (made,) = parse("score=received,schedule=sparsevlm:keep=0.5/100,layers=2/5,within=image")
    assert made.score == RANKINGS["received"] and made.within == "image" and made.merge is None
    assert made.schedule == Stairs((2, 5), (0.5, 100))
    own = sparsevlm()
    assert parse("score=sparsevlm,schedule=vscan2")[0].merge == own.merge
    assert parse("score=sparsevlm,schedule=vscan2,merge=none")[0].merge is None
    assert parse("score=even,schedule=vscan2,merge=downsample:pool=true")[0].merge is not None
    first, second = parse("score=even,schedule=random:keep=0.5+vscan2:keep=0.25")
    assert first.score == Even() and second == vscan2(keep=0.25)


def test_rankings_that_look_at_no_layer_serve_from_layer_0_on() -> None:
    made, given = model("llava"), batch("llava", LAYOUTS["several"])
    for ranking in ("even", "tower", "diverse", "random"):
        for spec in (
            f"fastv:layer=0,keep=0.5,ranking={ranking}",
            f"psigmoid:first=0,ranking={ranking}",
        ):
            with torch.no_grad(), foveate.apply(made, *parse(spec)) as trace:
                made(**given.inputs)
            (total, kept) = int(trace.passes[0].total[0]), int(trace.prefill()[0][0])
            assert 0 < kept < total, (spec, kept)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("score=dart,schedule=random:layer=0", "acts before layer 0"),
        ("score=last,schedule=random:layer=0", "layer 0 has no layer before it"),
        ("score=dart,schedule=st3", "while decoding"),
        ("score=sparsevlm,schedule=st3", "while decoding"),
        ("score=last,schedule=vscan2,merge=sparsevlm", "goes on from what"),
        ("score=last,schedule=vscan2,merge=fastv", "merges nothing"),
        ("score=dart", "has no schedule"),
        ("schedule=dart", "has no score"),
        ("score=dartt,schedule=pdrop", "did you mean 'dart'"),
        ("score=dart,schedule=pdropp", "did you mean 'pdrop'"),
        ("score=dart,score=last,schedule=pdrop", "twice"),
        ("score=dart,schedule=pdrop,within=all", "sample, image"),
        ("sparsevlm:keep=0.5", "1 keeps"),
        ("sparsevlm:layers=3/2/1", "ascending"),
        ("sparsevlm:keep=0.5/x/0.1", "expected float or int"),
        ("pdrop:layers=0.5/3", "ascending layers"),
        ("pdrop:keep=2", "lambda"),
        ("dart:layer=0", "1 or more"),
        ("dart:pivots=0,text_pivots=0", "one at least"),
        ("vscan2:layer=0", "1 or more"),
        ("fitprune:keep=0.5/0.5", "expected 1.0 first"),
        ("fitprune:keep=1.0/0.5/0.7", "never grow"),
        ("sparsevlm:scale=2", "shares in"),
        ("psigmoid:slope=0", "a slope above 0"),
        ("psigmoid:first=0", "1 or more"),
        ("fastv:layer=0", "1 or more"),
        ("fastv:layer=0,ranking=mix", "1 or more"),
        ("st3:every=0", "every=0"),
        ("st3:fall=off", "cosine, linear"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(spec)


def test_schedules_over_layers() -> None:
    assert kept_by([pdrop()], 32, 576) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert kept_by([vscan2(keep=0.25)], 32, 576) == [576] * 16 + [144] * 16
    assert kept_by(parse("random:keep=0.25+vscan2:keep=0.5"), 4, 576) == [144, 144, 72, 72], (
        "of what is left"
    )
    kept = kept_by([sparsevlm()], 32, 576)
    assert [kept[i] for i in (2, 3, 6, 7, 15, 16)] == [576, 300, 300, 200, 200, 110]
    published = kept_by([fitprune()], 32, 576)
    assert published[:4] == [576, 562, 529, 440] and published == sorted(published, reverse=True)
    assert placed((3 / 32, 7 / 32, 16 / 32), 4) == (1, 2, 3)
    assert kept_by([fitprune((1.0, 0.5, 0.1, 0.1))], 4, 100) == [100, 50, 10, 10]
    with pytest.raises(ValueError, match="a decoder of 4 layers, but this model has 8"):
        fitprune((1.0, 0.5, 0.5, 0.5)).check(8)
    with pytest.raises(ValueError, match="layers 0 to 3"):
        pdrop(layers=(2, 4)).check(4)


@pytest.mark.parametrize("slope", [0.1, 0.5, 5.0])
def test_a_sigmoid_has_the_mean_that_is_asked_and_never_rises(slope: float) -> None:
    for keep, floor, first in ((0.5, 0.0, 2), (0.25, 0.1, 1), (1.0, 0.0, 2)):
        kept = kept_by([psigmoid(keep, slope, floor, first)], 32, 10**6)
        assert sum(kept) / 32 == pytest.approx(keep * 10**6, rel=1e-4) and kept == sorted(
            kept, reverse=True
        )
        assert kept[:first] == [10**6] * first and kept[-1] >= floor * 10**6 - 1
    with pytest.raises(ValueError, match="expected a mean in"):
        psigmoid(keep=0.05).check(32)
    assert (
        parse("score=dart,schedule=psigmoid:keep=0.4,slope=2")[0].schedule
        == psigmoid(0.4, 2).schedule
    )


@pytest.mark.parametrize("fall", ["cosine", "linear", "exponential"])
def test_annealing_falls_to_its_floor(fall: str) -> None:
    schedule = st3(floor=0.25, horizon=16, every=4, fall=fall).schedule  # type: ignore[arg-type]
    shares = [schedule.anneal(step) for step in range(24)]  # type: ignore[attr-defined]
    assert (
        shares[0] == 1.0
        and shares[16:] == pytest.approx([0.25] * 8)
        and shares == sorted(shares, reverse=True)
    )
    assert [s for s in range(40) if schedule.acts(2, s)] == [0, 4, 8, 12, 16]  # type: ignore[attr-defined]


def test_density_peaks_are_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, count in ((1, 1), (2, 1), (9, 3), (30, 4)):
        points = torch.randn(size, 6, generator=generator) * 30
        centres, owner = density_peaks(points, count)
        assert (centres.tolist(), owner.tolist()) == peaks(list(points), count)


def test_dart_shares_the_budget_between_its_pivots() -> None:
    """Whatever is wanted, exactly so many are kept, and a larger budget's pivots are among them."""
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    for want in range(17):
        with torch.no_grad(), foveate.apply(made, dart(layer=1, keep=want)) as trace:
            made(**data.inputs)
        assert trace.prefill()[-1] == [want]


def test_fitprune_fits_what_attention_allows() -> None:
    made = model("llava")
    data = [batch("llava", LAYOUTS[name]).inputs for name in ("one", "right")]
    fit = fit_prune(made, data, reduction=0.4)
    assert fit.samples == 3 and fit.reduction >= 0.4 and 0 < fit.tolerance < 1
    assert (
        fit.keep[0] == 1.0
        and list(fit.keep) == sorted(fit.keep, reverse=True)
        and len(fit.keep) == LAYERS
    )
    total = torch.zeros(LAYERS)
    for name in ("one", "right"):
        found = batch("llava", LAYOUTS[name])
        for embeds, owners in zip(found.embeds, found.image_of, strict=True):
            total += naive_fit(made, embeds, owners, fit.tolerance)
    torch.testing.assert_close(torch.tensor(fit.keep), total / 48, atol=1e-5, rtol=0)
    assert fit_prune(made, data, reduction=0.6).tolerance > fit.tolerance
    with torch.no_grad(), foveate.apply(made, fitprune(fit.keep)) as trace:
        made(**data[0])
    assert [row[0] for row in trace.prefill()] == [math.floor(16 * k + 0.5) for k in fit.keep]


def naive_fit(made: object, embeds: Tensor, owners: list[int], tolerance: float) -> Tensor:
    """Tokens that each layer of one sample runs with, by the paper's recipe."""
    from oracles.oracle import Oracle, Situation  # noqa: PLC0415

    def received(s: Situation) -> list[dict[int, float]]:
        most = {
            q: s.attention(q).amax(0)
            for q in range(s.newest + 1)
            if q in s.alive or s.kinds[q] == "instruction"
        }
        words = [q for q in most if s.kinds[q] == "instruction"]
        return [
            {c: sum(most[q][c].item() for q in rows) for c in s.alive} for rows in (s.alive, words)
        ]

    sums = {}

    def plain(s: Situation) -> list[int]:
        if s.layer:
            sums[s.layer] = [sum(part.values()) for part in received(s)]
        return s.alive

    def trial(s: Situation) -> list[int]:
        if not s.layer or not s.alive:
            return s.alive
        spare = set(s.alive)
        for part, whole in zip(received(s), sums[s.layer], strict=True):
            left, gone = sum(part.values()), set()
            for c in sorted(s.alive, key=lambda c, part=part: (part[c], c)):
                left -= part[c]
                if left < whole * (1 - tolerance):
                    break
                gone.add(c)
            spare &= gone
        return [c for c in s.alive if c not in spare]

    with torch.no_grad():
        Oracle(made, [plain], 4).feed(embeds, owners)
        judge = Oracle(made, [trial], 4)
        judge.feed(embeds, owners)
    return torch.tensor([float(judge.kept[0, 0, layer]) for layer in range(LAYERS)])


def test_fitprune_refuses_what_it_cannot_fit() -> None:
    made, data = model("llava"), batch("llava", LAYOUTS["one"])
    with pytest.raises(ValueError, match="no batches"):
        fit_prune(made, [])
    with pytest.raises(ValueError, match="expected a share"):
        fit_prune(made, [data.inputs], reduction=1.5)
    with pytest.raises(ValueError, match="dropping all"):
        fit_prune(made, [data.inputs], reduction=0.9)
