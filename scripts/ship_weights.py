#!/usr/bin/env python3
"""Put a finished run's weights into the package, with its record and a card.

python scripts/ship_weights.py runs/demo
python scripts/ship_weights.py runs/sprites --half  # rounded to half precision
python scripts/ship_weights.py --cards    # write the cards of what is shipped again
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from slot_attention_nbdev.core import atomic_write
from slot_attention_nbdev.models.base import create_model, model_card
from slot_attention_nbdev.models.weights import (
    file_digest,
    load_record,
    load_weights,
    save_record,
    save_weights,
)

WEIGHTS = Path(__file__).resolve().parent.parent / "slot_attention_nbdev" / "weights"
LIMIT = 4_000_000  # bytes of all of them; every clone and every install pays for them


def card(record: dict) -> str:
    "The card of shipped weights."
    recipe = record["recipe"]
    sizes = record["resolution"], recipe["num_slots"], recipe["num_iterations"]
    return model_card(create_model(recipe["model"], *sizes), record["sha256"], record)


def ship(run: Path, half: bool = False) -> str:
    "Copy weights, rounded if asked, and record; returns the recipe's name."
    record = load_record(run / "record.json")
    if not record["finished"]:
        sys.exit(f"{run}: this run has not finished; resume it first")
    tensors, info = load_weights(run / "model.safetensors")
    if (info["recipe"], info["seed"], info["step"]) != (
        record["recipe"],
        record["seed"],
        record["step"],
    ):
        sys.exit(f"{run}: weights and record are of different runs")
    name = record["recipe"]["name"]
    if half:
        tensors = {key: x.half() if x.is_floating_point() else x for key, x in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_weights(file, tensors, info)
        files = [file, *(path for path in WEIGHTS.glob("*.safetensors") if path.stem != name)]
        size = sum(path.stat().st_size for path in files)
        if size >= LIMIT:
            sys.exit(f"{run}: with these weights {size:,} bytes would be shipped, of {LIMIT:,}")
        with atomic_write(WEIGHTS / f"{name}.safetensors") as temporary:
            shutil.copyfile(file, temporary)
        save_record(WEIGHTS / f"{name}.json", record | {"sha256": file_digest(file)})
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument(
        "--cards", action="store_true", help="write the cards of what is shipped again"
    )
    parser.add_argument("--half", action="store_true", help="round the weights to half precision")
    arguments = parser.parse_args()
    if (arguments.run is None) != arguments.cards:
        parser.error("name a run, or --cards")
    names = (
        [path.stem for path in sorted(WEIGHTS.glob("*.safetensors"))]
        if arguments.cards
        else [ship(arguments.run, arguments.half)]
    )
    for name in names:
        with atomic_write(WEIGHTS / f"{name}.md") as temporary:
            temporary.write_text(card(load_record(WEIGHTS / f"{name}.json")), encoding="utf-8")
        print(
            f"{WEIGHTS / name}:"
            f" {(WEIGHTS / name).with_suffix('.safetensors').stat().st_size:,} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
