#!/usr/bin/env python3
"""What more processes are worth: a second one by the clock, and what one of eight does and sends.

    export OMP_NUM_THREADS=1
    python benchmarks/scaling.py --json results/benchmarks/scaling.json  # minutes, two idle cores
    python benchmarks/scaling.py --quick  # a rehearsal with tiny sizes, whose rates mean nothing

Strong scaling: two processes share the batch of one. Weak scaling: each has as many images as one
alone, so that twice the images take the same time if nothing is lost. Both by gloo, on two cores.

There are no eight cards here. One process takes the part of the last of eight, and the other seven
are a process group that answers at once. Its operations are counted, and the bytes that it brings
to its device and sends: of the gradients, all around a ring, it sends 2 (W - 1) / W.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from slot_attention_nbdev.core import table
from slot_attention_nbdev.train.checkpoints import run_facts
from training_overhead import SIZES, images_per_second

RECIPE, BATCH = "tetrominoes_paper", 64  # of the part that is counted
QUICK = {"tetrominoes_small": (4, 2)}
PART = """
import json, os, sys, torch
import torch.distributed as dist
from data_supply import Counter, as_on_a_gpu
from launches import Placed
from slot_attention_nbdev.train.recipes import build_data, get_recipe
from slot_attention_nbdev.train.tasks import share_of
from slot_attention_nbdev.train.trainer import Trainer

name, batch = sys.argv[1], int(sys.argv[2])
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    from torch.testing._internal.distributed.fake_pg import FakeStore
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
recipe = get_recipe(name, batch_size=batch, scenes=2 * batch, eval_images=320, compile="off")
for patch in as_on_a_gpu():
    patch.start()
stream, _ = build_data(recipe, 0, "cpu", rank, world, progress=False)
run = Trainer(recipe)
sent = []
if world > 1:
    def send(state, bucket):
        sent.append(bucket.buffer().nbytes)
        answer = torch.futures.Future()
        answer.set_result(bucket.buffer())
        return answer
    run.objective.register_comm_hook(None, send)
run.training_step(stream.batch(0))  # tables are made once, and Adam's averages
sent.clear()
with Counter() as data:
    scenes = stream.batch(1)
with Placed().counting() as update:
    run.training_step(scenes)
own = share_of(320, run.accelerator)
print(json.dumps({
    "images": len(scenes["image"]),
    "launches of a batch": data.launches,
    "launches of an update": update.launches,
    "waits": data.waits + update.waits,
    "bytes of a batch": sum(value.nbytes for value in scenes.values()),
    "bytes of gradients sent": round(sum(sent) * 2 * (world - 1) / world),
    "held-out images": own.stop - own.start,
}))
"""


def scaling(
    name: str,  # A recipe
    batch: int,  # Images of one process's batch
    steps: int,  # Updates to time
    rounds: int,  # How often
) -> dict[str, float]:
    "Images per second of one process; of two with the same batch, and with one twice as large."
    ways = {"one": (1, batch), "strong": (2, batch), "weak": (2, 2 * batch)}
    found = {way: [] for way in ways}
    for _ in range(rounds):  # in turn
        for way, (world, size) in ways.items():
            found[way].append(images_per_second(world, name, size, steps))
    one, strong, weak = (median(rates) for rates in found.values())
    return {
        "batch": batch,
        "images_per_second": one,
        "images_per_second_strong": strong,
        "images_per_second_weak": weak,
        "speedup_strong": median(b / a for a, b in zip(found["one"], found["strong"])),
        "speedup_weak": median(b / a for a, b in zip(found["one"], found["weak"])),
    }


def part(
    world: int,  # How many processes there seem to be
    name: str = RECIPE,  # A recipe
    batch: int = BATCH,  # Images of the whole batch
) -> dict[str, int]:
    "What the last of several processes does in an update."
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # nobody is called
        "RANK": str(world - 1),
        "LOCAL_RANK": str(world - 1),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PART, name, str(batch)],
        env=os.environ
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        | (place if world > 1 else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each rate is measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a rehearsal")
    parser.add_argument("--json", help="file to write the record to")
    options = parser.parse_args()
    sizes, rounds = (QUICK, 1) if options.quick else (SIZES, options.rounds)
    few = ("tiny", 8) if options.quick else (RECIPE, BATCH)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLOT_ATTENTION_CACHE"] = folder  # for the scenes that are drawn
        rates = {name: scaling(name, *size, rounds) for name, size in sizes.items()}
        parts = {world: part(world, *few) for world in (1, 8)}
    rows = [("recipe", *next(iter(rates.values())))]
    rows += [(name, *(f"{value:.3g}" for value in found.values())) for name, found in rates.items()]
    print(table(rows) + "\n")
    rows = [("processes", *parts[1])]
    print(table([*rows, *((world, *found.values()) for world, found in parts.items())]))
    if options.json:
        record = {"scaling": rates, "rounds": rounds, "counted": few[0], "batch": few[1]}
        record |= {"last_of": parts} | run_facts(torch.device("cpu"))
        Path(options.json).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
