#!/usr/bin/env python3
"""Quality per second: the paper's model and each shortcut (speed/04_shortcuts), timed in turn.

Minutes on one core; writes results/benchmarks/variants.json:

    OMP_NUM_THREADS=1 python benchmarks/variants.py --record

The paper's sizes, on a GPU; writes variants_paper.json beside it:

    python benchmarks/variants.py --size paper --device cuda --seconds 60 --seeds 0 --record

All runs of a seed are in memory together and take turns of a few seconds, so that a busy machine is
busy for all of them. On a CPU the clock counts the seconds of this process (wall seconds are
recorded beside them), so that other processes cost nothing but patience; on a GPU it counts wall
seconds. Evaluation is not counted, generating the training images is. The record is written after
every turn; an interrupted one has "finished": false. Runs of other seeds that it holds are kept, so
`--seeds 1` adds a seed.

small: scenes of Tetrominoes at 17x17; the paper's Slot Attention and decoder behind our patch
encoder, which is quick to learn and the same for all.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from slot_attention_nbdev.core import derive_seed, resolve_device
from slot_attention_nbdev.nn.encoder import PatchEncoder
from slot_attention_nbdev.train.tasks import Objective, draw_noise, draw_pixels, evaluate, to_device
from slot_attention_nbdev.train.recipes import (
    Recipe,
    build_data,
    build_model,
    cosine_rate,
    get_recipe,
    resolution_of,
    to_dict,
)
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.models.weights import save_record

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
SIZES = {  # `steps` is the length of the schedule, which every run squeezes into its seconds
    "small": dict(resolution=17, batch_size=16, learning_rate=2e-3, eval_images=96),
    "paper": dict(learning_rate=1e-3, eval_images=320),
}
COMMON = dict(scenes=0, steps=1_000, schedule="cosine", warmup_steps=100, clip_norm=1.0)


def variants(recipe: Recipe, share: float = 1 / 3) -> dict[str, Recipe]:
    "A recipe, the same with each shortcut (a share of the pixels in one), and with all of them."
    height, width = resolution_of(recipe)
    some = dict(model="paper_mlp", pixels=max(1, int(height * width * share)))
    few = dict(first_iterations=1, iteration_steps=max(1, recipe.steps // 2))
    changes = {
        "paper": {},
        "pixels alone": dict(model="paper_mlp"),
        "some pixels": some,
        "last step": dict(gradient="implicit"),
        "few at first": few,
        "all four": some | few | dict(gradient="implicit"),
    }
    return {name: replace(recipe, **change) for name, change in changes.items()}


class Contestant:
    "One variant, one seed, its clock and its curve."

    def __init__(
        self, name: str, recipe: Recipe, seed: int, size: str, device: torch.device, seconds: float
    ):
        self.name = name
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.budget = seconds
        model = build_model(recipe, resolution_of(recipe), seed)
        if size == "small":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(derive_seed(seed, "encoder"))
                model.encoder = PatchEncoder(model.encoder.output_dim, model.encoder.output_dim)
        self.model = to_device(model, device)
        self.objective = Objective(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), eps=1e-8)
        self.step = 0
        self.seconds = 0.0
        self.wall = 0.0
        self.losses = []
        self.curve = []
        self.failed = None

    def training_step(self, scenes: dict[str, torch.Tensor]) -> None:
        "One step of the plainest loop."
        r = self.recipe
        position = min(1.0, self.seconds / self.budget) * self.recipe.steps
        drawn = len(scenes["image"]), self.seed, self.step
        noise = draw_noise(self.model, *drawn)
        scenes = scenes | draw_pixels(self.model, r.pixels, *drawn)
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.objective(scenes, noise, num_iterations=r.iterations_at(position))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), r.clip_norm)
        self.optimizer.param_groups[0]["lr"] = cosine_rate(
            position, r.learning_rate, r.warmup_steps, r.steps
        )
        self.optimizer.step()
        self.losses.append(loss.detach())
        self.step += 1

    def run(self, stream, until: float) -> None:
        "Train until that many seconds are on the clock."
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        while self.seconds < until and not self.failed:
            began, wall = clock(), time.perf_counter()
            for _ in range(10 if self.device.type == "cuda" else 1):
                self.training_step(stream.batch(self.step))
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += clock() - began
            self.wall += time.perf_counter() - wall
            if not math.isfinite(loss := self.losses[-1].item()):
                self.failed = f"loss {loss} in step {self.step}"

    def evaluate(self, held_out: dict[str, torch.Tensor]) -> None:
        "Add a point to the curve."
        scores = evaluate(self.model, held_out, batch_size=32)
        loss = torch.stack(self.losses).mean().item() if self.losses else None
        self.curve.append(
            {
                "seconds": round(self.seconds, 2),
                "wall": round(self.wall, 1),
                "step": self.step,
                "loss": loss,
                **{key: round(scores[key], 5) for key in ("fg_ari", "mse")},
            }
        )
        self.losses.clear()

    def record(self) -> dict:
        last = self.curve[-1]
        first = next((point for point in self.curve if point["fg_ari"] >= 0.5), None)
        if not self.failed and self.seconds >= self.budget and last["fg_ari"] < 0.3:
            self.failed = "FG-ARI below 0.3 after its seconds"
        ends = {
            "steps": self.step,
            "steps_per_second": self.step / self.seconds if self.seconds else None,
            "fg_ari": last["fg_ari"],
            "mse": last["mse"],
        }
        return {
            "variant": self.name,
            "recipe": to_dict(self.recipe),
            "seed": self.seed,
            "failed": self.failed,
            **ends,
            "seconds_to_half": first and first["seconds"],
            "curve": self.curve,
        }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=240, help="for each variant and seed")
    parser.add_argument("--turns", type=int, default=16, help="in how many turns they take them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", help="names of variants; all unless given")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write results/benchmarks/variants.json, or variants_paper.json",
    )
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    recipe = get_recipe("tetrominoes_paper", **COMMON, **SIZES[options.size])
    about = {
        "size": options.size,
        "budget": options.seconds,
        "clock": "wall seconds" if device.type == "cuda" else "seconds of the process on the CPU",
    }
    record = {
        "recipe": to_dict(recipe),
        "seed": options.seeds,
        **about,
        **run_facts(device),
        "finished": False,
        "runs": [],
    }
    path = RESULTS / (
        "variants.json" if options.size == "small" else f"variants_{options.size}.json"
    )
    if options.record and path.exists():  # runs of other seeds stay, if all else is the same
        old = json.loads(path.read_text())
        if all(
            old[key] == record[key] for key in ("recipe", "budget", "clock", "hardware", "threads")
        ):
            record["runs"] = [
                {"commit": old["commit"]} | run
                for run in old["runs"]
                if run["seed"] not in options.seeds
            ]
            record["seed"] = sorted({run["seed"] for run in record["runs"]} | set(options.seeds))
    for seed in options.seeds:
        stream, held_out = build_data(recipe, seed, device)
        contestants = [
            Contestant(name, r, seed, options.size, device, options.seconds)
            for name, r in variants(recipe).items()
            if name in (options.only or [name])
        ]
        done, started = record["runs"], time.perf_counter()
        for turn in range(options.turns + 1):
            for contestant in contestants:
                contestant.run(stream, options.seconds * turn / options.turns)
                contestant.evaluate(held_out)
            record["runs"] = done + [contestant.record() for contestant in contestants]
            record["finished"] = turn == options.turns and seed == options.seeds[-1]
            line = "  ".join(f"{each.name} {each.curve[-1]['fg_ari']:.3f}" for each in contestants)
            spent = options.seconds * turn / options.turns
            wall = time.perf_counter() - started
            print(
                f"seed {seed}, {spent:.0f} s of {options.seconds:.0f} ({wall:.0f} s wall): {line}",
                flush=True,
            )
            if options.record:
                save_record(path, record)
    for run in record["runs"]:
        speed = f"{run['steps_per_second']:.1f} steps a second"
        print(
            f"{run['variant']:13} seed {run['seed']}: FG-ARI {run['fg_ari']:.3f}, {speed}", end=" "
        )
        print(run["failed"] or "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
