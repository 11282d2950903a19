"""Checkpoints: two of them, kills at random moments, the best weights, the layer of a NaN."""

import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from torch import nn

from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import FileError, InputError, TrainingError
from slot_attention_nbdev.models.weights import load_weights
from slot_attention_nbdev.train.checkpoints import (
    load_checkpoint,
    load_latest,
    lock_run,
    nan_watch,
    rotate_checkpoint,
    selection_metric,
)
from slot_attention_nbdev.train.recipes import get_recipe
from slot_attention_nbdev.train.trainer import Trainer, load_model, train

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(steps=12, batch_size=2, eval_images=4, log_every=4, eval_every=4, checkpoint_every=4)


@pytest.mark.parametrize(("kills", "seed"), [(6, 1), pytest.param(50, 2, marks=pytest.mark.slow)])
def test_kills_at_random_moments(tmp_path, kills, seed):
    out = tmp_path / "kills.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "kill_test.py"),
            "--kills",
            str(kills),
            "--seed",
            str(seed),
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert (
        record["good"] == record["kills"] == kills
        and record["same_weights_as_a_run_left_alone"]
        and record["most_lost"] <= 1
    )


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_two_are_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(
            os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted"))
        )
    for step in (1, 2, 3):
        rotate_checkpoint(tmp_path / "checkpoint.pt", {"step": step})
    assert {p.name: load_checkpoint(p)["step"] for p in tmp_path.iterdir()} == {
        "checkpoint.pt": 3,
        "previous.pt": 2,
    }


@pytest.mark.parametrize("spoil", [b"", b"text", None], ids=["empty", "text", "gone"])
def test_a_damaged_one_is_put_aside(tmp_path, caplog, spoil):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        rotate_checkpoint(path, {"step": step})
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil)
    assert load_latest(path)["step"] == 1
    assert (
        "checkpoint.pt" in caplog.text
        and "going on from" in caplog.text
        and "(step 1)" in caplog.text
    )
    assert load_latest(path)["step"] == 1  # again, as the other processes do
    rotate_checkpoint(path, {"step": 5})
    assert [
        load_checkpoint(tmp_path / name)["step"] for name in ("checkpoint.pt", "previous.pt")
    ] == [5, 1]
    with pytest.raises(FileError, match="No such file"):
        load_latest(tmp_path / "nowhere" / "checkpoint.pt")


