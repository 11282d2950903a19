#!/usr/bin/env python3
"""Measure the controls of records that were made before runs measured them at their end.

    python scripts/measure_controls.py results/*/*.json
    python scripts/measure_controls.py --study    # those of what_goes_wrong: results/controls.json

The untrained model is built by the record's recipe and seed; the rules see the scenes that the run
held out. A set predictor's own attention needs its weights: only where they ship with the package.
"""

import json
import sys
from functools import cache
from pathlib import Path

import torch

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_uint8
from slot_attention_nbdev.experiments.what_goes_wrong import HELD_OUT, build, halve
from slot_attention_nbdev.metrics.controls import average_controls, mean_scores, rule_controls
from slot_attention_nbdev.models.weights import load_record, load_weights, save_record
from slot_attention_nbdev.models.weights import shipped_weights
from slot_attention_nbdev.train.checkpoints import source_commit
from slot_attention_nbdev.train.recipes import build_data, build_model, from_dict
from slot_attention_nbdev.train.tasks import task_of


@cache
def held_out_scenes(data: str, n: int, resolution: int) -> dict:
    "The scenes that a run of this data held out; the same for every seed of generated data."
    settings = {"name": "tiny", "about": "", "data": data, "eval_images": n}
    return build_data(from_dict(settings | {"resolution": resolution}))[1]


@cache
def rules(data: str, n: int, resolution: int, num_slots: int) -> dict:
    "The rules' controls on these scenes."
    return rule_controls(held_out_scenes(data, n, resolution), num_slots)


def controls_of(record: dict) -> dict:
    "The controls of a record."
    recipe = from_dict(record["recipe"])
    where = recipe.data, recipe.eval_images, recipe.resolution
    scenes = held_out_scenes(*where)
    untrained = build_model(recipe, tuple(record["resolution"]), record["seed"]).eval()
    task = task_of(untrained)
    if untrained.task == "object_discovery":
        metrics = task.evaluate(untrained, scenes, seed=record["seed"])
        found = {"untrained": {key: metrics[key] for key in ("fg_ari", "ari", "miou", "mbo")}}
    else:
        found = {}
        name = recipe.name
        if name in shipped_weights():
            tensors, info = load_weights(shipped_weights()[name])
            if (info["seed"], info["step"]) == (record["seed"], record["step"]):
                model = build_model(recipe, tuple(record["resolution"]), record["seed"]).eval()
                model.load_state_dict(tensors)
                found["attention"] = task.attention_scores(model, scenes, record["seed"])
        precision = task.evaluate(untrained, scenes, seed=record["seed"])["ap_inf"]
        scores = task.attention_scores(untrained, scenes, record["seed"])
        found["untrained"] = scores | {"ap_inf": precision}
    return found | rules(*where, recipe.num_slots)


@torch.no_grad()
def study_controls() -> dict:
    "The controls of the small models of what_goes_wrong, on their scenes of half the size."
    image, label = halve(evaluation_scenes("tetrominoes", HELD_OUT))
    scenes = {"image": to_uint8(image), "label": label}
    untrained = []
    for seed in (0, 1, 2):
        masks = build("plain", seed)(image, generator=generator(0, "look")).masks
        untrained.append({"controls": {"untrained": mean_scores(label, masks)}})
    return average_controls(untrained) | rule_controls(scenes, 4)


def main() -> int:
    if sys.argv[1:] == ["--study"]:
        record = {"commit": source_commit(), "what_goes_wrong": study_controls()}
        out = Path(__file__).resolve().parent.parent / "results" / "controls.json"
        out.write_text(json.dumps(record, indent=1) + "\n")
        print(out.read_text())
        return 0
    for path in map(Path, sys.argv[1:]):
        record = json.loads(path.read_text(encoding="utf-8"))
        is_run = isinstance(record.get("recipe"), dict) and "data" in record["recipe"]
        if not is_run or not record.get("final") or "controls" in record["final"]:
            continue
        record = load_record(path)
        try:
            record["final"]["controls"] = controls_of(record)
        except InputError as error:
            print(f"{path}: {error}")
            continue
        # a run measures its controls at its end; these came later
        record["controls_measured_later"] = source_commit()
        save_record(path, record)
        print(path, {key: round(x["fg_ari"], 3) for key, x in record["final"]["controls"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
