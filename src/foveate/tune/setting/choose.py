"""The whole of `foveate tune`: what is tried, what is chosen, and what is certified of it.

1. The unpruned model answers everything; its answers are the target.
2. A race (`halving`) finds the best method at each of several costs, on the part that chooses.
3. G-Search looks for counts by layer, ranked as the best method ranks.
4. The finalists' loss is measured on the same part. That fixes their order.
5. They are tested in that order on the other part (`certificate`), which nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...artefacts.schedules import load_schedule
from ...artefacts.tuned import NOTHING, SEARCHED, TunedFile
from ...artefacts.weighting import Weighting
from ...core.guard import FEATURES, features
from ...core.method import Method
from ...core.scores import RANKINGS
from ...core.view import View
from ...cost.flops import shapes
from ...engine.apply import apply
from ...eval import equal_work as equal
from ...eval.answers import answer, evaluate, fingerprint
from ...eval.records import Record
from ...eval.tasks import Sample
from ...methods import parse
from ...methods.tuned import first_of
from ...models.loaded import Loaded
from ...processes import ALONE, Processes
from ...versions import versions
from ..examples import Example
from ..search.journal import Journal
from ..search.search import Data, Search, find_schedule, model_facts
from . import losses as judging
from .certificate import Promise, by_picture, enough_pictures, judge
from .data import Asked
from .finalists import SEARCHED_FILE, Finalist, front, settled
from .halving import Candidate, Race
from .portfolio import candidates_of, nearest
from .speed import most, times_faster
from .wish import COSTS, Wish, sentence

_ON = 48  # examples that a search of counts runs on
_TUNE_ON = 8  # examples that tell the cost of a method that no plan foresees
Tell = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a tuning.

    Attributes:
        file: the setting.
        candidates: everything that raced.
        finalists: in the order of their tests.
        chosen: of the finalists; None if the unpruned model stays.
        answers: of unpruned and chosen on the examples of the certificate, for the report; of the
            chosen there are none where the loss needs none.
        outside: share of the certifying pictures that are outside of the limits; None without.
    """

    file: TunedFile
    candidates: list[Candidate]
    finalists: list[Finalist]
    chosen: Finalist | None
    answers: dict[str, list[Record]] = field(default_factory=dict)
    outside: float | None = None


