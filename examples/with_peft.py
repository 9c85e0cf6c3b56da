"""PEFT: a model with a LoRA adapter is a model; apply methods to it, or train the adapter under one.

Run it: pip install peft, then: python examples/with_peft.py
"""

import torch
from peft import LoraConfig, get_peft_model

import foveate
from foveate.methods import divprune

PICTURE = "examples/scene.png"


def main() -> None:
    """Trains an adapter for three steps on pruned prompts, then answers with it."""
    torch.manual_seed(0)
    loaded = foveate.load("scenes")
    lora = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    model = get_peft_model(loaded.model, lora)
    loaded = foveate.Loaded(model, loaded.processor)
    method = divprune(keep=0.25).weighted()

    inputs = loaded.inputs([PICTURE], "what color is the ring?")
    answer = loaded.tokenizer("blue", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    labels = ids.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100  # only the answer is learned
    given = {"input_ids": ids, "pixel_values": inputs["pixel_values"], "labels": labels}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(3):
        with foveate.apply(model, method):
            loss = model(**given).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.5f}")

    with foveate.apply(model.eval(), method), torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=4)
    print(loaded.decode(out[0, inputs["input_ids"].shape[1] :]))


if __name__ == "__main__":
    main()
