"""How far settings are from the unpruned model, on batches that go through the tower once for all of them.

As `eval.divergence`, for many methods on the same examples: one pass of the decoder per setting and
batch, teacher forced on the unpruned model's own answers (`engine.replay`).

Shapes: B samples, S words of the longest answer, W words of all answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.contract import Needs
from ...core.method import Method
from ...engine.replay.replay import Replay, Standing
from ...eval.divergence import Divergence, divergence, reference
from ...eval.tasks import Sample
from ...models.loaded import Loaded
from ..examples import answered
from ..train.dyrate.rollout import Batch


class Teacher:
    """Says how far settings are from one model.

    Args:
        loaded: the model.
        settings: every method that will be asked about, by its text.
        said: the unpruned model's answers by the samples' keys, as token ids; those that are lacking
            are generated and added.

    Attributes:
        refused: why the model cannot run some of them.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Mapping[str, Method],
        said: dict[str, list[int]] | None = None,
    ) -> None:
        self.loaded = loaded
        self.said = {} if said is None else said
        self.settings: dict[str, Method] = {}
        self.refused: dict[str, str] = {}
        depth, family = loaded.anatomy.depth, loaded.anatomy.family
        for spec, method in settings.items():
            try:
                method.check(depth, family)
                Replay(loaded.model, method.needs)
                self.settings[spec] = method
            except ValueError as refusal:  # such as a tower that the method cannot read
                self.refused[spec] = str(refusal)
        needs = Needs.joined(*(method.needs for method in self.settings.values()))
        self.replay = Replay(loaded.model, needs)

    @torch.inference_mode()
    def of(
        self, samples: Sequence[Sample], specs: Sequence[str]
    ) -> Iterator[tuple[str, list[Divergence]]]:
        """Of each setting, what it diverges by on each sample of a batch.

        A setting that turns out not to run is added to `refused`, and left out.

        Args:
            samples: of one batch.
            specs: settings, of those that were given and not refused.
        """
        inputs = self.loaded.encode(
            [(sample.images(), sample.prompt) for sample in samples],
            earlier=[sample.earlier for sample in samples],
        )
        batch = self._answered(inputs, samples)
        at = self._start(batch)
        plain = self._log_probabilities(at, batch, ())
        for spec in (spec for spec in specs if spec in self.settings):
            method = self.settings[spec]
            try:
                found = (
                    self._stepwise(samples, method)
                    if method.drops_later(
                        self.loaded.anatomy.depth
                    )  # which no pass of prompt and answer does
                    else self._compared(plain, self._log_probabilities(at, batch, (method,)), batch)
                )
            except ValueError as refusal:
                self.refused[spec] = str(refusal)
                continue
            yield spec, found

    def _start(self, batch: Batch) -> Standing:
        """The batch before layer 0; if nobody can look at its tower, without those who would."""
        try:
            return self.replay.start(batch.inputs, batch.prompt)
        except ValueError as refusal:
            looking = [spec for spec, method in self.settings.items() if method.needs.tower]
            if not looking:
                raise
            for spec in looking:
                self.refused[spec] = str(refusal)
                del self.settings[spec]
            needs = Needs.joined(*(method.needs for method in self.settings.values()))
            self.replay = Replay(self.loaded.model, needs)
            return self.replay.start(batch.inputs, batch.prompt)

    def _answered(self, inputs: dict[str, Tensor], samples: Sequence[Sample]) -> Batch:
        """The prompts with the unpruned model's greedy answers."""
        if any(sample.key not in self.said for sample in samples):
            self._say(inputs, samples)
        answers = [self.said[sample.key] for sample in samples]
        pad = self.loaded.tokenizer.pad_token_id or 0
        on_cpu = {name: value.cpu() for name, value in inputs.items()}
        whole = answered(self.loaded.anatomy, on_cpu, answers, pad)
        return Batch(self.loaded.moved(whole), inputs["input_ids"].shape[1])

    def _say(self, inputs: dict[str, Tensor], samples: Sequence[Sample]) -> None:
        """Generates the batch's answers."""
        longest = max(sample.max_new_tokens for sample in samples)
        model = self.loaded.model
        out = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        ends = model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
        rows = out[:, inputs["input_ids"].shape[1] :].tolist()
        for row, sample in zip(rows, samples, strict=True):
            self.said[sample.key] = _until(row, stops)[: sample.max_new_tokens]

    def _log_probabilities(
        self, at: Standing, batch: Batch, methods: Sequence[Method]
    ) -> Float[Tensor, "W V"]:
        """Before each word of the answers."""
        states = self.replay.finish(at, methods)  # (B S D)
        logits: Tensor = self.loaded.anatomy.logits(states[batch.answered])
        return logits.float().log_softmax(-1)

    def _compared(
        self, plain: Float[Tensor, "W V"], pruned: Float[Tensor, "W V"], batch: Batch
    ) -> list[Divergence]:
        """Each sample's words apart."""
        kl = (plain.exp() * (plain - pruned)).sum(-1).clamp(min=0)
        same = (plain.argmax(-1) == pruned.argmax(-1)).float()
        many = batch.answered.sum(1).tolist()
        rows = zip(torch.split(kl, many), torch.split(same, many), strict=True)
        return [
            Divergence(one.mean().item(), alike.mean().item(), one.max().item())
            for one, alike in rows
        ]

    def _stepwise(self, samples: Sequence[Sample], method: Method) -> list[Divergence]:
        """Word by word, as `generate` runs."""
        found = []
        for sample in samples:
            inputs = self.loaded.encode(
                [(sample.images(), sample.prompt)], earlier=[sample.earlier]
            )
            given = reference(self.loaded, inputs, sample.max_new_tokens)
            found.append(divergence(self.loaded, given, [method]))
        return found


def _until(row: Sequence[int], ends: set[int]) -> list[int]:
    """A row of tokens up to the first that ends it, that one included."""
    for place, token in enumerate(row):
        if token in ends:
            return list(row[: place + 1])
    return list(row)
