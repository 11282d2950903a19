"""Test trained models on more than they were trained on: records in results/generalization.

    python scripts/generalization.py        # all that has no record yet; some minutes of one core
    python scripts/generalization.py --only tetrominoes sprites
    python scripts/generalization.py --only sum --steps 1000

`tetrominoes` and `sprites` test the weights that ship; `mean`, `sum` and `scaled_sum` train the
small model with another divisor in Equation 2, and `pairs` without a third of all pairs of shape
and color. A record that exists is kept.
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
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.nn.variants import ScaledSum, WeightedSum, with_attention
from slot_attention_nbdev.train.recipes import get_recipe, load_model
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.tasks import evaluate
from slot_attention_nbdev.train.trainer import Trainer

RESULTS = Path(__file__).resolve().parent.parent / "results" / "generalization"
ATTENTION = {"mean": SlotAttention, "sum": WeightedSum, "scaled_sum": ScaledSum}
LABEL = "generalisation"  # decides the scenes that are drawn: the records were made with it


def pieces(model, n: int) -> list[dict]:
    "A row for each number of pieces, slots and iterations: the scores of both kinds of mask."
    # more objects
    settings = [(count, slots, 2) for count in range(1, 7) for slots in sorted({4, count + 1})]
    settings += [(3, slots, 2) for slots in (2, 3, 5, 6, 8, 10)]  # more slots
    settings += [(count, count + 1, T) for count in (3, 5) for T in range(1, 8)]  # more iterations
    rows = []
    for count, slots, T in dict.fromkeys(settings):
        scenes = draw_pieces(n, count, generator(0, LABEL, count))
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
    "The same of the set predictor, scored by average precision."
    settings = [(count, max(6, count + 1), 2) for count in range(1, 9)]
    settings += [(4, slots, 2) for slots in (5, 8, 10, 12)]
    settings += [(count, max(6, count + 1), T) for count in (4, 7) for T in range(1, 8)]
    rows = []
    for count, slots, T in dict.fromkeys(settings):
        scenes = draw_crowd(n, count, generator(0, LABEL, count))
        model.slot_attention.num_iterations = T
        scores = evaluate(model, scenes, num_slots=slots)
        rows.append(
            {
                "objects": count,
                "slots": slots,
                "iterations": T,
                **{key: scores[key] for key in ("ap_inf", "ap_4", "found", "count", "n")},
            }
        )
    return rows


def train_small(steps: int, seed: int, attention=SlotAttention, allowed=None):
    "The small model after some steps, and the seconds it took."
    run = Trainer(get_recipe("tetrominoes_small", steps=steps), seed)
    start = time.process_time()
    if attention is not SlotAttention:
        for model in (run.model, run.ema):
            with_attention(model, attention)
    stream = Batches(GeneratedScenes("tetrominoes"), 32, seed)
    for step in range(steps):
        if allowed is None:
            scenes = stream.batch(step)
        else:
            scenes = draw_pieces(32, 3, generator(seed, "pairs", step), allowed)
        run.training_step(scenes)
        if step % 100 == 99:
            print(f"{attention.__name__} step {step + 1} {run.flush_metrics()}", flush=True)
            run.window.clear()
    return run.ema.eval(), time.process_time() - start


def score_pairs(model, n: int) -> list[dict]:
    "Seen and unseen pairs, by a model trained without the unseen and by the shipped one."
    shipped = load_model("tetrominoes_small")[0]
    rows = []
    for kind, pairs in (("seen", ~held_out_pairs()), ("unseen", held_out_pairs())):
        scenes = draw_pieces(n, 3, generator(0, LABEL, kind), pairs)
        rows += [
            {"pairs": kind, "model": who, **mask_scores(each, scenes)}
            for who, each in (("without them", model), ("with all pairs", shipped))
        ]
    return rows


def main(arguments: list[str] | None = None) -> int:
    names = ("tetrominoes", "sprites", "mean", "sum", "scaled_sum", "pairs")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--steps", type=int, default=500, help="updates of the models that are trained here"
    )
    parser.add_argument("--n", type=int, default=96, help="scenes for each row")
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
            "recipe": "scripts/generalization.py",
            "name": name,
            "seed": options.seed,
            **run_facts(torch.device("cpu")),
        }
        if name in ("tetrominoes", "sprites"):
            weights = {"tetrominoes": "tetrominoes_small", "sprites": "sprites_properties"}[name]
            model, info = load_model(weights)
            measure = pieces if name == "tetrominoes" else crowds
            record |= {"weights": weights, "step": info["step"]}
        else:
            allowed = ~held_out_pairs() if name == "pairs" else None
            attention = ATTENTION.get(name, SlotAttention)
            model, seconds = train_small(options.steps, options.seed, attention, allowed)
            measure = score_pairs if name == "pairs" else pieces
            record |= {"step": options.steps, "seconds": seconds}
        record["rows"] = measure(model, options.n)
        save_record(path, record)
        print(f"{name}: {len(record['rows'])} rows  ->  {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
