"""A pipeline of transformers with fewer visual tokens: switched on, used as always, switched off."""

from __future__ import annotations

from transformers import pipeline

import foveate
from foveate.world.draw import draw
from foveate.world.scenes import sample

loaded = foveate.load("scenes")
describe = pipeline("image-text-to-text", model=loaded.model, processor=loaded.processor)
chat = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": draw(sample("test", 1)).image},
            {"type": "text", "text": "Describe the image in detail."},
        ],
    }
]

# A server whose threads share the model takes threads="wait": forwards then take turns.
handle = foveate.enable(loaded.model, "divprune:keep=0.25,weigh=nearest,merge=mean", threads="wait")
print(describe(text=chat, max_new_tokens=48, return_full_text=False)[0]["generated_text"])
print(f"{handle.trace.mean_kept():.0%} of the visual tokens were kept")
handle.disable()
