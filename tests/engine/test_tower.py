"""What scores see of the vision tower equals transformers' own eager attention; and refusals."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, SiglipVisionConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as home

import foveate
from foveate.core.contract import Needs, Score
from foveate.core.method import Method
from foveate.core.scores import Even
from foveate.engine.tower.form import TowerForm, known_tower
from foveate.engine.tower.watch import Watch
from foveate.methods import divprune, flowcut, parse, tome, visionzip
from models.families import model as family
from models.prompts import prompt, together
from models.tiny import FAMILIES, NEWEST, PATCHES, Layout, batch, llava, model
from oracles.layouts import LAYOUTS, TOLERANCE, hooks

LAYOUT = Layout(((3, 0, 2, 0, 4), (5,), (2, 0, 0, 3)), seed=3)


class Looking(Score):
    """A score that looks at layers of the tower and keeps all."""

    own = Needs(tower=(None, 0, 0.5))

    def __call__(self, view: foveate.View, counts: Tensor) -> Tensor:
        return Even()(view, counts)


def seen(made: Any, data: Any, **options: Any) -> foveate.View:
    """The view of the prefill, with what the tower gives already read."""
    found: list[foveate.View] = []

    def spy(view: foveate.View) -> Tensor:
        if not view.layer and not view.step:
            found.append(view)
            for layer in (None, 0):
                (
                    view.tower.attention(layer),
                    view.tower.keys(layer),
                    view.tower.values(layer),
                    view.tower.states(layer),
                )
        return view.alive

    with torch.no_grad(), foveate.apply(made, Method(Looking(), spy)):
        made.generate(**data.inputs, max_new_tokens=1, do_sample=False, **options)
    return found[0]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_has_what_eager_attention_gives_its_patch(family: str, beams: int) -> None:
    alone = beams > 1 and not NEWEST  # there, beams mix up the images of a sample that has several
    made, data = model(family), batch(family, LAYOUTS["left"] if alone else LAYOUT)
    view, far = seen(made, data, num_beams=beams), 0
    for row in range(view.visual.shape[0]):
        embeds, at = data.embeds[row // beams], data.columns[row // beams]
        for place, column in enumerate(view.visual[row][view.mask[row]].tolist()):
            patch = PATCHES.get(embeds[column - at.start].numpy().tobytes())
            assert bool(view.tower.known()[row, place]) == (patch is not None)
            for layer, index in ((None, 1), (0, 0)):
                got = [
                    view.tower.attention(layer)[row, place].mean(),
                    view.tower.keys(layer)[row, place].mean(0),
                    view.tower.values(layer)[row, place],
                    view.tower.states(layer)[row, place],
                ]
                zero = [torch.zeros_like(part) for part in got]
                want = (
                    zero
                    if patch is None
                    else [torch.tensor(part[index]) for part in vars(patch).values()]
                )
                for a, b in zip(got, want, strict=True):
                    torch.testing.assert_close(
                        a, b.float(), atol=TOLERANCE[torch.float32], rtol=1e-3
                    )
            far += patch is not None
    assert far > 50


def test_nothing_is_kept_where_no_score_asks() -> None:
    made, data = model("llava"), batch("llava", LAYOUT)
    with torch.no_grad():
        made(**data.inputs)  # transformers puts hooks of its own on the tower in its first forward
    plain = hooks(made.model.vision_tower) + hooks(made.model.multi_modal_projector)
    with torch.no_grad(), foveate.apply(made, divprune(keep=0.5)):
        assert hooks(made.model.vision_tower) + hooks(made.model.multi_modal_projector) == plain
    with torch.no_grad(), foveate.apply(made, flowcut(keep=0.5)):
        assert hooks(made.model.vision_tower) > 0
        made(**data.inputs)
    assert hooks(made.model.vision_tower) + hooks(made.model.multi_modal_projector) == plain


def siglip() -> Any:
    """A tower without [CLS]."""
    config = llava()
    config.vision_config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    config.vision_feature_select_strategy = "full"
    return config


def test_without_a_summary_rows_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "llava/siglip", siglip)
    made, eager = model("llava/siglip"), model("llava/siglip", "eager")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, *[63] * 16, 4], [5, *[63] * 16, 6]])
    with torch.no_grad():
        want = eager.model.vision_tower(pixels, output_attentions=True).attentions
        data = SimpleNamespace(inputs={"input_ids": ids, "pixel_values": pixels})
        view = seen(made, data)
    for layer in (0, 1):
        torch.testing.assert_close(
            view.tower.attention(layer), want[layer].mean(2).transpose(1, 2), atol=1e-5, rtol=1e-4
        )


VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "window_size": 16,
    "fullatt_block_indexes": [1], "out_hidden_size": 32, "in_channels": 3, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
TEXT = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 32,
}  # fmt: skip


def test_windows_and_merged_patches() -> None:
    """Qwen's tower: packed images, windows, rotated keys, and a token for every 2x2 patches."""
    torch.manual_seed(2)
    body = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=VISION, text_config=TEXT)
    ).model
    body.visual.set_attn_implementation("eager")
    looked: list[list[Tensor]] = [[], []]
    form = known_tower(body)
    assert form.packed and not form.summary and form.last == 1
    spies = [spied(block.attn, looked[i]) for i, block in enumerate(body.visual.blocks)]
    watch = Watch(form, {0, 1})
    handles = watch.attach()
    grid = torch.tensor([[1, 8, 12], [1, 4, 4]])
    with torch.no_grad():
        tokens = body.visual(torch.randn(112, 96), grid_thw=grid).pooler_output
    for undo in (*spies, *(handle.remove for handle in handles)):
        undo()
    embeds, visual = torch.zeros(2, 30, 32), torch.zeros(2, 30, dtype=torch.bool)
    visual[0, 4:28] = visual[1, 2:6] = True
    embeds[visual] = tokens
    spent: list[float] = []
    outputs = watch.outputs(embeds, visual, 0, spent.append)
    assert outputs is not None
    index = torch.arange(30).expand(2, -1)
    windows = [piece.shape[-1] for piece in looked[0]]
    assert len(set(windows)) > 1 or len(windows) > 2
    for layer in (0, 1):
        # the mean over rows, each piece's over the longest; then over the patches of each token, in the tower's order
        longest = max(piece.shape[-1] for piece in looked[layer])
        received = (
            torch.cat([piece[0].sum(1).T / longest for piece in looked[layer]])
            .view(-1, 4, 2)
            .mean(1)
        )
        merged = watch.runs[0].tokens
        assert merged is not None
        got = outputs.look("attention", layer, index)[visual]
        for token, value in zip(tokens, got, strict=True):
            place = int((merged == token).all(1).nonzero()[0])
            torch.testing.assert_close(value, received[place], atol=1e-5, rtol=1e-4)
    assert outputs.look("keys", 1, index).shape == (2, 30, 2, 16)
    assert sum(spent) > 0


