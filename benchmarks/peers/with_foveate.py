"""Foveate's own FastV, in the protocol of its peers."""

from __future__ import annotations

from functools import partial

from common import Asked, Done, Runs, Watch, build, generation, prompts, serve

import foveate
from foveate.methods import fastv


def contestants(asked: Asked) -> Runs:
    """Plain transformers twice, and FastV."""
    model = build(asked)
    given = prompts(asked, model)
    plain = partial(generation, model, given, asked)
    method = fastv(layer=asked.layer, keep=asked.kept)

    def pruned() -> Done:
        model.set_attn_implementation("sdpa")
        watch = Watch(model.device)
        with foveate.apply(model, method) as trace:
            out = model.generate(
                **given, max_new_tokens=asked.new_tokens, do_sample=False, streamer=watch
            )
        held = [asked.text + int(count[0]) for count in trace.prefill()]
        return watch, out[0, given["input_ids"].shape[1] :].tolist(), held

    return {"plain": plain, "plain again": plain, "foveate, FastV": pruned}


if __name__ == "__main__":
    serve(contestants, "foveate")
