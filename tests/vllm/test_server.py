"""`foveate serve` with the `openai` package as its client."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tiny
from PIL import Image

LINE = 240  # seconds that a server may take to start on a busy machine


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.fixture(scope="module")
def server(saved: Path) -> Iterator[str]:
    folder = tiny.save("llava", saved / "served")
    port = _free_port()
    settings = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [
        sys.executable, "-m", "foveate", "serve", str(folder), "--method", "fastv:layer=2,keep=0.25", "--port",
        str(port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256", "--max-num-batched-tokens",
        "2048", "--served-model-name", "tiny", "--block-size", "32", "--gpu-memory-utilization", "0.3",
    ]  # fmt: skip
    with open(saved / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, env=settings, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + LINE
            while True:
                assert process.poll() is None, (saved / "server.log").read_text()[-3000:]
                assert time.monotonic() < end, (saved / "server.log").read_text()[-3000:]
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(1)
            yield url
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)


def shown(seed: int, side: int = 56) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def asked(url: str, text: str = "w5 w6 w7") -> list[dict[str, Any]]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def say(client: openai.OpenAI, url: str, method: str | None = None, **more: Any) -> Any:
    extra = {} if method is None else {"vllm_xargs": {"foveate": method}}
    given = {
        "model": "tiny",
        "messages": asked(url),
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": True,
        **more,
    }
    return client.chat.completions.create(**given, extra_body={"ignore_eos": True, **extra})


def scores(answer: Any) -> list[float]:
    return [part.logprob for part in answer.choices[0].logprobs.content]


def test_an_image_and_a_method_per_request(client: openai.OpenAI) -> None:
    default, same = say(client, shown(1)), say(client, shown(1), "fastv:layer=2,keep=0.25")
    plain = say(client, shown(1), "none")
    assert default.choices[0].message.content == same.choices[0].message.content
    np.testing.assert_allclose(scores(default), scores(same), atol=1e-5)
    assert max(abs(a - b) for a, b in zip(scores(default), scores(plain), strict=True)) > 1e-3
    assert default.usage.prompt_tokens == plain.usage.prompt_tokens > 64  # as the user sent them


def test_streaming(client: openai.OpenAI) -> None:
    whole = say(client, shown(2)).choices[0].message.content
    pieces = say(client, shown(2), stream=True)
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == whole
    )


def test_bad_requests_are_the_clients(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        say(client, "data:image/png;base64," + base64.b64encode(b"no picture").decode())
    for method, expected in (
        ("fastvv", "unknown method"),
        ("schedule:/etc/passwd", "reads a file"),
    ):
        with pytest.raises(openai.BadRequestError, match=expected):
            say(client, shown(1), method)
    assert say(client, shown(1)).choices[0].message.content


def test_a_client_that_hangs_up(client: openai.OpenAI) -> None:
    before = say(client, shown(3))
    stream = say(client, shown(3), stream=True, max_tokens=100)
    next(iter(stream))
    stream.close()
    np.testing.assert_allclose(scores(say(client, shown(3))), scores(before), atol=1e-5)


def test_many_at_once_lose_nothing(client: openai.OpenAI) -> None:
    methods = ("none", "fastv:layer=2,keep=0.25", "divprune:keep=0.5", None)
    alone = {(seed, m): scores(say(client, shown(seed), m)) for seed in range(3) for m in methods}
    many = [(number % 3, methods[number % len(methods)]) for number in range(60)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda one: scores(say(client, shown(one[0]), one[1])), many))
    for one, answer in zip(many, found, strict=True):
        np.testing.assert_allclose(answer, alone[one], atol=1e-4)
