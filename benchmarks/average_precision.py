#!/usr/bin/env python3
"""Average precision of 15,000 images with 10 predictions each, against a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/average_precision.py
    ... --json results/benchmarks/average_precision.json  # writes the record

Times the processor, on one core: best of several runs of ours, one run of the loop. The two must
agree to 1e-9.
"""

import argparse
import math
import time
from pathlib import Path

import torch

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.metrics.sets import THRESHOLDS, average_precision
from slot_attention_nbdev.data.objects import CLEVR

IMAGES, OBJECTS, REPEATS = 15_000, 10, 5
GROUPS = [(3, 5), (5, 7), (7, 10), (10, 18)]


def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    "Three to ten CLEVR objects an image; predictions with noisy positions, some wrong categories."
    g = generator(0, "scenes")
    size = (IMAGES, OBJECTS)
    scene = {axis: 6 * torch.rand(size, generator=g) - 3 for axis in "xyz"}
    scene |= {
        name: torch.randint(n, size, generator=g)
        for name, n in dict(size=2, material=2, shape=3, color=8).items()
    }
    scene["visibility"] = (
        torch.arange(OBJECTS) < torch.randint(3, OBJECTS + 1, (IMAGES, 1), generator=g)
    ).float()
    targets = CLEVR.encode(scene, OBJECTS)
    predictions = targets + 1.2 * torch.rand(targets.shape, generator=g)
    predictions[..., :3] = targets[..., :3] + 0.05 * torch.randn(*size, 3, generator=g)
    # with ties
    predictions[..., 18] = (0.7 * targets[..., 18] + 0.3 * torch.rand(size, generator=g)).mul(
        1000
    ).round() / 1000
    return predictions[:, torch.randperm(OBJECTS, generator=g)], targets


def loop(predictions: list, targets: list, threshold: float) -> float:
    "The rules, prediction by prediction; equal confidences are one step."
    kinds = lambda row: [max(range(a, b), key=row.__getitem__) for a, b in GROUPS]
    real = [[(row[:3], kinds(row)) for row in rows if row[18] > 0.5] for rows in targets]
    ranked = sorted(
        ((row[18], b, row) for b, rows in enumerate(predictions) for row in rows),
        key=lambda s: -s[0],
    )
    taken = set()
    points = []
    found = 0
    objects = sum(map(len, real))
    for i, (confidence, b, row) in enumerate(ranked, start=1):
        own = kinds(row)
        near = [
            (6 * math.dist(position, row[:3]), m)
            for m, (position, kind) in enumerate(real[b])
            if kind == own
        ]
        if near and min(near)[0] < threshold and (b, min(near)[1]) not in taken:
            taken.add((b, min(near)[1]))
            found += 1
        if i == len(ranked) or ranked[i][0] != confidence:
            points.append((found / i, found / objects))
    area = 0.0
    best = 0.0
    after = None
    # from the right: the best precision so far holds for the recall on its left
    for precision, recall in reversed(points):
        area += best * (after - recall) if after is not None else 0.0
        best, after = max(best, precision), recall
    return area + best * after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    predictions, targets = scenes()
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        ours = average_precision(predictions, targets)
        took.append(time.process_time() - start)
    rows, truth = predictions.double().tolist(), targets.double().tolist()
    start = time.process_time()
    oracle = [loop(rows, truth, threshold) for threshold in THRESHOLDS]
    slow = time.process_time() - start
    worst = max(abs(a - b) for a, b in zip(ours.tolist(), oracle))
    print(f"{IMAGES:,} images x {OBJECTS} predictions, {len(THRESHOLDS)} thresholds, one core\n")
    print("| | seconds | AP at " + ", ".join(map(str, THRESHOLDS)) + " |\n|---|---:|---|")
    for name, seconds, values in (("ours", min(took), ours.tolist()), ("plain loop", slow, oracle)):
        print(f"| {name} | {seconds:.2f} | {', '.join(f'{v:.4f}' for v in values)} |")
    print(
        f"\nThe loop takes {slow / min(took):.0f} times as long; the largest difference is"
        f" {worst:.1e}."
    )
    assert worst < 1e-9
    if arguments.json:
        measured = {
            "seconds": min(took),
            "loop_seconds": slow,
            "ratio": slow / min(took),
            "largest_difference": worst,
        }
        save_record(
            arguments.json,
            {
                "recipe": "benchmarks/average_precision.py",
                "seed": 0,
                **run_facts(torch.device("cpu")),
                "measured": measured,
            },
        )


if __name__ == "__main__":
    main()
