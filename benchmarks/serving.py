"""Speed inside vLLM: plain, with the plugin loaded but unused, and under methods, in turn, each beside its cap.

It runs where vLLM is installed (`make results-serving`). The model has random weights of a known shape. Every engine
lives in a process of its own, and one at a time works. Each turn is written as it is done, and the same command goes
on where it stopped. `python benchmarks/pages.py` renders docs/serving-speed.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import transformers as tf
import typer
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from foveate.cost import plan
from foveate.cost.architecture import Architecture, architecture
from foveate.cost.configurations import config_of
from foveate.files import write_text
from foveate.models.export import hub_name
from foveate.timing.race import build, caps
from foveate.versions import versions
from gpu import opened

SAVE = Path(__file__).parent.parent / "docs" / "results" / "serving.json"
PLAIN, AGAIN, LOADED, NONE = "plain", "plain again", "plugin loaded", "none"
DEFAULTS = "vLLM's defaults"
METHODS = ("fastv:layer=2,keep=0.5", "fastv:layer=2,keep=0.25", "divprune:keep=0.25")
BEFORE = "divprune:keep=0.25, before"
LOADS = ("1x1", "1x32", "4x1", "4x16", "8x32")
WHOLE = {"enforce_eager": True, "enable_chunked_prefill": False, "enable_prefix_caching": False}
ENGINES: dict[str, dict[str, Any]] = {  # options of each; Foveate's chooses a method per request
    PLAIN: WHOLE,
    LOADED: WHOLE,
    NONE: {**WHOLE, "additional_config": {"foveate": {"method": "none"}}},
    DEFAULTS: {},
    BEFORE: {"additional_config": {"foveate": {"method": METHODS[-1], "way": "before"}}},
}
GROUPS = ((PLAIN, LOADED, NONE), (PLAIN, DEFAULTS, BEFORE))  # engines that are in memory together
AGAINST = {BEFORE: DEFAULTS}  # what a contestant is compared with, if it is not PLAIN
SPECS = {**{method: method for method in METHODS}, BEFORE: METHODS[-1]}


@dataclass(frozen=True)
class Setting:
    """What is the same for all loads."""

    shape: str = "smol-135m"
    text: int = 64
    threads: int = 1


@dataclass(frozen=True)
class Load:
    """So many requests that arrive together, and the tokens of each answer."""

    at_once: int
    new_tokens: int

    @staticmethod
    def of(text: str) -> Load:
        """Of "4x16".

        Raises:
            ValueError: it is not of this form.
        """
        at_once, _, new = text.partition("x")
        if not (at_once.isdigit() and new.isdigit() and int(at_once) and int(new)):
            raise ValueError(f"got the load {text!r}; expected REQUESTSxTOKENS, such as 4x16")
        return Load(int(at_once), int(new))

    def __str__(self) -> str:
        return f"{self.at_once}x{self.new_tokens}"


@dataclass(frozen=True)
class Run:
    """What one load took.

    Attributes:
        first: seconds to a request's first token, their mean.
        further: seconds for each token after it, their mean; None where there is none.
        total: seconds until the last token of all.
        processor: seconds that the engine's process worked, on all its threads.
    """

    first: float
    further: float | None
    total: float
    processor: float


def write_model(config: Any, folder: Path) -> None:
    """Random weights of a LLaVA, with the names of the hub, and a processor whose words are w0, w1, ..."""
    model = build(config, "cpu")
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    state = {hub_name(key): value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    image = config.image_token_id
    words = {f"w{i}": i for i in range(config.text_config.vocab_size) if i != image}
    made = Tokenizer(WordLevel({**words, "<image>": image}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    vision = config.vision_config
    size = {"height": vision.image_size, "width": vision.image_size}
    tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tf.PreTrainedTokenizerFast(
            tokenizer_object=made, additional_special_tokens=["<image>"]
        ),
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


class Engine:
    """One vLLM engine in this process, which answers one load after another.

    Args:
        folder: of the model.
        options: vLLM's own.
        longest: tokens of the longest request, with its answer.
        most: requests at once.
    """

    def __init__(self, folder: Path, options: dict[str, Any], longest: int, most: int) -> None:
        from vllm import LLM, SamplingParams  # noqa: PLC0415 - the settings must stand before

        self.params = SamplingParams
        self.random = np.random.default_rng(os.getpid())  # no picture comes twice
        self.side = config_side(folder)
        self.number = 0
        tokens = max(2048, longest * most)
        made = LLM(
            str(folder), dtype="float32", max_model_len=longest, max_num_batched_tokens=tokens, block_size=32,
            limit_mm_per_prompt={"image": 1}, gpu_memory_utilization=0.3, disable_log_stats=True, **options,
        )  # fmt: skip
        self.core = made.llm_engine

    def run(self, load: Load, text: int, method: str | None) -> Run:
        """Answers a load. The clock starts when pictures are processed and the requests are queued."""
        extra = None if method is None else {"foveate": method}
        params = self.params(
            temperature=0, max_tokens=load.new_tokens, ignore_eos=True, detokenize=False, extra_args=extra
        )  # fmt: skip
        for _ in range(load.at_once):
            self.number += 1
            words = " ".join(f"w{i}" for i in self.random.integers(16, 4096, text - 1))
            pixels = self.random.integers(0, 255, (self.side, self.side, 3), dtype=np.uint8)
            given = {
                "prompt": f"w1 <image> {words}",
                "multi_modal_data": {"image": Image.fromarray(pixels)},
            }
            self.core.add_request(str(self.number), given, params)
        begin, worked = time.perf_counter(), time.process_time()
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        while self.core.has_unfinished_requests():
            for output in self.core.step():
                now = time.perf_counter() - begin
                first.setdefault(output.request_id, now)
                last[output.request_id] = now
        done = time.process_time() - worked
        further = None
        if load.new_tokens > 1:
            steps = load.new_tokens - 1
            further = float(np.mean([(last[name] - first[name]) / steps for name in first]))
        return Run(float(np.mean(list(first.values()))), further, max(last.values()), done)


def config_side(folder: Path) -> int:
    """Pixels of the side of the pictures that the model takes."""
    said: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return int(said["vision_config"]["image_size"])


def serve(pipe: Any, folder: Path, name: str, longest: int, most: int, threads: int) -> None:
    """A process with one engine: it answers loads from the pipe until it gets None."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_USE_V2_MODEL_RUNNER="0",
        VLLM_PLUGINS="" if name in (PLAIN, DEFAULTS) else "foveate",
    )  # fmt: skip
    import torch  # noqa: PLC0415 - as above

    torch.set_num_threads(threads)
    try:
        engine = Engine(folder, ENGINES[name], longest, most)
        torch.set_num_threads(threads)  # vLLM has set its own
        pipe.send(None)
        while (asked := pipe.recv()) is not None:
            pipe.send(engine.run(*asked))
    except Exception as error:  # the other process says it, and goes on without this engine
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


