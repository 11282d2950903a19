#!/usr/bin/env python3
"""Three heads and five matchings that predict sets of sprites, trained for equal time.

    OMP_NUM_THREADS=1 python benchmarks/sets.py --budget 20m --seeds 0 1 2

Every head is trained with the Hungarian matching, and one of them (`--with`) with the other four,
too; data, batch, schedule, loss and seeds are the same. Each run has a folder under `--out`: one
that is complete is not trained again, one that was stopped goes on. After every run all that are
complete are written to results/benchmarks/sets.json.

    python benchmarks/sets.py --budget 20s --seeds 0 --rehearse

A rehearsal writes its record into `--out` and checks each run on a few images.
"""

import argparse
import json
from pathlib import Path

import torch
from slot_attention_nbdev.core import InputError, table
from slot_attention_nbdev.metrics.matching import MATCHINGS
from slot_attention_nbdev.models.weights import load_record, save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.recipes import (
    Recipe,
    from_dict,
    get_recipe,
    parse_budget,
    run_fingerprint,
)
from slot_attention_nbdev.train.trainer import train

RECORD = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "sets.json"
HEADS = {"slots": "sprites_properties", "mlp": "sprites_mlp", "dspn": "sprites_dspn"}
REHEARSAL = dict(eval_images=16, eval_every=10_000, log_every=5, checkpoint_every=50)


def run_once(folder: Path, recipe: Recipe, seed: int, budget: float) -> dict:
    "The record of a run: read if it is complete, else trained, from its checkpoint if it has one."
    if (folder / "record.json").is_file():
        record = load_record(folder / "record.json")
        if record.get("final"):
            same = run_fingerprint(from_dict(record["recipe"]), record["seed"])
            if same != run_fingerprint(recipe, seed):
                raise InputError(f"out: {folder} holds a run with other settings")
            return record
    resume = any(folder.glob("*.pt"))
    return train(recipe, folder, seed, "cpu", resume=resume, budget=budget, progress=False)


def summarize(head: str, matching: str, seed: int, budget: float, record: dict) -> dict:
    "What is kept of a run."
    final = {key: value for key, value in record["final"].items() if key != "controls"}
    untrained = record["final"].get("controls", {}).get("untrained", {}).get("ap_inf")
    return {
        "head": head,
        "matching": matching,
        "seed": seed,
        "budget": budget,
        "seconds": record["seconds"],
        "steps": record["step"],
        "updates_per_second": record["step"] / record["seconds"],
        "final": final,
        "untrained_ap_inf": untrained,
        "curve": [point for point in record["curve"] if "ap_inf" in point],
    }


def main() -> None:
    "Train what is missing; write the record."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=parse_budget, default=1200.0, help="time of a run: 20m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--matchings", nargs="+", choices=MATCHINGS, default=list(MATCHINGS))
    parser.add_argument("--with", dest="head", choices=HEADS, default="slots")
    parser.add_argument("--out", type=Path, default=Path("runs/sets"))
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    path = arguments.out / "rehearsal.json" if arguments.rehearse else RECORD
    cells = [(head, "hungarian") for head in arguments.heads]
    cells += [(arguments.head, each) for each in arguments.matchings]
    facts = run_facts(torch.device("cpu"))
    runs = []
    for seed in arguments.seeds:
        for head, matching in dict.fromkeys(cells):
            settings = REHEARSAL if arguments.rehearse else {}
            recipe = get_recipe(HEADS[head], matching=matching, **settings)
            folder = arguments.out / f"{head}-{matching}-{arguments.budget:g}s-seed{seed}"
            record = run_once(folder, recipe, seed, arguments.budget)
            runs.append(summarize(head, matching, seed, arguments.budget, record))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_record(path, {"about": __doc__.splitlines()[0], **facts, "runs": runs})
            print(json.dumps({key: runs[-1][key] for key in ("head", "matching", "seed", "steps")}))
    rows = [("head", "matching", "seed", "updates/s", "steps", "AP", "AP 4")]
    for run in runs:
        rate, precision = f"{run['updates_per_second']:.2f}", run["final"]
        scores = (f"{precision[key]:.3f}" for key in ("ap_inf", "ap_4"))
        rows.append((run["head"], run["matching"], run["seed"], rate, run["steps"], *scores))
    print(table(rows))


if __name__ == "__main__":
    main()