def spied(attention: Any, into: list[Tensor]) -> Any:
    """Collects the weights that eager attention computes in a module; returns how to undo it."""
    plain = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        inner = home.eager_attention_forward

        def noting(*a: Any, **k: Any) -> Any:
            out, weights = inner(*a, **k)
            into.append(weights)
            return out, weights

        home.eager_attention_forward = noting
        try:
            return plain(*args, **kwargs)
        finally:
            home.eager_attention_forward = inner

    attention.forward = forward
    return lambda: setattr(attention, "forward", plain)


def test_shuffled_pixels_and_kept_summaries_find_their_patches() -> None:
    form = TowerForm(nn.ModuleList(), 0, nn.Identity(), True, False)
    squares = form.patches(32, 8, 2).tolist()
    assert (
        squares[0] == [0, 1, 4, 5]
        and squares[3] == [10, 11, 14, 15]
        and squares[4] == [16, 17, 20, 21]
    )
    assert form.patches(8, 10, 2)[:, 0].tolist() == [-1, 0, 1, 2, 3, -1, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="neither a token a patch"):
        form.patches(32, 6, 2)


def test_refusals_say_why() -> None:
    made, data = model("llava"), batch("llava", LAYOUT)
    with pytest.raises(ValueError, match="not of a form"):
        known_tower(
            SimpleNamespace(
                vision_tower=nn.Linear(2, 2), multi_modal_projector=nn.Linear(2, 2), config=None
            )
        )
    with pytest.raises(ValueError, match="layers 0 to 1"):
        known_tower(made.model).index(2)
    features = made.model.get_image_features(pixel_values=data.inputs["pixel_values"])
    rest = {k: v for k, v in data.inputs.items() if k != "pixel_values"}
    with (
        torch.no_grad(),
        foveate.apply(made, visionzip()),
        pytest.raises(ValueError, match="no image went through"),
    ):
        made(**rest, mm_encoder_outputs={"image": features})
    with torch.no_grad(), foveate.apply(made, visionzip()):
        made(**data.inputs)
        features.pooler_output = [f + 1 for f in features.pooler_output]
        with pytest.raises(ValueError, match="not what the projector gave out"):
            made(**rest, mm_encoder_outputs={"image": features})


