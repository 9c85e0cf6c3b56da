"""Your own model object: wrap what transformers gave you, and apply a method to it.

Any `from_pretrained` model of a supported family will do, and nothing else of your code changes. Here transformers
loads the small LLaVA that comes with the package.

Run it: python examples/own_model.py
"""

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import foveate
from foveate.methods import fastv
from foveate.models.load import BUNDLED

PICTURE = "examples/scene.png"


def main() -> None:
    """Answers with all tokens, then with half of them."""
    folder = BUNDLED["scenes"]  # yours: a folder or a hub id
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)

    loaded = foveate.Loaded(model, processor)
    inputs = loaded.inputs([PICTURE], "what color is the ring?")
    for methods in ([], [fastv(layer=2, keep=0.5)]):
        with foveate.apply(model, *methods) as trace:
            out = model.generate(**inputs, max_new_tokens=8)
        answer = loaded.decode(out[0, inputs["input_ids"].shape[1] :])
        print(f"{answer}: {trace.mean_kept():.0%} of the visual tokens")


if __name__ == "__main__":
    main()
