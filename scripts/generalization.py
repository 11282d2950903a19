"""Ask the shipped model for more than it was trained for: results/generalization.

    python scripts/generalization.py          # the shipped model; two minutes of one core
    python scripts/generalization.py --weights tetrominoes_paper_cpu  # another one, or a run
    python scripts/generalization.py --pairs  # a short training without a third of all pairs of
                                              # shape and color, beside the shipped model; a minute

More pieces, more slots, one to seven iterations; each setting with one draw of initial slots, and
with the recipe's number of draws, of which an image's best reconstruction counts. And several
numbers of slots, of which an image's best reconstruction counts, too.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.experiments.generalization import draw_pieces, held_out_pairs, mask_scores
from slot_attention_nbdev.metrics.controls import rule_controls
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.recipes import (
    Recipe,
    build_model,
    from_dict,
    get_recipe,
    load_model,
    to_dict,
)
from slot_attention_nbdev.train.trainer import Trainer

RESULTS = Path(__file__).resolve().parent.parent / "results" / "generalization"
NAME = "tetrominoes_small"
LABEL = "generalization"  # decides the scenes that are drawn
COUNTS = (2, 3, 4, 5, 6)  # Pieces
SLOTS = range(2, 9)  # K; also those among which an image's reconstruction chooses
ITERATIONS = (1, 2, 3, 4, 5, 6, 7)
SHORT = dict(num_iterations=3, fewer_iterations=0, warmup_steps=100, ema_decay=0.98)


def settings(K: int, T: int) -> list[tuple[int, int, int]]:
    "Pieces, slots and iterations of each row, around those of training."
    found = [(count, slots, T) for count in COUNTS for slots in (count + 1, K)]
    found += [(count, slots, T) for count in (3, 5) for slots in SLOTS]
    found += [(count, count + 1, steps) for count in (3, 5) for steps in ITERATIONS]
    return list(dict.fromkeys(found))


def measure(model, untrained, recipe, n: int) -> dict:
    "Rows of scores, and the controls of each number of pieces."
    rows, controls = [], {}
    for count, K, T in settings(recipe.num_slots, recipe.num_iterations):
        scenes = draw_pieces(n, count, generator(0, LABEL, count))
        for n_init in dict.fromkeys((1, recipe.n_init)):
            scores = mask_scores(model, scenes, K, T, n_init)
            rows.append({"objects": count, "slots": K, "iterations": T, "draws": n_init, **scores})
        if count not in controls:
            usual = count + 1, recipe.num_iterations, recipe.n_init
            scores = mask_scores(untrained, scenes, *usual)
            rules = rule_controls(scenes, count + 1)
            controls[count] = {"untrained": scores, **rules}
    rows += [choice_row(model, recipe, count, n) for count in COUNTS]
    chance = [choice_row(untrained, recipe, count, n) for count in (3, 5)]
    return {"rows": rows, "controls": controls, "untrained_choice": chance}


def choice_row(model, recipe, count: int, n: int) -> dict:
    "The row of a number of pieces, for which each image has chosen its number of slots."
    scenes = draw_pieces(n, count, generator(0, LABEL, count))
    T, n_init = recipe.num_iterations, recipe.n_init
    scores = mask_scores(model, scenes, SLOTS, T, n_init)
    slots = f"{SLOTS[0]}-{SLOTS[-1]}"
    return {"objects": count, "slots": slots, "iterations": T, "draws": n_init, **scores}


def short_recipe(steps: int) -> Recipe:
    "The recipe of the model for the pairs."
    return get_recipe(NAME, steps=steps, **SHORT)


def train_briefly(steps: int, allowed):
    "The small model after some updates on scenes of allowed pairs alone."
    run = Trainer(short_recipe(steps), 0)
    for step in range(steps):
        run.training_step(draw_pieces(32, 3, generator(0, "pairs", step), allowed))
    return run.ema.eval()


def measure_pairs(shipped, untrained, steps: int, n: int) -> dict:
    "Seen and unseen pairs, by a model trained without the unseen and by the shipped one."
    draws = short_recipe(steps).n_init
    start = time.process_time()
    models = {"without them": train_briefly(steps, ~held_out_pairs()), "with all pairs": shipped}
    seconds = time.process_time() - start
    rows, controls = [], {}
    for kind, pairs in (("seen", ~held_out_pairs()), ("unseen", held_out_pairs())):
        scenes = draw_pieces(n, 3, generator(0, LABEL, kind), pairs)
        scores = mask_scores(untrained, scenes, n_init=draws)
        controls[kind] = {"untrained": scores, **rule_controls(scenes, 4)}
        for name, model in models.items():
            scores = mask_scores(model, scenes, n_init=draws)
            rows.append({"pairs": kind, "model": name, "draws": draws, **scores})
    return {"step": steps, "seconds": seconds, "rows": rows, "controls": controls}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default=NAME, help="shipped weights, a file or a run's folder")
    parser.add_argument("--n", type=int, default=100, help="scenes for each row")
    parser.add_argument("--pairs", action="store_true", help="unseen pairs: trains a model")
    parser.add_argument("--steps", type=int, default=400, help="updates of that model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    model, info = load_model(options.weights)
    recipe = from_dict(info["recipe"])
    untrained = build_model(recipe, tuple(info["resolution"]), info["seed"]).eval()
    facts = {"command": "scripts/generalization.py", **run_facts(torch.device("cpu"))}
    if options.pairs:
        record = {"recipe": to_dict(short_recipe(options.steps)), "seed": 0, **facts}
        record |= measure_pairs(model, untrained, options.steps, options.n)
        save_record(options.out / "pairs.json", record)
        return 0
    record = {"recipe": info["recipe"], "seed": info["seed"], "step": info["step"], **facts}
    start = time.process_time()
    record |= measure(model, untrained, recipe, options.n)
    record["seconds"] = time.process_time() - start
    save_record(options.out / f"{recipe.name}.json", record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
