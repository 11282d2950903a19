#!/usr/bin/env python3
"""How many images of 128 x 128 with 7 slots the metrics score in a second, on one core.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py

Times the processor, not the clock, so that other programs disturb it less; takes the best of
several runs.
"""

import time
from collections.abc import Callable

import torch

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.metrics.segmentation import adjusted_rand_index, segmentation_metrics

IMAGES, SLOTS, SIDE, REPEATS = 64, 7, 128, 10


def images_per_second(call: Callable[[], object]) -> float:
    "Best of REPEATS runs."
    call()
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return IMAGES / min(took)


def main() -> None:
    torch.set_num_threads(1)
    size = (IMAGES, SIDE, SIDE)
    true = torch.randint(SLOTS, size, generator=generator(0), dtype=torch.uint8)
    labels = torch.randint(SLOTS, size, generator=generator(1), dtype=torch.uint8)
    masks = torch.rand(IMAGES, SLOTS, SIDE, SIDE, generator=generator(2)).softmax(1)
    print(f"images of {SIDE} x {SIDE} with {SLOTS} slots scored per second on one core\n")
    print("| prediction | ARI | all four scores |\n|---|---:|---:|")
    for name, pred in (
        ("labels, uint8", labels),
        ("labels, int64", labels.long()),
        ("soft masks, float32", masks),
    ):
        ari, everything = (
            images_per_second(lambda: f(true, pred))
            for f in (adjusted_rand_index, segmentation_metrics)
        )
        print(f"| {name} | {ari:,.0f} | {everything:,.0f} |")


if __name__ == "__main__":
    main()
