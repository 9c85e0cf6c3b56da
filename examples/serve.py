"""A web server: FastAPI takes requests, and one worker thread runs the model on batches of them.

Only the worker touches the model, so no request waits for a lock and no two forwards meet. Requests that wait are
answered together.

Run it: pip install fastapi uvicorn, then: uvicorn examples.serve:app
Ask it: curl -s localhost:8000/answer -H 'content-type: application/json' -d @- <<END
        {"image": "data:image/png;base64,$(base64 -w0 examples/scene.png)", "prompt": "what color is the ring?"}
        END
"""

import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio.to_thread
from fastapi import FastAPI, HTTPException
from PIL.Image import Image
from pydantic import BaseModel, Field

import foveate
from foveate.models.images import open_image

MODEL = "scenes"
METHOD = "divprune:keep=0.25,weigh=nearest,merge=mean"
BATCH = 8


class Request(BaseModel):
    """What a client sends: a picture as a data URI, and a prompt. A path or a URL would let it read your files."""

    image: str = Field(pattern="^data:image/")
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(default=64, ge=1, le=1024)


class Answer(BaseModel):
    """What it gets back."""

    text: str
    tokens_kept: int
    tokens_total: int


@dataclass
class Job:
    """A request with its picture, and where its answer will be."""

    request: Request
    picture: Image
    answer: Future[Answer] = field(default_factory=Future)


class Worker:
    """The one thread that runs the model."""

    def __init__(self) -> None:
        self.loaded = foveate.load(MODEL)
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Takes what waits, up to a batch, and answers it; ends at None."""
        while (job := self.jobs.get()) is not None:
            batch = [job]
            while len(batch) < BATCH and not self.jobs.empty():
                if (job := self.jobs.get()) is None:
                    self.jobs.put(None)
                    break
                batch.append(job)
            try:
                self.answer(batch)
            except Exception as error:
                for waiting in batch:
                    waiting.answer.set_exception(error)

    def answer(self, batch: list[Job]) -> None:
        """Runs one batch."""
        inputs = self.loaded.encode([([job.picture], job.request.prompt) for job in batch])
        longest = max(job.request.max_new_tokens for job in batch)
        with foveate.apply(self.loaded.model, METHOD) as trace:
            out = self.loaded.model.generate(**inputs, max_new_tokens=longest)
        start = inputs["input_ids"].shape[1]
        total = trace.passes[0].total.tolist()
        for job, ids, kept, given in zip(
            batch, out[:, start:], trace.prefill()[-1], total, strict=True
        ):
            text = self.loaded.decode(ids[: job.request.max_new_tokens])
            job.answer.set_result(Answer(text=text, tokens_kept=kept, tokens_total=given))

    def stop(self) -> None:
        """Answers what was asked before, then ends the thread."""
        self.jobs.put(None)
        self.thread.join()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model when the server starts."""
    app.state.worker = worker = Worker()
    yield
    worker.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
async def answer(request: Request) -> Answer:
    """Answers one prompt about one picture."""
    try:
        picture = await anyio.to_thread.run_sync(open_image, request.image)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    job = Job(request, picture)
    app.state.worker.jobs.put(job)
    return await anyio.to_thread.run_sync(job.answer.result)
