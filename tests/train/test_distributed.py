"""Several processes train as one: same gradients, weights, end; each resumes another's run."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from slot_attention_nbdev.core import InputError, rank_slice
from slot_attention_nbdev.data.files import save_pack
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.models.weights import load_record
from slot_attention_nbdev.train.checkpoints import load_checkpoint
from slot_attention_nbdev.train.distributed import open_accelerator
from slot_attention_nbdev.train.recipes import build_data, get_recipe
from slot_attention_nbdev.train.trainer import Trainer, train

SHORT = dict(
    scenes=0,
    eval_images=5,
    log_every=2,
    eval_every=4,
    checkpoint_every=4,
    warmup_steps=2,
    clip_norm=0.1,
)
# the paper's model; the small one with an average, uneven shares; sets; a pack in
# pieces; fresh scenes of several blocks, a fixed split, records, a folder
RECIPES = {
    "paper": lambda place: get_recipe("tetrominoes_paper", steps=2, batch_size=2, **SHORT),
    "small": lambda place: get_recipe("tetrominoes_small", steps=6, batch_size=5, **SHORT),
    "sets": lambda place: get_recipe("sprites_properties", steps=3, batch_size=4, **SHORT),
    "pack": lambda place: get_recipe(
        "tiny", steps=6, batch_size=7, accumulate=2, data=f"{place}/pack.npz", **SHORT
    ),
    "fresh": lambda place: tiny(batch_size=20),
    "split": lambda place: tiny(scenes=12, cache=f"{place}/cache"),
    "records": lambda place: tiny(data=f"{place}/pieces.tfrecords"),
    "folder": lambda place: tiny(data=f"{place}/photos/", resolution=35),
}


def tiny(**settings):
    return get_recipe("tiny", **SHORT | dict(steps=3, batch_size=5) | settings)


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_distributed import RECIPES, gradients
from slot_attention_nbdev.train.distributed import exit_process
from slot_attention_nbdev.train.trainer import train
place = Path(sys.argv[2])
for name, make in RECIPES.items():
    found = gradients(make(place))
    record = train(make(place), place / "two" / name, device="cpu", progress=False)
    rank = record["processes"] == 2 and int(__import__("os").environ["RANK"])
    torch.save(found, place / f"{name}-{rank}.pt")
exit_process()
"""


# seconds that a test's processes may take together; idle, a machine takes a tenth of it, and the
# limit of scripts/test.sh leaves a hundred more for what the test does itself
PATIENCE = 300


def deadline():
    "The moment by which all that a test waits for has come."
    return time.monotonic() + PATIENCE


def free_port():
    "A port that nobody listens on, below those that systems give away themselves."
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


@contextmanager
def started(commands, **options):
    "Processes that do not outlive a test, however it ends."
    processes = []
    try:
        for command, environment in commands:
            processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    **options,
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def launch(command, world=2):
    "Start the same command `world` times, as a launcher does."
    meet = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    return started(
        (command, meet | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)
    )


def finish(processes, end, code=0):
    answers = [process.communicate(timeout=max(end - time.monotonic(), 1)) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), answers
    return answers


def wait_for(file, end, process):
    "Wait until a run has written a file, or its process has ended."
    while process.poll() is None and not file.exists():
        assert time.monotonic() < end, f"{file} was not written"
        time.sleep(0.01)


def gradients(recipe):
    "Loss and gradients of the first update, clipping aside."
    place = open_accelerator("cpu")
    run = Trainer(recipe)
    run.training_step(
        build_data(recipe, 0, "cpu", place.process_index, place.num_processes)[0].batch(0)
    )
    figures = run.flush_metrics()
    scale = max(1.0, figures["grad_norm"] / recipe.clip_norm)
    return figures, [p.grad * scale for p in run.model.parameters() if p.grad is not None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Where two processes have trained every recipe."
    place = tmp_path_factory.mktemp("processes")
    scenes = evaluation_scenes("tetrominoes", 40)
    save_pack(place / "pack.npz", scenes)
    records = Path(__file__).parents[1] / "assets" / "tetrominoes.tfrecords"
    shutil.copy(records, place / "pieces.tfrecords")
    (place / "photos").mkdir()
    for i, image in enumerate(scenes["image"].numpy()):
        Image.fromarray(image).save(place / "photos" / f"{i:02}.png")
    command = [sys.executable, "-c", PROGRAM, os.path.dirname(__file__), str(place)]
    with launch(command) as processes:
        finish(processes, deadline())
    return place


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_are_one(place, name):
    recipe = RECIPES[name](place)
    figures, ours = gradients(recipe)
    for rank in range(2):
        theirs_figures, theirs = torch.load(place / f"{name}-{rank}.pt", weights_only=True)
        assert theirs_figures == pytest.approx(figures, rel=1e-4)
        size = max(g.abs().max() for g in ours)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * size)
    train(recipe, place / "one" / name, device="cpu", progress=False)
    one, two = (load_checkpoint(place / each / name / "checkpoint.pt") for each in ("one", "two"))
    assert one["step"] == two["step"] == recipe.steps
    # Adam makes steps of full length of gradients that are nothing but rounding
    for part in ("model", "ema"):
        gap = max((one[part][key] - two[part][key]).abs().max().item() for key in one[part])
        assert gap < 0.1 * recipe.learning_rate * recipe.steps, gap
    for a, b in zip(one["curve"], two["curve"], strict=True):
        assert {**b, "seconds": 0} == pytest.approx({**a, "seconds": 0}, rel=1e-3, abs=5e-3)
    assert load_record(place / "two" / name / "record.json")["processes"] == 2
    assert (place / "two" / name / "model.safetensors").exists() and (
        place / "two" / name / "slots.png"
    ).exists()


