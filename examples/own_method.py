"""A method of one's own in a dozen lines: keep the tokens with the largest hidden states, fewer where it is late.

Run it: python examples/own_method.py
"""

from torch import Tensor

import foveate
from foveate import Method, View
from foveate.world.draw import draw
from foveate.world.scenes import sample


def norm(view: View) -> Tensor:
    """Score: the length of a token's hidden state."""
    return view.states().norm(dim=-1)


def staircase(view: View) -> Tensor:
    """Schedule: all tokens up to layer 2, then 12 fewer at every layer, in the prefill alone."""
    if view.step > 0:
        return view.alive
    return (view.total - 12 * (view.layer - 2)).clamp(min=0) if view.layer > 2 else view.total


def main() -> None:
    """Describes one picture with all tokens and with fewer."""
    loaded = foveate.load("scenes")
    inputs = loaded.inputs([draw(sample("test", 0)).image], "describe the image in detail.")
    for methods in ([], [Method(norm, staircase, name="staircase")]):
        with foveate.apply(loaded.model, *methods) as trace:
            out = loaded.model.generate(**inputs, max_new_tokens=64)
        answer = loaded.decode(out[0, inputs["input_ids"].shape[1] :])
        print([row[0] for row in trace.prefill()], answer)


if __name__ == "__main__":
    main()
