"""A batch of chats: different pictures, different questions, one forward. Each sample keeps its own tokens.

Run it: python examples/batch.py
"""

import foveate
from foveate.methods import divprune
from foveate.world.draw import draw
from foveate.world.scenes import sample


def main() -> None:
    """Asks four questions about three pictures at once."""
    loaded = foveate.load("scenes")
    first, second, third = (draw(sample("test", index)).image for index in range(3))
    chats = [
        ([first], "describe the image in detail."),
        ([second], "what color is the ring?"),
        ([second], "how many red shapes are there?"),
        ([third], "is there a purple heart?"),
    ]
    inputs = loaded.encode(chats)  # padded on the left

    with foveate.apply(loaded.model, divprune(keep=0.25).weighted()) as trace:
        out = loaded.model.generate(**inputs, max_new_tokens=64)

    start = inputs["input_ids"].shape[1]
    for (_, question), ids, kept in zip(chats, out[:, start:], trace.prefill()[0], strict=True):
        print(f"{question} {loaded.decode(ids)} ({kept} tokens)")


if __name__ == "__main__":
    main()