# no checkpoint on the way: what is saved is what a signal or the end saves
SEEN = dict(batch_size=4, eval_images=4, log_every=5, eval_every=20, checkpoint_every=1000)


def command(out, *words):
    settings = [f"{key}={value}" for key, value in SEEN.items()]
    program = [sys.executable, "-m", "slot_attention_nbdev.cli", "train", "tiny"]
    return [*program, *settings, *words, "--device", "cpu", "--out", str(out)]


def test_a_signal_to_one_stops_all_and_any_number_goes_on(tmp_path):
    end = deadline()
    with launch(command(tmp_path / "run", "steps=100")) as processes:
        # written after the first evaluation, that of update 20
        wait_for(tmp_path / "run" / "best.safetensors", end, processes[0])
        processes[1].send_signal(signal.SIGTERM)  # not to the one that writes
        answers = finish(processes, end)
    stopped = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"]
    assert 20 <= stopped < 100
    assert f"stopped after step {stopped}," in answers[0][1]
    assert "Traceback" not in answers[0][1] + answers[1][1] and answers[1] == ("", "")
    recipe = get_recipe("tiny", steps=100, **SEEN)
    ended = train(recipe, tmp_path / "run", device="cpu", resume=True, progress=False)
    whole = train(recipe, tmp_path / "whole", device="cpu", progress=False)
    assert ended["step"] == whole["step"] == 100 and ended["processes"] == 1
    for a, b in zip(whole["curve"], ended["curve"], strict=True):
        assert {**b, "seconds": 0} == pytest.approx({**a, "seconds": 0}, rel=5e-3, abs=2e-2)


def test_a_budget_ends_all_in_the_same_update(tmp_path):
    # one that went by its own clock would wait for the others' gradients for ever
    with launch(command(tmp_path / "run", "steps=100000", "--budget", "2s")) as processes:
        finish(processes, deadline())
    record = load_record(tmp_path / "run" / "record.json")
    assert record["finished"] and record["processes"] == 2 and record["seconds"] >= 2
    assert 1 < record["step"] < 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
        [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
        ],
        ["accelerate.commands.launch", "--num_processes", "2", "--cpu"],
    ],
)
def test_launchers(tmp_path, launcher):
    words = [sys.executable, "-m", *launcher, *command(tmp_path, "steps=40")[1:]]
    end = deadline()
    with started([(words, {})]) as (process,):
        wait_for(tmp_path / "record.json", end, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=max(end - time.monotonic(), 1))
    assert (
        load_record(tmp_path / "record.json")["step"]
        == load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    )
    with started([([*words, "--resume"], {})]) as (process,):
        ((out, errors),) = finish([process], end)
    assert out.count("fg_ari") == 1, errors
    record = load_record(tmp_path / "record.json")
    assert record["finished"] and record["processes"] == (1 if "--cpu" in launcher else 2)


@pytest.mark.parametrize(("n", "world"), [(1, 1), (7, 3), (64, 8), (65, 64)])
def test_shares(n, world):
    rows = [range(n)[rank_slice(n, rank, world)] for rank in range(world)]
    assert [i for part in rows for i in part] == list(range(n))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_too_many_pieces():
    with pytest.raises(
        InputError, match="accumulate: expected an integer ≤ 4, the images of each process, got 5"
    ):
        Trainer(get_recipe("tiny", accumulate=5))
    with pytest.raises(
        InputError, match="batch_size: expected at least 8, one scene for each process, got 4"
    ):
        build_data(get_recipe("tiny"), rank=0, world=8)
    with pytest.raises(InputError, match="precision: fp16 needs a GPU"):
        Trainer(get_recipe("tiny", precision="fp16"))
