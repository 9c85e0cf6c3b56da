"""Speed of random-weight models: contestants in turn, ratios within each turn, each beside what it could be at best.

Random weights answer as fast as trained ones, so no weights are needed. Greedy, and no answer ends early.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from ..core.method import Method
from ..cost.architecture import Architecture
from ..cost.flops import cost_of_counts
from ..cost.pictures import ANYRES, Size
from ..cost.plan import Request
from ..cost.roofline import hard_cap, read_by
from ..cost.vision import vision_flops
from ..engine.trace import Trace
from ..methods import as_methods
from .clock import Timed, generate_timed

T = TypeVar("T")
SLACK = 1.03  # a ratio this far above its cap is a measurement error
PLAIN = "plain"
AGAIN = "plain again"
KEEP_ALL = "keep-all"
STATIC = ", static + compiled"  # of a contestant whose decode step is compiled
GRAPHS = 64  # that one race may compile; torch's own limit of 8 would let the later contestants run uncompiled


def build(
    config: Any, device: str, dtype: str = "float32", attention: str = "sdpa", seed: int = 0
) -> Any:
    """A model of random weights, made on the device itself, whose answers do not end.

    Raises:
        ValueError: a dtype that torch does not know, or an attention backend that is not installed.
    """
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}; expected float32, bfloat16 or float16")
    torch.manual_seed(seed)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                config, dtype=kind, attn_implementation=attention
            )
    except ImportError as error:
        raise ValueError(f"attention {attention!r} cannot be used here: {error}") from error
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def inputs(
    config: Any, asked: Request, model: Any, size: Size | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """A batch of prompts with the request's pictures in the middle of its text, of random pixels and words.

    Args:
        config: of the model.
        asked: what runs; its pictures are alike.
        model: tells device and dtype.
        size: (width, height) of each picture, where the request was made with one.
        seed: of words and pixels.
    """
    torch.manual_seed(seed)
    begin, end = (getattr(config, f"vision_{side}_token_id", None) for side in ("start", "end"))
    image: list[int] = []
    for picture in asked.pictures:
        tokens = [int(config.image_token_id)] * picture.tokens
        image += tokens if begin is None or end is None else [begin, *tokens, end]
    words = _words(config, asked.batch, asked.text - (len(image) - asked.visual))
    half = words.shape[1] // 2
    middle = torch.tensor(image, dtype=torch.long, device="cpu").expand(asked.batch, -1)
    ids = torch.cat([words[:, :half], middle, words[:, half:]], 1).long()
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **_pixels(config, asked, size),
    }
    if "image_grid_thw" in given:
        given["mm_token_type_ids"] = (ids == config.image_token_id).int()
    moved = {name: value.to(model.device) for name, value in given.items()}
    return {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in moved.items()}


def _words(config: Any, batch: int, count: int) -> Tensor:
    """Random words, none of which the configuration names as special."""
    if count < 1:
        raise ValueError(
            "the prompt has no room for words beside what surrounds the pictures; give more prompt tokens"
        )
    special = {
        value
        for name, value in config.to_dict().items()
        if name.endswith(("token_id", "token_index"))
    }
    plain = torch.tensor(
        [i for i in range(16, min(4096, config.get_text_config().vocab_size)) if i not in special],
        dtype=torch.long,
        device="cpu",
    )
    return plain[torch.randint(len(plain), (batch, count), device="cpu")]


def _pixels(config: Any, asked: Request, size: Size | None) -> dict[str, Tensor]:
    vision = config.vision_config
    first = asked.pictures[0]
    many = asked.batch * len(asked.pictures)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is not None and size is not None:
        unit = vision.patch_size * merge
        wide, high = (max(1, round(side / unit)) * merge for side in size)
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, high, wide]] * many, dtype=torch.long, device="cpu")
        return {
            "pixel_values": torch.randn(
                many * first.tiles[0], values, dtype=torch.float32, device="cpu"
            ),
            "image_grid_thw": grid,
        }
    side = vision.image_size[0] if isinstance(vision.image_size, Sequence) else vision.image_size
    if config.model_type in ANYRES and size is not None:
        tiles = torch.randn(
            many, len(first.tiles), 3, side, side, dtype=torch.float32, device="cpu"
        )
        return {
            "pixel_values": tiles,
            "image_sizes": torch.tensor(
                [[size[1], size[0]]] * many, dtype=torch.long, device="cpu"
            ),
        }
    if getattr(config, "scale_factor", None):
        return {
            "pixel_values": torch.randn(
                asked.batch,
                len(asked.pictures) * len(first.tiles),
                3,
                side,
                side,
                dtype=torch.float32,
                device="cpu",
            )
        }
    return {
        "pixel_values": torch.randn(
            many * len(first.tiles), 3, side, side, dtype=torch.float32, device="cpu"
        )
    }


def in_turn(
    runs: Mapping[str, Callable[[], T]],
    repeats: int,
    tick: Callable[[], None] | None = None,
    warm_up: int = 1,
) -> dict[str, list[T]]:
    """Every contestant `repeats` times, all once in each turn after a warm-up; the order rotates from turn to turn.

    Args:
        runs: contestants by name.
        repeats: turns that count.
        tick: called after every run.
        warm_up: turns before them, whose results are thrown away; 0 where all have run already.
    """
    order = list(runs.items())
    found: dict[str, list[T]] = {name: [] for name in runs}
    for turn in range(repeats + warm_up):
        gc.collect()
        for name, run in order[turn % len(order) :] + order[: turn % len(order)]:
            done = run()
            if turn >= warm_up:
                found[name].append(done)
            if tick is not None:
                tick()
    return found


def faster(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median of the ratios within turns: how many times faster `ours` is."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


@dataclass
class Found:
    """What was measured of one contestant. Times in seconds, medians; ratios are times faster than `against`.

    Attributes:
        first: time to the first token (tower, prefill, head).
        further: per token after it.
        throughput: new tokens per second of the whole batch.
        ratio: "first", "further" and "total" times faster.
        cap: what these cannot pass on any device. "total" cannot pass the larger of the other two.
        exceeded: which of them do, by more than the noise that `SLACK` allows: measurement errors.
        memory: peak bytes on the GPU beyond what was held before, or None on a CPU.
        kept: visual tokens per layer of the prefill, mean over samples.
        last: those at the last step.
        against: the plain contestant of the same kind, its cache dynamic or static.
    """

    first: float
    further: float
    throughput: float
    ratio: dict[str, float]
    cap: dict[str, float] = field(default_factory=dict)
    exceeded: list[str] = field(default_factory=list)
    memory: float | None = None
    kept: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    against: str = PLAIN


def race(
    model: Any,
    sizes: Architecture,
    asked: Request,
    given: dict[str, Tensor],
    methods: Mapping[str, Sequence[Method | str]],
    repeats: int,
    tick: Callable[[], None] | None = None,
    static: Collection[str] = (),
) -> dict[str, Found]:
    """Times plain transformers (its own cache, no hook), itself again for the noise, the engine alone, and methods.

    Args:
        model: from `build`.
        sizes: of the model, for caps.
        asked: what runs.
        given: from `inputs`.
        methods: contestants by name.
        repeats: timed turns.
        tick: called after every run.
        static: who also runs with a static cache and a compiled decode step: `PLAIN`, and names of
            methods. Methods that decide while decoding do not.
    """
    lineup = contestants(methods, len(sizes.shapes.layers), static)
    peaks: dict[str, float] = {}

    def runner(name: str, chosen: Sequence[Method | str] | None) -> Callable[[], Timed]:
        def run() -> Timed:
            before = _reset_peak(model.device)
            fixed = name.endswith(STATIC)
            timed = generate_timed(model, given, chosen, asked.new_tokens, static=fixed)
            if before is not None:
                peaks[name] = torch.cuda.max_memory_allocated(model.device) - before
            return timed

        return run

    with torch._dynamo.config.patch(recompile_limit=GRAPHS):
        times = in_turn(
            {name: runner(name, chosen) for name, chosen in lineup.items()}, repeats, tick
        )
    tower = vision_flops(model, given) / asked.batch
    found = {}
    for name, runs in times.items():
        against = PLAIN + STATIC if name.endswith(STATIC) else PLAIN
        found[name] = _found(sizes, asked, runs, times[against], tower, peaks.get(name))
        found[name].against = against
    return found


def contestants(
    methods: Mapping[str, Sequence[Method | str]], layers: int, static: Collection[str]
) -> dict[str, Sequence[Method | str] | None]:
    """Who runs in a race; None is plain transformers.

    Args:
        methods: by name.
        layers: of the decoder.
        static: as for `race`.
    """
    lineup: dict[str, Sequence[Method | str] | None] = {
        PLAIN: None,
        AGAIN: None,
        KEEP_ALL: [],
        **methods,
    }
    early = [
        name
        for name, chosen in methods.items()
        if not any(method.decides_later(layers) for method in as_methods(tuple(chosen)))
    ]
    fixed = [name for name in (PLAIN, *early) if name in static]
    return lineup | {name + STATIC: lineup[name] for name in fixed}


def _reset_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return float(torch.cuda.memory_allocated(device))


def _found(
    sizes: Architecture,
    asked: Request,
    runs: Sequence[Timed],
    plain: Sequence[Timed],
    tower: float,
    peak: float | None,
) -> Found:
    def total(timed: Timed) -> float:
        return timed.first + (
            timed.further * (asked.new_tokens - 1) if asked.new_tokens > 1 else 0.0
        )

    first = [t.first for t in runs]
    further = [t.further for t in runs]
    ratio = {"first": faster([t.first for t in plain], first)}
    if asked.new_tokens > 1:
        ratio["further"] = faster([t.further for t in plain], further)
    ratio["total"] = faster([total(t) for t in plain], [total(t) for t in runs])
    every = statistics.median(total(t) for t in runs)
    speed = asked.batch * asked.new_tokens / every
    out = Found(statistics.median(first), statistics.median(further), speed, ratio, memory=peak)
    if runs[0].trace is not None:
        out.kept, out.last = counts(runs[0].trace, 0), counts(runs[0].trace, -1)
        most = caps(sizes, asked, tower, out.kept, out.last)
        out.cap = {part: most[part] for part in ("first", "further") if part in ratio}
        out.cap["total"] = max(out.cap.values())
        out.exceeded = [part for part, most in out.cap.items() if ratio[part] > SLACK * most]
    return out


def counts(trace: Trace, call: int) -> list[float]:
    """Visual tokens per layer in one forward, mean over samples."""
    fresh, cached = trace.whole()[call].visual(trace.layers)
    return (fresh + cached).double().mean(1).tolist()


def caps(
    sizes: Architecture, asked: Request, tower: float, kept: Sequence[float], last: Sequence[float]
) -> dict[str, float]:
    """What the time to the first token, and that of a step, can gain on any device; ranking is taken to be free.

    Args:
        sizes: of the model.
        asked: what runs.
        tower: FLOPs of a sample's pictures, from `vision.vision_flops`.
        kept: visual tokens per layer in the prefill.
        last: those in the last step, when the fewest are left.
    """
    layers = sizes.shapes.layers
    kinds = set(layers)
    if len(kinds) == 1:
        return _caps(sizes, asked, tower, kept, last)
    # Where layers differ, as in a mixture whose first are dense, some may be held back by compute and others by bytes.
    # All together gain no more than the kind that gains the most; what both runs share could only lower it.
    found = []
    for kind in kinds:
        at = [index for index, layer in enumerate(layers) if layer == kind]
        part = replace(
            sizes, shapes=replace(sizes.shapes, layers=(kind,) * len(at), head=0), vision=0
        )
        found.append(_caps(part, asked, 0.0, [kept[i] for i in at], [last[i] for i in at]))
    return {name: max(one[name] for one in found) for name in found[0]}


def _caps(
    sizes: Architecture, asked: Request, tower: float, kept: Sequence[float], last: Sequence[float]
) -> dict[str, float]:
    """As `caps`, of layers that are all alike."""
    whole = [asked.visual] * len(kept)

    def flops(counts: Sequence[float], step: bool) -> float:
        text = asked.text + (asked.new_tokens - 2 if step else 0)
        one, two = (
            cost_of_counts(
                sizes.shapes, counts, text=text, new_tokens=new, visual=asked.visual, tower=tower
            )
            for new in (1, 2)
        )
        return two.flops - one.flops if step else one.flops

    out = {}
    for name, counts, step in (("first", kept, False), ("further", last, True)):
        read = [
            read_by(sizes, asked, c, step) + (0 if step else sizes.vision) for c in (whole, counts)
        ]
        out[name] = hard_cap((flops(whole, step), flops(counts, step)), read[0], read[1])
    return out