def test_a_run_goes_on_from_the_one_before(tmp_path, caplog):
    recipe = get_recipe("tiny", **TINY)
    whole = train(recipe, tmp_path / "whole", device="cpu", progress=False)
    run = tmp_path / "run"
    train(recipe, run, device="cpu", progress=False)
    (run / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:-1000])
    ended = train(recipe, run, device="cpu", resume=True, progress=False)
    assert "not a checkpoint, or cut short; going on from" in caplog.text
    assert (
        ended["step"] == 12
        and (run / "model.safetensors").read_bytes()
        == (tmp_path / "whole" / "model.safetensors").read_bytes()
    )
    for a, b in zip(whole["curve"], ended["curve"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_the_best_is_kept(tmp_path, monkeypatch):
    scores = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(
        "slot_attention_nbdev.train.trainer.validation_metric", lambda *_: {"fg_ari": next(scores)}
    )
    train(get_recipe("tiny", **TINY), tmp_path, device="cpu", progress=False)
    model, info = load_model(tmp_path / "best.safetensors")
    assert info["step"] == 8 and load_weights(tmp_path / "best.safetensors")[1]["fg_ari"] == 0.9
    assert load_checkpoint(tmp_path / "checkpoint.pt")["best"] == 0.9
    assert load_model(tmp_path)[1]["step"] == 12  # the run's own weights are the last


@pytest.mark.parametrize(
    ("metrics", "value"),
    [
        ({"fg_ari": 0.5}, 0.5),
        ({"mse": 0.2}, -0.2),
        ({"ap_inf": 0.1, "mse": 3}, 0.1),
        ({"fg_ari": math.nan}, -math.inf),
    ],
)
def test_selection_metric(metrics, value):
    assert selection_metric(metrics) == value


class Twice(nn.Module):
    def forward(self, x):
        return {"all": (x, [x * 2, x.log()])}


def test_nan_watch_looks_into_containers():
    model = nn.Sequential(nn.Linear(2, 2), Twice())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    with nan_watch(model) as found:
        model(torch.ones(1, 2))
    assert found[0] == "the output of 1"


@pytest.mark.parametrize("where", ["forward", "gradient", "nowhere"])
def test_the_layer_is_named(tmp_path, monkeypatch, where):
    "From step 6 on a layer of the model breaks, as if the weights had come to such a place."
    update = Trainer.training_step

    def broken(self, scenes):
        layer = self.model.decoder.patch[3]
        hook = None
        if self.step == 6 and where == "forward":
            hook = layer.register_forward_hook(
                lambda module, inputs, output: output * math.inf, prepend=True
            )
        if self.step == 6 and where == "gradient":
            hook = layer.register_forward_hook(
                lambda module, inputs, output: (output - output.detach()).abs().sqrt() + output,
                prepend=True,
            )
        update(self, scenes)
        if hook:
            hook.remove()

    monkeypatch.setattr(Trainer, "training_step", broken)
    if where == "nowhere":
        assert train(get_recipe("tiny", **TINY), tmp_path, device="cpu", progress=False)["finished"]
        return
    with pytest.raises(TrainingError) as error:
        train(get_recipe("tiny", **TINY), tmp_path, device="cpu", progress=False)
    words = str(error.value)
    assert "not finite in step 6" in words and "from before it" in words
    assert (
        "it began in the output of decoder.patch.3"
        if where == "forward"
        else "it began in the gradient at the output of"
    ) in words
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 4
    assert logging.getLogger("slot_attention_nbdev").level == logging.NOTSET


def test_full_disk_leaves_both(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        rotate_checkpoint(path, {"step": step})
    with (
        patch.object(
            Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28)))
        ),
        pytest.raises(FileError, match="No space left"),
    ):
        rotate_checkpoint(path, {"step": 3})
    assert {p.name: load_checkpoint(p)["step"] for p in tmp_path.iterdir()} == {
        "checkpoint.pt": 2,
        "previous.pt": 1,
    }


def test_a_folder_has_one_writer(tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    with lock_run(out):
        note = json.loads((out / "run.lock").read_text())
        assert note["process"] == os.getpid() and note["host"] == platform.node()
        for more in ([], ["--resume"]):
            assert main(["train", "tiny", "--out", str(out), "--device", "cpu", *more]) == 2
            text = capsys.readouterr().err
            assert f"process {os.getpid()} on {platform.node()}" in text and str(out) in text
        assert [each.name for each in out.iterdir()] == ["run.lock"]
        with lock_run(out, writes=False):  # the other processes of a run
            pass
    assert not (tmp_path / "runs").exists()


def test_locks_of_runs_that_are_over(tmp_path):
    lock = tmp_path / "run.lock"
    mine = {"process": os.getpid(), "host": platform.node(), "started": 0.0}
    gone = subprocess.Popen([sys.executable, "-c", ""])  # ends at once and stays a zombie
    started = psutil.Process(gone.pid).create_time()
    time.sleep(0.5)
    for note in (mine, {**mine, "process": gone.pid, "started": started}):
        lock.write_text(json.dumps(note))
        with lock_run(tmp_path):
            assert json.loads(lock.read_text())["started"] > 0
        assert not list(tmp_path.iterdir())
    gone.wait()
    lock.write_text(json.dumps({**mine, "host": "elsewhere"}))
    with pytest.raises(InputError, match="on elsewhere.*if it is over, remove"), lock_run(tmp_path):
        pass
    for text in ("", "[]", "{}", '{"process": 1, "host": 2, "started": "x"}'):
        lock.write_text(text)
        with pytest.raises(InputError, match="process unknown"), lock_run(tmp_path):
            pass
        os.utime(lock, (0, 0))  # nobody is writing it any more
        with lock_run(tmp_path):
            pass


def test_an_error_leaves_no_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_run(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with lock_run(tmp_path / "file"):  # `open_run` says what is wrong
        pass
    with pytest.raises(FileError, match="cannot be written"), lock_run(tmp_path / "file" / "a"):
        pass
