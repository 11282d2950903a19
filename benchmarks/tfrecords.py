#!/usr/bin/env python3
"""Milliseconds to read a record of CLEVR with masks and of Tetrominoes, unpacking included.

On one core.

    OMP_NUM_THREADS=1 python benchmarks/tfrecords.py
    OMP_NUM_THREADS=1 python benchmarks/tfrecords.py --json results/benchmarks/tfrecords.json

Beside ours, in the same run, the package `tfrecord` (pip install tfrecord==1.14.6), if it is
installed. It stops at arrays of values and checks no checksum; so ours is timed twice, up to the
values (checksums checked), and up to a scene: masks checked, label map, tensors.

The records are made, not genuine. Tetrominoes are drawn as the originals are (data.sprites). For
CLEVR, a smooth image with discs and a little noise, and one-hot masks; the noise is such that a
record packs to about 105 kB, the mean of the original file (10.5 GB). Times the processor, not the
clock, so that other programs disturb it less; takes the best of several runs.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slot_attention_nbdev.core import atomic_write, generator
from slot_attention_nbdev.data.sprites import tetrominoes
from slot_attention_nbdev.data.tfrecord_dataset import TFRecordScenes
from slot_attention_nbdev.data.tfrecords import SCHEMAS, parse_example, read_tfrecords

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "data"))
from writers import encode_scene, write_tfrecords  # noqa: E402

REPEATS, NOISE = 5, 0.45


def clevr_scene(number: int) -> dict[str, Tensor]:
    "Six discs on a smooth floor, with the properties of CLEVR."
    random = generator(number, "benchmark")
    draw = lambda low, high, *size: low + (high - low) * torch.rand(size, generator=random)
    row, column = torch.meshgrid(torch.arange(240.0), torch.arange(320.0), indexing="ij")
    image = (110 + 0.2 * row - 0.1 * (column - 160).abs())[..., None].expand(-1, -1, 3).clone()
    label = torch.zeros(240, 320, dtype=torch.uint8)
    there = torch.arange(10) < 6
    for k in range(6):
        y, x, radius = (float(draw(*range_)) for range_ in ((60, 200), (40, 280), (14, 34)))
        inside = (row - y) ** 2 + (column - x) ** 2 < radius**2
        shade = (
            1
            - ((row - y + radius / 3) ** 2 + (column - x - radius / 3) ** 2).sqrt() / (2.5 * radius)
        ).clamp(0.2, 1)
        image[inside] = (shade[..., None] * draw(60, 250, 3))[inside]
        label[inside] = k + 1
    image += NOISE * torch.randn(image.shape, generator=random)
    scene = {
        "image": image.round().clamp(0, 255).to(torch.uint8),
        "label": label,
        "visibility": there.float(),
    }
    scene |= {name: draw(-3, 3, 10) * there for name in ("x", "y", "z", "rotation")} | {
        "pixel_coords": draw(0, 240, 10, 3) * there[:, None]
    }
    return scene | {
        name: torch.randint(2, (10,), generator=random) * there
        for name in SCHEMAS["clevr_with_masks"].codes
    }


def milliseconds(read: Callable[[], Iterable], count: int) -> float:
    "Processor time for a record, best of REPEATS runs."
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        assert sum(1 for _ in read()) == count
        took.append(time.process_time() - start)
    return 1000 * min(took) / count


def processor() -> str:
    "Its model, where Linux tells."
    try:
        return next(
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    "The commit of this tree, if git knows it."
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peer(path: Path, name: str) -> Iterator:
    "The same file through the package `tfrecord`."
    from tfrecord.reader import tfrecord_loader

    description = {
        feature: "float" if kind.__name__ == "float32" else "byte"
        for feature, (_, kind) in SCHEMAS[name].expected().items()
    }
    return tfrecord_loader(str(path), None, description, compression_type="gzip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        import tfrecord  # noqa: F401

        compared = True
    except ImportError as error:
        compared = False
        print(
            f"The package tfrecord is left out: {error}. To compare: pip install tfrecord==1.14.6\n"
        )
    pieces = tetrominoes(1000, generator(0))
    records = {
        "clevr_with_masks": [encode_scene(clevr_scene(n), "clevr_with_masks") for n in range(12)],
        "tetrominoes": [
            encode_scene({name: value[n] for name, value in pieces.items()}, "tetrominoes")
            for n in range(1000)
        ],
    }
    figures = {}
    print(
        "ms a record on one core, gunzip included; in brackets: how many times faster"
        " than the package\n"
    )
    print(
        "| set | payload, kB | packed, kB | ours, a scene | ours, values alone | package"
        " tfrecord |\n|---|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, payloads in records.items():
            path, count = Path(folder) / f"{name}.tfrecords", len(payloads)
            write_tfrecords(path, payloads)
            ours = milliseconds(lambda: TFRecordScenes(path, name), count)
            values = milliseconds(
                lambda: (parse_example(record.payload()) for record in read_tfrecords(path)), count
            )
            theirs = milliseconds(lambda: peer(path, name), count) if compared else None
            sizes = len(payloads[0]) / 1000, path.stat().st_size / count / 1000
            figures[name] = {
                "payload_kB": sizes[0],
                "packed_kB": sizes[1],
                "scene_ms": ours,
                "values_ms": values,
                "tfrecord_ms": theirs,
            }
            times = [
                f"{took:.2f}" + (f" ({theirs / took:.1f})" if compared else "")
                for took in (ours, values)
            ]
            print(
                f"| {name} | {sizes[0]:,.0f} | {sizes[1]:,.2f} | {times[0]} | {times[1]} |"
                f" {f'{theirs:.2f}' if compared else 'not installed'} |"
            )
    if arguments.json:
        figures["machine"] = {
            "processor": processor(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "tfrecord": version("tfrecord") if compared else None,
            "commit": commit(),
        }
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
