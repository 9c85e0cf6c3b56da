"""Streaming: transformers' own streamers work as they are, since `generate` does.

Run it: python examples/streaming.py
"""

from threading import Thread

from transformers import TextIteratorStreamer

import foveate
from foveate.methods import divprune

PICTURE = "examples/scene.png"


def main() -> None:
    """Prints an answer word by word."""
    loaded = foveate.load("scenes")
    inputs = loaded.inputs([PICTURE], "describe the image in detail.")
    streamer = TextIteratorStreamer(
        loaded.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60.0
    )

    def answer() -> None:
        # The method is applied in the thread that runs the model.
        with foveate.apply(loaded.model, divprune(keep=0.25).weighted()):
            loaded.model.generate(**inputs, max_new_tokens=64, streamer=streamer)

    thread = Thread(target=answer)
    thread.start()
    for piece in streamer:
        print(piece, end="", flush=True)
    thread.join()
    print()


if __name__ == "__main__":
    main()
