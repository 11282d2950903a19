#!/usr/bin/env python3
"""What training costs beside the model, and what a second process is worth.

The loop with its logging and checkpoints; a save; the start.

    export OMP_NUM_THREADS=1
    python benchmarks/training_overhead.py           # prints a table; minutes on two idle cores
    python benchmarks/training_overhead.py --record  # and writes its record to results/benchmarks/

The bare loop does the same work on the same batches in plain PyTorch. Both are timed in turn, and
the medians compared.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from slot_attention_nbdev.core import ProgressBar
from slot_attention_nbdev.train import trainer as training
from slot_attention_nbdev.train.distributed import Signals
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.train.recipes import build_data, build_model, get_recipe
from slot_attention_nbdev.train.checkpoints import run_facts

# images of the whole batch, steps
SIZES = {"tetrominoes_small": (32, 60), "tetrominoes_paper": (16, 6)}
AIMS = {
    "overhead": "≤ 10 %",
    "clevr6_overhead": "≤ 3 %",
    "checkpoint_seconds": "≤ 1",
    "start_seconds": "≤ 10",
    **{f"{name}_speedup": "≥ 1.6" for name in SIZES},
}
STEPS = 100
START = """
import os, time
from slot_attention_nbdev.train import trainer as training
from slot_attention_nbdev.cli import main
update = training.Trainer.training_step
def first(self, scenes):
    update(self, scenes)
    print(time.time(), flush=True)
    os._exit(0)
training.Trainer.training_step = first
main(["train", "tetrominoes_small", "--device", "cpu", "--out", os.environ["OUT"]])
"""
TOGETHER = """
import os, time, torch
torch.set_num_threads(1)
from slot_attention_nbdev.train.distributed import all_reduce_stop, exit_process, open_accelerator
from slot_attention_nbdev.train.recipes import build_data, get_recipe
from slot_attention_nbdev.train.trainer import Trainer
here = open_accelerator("cpu")
batch = int(os.environ["BATCH"])
recipe = get_recipe(os.environ["RECIPE"], batch_size=batch, scenes=4 * batch, eval_images=2)
steps = int(os.environ["STEPS"])
stream, _ = build_data(recipe, 0, "cpu", here.process_index, here.num_processes)
run = Trainer(recipe)
for step in range(2 + steps):
    if step == 2:
        started = time.perf_counter()
    run.training_step(stream.batch(step))
    all_reduce_stop(here, 0, 0.0)
if here.is_main_process:
    print(recipe.batch_size * steps / (time.perf_counter() - started), flush=True)
exit_process()
"""


def bare(recipe, stream) -> float:
    "Seconds of a step of the plainest loop that does the same work."
    model = build_model(recipe)
    average = deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-8)
    started = time.perf_counter()
    for step in range(recipe.steps):
        image = to_model(stream.batch(step)["image"])
        output = model(image, num_iterations=recipe.iterations_at(step, step))
        loss = F.mse_loss(output.reconstruction, image)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm or math.inf)
        optimizer.step()
        if recipe.ema_decay:
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), model.parameters()):
                    mean.lerp_(weight, 1 - recipe.ema_decay)
    return (time.perf_counter() - started) / recipe.steps


def ours(recipe, stream, held_out) -> float:
    """Seconds of a step of the real loop, logging and checkpoints included.

    A look at held-out images is no overhead, so there is one of two images.
    """
    run = training.Trainer(recipe)
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        bar = ProgressBar(recipe.steps, shown=False)
        training._loop(run, stream, held_out, Path(out), bar, False, Signals())
        return (time.perf_counter() - started) / recipe.steps


def in_turn(recipe, rounds: int) -> list[tuple[float, float]]:
    "Seconds of a step, bare and ours, in turn."
    stream, held_out = build_data(recipe)
    # the first of each loads what is loaded late
    bare(recipe, stream), ours(recipe, stream, held_out)
    return [(bare(recipe, stream), ours(recipe, stream, held_out)) for _ in range(rounds)]


def save_seconds(recipe) -> float:
    run = training.Trainer(recipe)
    run.training_step(build_data(recipe)[0].batch(0))
    spans = []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(5):
            started = time.perf_counter()
            run.save(Path(out))
            spans.append(time.perf_counter() - started)
    return median(spans)


def start_seconds() -> float:
    "From the command to the end of the first update."
    spans = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as out:
            started = time.time()
            done = subprocess.run(
                [sys.executable, "-c", START],
                env=os.environ | {"OUT": f"{out}/run"},
                capture_output=True,
                text=True,
            )
            spans.append(float(done.stdout.split()[-1]) - started)
    return median(spans)


def images_per_second(world: int, recipe: str, batch: int, steps: int) -> float:
    "Of that many processes, one thread each."
    where = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + (os.getpid() * 7 + time.time_ns() // 1000) % 12_000),
    }
    task = {"OMP_NUM_THREADS": "1", "RECIPE": recipe, "BATCH": str(batch), "STEPS": str(steps)}
    places = (
        [
            where
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
            }
            for rank in range(world)
        ]
        if world > 1
        else [{}]
    )
    copies = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER],
            env=os.environ | task | place,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in places
    ]
    return float([copy.communicate()[0] for copy in copies][0].split()[-1])


def measure(rounds: int) -> dict:
    recipe = get_recipe(
        "tetrominoes_small",
        steps=STEPS,
        log_every=50,
        checkpoint_every=50,
        eval_every=10_000,
        eval_images=2,
        warmup_steps=10,
    )
    pairs = in_turn(recipe, rounds)
    # The paper's largest model and images, its logging, a checkpoint in eight steps; two images a
    # batch: more only make the step longer, and the share smaller.
    large = in_turn(
        get_recipe(
            "clevr6_paper",
            steps=8,
            batch_size=2,
            scenes=16,
            checkpoint_every=8,
            eval_every=10_000,
            eval_images=2,
        ),
        rounds,
    )
    rates = {
        name: [
            (images_per_second(1, name, *size), images_per_second(2, name, *size))
            for _ in range(rounds)
        ]
        for name, size in SIZES.items()
    }
    two = {
        f"{name}_images_per_second_{i + 1}": median(pair[i] for pair in pairs)
        for name, pairs in rates.items()
        for i in range(2)
    }
    two |= {f"{name}_speedup": median(b / a for a, b in pairs) for name, pairs in rates.items()}
    plain, full = (median(column) for column in zip(*pairs))
    return {
        "bare_step_ms": 1e3 * plain,
        "step_ms": 1e3 * full,
        "overhead": median(b / a for a, b in pairs) - 1,
        "checkpoint_seconds": save_seconds(recipe),
        "start_seconds": start_seconds(),
        "clevr6_bare_step_ms": 1e3 * median(a for a, _ in large),
        "clevr6_step_ms": 1e3 * median(b for _, b in large),
        "clevr6_overhead": median(b / a for a, b in large) - 1,
        **two,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--record", action="store_true", help="write results/benchmarks/training_overhead.json"
    )
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    for name, value in figures.items():
        print(f"{name:42} {value:10.3f}  {AIMS.get(name, '')}")
    if arguments.record:
        record = {
            "recipe": "tetrominoes_small",
            "rounds": arguments.rounds,
            "steps": STEPS,
            "log_every": 50,
            "checkpoint_every": 50,
            "sizes_of_two": SIZES,
            "aims": AIMS,
            **figures,
            **run_facts(torch.device("cpu")),
        }
        assert all(math.isfinite(value) for value in figures.values())
        Path(__file__).parent.parent.joinpath(
            "results/benchmarks/training_overhead.json"
        ).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
