#!/usr/bin/env python3
"""What a batch of data costs a GPU: kernels to launch, and moments at which the program waits.

No GPU is needed: the code takes its way for GPUs on a CPU, and its operations are counted. One that
only looks at memory in another way launches nothing; one whose result decides what comes next is
waited for.

    export OMP_NUM_THREADS=1
    python benchmarks/data_supply.py          # prints a table; a minute
    python benchmarks/data_supply.py --rates  # scenes per second of one core as well

Of what the counts replace: 119 launches and 4 waits (Tetrominoes), 413 and 2 (Multi-dSprites,
colors on gray), 20,909 and 728 (CLEVR6 at 64 x 64), in every step and on each GPU.
"""

import argparse
import tempfile
import time
from functools import partial
from unittest import mock

import torch
from slot_attention_nbdev.core import rank_slice, table
from slot_attention_nbdev.data import sources, sprites
from slot_attention_nbdev.data.sources import Batches, GeneratedScenes, fixed_split, hold_out
from torch.utils._python_dispatch import TorchDispatchMode

GRAY = "multi_dsprites_colored_on_grayscale"
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "lift_fresh", "equal")
FREE = ("empty", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias", "lift_fresh")
BATCH = 64
SIDE = 64  # of traced scenes


class Counter(TorchDispatchMode):
    "Counts the kernels that a GPU would launch, and the values that a program would wait for."

    def __init__(self):
        super().__init__()
        self.launches = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = sum(each is not None and each.dtype == torch.bool for each in indices)
        counted = name in WAITS or func is torch.ops.aten.repeat_interleave.Tensor
        self.waits += masks + counted
        self.launches += masks + (not func.is_view and name not in FREE)
        return func(*args, **(kwargs or {}))


def as_on_a_gpu():
    "The ways of the code for GPUs."
    found = mock.patch.multiple(sources, counting_is_free=lambda device: False)
    return found, mock.patch.multiple(sprites, counting_is_free=lambda device: False)


def count(
    stream: Batches,  # A stream for a GPU
    step: int = 1,  # Which batch
) -> tuple[int, int, int]:  # Launches, waits, and scenes in it
    "Count what a batch costs."
    stream.batch(0)  # tables and orders are made once
    with Counter() as counter:
        batch = stream.batch(step)
    return counter.launches, counter.waits, len(batch["image"])


def rate(
    spec: sprites.SpriteSet,  # What to draw
    n: int,  # How many
) -> float:  # Scenes in a second of one core's time
    "Measure how fast scenes are drawn."
    start = time.process_time()
    spec.draw(n, generator=torch.Generator().manual_seed(0))
    return n / (time.process_time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", action="store_true", help="how fast scenes are drawn, too")
    options = parser.parse_args()
    rows = [("batch of 64", "ranks", "launches", "waits", "scenes a rank makes or looks up")]
    first, second = as_on_a_gpu()
    with first, second, tempfile.TemporaryDirectory() as folder:
        for world in (1, 8):
            share = len(range(BATCH)[rank_slice(BATCH, world - 1, world)])
            rest = dict(rank=world - 1, world=world)
            for name in ("tetrominoes", GRAY):
                stream = Batches(GeneratedScenes(name), BATCH, **rest)
                rows.append((f"{name}, fresh", world, *count(stream)[:2], BATCH))
                source, n, _ = hold_out(name, 4, scenes=640, cache=folder, progress=False)
                stream = Batches(source, BATCH, n=n, **rest)
                rows.append((f"{name}, fixed split", world, *count(stream)[:2], share))
        fresh = GeneratedScenes("clevr6", resolution=SIDE)
        many = partial(fresh.spec.draw, chunk=2**22)  # rays at a time, as on a GPU
        fresh.spec = fresh.spec._replace(draw=many)
        stream = Batches(fresh, BATCH)
        rows.append(("clevr6, fresh", 1, *count(stream)[:2], BATCH))
        source = fixed_split("clevr6", 160, resolution=16, cache=folder, progress=False)
        rows.append(("clevr6, fixed split", 1, *count(Batches(source, BATCH))[:2], BATCH))
    print(table(rows))
    if options.rates:
        torch.set_num_threads(1)
        specs = {name: (sources.generated_set(name), 3_200) for name in ("tetrominoes", GRAY)}
        specs["clevr6"] = sources.generated_set("clevr6", resolution=SIDE), 64
        lines = [(name, f"{rate(*each):,.0f}") for name, each in specs.items()]
        print("\n" + table([("drawn on a CPU", "scenes per second of a core"), *lines]))


if __name__ == "__main__":
    main()
