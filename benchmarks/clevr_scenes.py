#!/usr/bin/env python3
"""Time the tracer of CLEVR scenes on one core, and hold it against Blender's pictures.

    python benchmarks/clevr_scenes.py                       # on the twelve scenes in tests/assets
    python benchmarks/clevr_scenes.py --scenes DIR/*.npz    # on more of them
    python benchmarks/clevr_scenes.py --json results/benchmarks/clevr_scenes.json

On a machine with a GPU, --device cuda times it there. Times are processor time on a CPU, medians
of several runs.
"""

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slot_attention_nbdev.data.clevr_scenes import clevr, label_scenes, render_scenes, sample_scenes
from slot_attention_nbdev.data.objects import CLEVR_WORDS
from slot_attention_nbdev.data.rays import POSE
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.train.checkpoints import run_facts

ASSETS = Path(__file__).resolve().parent.parent / "tests" / "assets" / "clevr_blender.npz"


class Count(TorchDispatchMode):
    "Counts kernels and the numbers they write."

    kernels, written = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.kernels += 1
        self.written += sum(
            x.numel()
            for x in (out if isinstance(out, (tuple, list)) else [out])
            if isinstance(x, torch.Tensor)
        )
        return out


def load(paths: list[Path]) -> dict[str, torch.Tensor]:
    "Blender's scenes from files with the background as entity 0, or without it."
    parts = [dict(np.load(path)) for path in paths]
    for part in parts:
        if "lights" in part:
            part |= {name: part[name][:, 1:] for name in (*POSE, *CLEVR_WORDS, "visibility")}
            part |= {"camera": part["camera"][:, :3, 3], "lamps": part["lights"]}
    return {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts]))
        for name in ("image", "label", *POSE, *CLEVR_WORDS, "visibility", "camera", "lamps")
    }


def timed(device: torch.device, run, repeats: int) -> float:
    "Median seconds of some runs."
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scenes", nargs="+", type=Path, default=[ASSETS], help="Blender's scenes (.npz)"
    )
    parser.add_argument("--samples", type=int, default=16, help="paths per pixel of the comparison")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write a record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, n = torch.device(arguments.device), 8 if arguments.device == "cpu" else 256
    random = lambda seed: torch.Generator(device).manual_seed(seed)
    figures = {}
    with torch.inference_mode():
        figures["seconds an image, 128 x 128, 4 paths"] = (
            timed(device, lambda: clevr(n, generator=random(0), device=device), 5) / n
        )
        scene = sample_scenes(512, generator=random(1), device=device)
        figures["scenes a second, placed"] = 512 / timed(
            device, lambda: sample_scenes(512, generator=random(1), device=device), 5
        )
        both = lambda: label_scenes(
            sample_scenes(512, generator=random(1), device=device), "discovery", (128, 128)
        )
        figures["scenes a second, placed and labelled at 128 x 128"] = 512 / timed(device, both, 5)
        part = {name: value[:8] for name, value in scene.items()}
        with Count() as count:
            render_scenes(part, generator=random(2), chunk=2**22)
        figures["numbers written an image, in millions"] = count.written / 8e6
        figures["kernels for eight images at once"] = count.kernels
        blender = load(arguments.scenes)
        known = {
            name: value.to(device)
            for name, value in blender.items()
            if name not in ("image", "label")
        }
        agree = (label_scenes(known).cpu() == blender["label"]).double().mean((1, 2))
        figures |= {
            "scenes compared with Blender": len(agree),
            "pixels whose label agrees, mean": agree.mean().item(),
            "in the worst scene": agree.min().item(),
        }
        if importlib.util.find_spec("pyoidn"):
            errors = []
            for row in range(len(agree)):
                one = {name: value[row : row + 1] for name, value in known.items()}
                ours = render_scenes(
                    one,
                    "full",
                    (240, 320),
                    samples=arguments.samples,
                    denoised=True,
                    generator=random(row),
                )["image"].cpu()
                errors.append(
                    (ours.double() - blender["image"][row : row + 1].double()).square().mean()
                )
            score = 10 * (255**2 / torch.stack(errors)).log10()
            figures |= {
                f"PSNR at {arguments.samples} paths, denoised, mean": score.mean().item(),
                "PSNR, lowest": score.min().item(),
            }
            figures["PSNR of all pixels together"] = (
                10 * (255**2 / torch.stack(errors).mean()).log10()
            ).item()
    for name, value in figures.items():
        print(f"{name:55}{value:12.4f}" if isinstance(value, float) else f"{name:55}{value:12}")
    if arguments.json:
        save_record(
            arguments.json,
            {
                "recipe": "benchmarks/clevr_scenes.py",
                "seed": 0,
                **run_facts(device),
                "figures": figures,
            },
        )


if __name__ == "__main__":
    main()