@contextmanager
def engines(
    folder: Path, loads: list[Load], setting: Setting, config: Any, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Pipes to processes, each with one engine. ValueError where one fails to start."""
    context = get_context("spawn")
    visual = plan.request(config, text=setting.text, images=1, new_tokens=1).visual
    longest = setting.text + visual + max(load.new_tokens for load in loads) + 1
    most = max(load.at_once for load in loads)
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    started = {}
    try:
        for name in names:
            pipe, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(theirs, folder, name, longest, most, setting.threads)
            )
            process.start()
            started[name] = (process, pipe)
            if (failed := pipe.recv()) is not None:
                raise ValueError(f"the engine {name!r} could not be started: {failed}")
        yield {name: pipe for name, (_, pipe) in started.items()}
    finally:
        for process, pipe in started.values():
            if process.is_alive():
                pipe.send(None)
            process.join(30)
            process.terminate()


def contestants(pipes: dict[str, Any], load: Load, text: int) -> dict[str, Callable[[], Run]]:
    """Who runs a load, by name."""

    def run(name: str, method: str | None) -> Run:
        pipes[name].send((load, text, method))
        found = pipes[name].recv()
        if not isinstance(found, Run):
            raise RuntimeError(f"the engine {name!r} ended: {found}")
        return found

    found = {
        name: partial(run, name, None) for name in (PLAIN, AGAIN, LOADED, NONE, DEFAULTS, BEFORE)
    }
    found[AGAIN] = partial(run, PLAIN, None)
    found |= {method: partial(run, NONE, method) for method in METHODS}
    needed = {AGAIN: PLAIN, **dict.fromkeys(METHODS, NONE)}
    return {name: one for name, one in found.items() if needed.get(name, name) in pipes}


def caps_of(config: Any, sizes: Architecture, load: Load, text: int) -> dict[str, dict[str, float]]:
    """Of each contestant that prunes: how much faster "first", "further" and "total" can be, ranking aside.

    That of the total is the ratio of all FLOPs. A step reads all weights for few rows, so it takes longer than
    its FLOPs say, and a gain in the prefill counts less than that.
    """
    asked = plan.request(
        config, text=text, images=1, new_tokens=load.new_tokens, batch=load.at_once
    )
    whole = plan.cost_of(sizes, asked).flops
    out = {}
    for name, method in SPECS.items():
        kept = [float(count) for count in plan.kept(sizes, asked, [method])]
        found = caps(sizes, asked, sizes.vision_flops(asked.pictures), kept, kept)
        if load.new_tokens == 1:
            del found["further"]
        out[name] = {**found, "total": whole / plan.cost_of(sizes, asked, [method]).flops}
    return out


def identity(setting: Setting) -> dict[str, Any]:
    """What a file of rows is of."""
    visual = plan.request(
        config_of(setting.shape), text=setting.text, images=1, new_tokens=1
    ).visual
    return {
        "setting": asdict(setting),
        "visual": visual,
        "processors": os.cpu_count(),
        "versions": {**versions(), **vllm_version()},
    }


def vllm_version() -> dict[str, str]:
    """vLLM's package and its version.

    Raises:
        ValueError: vLLM is not installed.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return {name: version(name)}
        except PackageNotFoundError:
            continue
    raise ValueError("vLLM is not installed; expected its environment: make results-serving")


def write(body: dict[str, Any], save: Path) -> None:
    """Puts the rows on disk, whole or not at all."""
    part = save.with_suffix(".part")
    write_text(part, json.dumps(body, indent=1) + "\n")
    part.replace(save)


def run(
    loads: list[Load],
    repeats: int,
    setting: Setting,
    save: Path,
    groups: Sequence[Sequence[str]] = GROUPS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures the turns that `save` lacks, each on disk when it is done."""
    body = opened(save, identity(setting))
    rows = {row["load"]: row for row in body["rows"]}
    config = config_of(setting.shape)
    sizes = architecture(config, "float32")
    for load in loads:
        if str(load) not in rows:
            most = caps_of(config, sizes, load, setting.text)
            rows[str(load)] = {"load": str(load), "against": AGAINST, "caps": most, "turns": []}
            body["rows"].append(rows[str(load)])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for group in groups:
            todo = [one for one in loads if len(done(rows[str(one)], group)) < repeats]
            if not todo:
                continue
            if not any(folder.iterdir()):
                write_model(config, folder)
            with engines(folder, todo, setting, config, group) as pipes:
                for load in todo:
                    row = rows[str(load)]
                    lineup = list(contestants(pipes, load, setting.text).items())
                    for _, one in lineup:  # a warm-up
                        one()
                    while (turn := len(done(row, group))) < repeats:
                        order = lineup[turn % len(lineup) :] + lineup[: turn % len(lineup)]
                        busy = os.getloadavg()[0]
                        runs = {name: asdict(one()) for name, one in order}
                        row["turns"].append({"machine": busy, "runs": runs})
                        write(body, save)
                        say(f"{load}: turn {turn + 1} of {repeats}, machine's load {busy:.1f}")
    return body


def done(row: dict[str, Any], group: Sequence[str]) -> list[dict[str, Any]]:
    """The turns of a row that a group of engines ran; its last engine is in no other group."""
    return [turn for turn in row["turns"] if group[-1] in turn["runs"]]


def main(
    load: Annotated[
        list[str] | None,
        typer.Option(help=f"REQUESTSxTOKENS. May be repeated. By default {', '.join(LOADS)}."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each load.")] = 5,
    shape: Annotated[str, typer.Option(help="As `foveate bench` takes it.")] = Setting.shape,
    text: Annotated[
        int, typer.Option(min=2, help="Prompt tokens that are not visual.")
    ] = Setting.text,
    threads: Annotated[int, typer.Option(min=1)] = Setting.threads,
    defaults: Annotated[
        bool, typer.Option(help="Also vLLM's defaults, and the way before beside them.")
    ] = True,
    save: Annotated[Path, typer.Option(help="JSON of the turns; given again, it goes on.")] = SAVE,
) -> None:
    """Measures what docs/serving-speed.md shows."""
    try:
        loads = [Load.of(one) for one in load or LOADS]
        groups = GROUPS if defaults else GROUPS[:1]
        run(loads, repeats, Setting(shape, text, threads), save, groups)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
