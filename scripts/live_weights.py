#!/usr/bin/env python3
"""Write a shipped model's weights as a script, for the figure that runs it in the page.

    python scripts/live_weights.py weights.js

The file has to be small, so it is not exact. The layer that draws a patch has 320,000 weights;
what it draws lies, nearly, in the span of 32 patches, and two thin layers do its work. Every
matrix is then rounded to 91 levels a row, one character each, which gzip makes smaller still.
`shrink` also gives the model of PyTorch that has the rounded weights: the page's model is tested
against it, and it is tested against the shipped one.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.models.autoencoder import SlotAttentionAutoEncoder
from slot_attention_nbdev.nn.frames import split_frames

MODEL = "tetrominoes_small"
RANK = 32  # patches that the others are made of
LEVELS = 45  # on either side of zero
# printable characters but for the quote and the backslash, which would be written as two
LETTERS = [chr(code) for code in range(35, 127) if chr(code) != "\\"]
PATCH = "decoder.patch.5"


def factors(model: SlotAttentionAutoEncoder) -> tuple[Tensor, Tensor, Tensor]:
    "The last layer of the patches as two thin ones, [R, 256] and [S, R], and its new bias [S]."
    images = to_model(evaluation_scenes("tetrominoes", 160)["image"])
    slots = model(images, generator=generator(0, "live weights")).slots
    patches = model.decoder.patch(split_frames(slots)[0].flatten(0, 1))
    layer, mean = model.decoder.patch[-1], patches.mean(0)
    basis = torch.linalg.svd(patches - mean, full_matrices=False)[2][:RANK]  # [R, S]
    return basis @ layer.weight, basis.T, mean + basis.T @ (basis @ (layer.bias - mean))


def short(numbers: list[float], digits: int) -> list[float]:
    "Numbers of a few digits, which take little room."
    return [float(f"{number:.{digits}g}") for number in numbers]


def encode(weight: Tensor) -> tuple[dict, Tensor]:
    "A matrix of rounded rows as it is written, and its values."
    rows = weight.flatten(1)
    steps = short((rows.abs().amax(1).clamp_min(1e-12) / LEVELS).tolist(), 4)
    step = torch.tensor(steps)[:, None]
    whole = (rows / step).round().clamp(-LEVELS, LEVELS)
    text = "".join(LETTERS[int(value) + LEVELS] for value in whole.flatten().tolist())
    written = {"shape": list(weight.shape), "step": steps, "text": text}
    return written, (whole * step).view_as(weight)


@torch.no_grad()
def shrink(model: SlotAttentionAutoEncoder) -> tuple[dict, SlotAttentionAutoEncoder]:
    "What is written for a model, by the names of its weights, and the model that it describes."
    rounded = copy.deepcopy(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    thin, wide, state[f"{PATCH}.bias"] = factors(model)
    del state[f"{PATCH}.weight"]
    state[f"{PATCH}.thin"], state[f"{PATCH}.wide"] = thin, wide
    written = {}
    for name, value in state.items():
        if value.ndim == 2 or value.ndim == 4:
            written[name], state[name] = encode(value)
        else:
            written[name] = short(value.flatten().tolist(), 5)
            state[name] = torch.tensor(written[name]).view_as(value)
    state[f"{PATCH}.weight"] = state.pop(f"{PATCH}.wide") @ state.pop(f"{PATCH}.thin")
    rounded.load_state_dict(state)
    return written, rounded


def script() -> str:
    "The weights as a script that a page loads, from a folder too."
    written, _ = shrink(SlotAttentionAutoEncoder.from_pretrained(MODEL))
    letters = json.dumps("".join(LETTERS))
    weights = json.dumps(written, separators=(",", ":"))
    return f"live.loadWeights({weights},{letters});\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(script(), encoding="utf-8")
