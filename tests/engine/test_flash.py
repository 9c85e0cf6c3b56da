"""transformers' own flash path around kernels in Python; no GPU kernel is run here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash_utils
from torch import Tensor
from transformers import DynamicCache

import foveate
from foveate.core.method import Method
from foveate.core.schedules import Cut
from foveate.core.scores import LastQuery
from foveate.methods import fastv, random, vtw
from models.families import model as family
from models.prompts import prompt, together
from models.tiny import IMAGE, NEWEST, VIDEO, Layout, batch, held, model
from oracles.cases import METHODS

CLOSE = {"atol": 2e-4, "rtol": 1e-3}


class Flash:
    """Flash attention's two kernels, in Python: what they compute, not how."""

    def __init__(self) -> None:
        self.called: list[str] = []

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        products = torch.einsum("qhd,khd->hqk", q, k) * scale
        if causal and len(q) > 1:
            own = torch.arange(len(q))[:, None] + len(k) - len(q)
            products = products.masked_fill(torch.arange(len(k))[None] > own, -torch.inf)
        return torch.einsum("hqk,khd->qhd", products.softmax(-1), v)

    def dense(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float = 1.0,
        causal: bool = False,
        **_: Any,
    ) -> Tensor:
        self.called.append("dense")
        rows = zip(q, k, v, strict=True)
        return torch.stack([self.attend(a, b, c, causal, softmax_scale) for a, b, c in rows])

    def ragged(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor,
        softmax_scale: float = 1.0, causal: bool = False, **_: Any,
    ) -> Tensor:  # fmt: skip
        self.called.append("ragged")
        out = torch.zeros_like(q)
        for a, b, c, d in zip(
            cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False
        ):
            if b > a:
                out[a:b] = self.attend(q[a:b], k[c:d], v[c:d], causal, softmax_scale)
        return out


def emulated(made: Any, monkeypatch: pytest.MonkeyPatch) -> Flash:
    """Puts the decoder, and it alone, on flash attention."""
    flash = Flash()
    kernels = (flash.dense, flash.ragged, None, flash_utils._pad_input, flash_utils._unpad_input)
    process = flash_utils._lazy_define_process_function(flash.dense)
    loaded = (kernels, (process, None) if NEWEST else process)
    monkeypatch.setattr(flash_utils, "lazy_import_flash_attention", lambda *_, **__: loaded)
    config = made.model.language_model.config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    return flash


@pytest.mark.parametrize(
    "method",
    [random(layer=1, keep=0.5), fastv(layer=1, keep=0.25), vtw(2), Method(LastQuery(), Cut(2, 5))],
)
@pytest.mark.parametrize("samples", [1, 2])
def test_emulated_flash_attention_equals_sdpa_in_every_turn(
    method: Method, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model("llava")
    layouts = Layout(((3, 0, 5), (2, 0, 2))[:samples]), Layout(((2, 0, 4),) * samples, seed=4)
    turns = [batch("llava", layout).inputs for layout in layouts]

    def talk() -> list[Tensor]:
        cache, out, mask = (
            DynamicCache(config=made.config),
            [],
            torch.ones(samples, 0, dtype=torch.long),
        )
        with torch.no_grad(), foveate.apply(made, method):
            for turn in turns:
                mask = torch.cat([mask, turn["attention_mask"]], 1)
                given = {"input_ids": turn["input_ids"], "pixel_values": turn["pixel_values"]}
                out.append(made(**given, attention_mask=mask, **held(cache)).logits[:, -2:])
            mask = torch.cat([mask, mask[:, -1:]], 1)
            word = torch.full((samples, 1), 7)
            out.append(made(input_ids=word, attention_mask=mask, **held(cache)).logits)
        return out

    wanted = talk()
    flash = emulated(made, monkeypatch)
    found = talk()
    assert flash.called
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("method", [random(layer=0, keep=0.5), METHODS["decay"][0].method])
def test_emulated_flash_attention_with_positions_in_time_height_and_width(
    method: Method, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M-RoPE: positions that stand still within a picture must not be taken for packed sequences."""
    made = family("qwen2_5_vl")
    segments = ((3, "a", 5), (2, "b", 2, "a", 1))[:samples]
    inputs = together([prompt("qwen2_5_vl", row, seed) for seed, row in enumerate(segments)])

    def answer() -> Tensor:
        with foveate.apply(made, method) as trace:
            out = made.generate(
                **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True,
                suppress_tokens=[IMAGE, VIDEO],
            )  # fmt: skip
        assert trace.mean_kept() < 1
        return torch.stack(out.logits)

    wanted = answer()
    flash = emulated(made, monkeypatch)
    torch.testing.assert_close(answer(), wanted, **CLOSE)
    assert ("ragged" in flash.called) == (
        samples == 2
    )  # once padding has left the caches, decode steps are dense
