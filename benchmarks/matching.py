#!/usr/bin/env python3
"""The time of matching 512 sets of 10.

Also as a part of a training step of the paper's set predictor.

    OMP_NUM_THREADS=1 python benchmarks/matching.py
    python benchmarks/matching.py --device cuda
    python benchmarks/matching.py --json results/benchmarks/matching.json

On a CPU it times the processor, on one core, and scales the time of a training step of fewer images
up to 512; on a GPU it times the clock, synchronizes the device, and takes the whole batch. Median
of several runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from slot_attention_nbdev.core import generator, resolve_device
from slot_attention_nbdev.metrics.matching import (
    auction,
    chamfer,
    greedy,
    huber_cost,
    hungarian,
    matched_cost,
    set_loss,
    sinkhorn,
)
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.models.set_predictor import paper_set_predictor

SETS, OBJECTS, WIDTH, REPEATS = 512, 10, 19, 7
SOLVERS = {
    "Hungarian (SciPy)": hungarian,
    "auction": auction,
    "greedy": greedy,
    "Sinkhorn, 100 iterations": sinkhorn,
    "Chamfer": chamfer,
}


def seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    "Median time of a call, after one to warm up."
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    call()
    took = []
    for _ in range(repeats):
        wait()
        start = clock()
        call()
        wait()
        took.append(clock() - start)
    return statistics.median(took)


def padded_targets(n: int, device: torch.device) -> torch.Tensor:
    "Vectors of CLEVR's width for 3 to 10 objects, then zero rows."
    g = generator(0, "targets")
    there = torch.arange(OBJECTS) < torch.randint(3, OBJECTS + 1, (n, 1), generator=g)
    return (torch.rand(n, OBJECTS, WIDTH, generator=g).round() * there[..., None]).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--images", type=int, help="images of the timed training step (16 on a CPU, 512 else)"
    )
    parser.add_argument("--json", type=Path, help="write a record")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    images = arguments.images or (16 if device.type == "cpu" else SETS)

    model = paper_set_predictor().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    image = (
        torch.rand(images, 3, 128, 128, generator=generator(0, "image")).mul(2).sub(1).to(device)
    )
    targets = padded_targets(images, device)

    def step() -> None:
        optimizer.zero_grad()
        predictions = model(image).predictions
        # no solver: every pair a tenth
        set_loss(predictions, targets, matching=lambda cost: torch.full_like(cost, 0.1)).backward()
        optimizer.step()

    rest = seconds(step, device, repeats=3) * SETS / images
    print(
        f"{SETS} sets of {OBJECTS}, {device.type}; the rest of a training step takes"
        f" {1e3 * rest:,.0f} ms ({images} images timed)\n"
    )
    print("| matching | ms | part of the step | cost above the optimum |\n|---|---:|---:|---:|")
    targets = padded_targets(SETS, device)
    predictions = torch.rand(targets.shape, generator=generator(0, "predictions")).to(device)
    cost = huber_cost(predictions, targets)
    best = matched_cost(cost, hungarian(cost))
    measured = {"rest_of_step_ms": 1e3 * rest, "images_timed": images}
    for name, solver in SOLVERS.items():
        took = seconds(lambda: solver(cost), device)
        excess = (matched_cost(cost, solver(cost)) / best - 1).mean().item()
        measured[name] = {"ms": 1e3 * took, "share": took / (took + rest), "excess": excess}
        print(f"| {name} | {1e3 * took:.2f} | {took / (took + rest):.3%} | {excess:+.3%} |")
    print(
        "\nThe cost alone:"
        f" {1e3 * seconds(lambda: huber_cost(predictions, targets), device):.2f} ms."
    )
    if arguments.json:
        save_record(
            arguments.json,
            {
                "recipe": "benchmarks/matching.py",
                "seed": 0,
                **run_facts(device),
                "measured": measured,
            },
        )


if __name__ == "__main__":
    main()
