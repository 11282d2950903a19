"""Ask trained models for more than they were trained on: the records in results/generalisation.

    python scripts/generalisation.py      # everything that has no record yet; minutes of one core
    python scripts/generalisation.py --only tetrominoes sprites
    python scripts/generalisation.py --only sum --steps 1000

`tetrominoes` and `sprites` ask the weights that ship; `mean`, `sum` and `scaled_sum` train the
small model with what Equation 2 divides by exchanged, and `pairs` without a third of all pairs of
shape and colour. A record that exists is kept.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from slot_attention_nbdev.core import generator
from slot_attention_nbdev.data.sources import Batches, GeneratedScenes
from slot_attention_nbdev.experiments.generalization import (
    draw_crowd,
    draw_pieces,
    held_out_pairs,
    mask_scores,
    normalise_by,
)
from slot_attention_nbdev.models.seeded_sets import evaluate_properties
from slot_attention_nbdev.train.recipes import get_recipe, load_model
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.trainer import Trainer

RESULTS = Path(__file__).resolve().parent.parent / "results" / "generalisation"


def pieces(model, n: int) -> list[dict]:
    "One row for each question: pieces, slots, iterations, and what both kinds of mask score."
    # more objects
    asked = [(count, slots, 2) for count in range(1, 7) for slots in sorted({4, count + 1})]
    asked += [(3, slots, 2) for slots in (2, 3, 5, 6, 8, 10)]  # more slots
    asked += [(count, count + 1, T) for count in (3, 5) for T in range(1, 8)]  # more iterations
    rows = []
    for count, slots, T in dict.fromkeys(asked):
        scenes = draw_pieces(n, count, generator(0, "generalisation", count))
        rows.append(
            {
                "objects": count,
                "slots": slots,
                "iterations": T,
                **mask_scores(model, scenes, slots, T),
            }
        )
    return rows


def crowds(model, n: int) -> list[dict]:
    "The same questions to the set predictor, scored by average precision."
    asked = [(count, max(6, count + 1), 2) for count in range(1, 9)]
    asked += [(4, slots, 2) for slots in (5, 8, 10, 12)] + [
        (count, max(6, count + 1), T) for count in (4, 7) for T in range(1, 8)
    ]
    rows = []
    for count, slots, T in dict.fromkeys(asked):
        scenes = draw_crowd(n, count, generator(0, "generalisation", count))
        model.slot_attention.num_iterations = T
        scores = evaluate_properties(model, scenes, num_slots=slots)
        rows.append(
            {
                "objects": count,
                "slots": slots,
                "iterations": T,
                **{key: scores[key] for key in ("ap_inf", "ap_4", "found", "count", "n")},
            }
        )
    return rows


def trained(steps: int, seed: int, normalisation: str = "mean", allowed=None):
    "The small model after some steps, with another line 8 or on chosen pairs; the seconds it took."
    run = Trainer(get_recipe("tetrominoes_fast", steps=steps), seed)
    start = time.process_time()
    if normalisation != "mean":
        for model in (run.model, run.ema):
            normalise_by(model, normalisation)
    stream = Batches(GeneratedScenes("tetrominoes"), 32, seed)
    for step in range(steps):
        run.training_step(
            stream.batch(step)
            if allowed is None
            else draw_pieces(32, 3, generator(seed, "pairs", step), allowed)
        )
        if step % 100 == 99:
            print(f"{normalisation} step {step + 1} {run.flush_metrics()}", flush=True)
            run.window.clear()
    return run.ema.eval(), time.process_time() - start


def main(arguments: list[str] | None = None) -> int:
    names = ("tetrominoes", "sprites", "mean", "sum", "scaled_sum", "pairs")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--steps", type=int, default=500, help="updates of the models that are trained here"
    )
    parser.add_argument("--n", type=int, default=96, help="scenes for each question")
    parser.add_argument("--seed", type=int, default=0, help="of the models that are trained here")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.only:
        path = options.out / f"{name}.json"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "recipe": "scripts/generalisation.py",
            "name": name,
            "seed": options.seed,
            **run_facts(torch.device("cpu")),
        }
        if name in ("tetrominoes", "sprites"):
            weights = {"tetrominoes": "tetrominoes_fast", "sprites": "sprites_properties"}[name]
            model, info = load_model(weights)
            record |= {
                "weights": weights,
                "step": info["step"],
                "rows": (pieces if name == "tetrominoes" else crowds)(model, options.n),
            }
        else:
            allowed = ~held_out_pairs() if name == "pairs" else None
            model, seconds = trained(
                options.steps,
                options.seed,
                name.replace("_", " ") if name != "pairs" else "mean",
                allowed,
            )
            record |= {"step": options.steps, "seconds": seconds}
            if name == "pairs":
                shipped = load_model("tetrominoes_fast")[0]
                record["rows"] = []
                for kind, pairs in (("seen", ~held_out_pairs()), ("unseen", held_out_pairs())):
                    scenes = draw_pieces(options.n, 3, generator(0, "generalisation", kind), pairs)
                    record["rows"] += [
                        {"pairs": kind, "model": who, **mask_scores(m, scenes)}
                        for who, m in (("without them", model), ("with all pairs", shipped))
                    ]
            else:
                record["rows"] = pieces(model, options.n)
        save_record(path, record)
        print(f"{name}: {len(record['rows'])} rows  ->  {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
