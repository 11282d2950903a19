#!/usr/bin/env python3
"""Measure the controls of the study what_goes_wrong: results/controls.json.

    python scripts/measure_controls.py

Its runs are of models and scenes of half the size. Every other run measures its controls at its
end, and its record keeps them.
"""

import json
import sys
from pathlib import Path

import torch

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_uint8
from slot_attention_nbdev.experiments.what_goes_wrong import HELD_OUT, build, halve
from slot_attention_nbdev.metrics.controls import average_controls, mean_scores, rule_controls
from slot_attention_nbdev.train.checkpoints import source_commit

OUT = Path(__file__).resolve().parent.parent / "results" / "controls.json"


@torch.no_grad()
def study_controls() -> dict:
    "The untrained models of three seeds, and the rules."
    image, label = halve(evaluation_scenes("tetrominoes", HELD_OUT))
    scenes = {"image": to_uint8(image), "label": label}
    untrained = []
    for seed in (0, 1, 2):
        masks = build("plain", seed)(image, generator=generator(0, "look")).masks
        untrained.append({"controls": {"untrained": mean_scores(label, masks)}})
    return average_controls(untrained) | rule_controls(scenes, 4)


def main() -> int:
    record = {"commit": source_commit(), "what_goes_wrong": study_controls()}
    OUT.write_text(json.dumps(record, indent=1) + "\n")
    print(OUT.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
