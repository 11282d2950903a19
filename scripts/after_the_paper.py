"""Compare what came after the paper, at equal time: a record per variant and seed.

Each variant trains on Tetrominoes for the same seconds of one core; evaluations do not count.
Records that exist are kept, so an interrupted call can be repeated:

    python scripts/after_the_paper.py --seeds 0 1 2 [--only NAME ...] [--seconds S] [--out FOLDER]

The rate falls with the time that has passed, so how many steps a run makes depends on the machine.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.data.sources import Batches, GeneratedScenes, evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.controls import mean_scores
from slot_attention_nbdev.models.after import AFTER, build_after
from slot_attention_nbdev.models.autoencoder import SceneModel
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts

RESULTS = Path(__file__).resolve().parent.parent / "results" / "after_the_paper"
SETTINGS = dict(batch_size=32, learning_rate=1e-3, warmup_steps=100, clip_norm=1.0)
SECONDS = 600.0  # of one core, for each run
POINTS = 8  # evaluations on the way
HELD_OUT = 160  # images to evaluate


@torch.no_grad()
def evaluate(model: SceneModel, scenes: dict[str, torch.Tensor]) -> dict[str, float]:
    "Scores of held-out images: segmentation, squared error, slots that are not empty."
    model.eval()
    random = generator(0, "evaluate")
    masks, errors, counts = [], [], []
    for image in to_model(scenes["image"]).split(32):
        output = model(image, generator=random)
        masks.append(output.masks)
        errors.append(output.squared_error(image))
        counts.append(output.count_slots())
    model.train()
    scores = mean_scores(scenes["label"], torch.cat(masks))
    scores["mse"] = torch.cat(errors).mean().item()
    scores["slots"] = torch.cat(counts).float().mean().item()
    return {key: None if value is None else float(f"{value:.5g}") for key, value in scores.items()}


def learning_rate(step: int, passed: float) -> float:
    "The rate of a step, by the part of the time that has passed: warm-up, then a cosine."
    rise = min(1.0, (step + 1) / SETTINGS["warmup_steps"])
    return SETTINGS["learning_rate"] * rise * (1 + math.cos(math.pi * min(passed, 1.0))) / 2


def train_step(model: SceneModel, optimizer: torch.optim.Optimizer, image, random) -> float:
    "One update; returns the loss."
    output = model(image, generator=random)
    loss = (output.squared_error(image) if output.loss is None else output.loss).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), SETTINGS["clip_norm"])
    if loss.isfinite():
        optimizer.step()
    return loss.item()


def measure(name: str, seed: int, seconds: float, held_out: int = HELD_OUT) -> dict:
    "Train a variant for some seconds of a core and return its record."
    model = build_after(name, seed).train()
    facts = run_facts(torch.device("cpu"))
    stream = Batches(GeneratedScenes("tetrominoes"), SETTINGS["batch_size"], seed)
    scenes = evaluation_scenes("tetrominoes", held_out)
    optimizer = torch.optim.Adam(model.parameters())
    curve = [{"seconds": 0.0, "step": 0, **evaluate(model, scenes)}]
    used, step, failed = 0.0, 0, None
    while used < seconds and failed is None:
        start = time.process_time()
        optimizer.param_groups[0]["lr"] = learning_rate(step, used / seconds)
        image = to_model(stream.batch(step)["image"])
        loss = train_step(model, optimizer, image, generator(seed, "slots", step))
        used += time.process_time() - start
        step += 1
        if not math.isfinite(loss):
            failed = f"the loss was not finite in step {step - 1}"
        if used >= seconds * len(curve) / POINTS and used < seconds:
            curve.append({"seconds": round(used, 1), "step": step, **evaluate(model, scenes)})
    curve.append({"seconds": round(used, 1), "step": step, **evaluate(model, scenes)})
    variant = {k: v for k, v in asdict(AFTER[name]).items() if k not in ("attention", "model")}
    recipe = {"name": name, **variant, **SETTINGS, "budget": seconds, "held_out": held_out}
    found = {"seconds": round(used, 1), "steps": step, "failed": failed}
    return {"recipe": recipe, "seed": seed, **facts, **found, "curve": curve, "final": curve[-1]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="for each variant")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(AFTER),
        choices=AFTER,
        metavar="NAME",
        help=", ".join(AFTER),
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one core, for each run")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="images to evaluate")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # one core to a run
    for seed in options.seeds:
        for name in options.only:
            path = options.out / f"{name}-{seed}.json"
            if path.exists():
                continue
            record = measure(name, seed, options.seconds, options.held_out)
            save_record(path, record)
            final = record["final"]
            print(
                f"{path.stem:16s} {record['steps']:5d} steps  FG-ARI {final['fg_ari']:.3f}"
                f"  MSE {final['mse']:.4f}  {record['failed'] or ''}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