def test_images_of_a_sample_decide_apart() -> None:
    """Each keeps its own share, whatever stands beside it."""
    made = model("llava")
    data = batch("llava", Layout(((3, 0, 2, 0, 4),), seed=6))
    kept: list[list[int]] = []

    def spy(view: foveate.View) -> None:
        if view.layer == 1:
            kept.append(view.tokens.image.gather(1, view.visual)[0].bincount().tolist())

    for method in (visionzip(keep=0.25), visionzip(keep=5), tome(keep=0.5)):
        with torch.no_grad(), foveate.apply(made, method, watch=spy):
            made(**data.inputs)
    assert kept == [[4, 4], [5, 5], [8, 8]]


def test_a_score_serves_whatever_a_schedule_wants() -> None:
    """Under another's schedule, an image's share of what that wants is chosen as the score's own would be."""
    made, data = model("llava"), batch("llava", Layout(((3, 0, 2, 0, 4), (5, 0, 1)), seed=6))
    kept: dict[str, list[list[int]]] = {}

    for spec in ("divprune:keep=0.5", "score=divprune:keep=3,schedule=random:layer=0,keep=0.5"):

        def spy(view: foveate.View, spec: str = spec) -> None:
            if view.layer == 1:
                kept[spec] = [columns.tolist() for columns in view.visual]

        with torch.no_grad(), foveate.apply(made, *parse(spec), watch=spy):
            made(**data.inputs)
    first, second = kept.values()
    assert first == second and len(first[0]) == 16


@pytest.mark.parametrize("segments", [(3, "v", 2), (3, "v", 2, "a", 5)])
def test_a_pooled_videos_tokens_have_the_mean_of_what_they_pool(segments: tuple[Any, ...]) -> None:
    made = family("llava_onevision")
    eager = copy.deepcopy(made)
    eager.set_attn_implementation("eager")
    inputs = together([prompt("llava_onevision", segments, 1)])
    frames = inputs["pixel_values_videos"]
    with torch.no_grad():
        looked = eager.model.vision_tower(frames.flatten(0, 1), output_attentions=True).attentions
    view = seen(made, SimpleNamespace(inputs=inputs))
    side = int(looked[-1].shape[-1] ** 0.5)
    received = looked[-1].mean(2)  # by all rows of a frame (F H P)
    pooled = torch.nn.functional.avg_pool2d(received.unflatten(2, (side, side)), 2)
    want = pooled.flatten(2).transpose(1, 2).flatten(0, 1)  # (F p) H
    got = view.tower.attention(None)[0]
    torch.testing.assert_close(got[: len(want)], want, atol=1e-5, rtol=1e-4)
    assert view.tower.known()[0, : len(want)].all() and not view.tower.known()[0, len(want)]
    if "a" in segments:
        assert view.tower.known()[0, len(want) + 1 :].any()