class Tuning:
    """One tuning of one model, resumable.

    Args:
        loaded: the model.
        wish: what is asked for.
        asked: the examples.
        folder: keeps answers and trials; a run that was stopped goes on from it.
        more: methods of the user's own, beside the portfolio.
        among: the processes that share the work.
        tell: called with what is being done.

    Raises:
        ValueError: examples that the loss cannot judge, a model without visual tokens in its
            prompts, or a folder of another tuning.
    """

    def __init__(
        self,
        loaded: Loaded,
        wish: Wish,
        asked: Asked,
        folder: Path,
        more: Sequence[str] = (),
        among: Processes = ALONE,
        tell: Tell = lambda line: None,
    ) -> None:
        judging.check(wish.kind, asked.both)
        self.loaded = loaded
        self.wish = wish
        self.asked = asked
        self.folder = folder
        self.more = tuple(more)
        self.among = among
        self.tell = tell
        self.shape = shapes(loaded.model)
        self.depth = len(self.shape.layers)
        self.said: dict[str, list[int]] = {}  # by the unpruned model, of each example
        self.facts = {
            **model_facts(loaded.model, loaded.name),
            "weights": fingerprint(loaded.model),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        }
        identity = {
            "model": self.facts,
            "data": asked.facts(),
            "wish": asdict(wish),
            "more": self.more,
            "device": str(loaded.model.device),
            "versions": versions(),
        }
        if among.index == 0:
            folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder / "trials.jsonl" if among.index == 0 else None, identity)
        self.journal.known = among.of_first(self.journal.known)

    def run(self) -> Outcome:
        """All of it.

        Raises:
            ValueError: no visual tokens, or a speed that nothing can reach.
        """
        if not any(row.visual for row in self._plain_chosen):
            raise ValueError("the prompts have no visual tokens, so there are none to drop")
        self._check_speed()
        candidates = self._candidates()
        race = self._race("choose")
        winners = race.halve(candidates, keep=1)
        if not winners:
            reasons = "; ".join(sorted({one.refused for one in candidates})[:3])
            raise ValueError(f"nothing of the portfolio runs on this model: {reasons}")
        if self.wish.search:
            found = self._searched(winners, race)
            winners += found
            candidates += found
        finalists = self._measured(front([self._finalist(one) for one in winners]))
        chosen = self._certified(finalists)
        return self._outcome(candidates, finalists, chosen)

    # -- the unpruned model ---------------------------------------------------------------------

    @cached_property
    def _plain_chosen(self) -> list[Record]:
        return self._answers("unpruned", [], "choose")

    @cached_property
    def _plain_certified(self) -> list[Record]:
        return self._answers("unpruned", [], "certify")

    def _answers(self, spec: str, methods: Sequence[Method], part: str) -> list[Record]:
        """Answers to one part of the examples; those on disk are not generated again."""
        samples = self._part(part)
        self.tell(f"{spec}: {len(samples)} answers")
        folder = self.folder / "answers" / part
        return evaluate(
            self.loaded,
            samples,
            spec,
            methods,
            self.wish.size,
            among=self.among,
            folder=folder,
        )

    def _part(self, part: str) -> list[Sample]:
        return self.asked.choose if part == "choose" else self.asked.certify

    # -- what races -----------------------------------------------------------------------------

    def _candidates(self) -> list[Candidate]:
        """Every entry of the portfolio, tuned to every cost that it can have."""
        target = COSTS[self.wish.cost]
        return candidates_of(self.depth, self.more, target, self._work(target))

    def _work(self, target: str) -> equal.Work:
        """Cost of methods over the unpruned model's, by plan, or measured where none foresees it."""
        plain = self._plain_chosen
        wanted = equal.Target(target, 1.0)

        def run(methods: Sequence[Method]) -> list[Record]:
            rows = list(zip(self.asked.choose, plain, strict=True))[:_TUNE_ON]
            return [
                answer(self.loaded, [sample], methods, self.shape, [row.tokens])[0]
                for sample, row in rows
            ]

        plan = equal.planned(wanted, self.shape, plain)
        return equal.either(plan, partial(equal.ran, wanted, run))

    def _race(self, part: str) -> Race:
        """A race on one part, which tells how far it is."""

        def tell(number: int, settings: int) -> None:
            self.tell(f"divergence of {settings} settings, example {number + 1} of {len(samples)}")

        samples = self._part(part)
        return Race(self.loaded, samples, self.journal, self.among, self.said, tell)

    # -- counts by layer ------------------------------------------------------------------------

    def _searched(self, winners: Sequence[Candidate], race: Race) -> list[Candidate]:
        """G-Search, ranked by diversity or attention as the best winner of about the wanted loss."""
        best = self._pivot(winners)
        examples = self._examples()
        if len(examples) < 2:  # answers without a word
            return []
        method = parse(best.spec)[0]
        name = next((name for name, score in RANKINGS.items() if score == method.score), "diverse")
        first = RANKINGS[name].needs.earliest
        plan = Search(
            algorithm="gsearch",
            knobs={"tolerance": max(best.kl, 1e-4), "stride": max(1, self.depth // 8)},
            ranking=name,
            first=first,
            batch=min(self.wish.size, 8),
            seed=self.wish.seed,
            weighting=Weighting("nearest", "mean"),
            by_kind=True,
        )
        out = self.folder / SEARCHED_FILE
        self.tell(f"G-Search of counts by layer, ranked by {name}")
        data = Data(self.asked.name, examples[: len(examples) // 2], examples[len(examples) // 2 :])
        record = self.folder / "searched.trials.jsonl"
        found = find_schedule(
            self.loaded, plan, data, self.loaded.name, record, self.among, self.tell
        )
        if self.among.index == 0:
            found.save(out)
        self.among.wait()
        spec = f"schedule:{out}"
        cost = self._work(COSTS[self.wish.cost])(parse(spec))
        if cost > 0.95:
            return []
        candidate = Candidate(spec, nearest(cost), cost)
        race.run([candidate], len(self.asked.choose))
        return [] if candidate.refused else [candidate]

    def _pivot(self, winners: Sequence[Candidate]) -> Candidate:
        """The cheapest winner whose words change no more than is wanted; else the best."""
        wanted = 0.02 if self.wish.risk is None else self.wish.risk
        good = [one for one in winners if np.mean(one.words) <= wanted]
        return min(good, key=lambda one: one.cost) if good else min(winners, key=lambda one: one.kl)

    def _examples(self) -> list[Example]:
        """The first examples that choose, with the unpruned model's answers."""
        rows = zip(self.asked.choose, self._plain_chosen, strict=True)
        said = [
            Example(
                sample.images,
                sample.prompt,
                row.answer,
                sample.earlier,
                sample.kind or sample.task,
            )
            for sample, row in rows
            if row.answer
        ]
        return said[: 2 * _ON]

    # -- finalists ------------------------------------------------------------------------------

    def _finalist(self, candidate: Candidate) -> Finalist:
        """With its loss on the part that chooses."""
        spec = candidate.spec
        if self.wish.kind.of is None:
            found = candidate.words
        else:
            rows = self._answers(spec, parse(spec), "choose")
            found = judging.losses(self.wish.kind, self.asked.choose, self._plain_chosen, rows)
        return Finalist(spec, candidate.cost, self._by_picture(found, "choose"))

    def _by_picture(self, found: Sequence[float], part: str) -> np.ndarray:
        groups = [sample.group for sample in self._part(part)]
        return by_picture(found, groups, self.wish.kind.binary)

    def _measured(self, finalists: list[Finalist]) -> list[Finalist]:
        """With measured seconds, where these count; the order is still that of the losses."""
        if self.wish.speed is None and self.wish.cost != "seconds":
            return finalists
        self.tell("measuring seconds")

        def measure() -> dict[str, float]:
            settings = {one.spec: parse(one.spec) for one in finalists}
            return times_faster(
                self.loaded,
                self.asked.choose,
                settings,
                self.wish.new_tokens,
                self.wish.batch,
            )

        key = "seconds " + " ".join(one.spec for one in finalists)
        found = self.among.of_first(
            self.journal.once(key, measure) if self.among.index == 0 else None
        )
        for one in finalists:
            one.faster = found[one.spec]
            if self.wish.cost == "seconds":
                one.cost = 1 / one.faster
        if self.wish.cost != "seconds":
            return finalists
        return [one for one in front(finalists) if one.cost < 1]

    # -- the certificate ------------------------------------------------------------------------

    def _certified(self, finalists: Sequence[Finalist]) -> Finalist | None:
        """The cheapest that may be promised; at a wanted speed, the one that loses least."""
        if self.wish.speed is not None:
            return self._fast_enough(finalists)
        return settled(finalists, self._unseen, self.promise, self._binary)

    def _fast_enough(self, finalists: Sequence[Finalist]) -> Finalist:
        """The least loss at the wanted speed; its certificate is the bound itself."""
        wanted = self.wish.speed or 1.0
        fast = [one for one in finalists if (one.faster or 0.0) >= wanted]
        if not fast:
            seen = max(one.faster or 0.0 for one in finalists)
            raise ValueError(
                f"no setting that was tried is {wanted:g}x as fast here; the fastest is {seen:.2f}x. Ask for less, "
                "or for larger batches or shorter answers (--batch, --new-tokens)"
            )
        chosen = min(fast, key=lambda one: one.loss)
        chosen.verdict = judge(self._unseen(chosen), self.promise)
        return chosen

    @property
    def promise(self) -> Promise:
        """What is to be certified; at a speed, whatever can be."""
        return Promise(0.5 if self.wish.risk is None else self.wish.risk, self.wish.confidence)

    def _unseen(self, one: Finalist) -> np.ndarray:
        """A finalist's losses on the part that certifies."""
        if self.wish.kind.of is None:
            candidate = Candidate(one.spec, 0, one.cost)
            self._race("certify").run([candidate], len(self.asked.certify))
            found = candidate.words
        else:
            rows = self._answers(one.spec, parse(one.spec), "certify")
            found = judging.losses(self.wish.kind, self.asked.certify, self._plain_certified, rows)
        one.kinds = self._by_kind(found)
        return self._by_picture(found, "certify")

    def _by_kind(self, found: Sequence[float]) -> dict[str, tuple[float, int]]:
        """Mean loss and number of examples of each kind of question, or task."""
        kinds: dict[str, list[float]] = {}
        for sample, loss in zip(self.asked.certify, found, strict=True):
            kinds.setdefault(sample.kind or sample.task, []).append(loss)
        return {kind: (sum(row) / len(row), len(row)) for kind, row in kinds.items()}

    @cached_property
    def _pictures(self) -> int:
        return len({sample.group for sample in self.asked.certify})

    @property
    def _binary(self) -> bool:
        """Whether the test's losses are 0 or 1 for each picture."""
        return self.wish.kind.binary and self._pictures == len(self.asked.certify)

    def _check_speed(self) -> None:
        """Refuses a speed that no method can reach here."""
        if self.wish.speed is None:
            return

        def measure() -> float:
            return most(self.loaded, self._plain_chosen, self.wish.new_tokens, self.wish.batch)

        cap = self.among.of_first(
            self.journal.once("cap", measure) if self.among.index == 0 else None
        )
        if cap < self.wish.speed:
            raise ValueError(
                f"{self.wish.speed:g}x is out of reach: at batch {self.wish.batch} and {self.wish.new_tokens} new "
                f"tokens no visual-token method can be more than {cap:.2f}x as fast here. Larger batches, more "
                "pictures or shorter answers raise that"
            )

    # -- what comes of it -----------------------------------------------------------------------

    def _outcome(
        self, candidates: list[Candidate], finalists: list[Finalist], chosen: Finalist | None
    ) -> Outcome:
        limits, outside = self._limits(chosen) if self.wish.guard and chosen else ({}, None)
        file = self._file(candidates, finalists, chosen, limits, outside)
        answers = {"unpruned": self._plain_certified}
        if chosen is not None:
            shown = self.asked.certify[:10] if self.wish.kind.of is None else self.asked.certify
            rows = self._shown(chosen, len(shown))
            answers[chosen.spec] = rows
        return Outcome(file, candidates, finalists, chosen, answers, outside)

    def _shown(self, chosen: Finalist, count: int) -> list[Record]:
        """Answers of the chosen setting for the report."""
        if count == len(self.asked.certify):
            return self._answers(chosen.spec, parse(chosen.spec), "certify")
        return [
            answer(self.loaded, [sample], parse(chosen.spec), self.shape)[0]
            for sample in self.asked.certify[:count]
        ]

    def _file(
        self,
        candidates: Sequence[Candidate],
        finalists: Sequence[Finalist],
        chosen: Finalist | None,
        limits: dict[str, tuple[float, float]],
        outside: float | None,
    ) -> TunedFile:
        searched = self.folder / SEARCHED_FILE
        method = NOTHING if chosen is None else chosen.spec
        schedule = None
        if method == f"schedule:{searched}":
            method, schedule = SEARCHED, load_schedule(searched)
        return TunedFile(
            method=method,
            model=self.facts,
            certificate=self._certificate(finalists, chosen, outside),
            schedule=schedule,
            wish=asdict(self.wish),
            data=self.asked.facts(),
            tried=[
                {
                    "method": SEARCHED if one.spec == f"schedule:{searched}" else one.spec,
                    "cost": one.cost,
                    "divergence": one.kl,
                    "words": float(np.mean(one.words)) if one.seen else None,
                    "examples": len(one.seen),
                    "refused": one.refused,
                }
                for one in candidates
            ],
            limits=limits,
            spent=self._spent(candidates, finalists),
            seed=self.wish.seed,
            versions=versions(),
        )

    def _spent(
        self, candidates: Sequence[Candidate], finalists: Sequence[Finalist]
    ) -> dict[str, int]:
        """What was run, the searched schedule's trials left out."""
        scored = sum(len(one.seen) for one in candidates)
        answers = len(self.asked.both)
        if self.wish.kind.of is None:
            scored += sum(len(self.asked.certify) for one in finalists if one.verdict)
        else:
            answers += len(self.asked.choose) * len(finalists)
            answers += sum(len(self.asked.certify) for one in finalists if one.verdict)
        return {
            "settings": len(candidates),
            "examples scored": scored,
            "samples x layers": scored * self.depth,
            "answers": answers,
        }

    def _certificate(
        self, finalists: Sequence[Finalist], chosen: Finalist | None, outside: float | None
    ) -> dict[str, Any]:
        """What is certified, or what would be needed for it, in numbers and in one sentence."""
        promise = self.promise
        verdict = chosen.verdict if chosen else None
        holds = verdict is not None and (verdict.holds or self.wish.speed is not None)
        found: dict[str, Any] = {
            "holds": holds,
            "risk": verdict.upper if verdict and self.wish.speed else self.wish.risk,
            "confidence": self.wish.confidence,
            "loss": self.wish.loss,
            "cost": chosen.cost if chosen else 1.0,
            "faster": chosen.faster if chosen else None,
            "pictures": self._pictures,
            "tested": None if verdict is None else asdict(verdict),
            "estimated": None if chosen is None else chosen.loss,
            "finalists": [
                {
                    "method": one.label,
                    "cost": one.cost,
                    "faster": one.faster,
                    "loss": one.loss,
                    "verdict": None if one.verdict is None else asdict(one.verdict),
                }
                for one in finalists
            ],
        }
        if chosen is not None and len(chosen.kinds) > 1:
            kind, (loss, examples) = max(chosen.kinds.items(), key=lambda pair: pair[1][0])
            found["worst"] = {"kind": kind, "loss": loss, "examples": examples}
        if outside is not None:
            found["outside"] = outside
        found["enough"] = None if holds else self._enough(finalists, chosen, promise)
        found["sentence"] = sentence(self.wish, found)
        return found

    def _enough(
        self, finalists: Sequence[Finalist], chosen: Finalist | None, promise: Promise
    ) -> int | None:
        """Pictures to certify on that would do, if others were like these."""
        if chosen is not None:
            seen = [chosen.losses.astype(float), self._unseen(chosen).astype(float)]
            both = np.concatenate(seen)
            return enough_pictures(both > 0.5 if self._binary else both, promise)
        known = [one.losses for one in finalists]
        counts = [enough_pictures(losses, promise) for losses in known]
        return min((count for count in counts if count is not None), default=None)

    # -- inputs unlike the examples -------------------------------------------------------------

    def _limits(self, chosen: Finalist) -> tuple[dict[str, tuple[float, float]], float]:
        """What the choosing part's inputs look like, and how many of the other part are outside."""
        method = parse(chosen.spec)[0]
        layer = first_of(method, self.depth)
        rows = {part: self._features(self._part(part), layer) for part in ("choose", "certify")}
        low, high = rows["choose"].min(0), rows["choose"].max(0)
        out = ((rows["certify"] < low) | (rows["certify"] > high)).any(1)
        limits = {
            name: (float(a), float(b)) for name, a, b in zip(FEATURES, low, high, strict=True)
        }
        return limits, float(out.mean())

    @torch.inference_mode()
    def _features(self, samples: Sequence[Sample], layer: int) -> np.ndarray:
        """Of each example, what its prefill looks like before a layer (n F)."""
        found: list[list[float]] = []

        def watch(view: View) -> None:
            if view.layer == layer and view.step == 0:
                found.append(features(view)[0].tolist())

        self.tell(f"what {len(samples)} inputs look like")
        for sample in samples:
            inputs = self.loaded.encode(
                [(sample.images(), sample.prompt)], earlier=[sample.earlier]
            )
            with apply(self.loaded.model, watch=watch):
                self.loaded.model(**inputs, use_cache=True, logits_to_keep=1)
        return np.array(found)
