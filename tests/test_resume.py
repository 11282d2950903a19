"""A run killed with -9, again and again at random moments, ends with the very weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time

import torch
from slot_attention_nbdev.models.weights import load_record
from slot_attention_nbdev.train.checkpoints import load_checkpoint

PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from slot_attention_nbdev.core import SlotAttentionError
from slot_attention_nbdev.train.recipes import get_recipe
from slot_attention_nbdev.train.trainer import train
recipe = get_recipe("tiny", steps=24, batch_size=2, eval_images=4, log_every=7, eval_every=10, checkpoint_every=1)
try:
    train(recipe, sys.argv[1], device="cpu", resume=sys.argv[2] == "resume", progress=False)
except SlotAttentionError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(out, resume):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(out), "resume" if resume else "new"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def wait_for_a_save(process, out, limit=60):
    "Wait until the process has written its next checkpoint; False if it ended first."
    checkpoint = out / "checkpoint.pt"
    stamp = lambda: checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    before, end = stamp(), time.monotonic() + limit
    while process.poll() is None and stamp() == before and time.monotonic() < end:
        time.sleep(0.002)
    return process.poll() is None


def test_killed_and_resumed_is_bit_identical(tmp_path):
    chance = random.Random(time.time_ns())
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole, resume=False))

    kills = 0
    while kills < 2:
        process = start(broken, resume=kills > 0)
        if wait_for_a_save(process, broken):
            time.sleep(chance.uniform(0, 0.25))  # in a step, in a save, between the two
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        load_checkpoint(broken / "checkpoint.pt")  # whole, whatever happened
        if (broken / "record.json").exists():  # the first one is written after the first checkpoint
            load_record(broken / "record.json")
    assert kills, "the run ended before it was killed"
    finish(start(broken, resume=True))

    ours, theirs = (load_checkpoint(out / "checkpoint.pt") for out in (whole, broken))
    assert ours["step"] == theirs["step"] == 24
    for part in ("model", "ema"):
        for key, value in ours[part].items():
            assert torch.equal(value, theirs[part][key]), key
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    curves = [
        [{**point, "seconds": 0} for point in load_record(out / "record.json")["curve"]]
        for out in (whole, broken)
    ]
    assert curves[0] == curves[1]
    assert not list(broken.glob(".*.part*"))


def test_ctrl_c_ends_a_run_with_a_message(tmp_path):
    process = start(tmp_path, resume=False)
    assert wait_for_a_save(process, tmp_path) and wait_for_a_save(process, tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 1
        and "Interrupted: stopped after step" in errors
        and "Traceback" not in errors
    )
    assert (
        load_record(tmp_path / "record.json")["step"]
        == load_checkpoint(tmp_path / "checkpoint.pt")["step"]
        > 0
    )
