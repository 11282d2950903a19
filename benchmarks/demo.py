#!/usr/bin/env python3
"""How long the demo's recipe and the paper's take for an image in training, on one core.

    python benchmarks/demo.py                  # a minute
    python benchmarks/demo.py --out FILE.json  # and a record

Times are the median of several steps, in seconds of the processor, so that other programs hardly
count. How far the recipes get in a given time is read from the curves of whole runs: the race in
results/README.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.recipes import build_data, get_recipe, to_dict
from slot_attention_nbdev.train.trainer import Trainer

OURS, PAPER = "tetrominoes_small", "tetrominoes_paper"


def median_seconds(call: Callable[[int], object], seconds: float) -> float:
    """The median duration of call(0), call(1), ...: two to warm up, then at least three and as many
    as fit into `seconds`.
    """
    took, started = [], time.process_time()
    while len(took) < 5 or time.process_time() - started < seconds:
        start = time.process_time()
        call(len(took))
        took.append(time.process_time() - start)
    return statistics.median(took[2:])


def measure_step(name: str, seconds: float) -> dict:
    """Milliseconds an image for making a batch and for the update that follows, and the first's
    share of both.
    """
    recipe = get_recipe(name, scenes=0)  # drawn anew for each step
    run, (stream, _) = Trainer(recipe), build_data(recipe)
    batch = stream.batch(0)
    update = median_seconds(lambda step: run.training_step(batch), seconds)
    data = median_seconds(stream.batch, min(seconds, 5.0))
    per_image = {
        key: 1_000 * value / recipe.batch_size
        for key, value in (("step_ms", data + update), ("update_ms", update), ("data_ms", data))
    }
    return {"batch_size": recipe.batch_size, **per_image, "data_share": data / (data + update)}


def print_table(found: dict[str, dict]) -> None:
    "One row a recipe, and the ratio."
    print("| recipe | ms per image | of it making data | share |\n|---|---:|---:|---:|")
    for name, row in found.items():
        print(f"| {name} | {row['step_ms']:.2f} | {row['data_ms']:.3f} | {row['data_share']:.1%} |")
    ratio = found[PAPER]["step_ms"] / found[OURS]["step_ms"]
    print(f"\nthe paper's model takes {ratio:.0f} times as long for an image")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="how long to time each recipe's steps (10)"
    )
    parser.add_argument("--out", type=Path, help="write a record (JSON)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {name: measure_step(name, options.seconds) for name in (OURS, PAPER)}
    print_table(found)
    if options.out:
        recipes = {name: to_dict(get_recipe(name)) for name in found}
        save_record(
            options.out, {"measured": found, "recipes": recipes, **run_facts(torch.device("cpu"))}
        )


if __name__ == "__main__":
    main()
