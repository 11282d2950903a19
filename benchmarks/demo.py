#!/usr/bin/env python3
"""How fast the demo's recipe trains, and how far the paper's model gets in the same time.

    python benchmarks/demo.py                              # time per image; a minute
    python benchmarks/demo.py --train 300                  # and both recipes, five minutes each
    python benchmarks/demo.py --train 300 --out FILE.json  # and a record of it all

Run it on an idle machine. Times are the median of several steps by the clock, with all the threads
that PyTorch takes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slot_attention_nbdev.train.recipes import build_data, get_recipe, to_dict
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.trainer import Trainer, train

OURS, PAPER = "tetrominoes_small", "tetrominoes_paper"


def median_seconds(call: Callable[[int], object], seconds: float) -> float:
    """The median duration of call(0), call(1), ...: two to warm up, then at least three and as many
    as fit into `seconds`.
    """
    took, started = [], time.perf_counter()
    while len(took) < 5 or time.perf_counter() - started < seconds:
        start = time.perf_counter()
        call(len(took))
        took.append(time.perf_counter() - start)
    return statistics.median(took[2:])


def measure_step(name: str, seconds: float) -> dict:
    """Milliseconds an image for making a batch and for the update that follows, and the first's
    share of both.
    """
    recipe = get_recipe(name)
    run, (stream, _) = Trainer(recipe), build_data(recipe)
    batch = stream.batch(0)
    update = median_seconds(lambda step: run.training_step(batch), seconds)
    data = median_seconds(stream.batch, min(seconds, 5.0))
    per_image = {
        key: 1_000 * value / recipe.batch_size
        for key, value in (("step_ms", data + update), ("update_ms", update), ("data_ms", data))
    }
    return {"batch_size": recipe.batch_size, **per_image, "data_share": data / (data + update)}


def measure_training(name: str, seconds: float) -> dict:
    "What a run with a budget of `seconds` ends with."
    with tempfile.TemporaryDirectory() as folder:
        record = train(
            get_recipe(name), Path(folder) / "run", device="cpu", budget=seconds, progress=False
        )
    return {key: record[key] for key in ("step", "seconds", "final", "curve")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long to time each recipe's steps (20)"
    )
    parser.add_argument(
        "--train",
        type=float,
        metavar="SECONDS",
        help="train each recipe for so long and compare FG-ARI",
    )
    parser.add_argument("--out", type=Path, help="write a record (JSON)")
    options = parser.parse_args(arguments)
    found = {name: measure_step(name, options.seconds) for name in (OURS, PAPER)}
    if options.train:
        for name in found:
            found[name]["trained"] = measure_training(name, options.train)
    print_table(found, options.train)
    if options.out:
        recipes = {name: to_dict(get_recipe(name)) for name in found}
        save_record(
            options.out,
            {
                "measured": found,
                "recipes": recipes,
                "train_seconds": options.train,
                **run_facts(torch.device("cpu")),
            },
        )


def print_table(found: dict[str, dict], trained: float | None) -> None:
    "One row a recipe, and the ratio."
    head = ["recipe", "ms per image", "of it making data", "share"] + (
        [f"after {trained:g} s: FG-ARI", "ARI", "mIoU", "steps"] if trained else []
    )
    print(
        f"training on the CPU, {torch.get_num_threads()} threads; a step makes its batch"
        " and updates the weights\n"
    )
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for name, row in found.items():
        cells = [name, f"{row['step_ms']:.2f}", f"{row['data_ms']:.3f}", f"{row['data_share']:.1%}"]
        if trained:
            cells += [f"{row['trained']['final'][key]:.3f}" for key in ("fg_ari", "ari", "miou")]
            cells.append(f"{row['trained']['step']:,}")
        print("| " + " | ".join(cells) + " |")
    print(
        f"\nthe paper's model takes {found[PAPER]['step_ms'] / found[OURS]['step_ms']:.0f}"
        " times as long for an image"
    )


if __name__ == "__main__":
    main()
