"""Measure what each deviation costs: a record per setting and seed in results/what_goes_wrong.

A run takes about half a minute of one core. Records that exist are kept, so an interrupted call can
be repeated:

    python scripts/what_goes_wrong.py --seeds 0 1 2 [--only NAME ...] [--out FOLDER]
"""

import argparse
import sys
from pathlib import Path

import torch
from slot_attention_nbdev.models.weights import save_record
from slot_attention_nbdev.experiments.what_goes_wrong import SETTINGS, STEPS, measure

RESULTS = Path(__file__).resolve().parent.parent / "results" / "what_goes_wrong"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds, each for every setting"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(SETTINGS),
        choices=SETTINGS,
        metavar="NAME",
        help=", ".join(SETTINGS),
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="updates in a run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # one core to a run: small tensors gain nothing from two
    for seed in options.seeds:
        for name in options.only:
            path = options.out / f"{name}-{seed}.json"
            if path.exists():
                continue
            record = measure(name, seed, options.steps)
            save_record(path, record)
            score, seconds = record["final"]["fg_ari"], record["seconds"]
            print(
                f"{path.stem:22s} FG-ARI {score:.3f}  {seconds:.0f} s  {record['failed'] or ''}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
