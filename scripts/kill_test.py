#!/usr/bin/env python3
"""Kill a training run at random moments, resume it, and compare it with a run left alone.

    python scripts/kill_test.py                             # fifty kills; writes results/kills.json
    python scripts/kill_test.py --kills 6 --seed 3 --out -  # a few, and print the record

Four kinds of accident: SIGKILL; SIGTERM; a disk that is full from some moment on (a limit on the
size of files, set while the run is going on, lets every write fail); SIGKILL and a newest
checkpoint that is cut short. After each, what lies in the folder must hold a whole checkpoint that
lost no more than the steps since the last save, or, cut short, since the one before.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

PATIENCE = 300  # seconds that a run left alone may take
KINDS = ("SIGKILL", "SIGTERM", "full disk", "truncated")
RECIPE = dict(batch_size=2, eval_images=4, log_every=7, eval_every=10, checkpoint_every=1)


def child(out: str, steps: int, resume: bool, said: str) -> None:
    "Train in a process of its own; what it has to say at its end is written to a file."
    import torch

    torch.set_num_threads(1)
    from tqdm import tqdm

    # its own one lives between processes, and a killed one leaves it behind
    tqdm.set_lock(threading.RLock())
    from slot_attention_nbdev.core import SlotAttentionError
    from slot_attention_nbdev.train.recipes import get_recipe
    from slot_attention_nbdev.train.trainer import train

    words, code = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0
    signal.signal(signal.SIGUSR2, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)))
    try:
        train(
            get_recipe("tiny", steps=steps, **RECIPE),
            out,
            device="cpu",
            resume=resume,
            progress=False,
        )
    except SlotAttentionError as error:
        code = getattr(error, "code", 1)
        # short enough for a full disk
        os.write(words, f"{type(error).__name__}: {error}"[:60].encode())
    os._exit(code)


class Runs:
    "Starts runs from a process that has imported everything already."

    def __init__(self, home: Path, steps: int):
        self.home = home
        self.steps = steps
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["slot_attention_nbdev.train.trainer"])

    def start(self, name: str, resume: bool):
        process = self.context.Process(
            target=child, args=(str(self.home / name), self.steps, resume, str(self.home / "said"))
        )
        process.start()
        return process

    def said(self) -> str:
        return (self.home / "said").read_text(errors="replace")


def step_of(out: Path) -> int:
    "The step that the record says; the checkpoint of that step was written before it."
    try:
        return json.loads((out / "record.json").read_text())["step"]
    except (OSError, ValueError):
        return -1


def accident(runs: Runs, out: Path, kind: str, resume: bool, chance: random.Random) -> dict:
    "Let the run get some steps further, then let something happen to it."
    from slot_attention_nbdev.train.checkpoints import load_latest

    before = step_of(out)
    process = runs.start(out.name, resume)
    end = time.monotonic() + 120
    while process.is_alive() and step_of(out) <= max(before, 0) and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.15))  # in a step, in a save, between the two
    known = step_of(out)
    os.kill(
        process.pid,
        {"SIGTERM": signal.SIGTERM, "full disk": signal.SIGUSR2}.get(kind, signal.SIGKILL),
    )
    process.join(60)
    alive, code = process.is_alive(), process.exitcode
    if alive:
        process.kill()
    expected = {"SIGTERM": 0, "full disk": 1}.get(kind, -signal.SIGKILL)
    if kind == "truncated":
        newest = out / "checkpoint.pt"
        os.truncate(newest, chance.randrange(newest.stat().st_size))
    found = load_latest(out / "checkpoint.pt")["step"]
    lost = max(0, known - found)
    told = {"SIGTERM": "Interrupted", "full disk": "FileError"}.get(kind, "")
    good = (
        not alive
        and code == expected
        and lost <= (kind == "truncated")
        and runs.said().startswith(told)
    )
    return {
        "kind": kind,
        "step": found,
        "lost": lost,
        "exit": code,
        "said": runs.said(),
        "good": good,
    }


def finish(process) -> None:
    "Wait for a run that is left alone, but not for ever."
    process.join(PATIENCE)
    process.kill()


def same(a: Path, b: Path) -> bool:
    "Whether two runs ended with the same weights, to the byte, and with the same curve."
    from slot_attention_nbdev.models.weights import load_record

    weights = ("model.safetensors", "best.safetensors")
    curves = [load_record(out / "record.json")["curve"] for out in (a, b)]
    for point in (*curves[0], *curves[1]):
        point["seconds"] = 0
    leftovers = [*b.glob(".*.part*")]
    return (
        all((a / name).read_bytes() == (b / name).read_bytes() for name in weights)
        and curves[0] == curves[1]
        and not leftovers
    )


def kill_test(kills: int, seed: int = 0) -> dict:
    "Carry it out; the record."
    from slot_attention_nbdev.models.weights import load_record

    chance, started = random.Random(seed), time.monotonic()
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    chance.shuffle(kinds)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        runs = Runs(home, steps=12 * kills)
        whole = runs.start("whole", False)
        broken = home / "broken"
        events = []
        finish(whole)
        for kind in kinds:
            if step_of(broken) > 0.9 * runs.steps:
                break  # it would end before it is killed
            events.append(accident(runs, broken, kind, bool(events), chance))
            print(
                f"{len(events):3} {kind:9} exit {events[-1]['exit']:3} goes on from step"
                f" {events[-1]['step']:4}, lost {events[-1]['lost']} "
                f" {'' if events[-1]['good'] else 'BAD ' + events[-1]['said']}",
                file=sys.stderr,
                flush=True,
            )
        last = runs.start("broken", True)
        finish(last)
        record = load_record(broken / "record.json")
        equal = (whole.exitcode, last.exitcode) == (0, 0) and same(home / "whole", broken)
        counts = {kind: sum(event["kind"] == kind for event in events) for kind in KINDS}
        return {
            "kills": len(events),
            "kinds": counts,
            "good": sum(event["good"] for event in events),
            "steps": runs.steps,
            "most_lost": max(event["lost"] for event in events),
            "same_weights_as_a_run_left_alone": equal,
            "seed": seed,
            "recipe": {"name": "tiny", **RECIPE},
            "seconds": round(time.monotonic() - started, 1),
            **{key: record[key] for key in ("commit", "versions", "hardware", "threads")},
            "events": events,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", default="results/kills.json", help="file of the record; - prints it"
    )
    arguments = parser.parse_args()
    record = kill_test(arguments.kills, arguments.seed)
    text = json.dumps(record, indent=1) + "\n"
    if arguments.out == "-":
        print(text)
    else:
        Path(arguments.out).write_text(text)
    good = record["good"] == record["kills"] and record["same_weights_as_a_run_left_alone"]
    print(
        f"{record['kills']} kills, {record['good']} good, weights as of a run left alone:"
        f" {record['same_weights_as_a_run_left_alone']}",
        file=sys.stderr,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
