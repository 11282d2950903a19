"""The training loop: schedules, metrics, budget, signals, and what happens in an accident."""

import json
import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from slot_attention_nbdev.core import FileError, InputError, TrainingError, generator
from slot_attention_nbdev.data.files import save_pack
from slot_attention_nbdev.data.sources import Batches, evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.controls import COLOR_RULES
from slot_attention_nbdev.metrics.segmentation import segmentation_metrics
from slot_attention_nbdev.models.framed import PatchDecoder
from slot_attention_nbdev.models.weights import load_record, save_weights
from slot_attention_nbdev.train import tasks as objective
from slot_attention_nbdev.train import trainer as training
from slot_attention_nbdev.train.checkpoints import load_checkpoint
from slot_attention_nbdev.train.recipes import build_data, build_model, from_dict, get_recipe
from slot_attention_nbdev.train.tasks import ObjectDiscovery
from slot_attention_nbdev.train.trainer import (
    Interrupted,
    Trainer,
    cosine_rate,
    evaluate,
    learning_rate,
    load_model,
    parse_budget,
    train,
)

# as the fixture `run` of conftest
TINY = dict(steps=12, batch_size=2, eval_images=4, log_every=4, eval_every=8, checkpoint_every=5)


def tiny(**overrides):
    return get_recipe("tiny", **{**TINY, **overrides})


def go(out, recipe=None, **options):
    return train(recipe or tiny(), out, device="cpu", progress=False, **options)


@pytest.mark.parametrize("task", ["object_discovery", "set_prediction"])
def test_learning_rate_is_the_originals(golden, task):
    g = golden("learning_rate.npz")
    base, warmup, rate, every = (
        g[f"{task}/{k}"].item()
        for k in ("base_learning_rate", "warmup_steps", "decay_rate", "decay_steps")
    )
    for step, lr in zip(g[f"{task}/steps"].tolist(), g[f"{task}/lr"].tolist(), strict=True):
        assert learning_rate(step, base, int(warmup), rate, int(every)) == pytest.approx(
            lr, rel=1e-6, abs=0
        )


def test_schedules():
    assert learning_rate(0, 4e-4, 10_000, 0.5, 100_000) == 0
    assert learning_rate(0, 4e-4, 0, 0.5, 100_000) == 4e-4
    assert cosine_rate(0, 1.0, 10, 100) == 0 and cosine_rate(0, 1.0, 0, 100) == 1
    assert cosine_rate(100, 1.0, 10, 100) == cosine_rate(500, 1.0, 10, 100) == 0
    assert cosine_rate(50, 1.0, 10, 100) == pytest.approx(0.5)
    rates = [cosine_rate(step, 1.0, 10, 100) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("1.5m", 90), (" 2s ", 2)]
)
def test_budget(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-5m", "0s", "5 minutes", "1e3s", "nan", "infs", "٣m"]
)
def test_bad_budget(text):
    with pytest.raises(InputError, match="budget: expected a time such as 90s, 5m or 1h"):
        parse_budget(text)


def test_run_folder(run):
    assert {p.name for p in run.iterdir()} == {
        "checkpoint.pt",
        "previous.pt",
        "model.safetensors",
        "best.safetensors",
        "record.json",
        "curve.png",
        "slots.png",
        "tensorboard",
    }
    record = load_record(run / "record.json")
    assert (
        record["finished"]
        and record["step"] == 12
        and record["seed"] == 0
        and record["recipe"]["name"] == "tiny"
    )
    assert {
        "commit",
        "versions",
        "hardware",
        "threads",
        "device",
        "seconds",
        "budget",
    } <= record.keys()
    assert [p["step"] for p in record["curve"] if "loss" in p] == [4, 8, 12]
    assert [p["step"] for p in record["curve"] if "fg_ari" in p] == [8, 12]
    assert (
        set(record["final"]) == {"fg_ari", "ari", "miou", "mbo", "mse", "n", "controls"}
        and record["final"]["n"] == 4
    )
    assert any((run / "tensorboard").iterdir())


def test_controls_stand_beside_the_final_metrics(run):
    record = load_record(run / "record.json")
    controls = record["final"]["controls"]
    assert list(controls) == ["untrained", "color_rule", "position_rule"]
    recipe = from_dict(record["recipe"])
    _, held_out = build_data(recipe)
    start = evaluate(build_model(recipe, seed=record["seed"]), held_out, seed=record["seed"])
    assert controls["untrained"] == {key: start[key] for key in ("fg_ari", "ari", "miou", "mbo")}
    assert controls["color_rule"]["rule"] in COLOR_RULES


def test_tensorboard_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss",
        "grad_norm",
        "learning_rate",
        "fg_ari",
        "slot_entropy",
        "dead_slots",
    }
    assert [event.step for event in events.Images("slots")] == [8, 12]
    assert (events.Images("slots")[0].width, events.Images("slots")[0].height) == (7 * 37, 4 * 37)
    looks = [p for p in load_record(run / "record.json")["curve"] if "fg_ari" in p]
    assert all(0 <= p["slot_entropy"] <= 1 and 0 <= p["dead_slots"] <= 4 for p in looks)
    losses = {
        p["step"]: p["loss"] for p in load_record(run / "record.json")["curve"] if "loss" in p
    }
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(losses)


def test_bar(tmp_path, capsys):
    train(tiny(), tmp_path / "bar", device="cpu")
    text = capsys.readouterr().err
    assert "12/12" in text and "loss=" in text and "fg_ari=" in text
    assert "\r" not in text and len(text.splitlines()) < 6  # no terminal: lines, and not many
    train(tiny(), tmp_path / "verbose", device="cpu", verbose=True)
    lines = capsys.readouterr().err.splitlines()
    points = load_record(tmp_path / "verbose" / "record.json")["curve"]
    assert sum(line.startswith("step ") and "loss" in line for line in lines) == 3
    assert sum(line.startswith("step ") for line in lines) == len(points)
    go(tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")


def test_same_seed_same_weights(run, tmp_path):
    torch.manual_seed(99)  # the global state has no say
    go(tmp_path / "again")
    go(tmp_path / "other", seed=1)
    ours, again, other = (
        load_file(folder / "model.safetensors")
        for folder in (run, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert any(not torch.equal(ours[key], other[key]) for key in ours)


def test_first_update_of_a_warmup_changes_nothing():
    run = Trainer(tiny())
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    scenes = evaluation_scenes("tetrominoes", 2)
    run.training_step(scenes)
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    run.training_step(scenes)
    assert any(not torch.equal(value, before[key]) for key, value in run.model.state_dict().items())


def test_a_checkpoint_can_be_restored_twice(tmp_path):
    run = Trainer(tiny())
    scenes = evaluation_scenes("tetrominoes", 8)
    for step in range(4):
        run.training_step({key: value[2 * step : 2 * step + 2] for key, value in scenes.items()})
    run.save(tmp_path)
    state, ends = load_checkpoint(tmp_path / "checkpoint.pt"), []
    for _ in range(2):
        run.restore(state)
        run.training_step(evaluation_scenes("tetrominoes", 2))
        ends.append([p.clone() for p in run.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_average():
    run = Trainer(tiny(ema_decay=0.75, warmup_steps=0))
    start = [p.clone() for p in run.model.parameters()]
    run.training_step(evaluation_scenes("tetrominoes", 2))
    for mean, first, now in zip(run.ema.parameters(), start, run.model.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.75 * first + 0.25 * now)
    plain = Trainer(tiny(ema_decay=0.0))
    assert plain.ema is plain.model


def test_clipping():
    scenes = evaluation_scenes("tetrominoes", 2)
    for clip in (0.0, 1e-3):
        run = Trainer(tiny(clip_norm=clip))
        run.training_step(scenes)
        norm = (
            torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None])
            .norm()
            .item()
        )
        assert norm == pytest.approx(clip or run.flush_metrics()["grad_norm"], rel=1e-3)


def test_clipping_where_squares_overflow():
    run = Trainer(tiny())
    for weight in run.model.parameters():
        weight.grad = torch.full_like(weight, 1e25)
    n = sum(weight.numel() for weight in run.model.parameters())
    norm = training.clip_gradients(run.accelerator, run.model, 0.0)
    assert norm.item() == pytest.approx(1e25 * math.sqrt(n), rel=1e-4)
    assert all((weight.grad == 1e25).all() for weight in run.model.parameters())
    training.clip_gradients(run.accelerator, run.model, 2.0)
    assert training.clip_gradients(run.accelerator, run.model, 0.0).item() == pytest.approx(2.0)


def test_what_came_again_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "clip_gradients", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="every output.*finite.*norm of the gradient inf"):
        go(tmp_path)


def test_checkpoints_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    steps = []
    save = Trainer.save
    monkeypatch.setattr(
        Trainer,
        "save",
        lambda run, *more, **final: steps.append(run.step) or save(run, *more, **final),
    )
    go(tmp_path, tiny(steps=4, checkpoint_every=100))
    assert steps == [0, 1, 2, 3, 4, 4, 4]


def test_odd_runs_are_remarked_on(tmp_path, caplog):
    go(tmp_path, tiny(learning_rate=0.0))
    assert "12 updates are too few" in caplog.text
    curve = [{"step": 1, "loss": 3.0}, {"step": 2, "fg_ari": 0.0}, {"step": 3, "fg_ari": None}]
    assert training.remarks(200, curve, "fg_ari")[0].startswith("fg_ari was 0 in every evaluation")
    assert not training.remarks(200, [*curve, {"step": 4, "fg_ari": 0.3}], "fg_ari")
    assert not training.remarks(200, [{"mse": 0.0}], "mse") and not training.remarks(200, [], "mse")


def test_labels_have_no_say():
    a, b = (Trainer(tiny(warmup_steps=0)) for _ in range(2))
    scenes = evaluation_scenes("tetrominoes", 2)
    a.training_step(scenes)
    b.training_step({"image": scenes["image"]})
    assert all(
        torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True)
    )


def test_a_recipe_may_have_a_budget_and_the_caller_the_last_word(tmp_path):
    recipe = tiny(
        steps=100_000, budget=1.0, log_every=100_000, eval_every=100_000, checkpoint_every=100_000
    )
    assert go(tmp_path / "own", recipe)["budget"] == 1.0
    assert go(tmp_path / "told", recipe, budget=0.5)["budget"] == 0.5


def test_budget_ends_a_run_and_takes_the_rate_to_zero(tmp_path):
    started = time.perf_counter()
    record = go(
        tmp_path,
        # a warm-up counts updates, and who knows how many a busy machine makes
        tiny(
            steps=100_000, log_every=1, eval_every=100_000, checkpoint_every=100_000, warmup_steps=2
        ),
        budget=2.0,
    )
    assert time.perf_counter() - started < 30
    rates = [p["learning_rate"] for p in record["curve"] if "learning_rate" in p]
    assert record["step"] < 1_000 and 2.0 <= record["seconds"] < 10 and record["budget"] == 2.0
    assert rates[-1] == 0 and max(rates) > 6.6e-4
    assert math.isfinite(record["final"]["mse"])


def test_budget_counts_over_resumes():
    run = Trainer(tiny(steps=100), budget=10.0)
    run.seconds = 5.0
    assert run.progress == 50
    run.step = 70
    # the clock alone decides: a budget stretches a schedule as well as squeezing it
    assert run.progress == 50
    run.seconds = 60.0
    assert run.progress == 100 and run.lr == 0


@pytest.mark.parametrize("by", ["loss", "gradient"])
def test_nan_is_an_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch, by):
    calls = []

    def spoilt(reconstruction, image):
        calls.append(1)
        loss = F.mse_loss(reconstruction, image)
        if len(calls) == 8:  # step 7
            return (
                loss * math.nan
                if by == "loss"
                else loss + (reconstruction - reconstruction.detach()).sum() * math.inf
            )
        return loss

    monkeypatch.setattr(objective, "F", SimpleNamespace(mse_loss=spoilt))
    with pytest.raises(TrainingError, match="not finite in step 7.*did not come again"):
        go(tmp_path, tiny(log_every=100))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["step"] == 5 and all(value.isfinite().all() for value in state["model"].values())
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_finishes_the_step_and_saves(run, tmp_path, monkeypatch, number):
    update = Trainer.training_step

    def interrupted(self, scenes):
        if self.step == 6:
            signal.raise_signal(number)  # in mid-step
        update(self, scenes)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 7.*--resume") as stopped:
        go(tmp_path)
    assert stopped.value.code == (1 if number == signal.SIGINT else 0)
    assert signal.getsignal(number) == before
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 7
    assert load_record(tmp_path / "record.json")["finished"] is False
    monkeypatch.setattr(Trainer, "training_step", update)
    record = go(tmp_path, resume=True)
    assert record["finished"] and [p["step"] for p in record["curve"] if "loss" in p] == [4, 8, 12]
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for ours, theirs in zip(
        load_record(run / "record.json")["curve"], record["curve"], strict=True
    ):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def same_end(one, other):
    "Whether two runs ended with the same weights and the same curve."
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    curves = [load_record(folder / "record.json")["curve"] for folder in (one, other)]
    for point in (*curves[0], *curves[1]):
        point["seconds"] = 0
    return curves[0] == curves[1] and all(
        torch.equal(weights[0][key], weights[1][key]) for key in weights[0]
    )


@pytest.mark.parametrize("where", ["validation_metric", "task_of", "plot_curve", "stream"])
def test_a_signal_is_obeyed_where_no_update_is_made(run, tmp_path, monkeypatch, where):
    reached = []

    def interrupted(*arguments, **options):
        # after the evaluation of step 8, or in the batch of step 8, or at the end
        if not reached and (where != "stream" or arguments[1] == 8):
            reached.append(where)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it was not obeyed at once")
        return before(*arguments, **options)

    if where == "stream":
        before = Batches.batch
        monkeypatch.setattr(Batches, "batch", interrupted)
    elif where == "task_of":
        before = ObjectDiscovery.preview
        monkeypatch.setattr(ObjectDiscovery, "preview", interrupted)
    else:
        before = getattr(training, where)
        monkeypatch.setattr(training, where, interrupted)
    with pytest.raises(Interrupted, match="stopped after step") as stopped:
        go(tmp_path)
    assert reached and stopped.value.code == 0
    step = 12 if where == "plot_curve" else 8
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == step
    assert load_record(tmp_path / "record.json")["finished"] is False
    assert go(tmp_path, resume=True)["finished"] and same_end(run, tmp_path)


def test_a_signal_before_the_first_update(tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it was not obeyed at once")

    monkeypatch.setattr(training, "build_data", interrupted)
    with pytest.raises(Interrupted, match="before the first update") as stopped:
        go(tmp_path / "run")
    assert stopped.value.code == 1 and not (tmp_path / "run").exists()


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def interrupted(self, scenes):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it was not obeyed at once")

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    # a program in the background inherits that SIGINT is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_clock_counts_updates_alone(tmp_path, monkeypatch):
    update, measure = Trainer.training_step, training.validation_metric
    slept = []

    def slow_at_first(self, scenes):
        update(self, scenes)
        if not slept:  # as if it were compiled
            time.sleep(1.5)
        slept.append(1)

    def slow_measure(*arguments):
        time.sleep(1.5)
        return measure(*arguments)

    monkeypatch.setattr(Trainer, "training_step", slow_at_first)
    monkeypatch.setattr(training, "validation_metric", slow_measure)
    started = time.perf_counter()
    record = go(tmp_path, tiny(steps=10**6, eval_every=2, log_every=2), budget=0.3)
    assert record["step"] >= 2 and record["seconds"] >= 0.3
    assert time.perf_counter() - started > 3 + record["seconds"]


def test_a_warmup_counts_updates_whatever_the_budget():
    run = Trainer(tiny(steps=1_000, warmup_steps=100), budget=10.0)
    run.step, run.seconds = 2, 5.0
    assert run.lr == cosine_rate(500, run.recipe.learning_rate, 0, 1_000) * 2 / 100
    run.step = 100
    assert run.lr == cosine_rate(500, run.recipe.learning_rate, 0, 1_000)


def test_a_budget_too_short_or_spent_is_said(tmp_path, caplog, monkeypatch):
    # too short on any machine, however many updates it makes
    monkeypatch.setattr(training, "MIN_UPDATES", 10**6)
    recipe = tiny(steps=10**6, eval_every=10**6, log_every=10**6)
    go(tmp_path, recipe, budget=2.0)
    early = [each.getMessage() for each in caplog.records]
    assert any("updates fit into the budget" in text for text in early)
    caplog.clear()
    with monkeypatch.context() as enough:  # for any machine
        enough.setattr(training, "MIN_UPDATES", 1)
        assert go(tmp_path / "enough", recipe, budget=0.5)["step"] > 3
    assert not any("updates fit" in each.getMessage() for each in caplog.records)
    caplog.clear()
    first = load_record(tmp_path / "record.json")
    again = go(tmp_path, recipe, resume=True)
    assert again["step"] == first["step"] and again["seconds"] == first["seconds"]
    assert any("is spent" in each.getMessage() for each in caplog.records)
    more = go(tmp_path, recipe, resume=True, budget=first["seconds"] + 0.5)
    assert more["step"] > first["step"] and more["seconds"] >= first["seconds"] + 0.5


def test_training_in_a_thread(tmp_path):
    thread = threading.Thread(target=go, args=(tmp_path, tiny(steps=2)))
    thread.start()
    thread.join()
    assert load_record(tmp_path / "record.json")["finished"]


def test_folder_of_another_run(run):
    with pytest.raises(InputError, match="already holds a run"):
        go(run)
    with pytest.raises(InputError, match="learning_rate was 0.001 and is now 0.01"):
        go(run, tiny(learning_rate=0.01), resume=True)
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        go(run, seed=1, resume=True)
    with pytest.raises(InputError, match="is a file"):
        go(run / "record.json")


def test_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        go(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_resume_of_a_finished_run_changes_nothing(run, tmp_path):
    before = load_file(run / "model.safetensors")
    record = go(run, resume=True)
    assert record["step"] == 12 and record["finished"]
    assert all(
        torch.equal(before[key], value)
        for key, value in load_file(run / "model.safetensors").items()
    )


def test_tensorboard_cannot_be_written(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(FileError, match="cannot be written"):
        go(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 0


def test_no_space(tmp_path, monkeypatch):
    save = training.rotate_checkpoint

    def full(path, state):
        if state["step"] < 10:
            return save(path, state)
        monkeypatch.setattr(
            "pathlib.Path.write_bytes",
            lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))),
        )
        save(path, state)

    monkeypatch.setattr(training, "rotate_checkpoint", full)
    with pytest.raises(FileError, match="No space left on device"):
        go(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 5
    assert not list(tmp_path.glob(".*.part*"))


def test_pack_as_data(tmp_path):
    save_pack(tmp_path / "pack.npz", evaluation_scenes("tetrominoes", 20))
    record = go(tmp_path / "run", tiny(data=str(tmp_path / "pack.npz"), steps=3))
    assert record["final"]["n"] == 4
    (tmp_path / "pack.npz").unlink()
    model, info = load_model(tmp_path / "run")  # a model does not need the images it was trained on
    assert model.resolution == (35, 35) and info["recipe"]["data"].endswith("pack.npz")


def test_a_folder_as_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for i, image in enumerate(evaluation_scenes("tetrominoes", 10)["image"].numpy()):
        Image.fromarray(image).resize((80, 60)).save(f"photos/{i}.jpg")
    # named without a slash, and with more scenes than there are
    recipe = tiny(data="photos", resolution=35, scenes=2_000, fit="pad", steps=3)
    record = go("run", recipe)
    assert record["final"]["n"] == 2 and record["recipe"]["data"] == "photos/"
    monkeypatch.chdir("run")  # where there is no such folder
    assert load_model(".")[1]["recipe"]["fit"] == "pad"


def test_training_goes_on_from_weights(run, tmp_path):
    weights = load_model(run)[0].state_dict()
    recipe = tiny(init=str(run), steps=4, learning_rate=0.0, checkpoint_every=2)
    go(tmp_path / "run", recipe)
    after = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    for name, value in weights.items():
        assert torch.equal(after["model"][name], value) and torch.equal(after["ema"][name], value)
    assert go(tmp_path / "run", recipe, resume=True)["step"] == 4
    gone = tiny(init="gone", steps=4)
    with pytest.raises(InputError, match="no file, no run's folder and no shipped weights"):
        go(tmp_path / "other", gone)
    with pytest.raises(InputError, match=r"init: .*another model's weights .*expected .*, got"):
        go(tmp_path / "another", tiny(init=str(run), model="paper"))


def test_a_resumed_run_needs_no_initial_weights(run, tmp_path):
    shutil.copytree(run, tmp_path / "first")
    recipe = tiny(init=str(tmp_path / "first"), steps=4, checkpoint_every=2)
    update = Trainer.training_step

    def interrupted(self, scenes):
        signal.raise_signal(signal.SIGINT)
        update(self, scenes)

    with pytest.raises(Interrupted), pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "training_step", interrupted)
        go(tmp_path / "run", recipe)
    shutil.rmtree(tmp_path / "first")
    assert go(tmp_path / "run", recipe, resume=True)["step"] == 4


# The least shading of a slot's patch: in each of twelve updates, if the recipe says 0.2
RISING = [0.0] * 5 + [0.05, 0.1, 0.15] + [0.2] * 4


@pytest.fixture
def drawn(monkeypatch):
    "The least shading with which each update draws."
    found = []
    draw = PatchDecoder.forward

    def watched(self, slots):
        if torch.is_grad_enabled():  # no evaluation
            found.append(self.min_shading.item())
        return draw(self, slots)

    monkeypatch.setattr(PatchDecoder, "forward", watched)
    return found


def least_shadings(folder):
    "What the files of a run hold: the model's, the average's, and those of the weights."
    state = load_checkpoint(folder / "checkpoint.pt")
    kept = [state["model"], state["ema"]]
    weights = folder / "model.safetensors"
    kept += [load_file(weights)] if weights.exists() else []
    return [tensors["decoder.min_shading"].item() for tensors in kept]


def test_the_least_shading_rises_in_the_second_third(tmp_path, drawn, monkeypatch):
    recipe = tiny(min_shading=0.2)
    go(tmp_path / "whole", recipe)
    assert drawn == pytest.approx(RISING)
    assert least_shadings(tmp_path / "whole") == pytest.approx([0.2] * 3)

    # and the same if it is stopped while the shading rises
    drawn.clear()
    update = Trainer.training_step

    def interrupted(self, scenes):
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        update(self, scenes)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    with pytest.raises(Interrupted, match="stopped after step 7"):
        go(tmp_path / "parts", recipe)
    assert least_shadings(tmp_path / "parts") == pytest.approx([0.1] * 2)
    monkeypatch.setattr(Trainer, "training_step", update)
    go(tmp_path / "parts", recipe, resume=True)
    assert drawn == pytest.approx(RISING)
    assert same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_least_shading_follows_a_budget():
    run = Trainer(tiny(steps=10**6, min_shading=0.2), budget=12.0)
    assert run.ema is not run.model
    for run.seconds, least in zip(range(13), [*RISING, 0.2], strict=True):
        run.raise_shading()
        for model in (run.model, run.ema):
            assert model.decoder.min_shading.item() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_the_least_shading_is_the_recipes_whatever_a_run_begins_with(run, tmp_path, drawn, least):
    model, info = load_model(run)
    model.decoder.min_shading.fill_(0.2)
    weights = tmp_path / "shaded.safetensors"
    save_weights(weights, model.state_dict(), info)
    recipe = tiny(init=str(weights), min_shading=least)
    go(tmp_path / "run", recipe)
    assert drawn == pytest.approx([least / 0.2 * each for each in RISING])
    assert least_shadings(tmp_path / "run") == pytest.approx([least] * 3)


def test_evaluate_is_what_it_says():
    model, scenes = build_model(tiny()), evaluation_scenes("tetrominoes", 10)
    ours = evaluate(model, scenes, batch_size=4, seed=3)
    with torch.no_grad():
        output = model(to_model(scenes["image"]), generator=generator(3, "evaluate"))
    whole = {
        key: value.mean().item()
        for key, value in segmentation_metrics(scenes["label"], output.masks).items()
    }
    whole |= {"mse": F.mse_loss(output.reconstruction, to_model(scenes["image"])).item(), "n": 10}
    assert ours == pytest.approx(whole, abs=1e-6)  # whatever the batch size
    assert all(type(value) in (float, int) for value in ours.values()) and json.dumps(ours)
    assert ours == evaluate(model, scenes, batch_size=4, seed=3)
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_leaves_undefined_scores_out():
    model, scenes = build_model(tiny()), evaluation_scenes("tetrominoes", 4)
    scenes["label"][0] = 0  # an image without objects has no mIoU
    assert all(math.isfinite(value) for value in evaluate(model, scenes).values())


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.pop("label"), "there is no label"),
    (lambda s: s.pop("image"), "there is no image"),
    (lambda s: s.update(image=s["image"][:0], label=s["label"][:0]), "scenes"),
    (lambda s: s.update(image=s["image"].float()), "expected uint8"),
    (lambda s: s.update(image=s["image"][:, :30]), "image: expected shape"),
    (lambda s: s.update(label=s["label"][:, :30]), "expected"),
], ids=["no label", "no image", "empty", "float", "size of image", "size of label"])  # fmt: skip
def test_evaluate_rejects(change, words):
    scenes = evaluation_scenes("tetrominoes", 2)
    change(scenes)
    with pytest.raises(InputError, match=words):
        evaluate(build_model(tiny()), scenes)


def test_load_model(run):
    images = to_model(evaluation_scenes("tetrominoes", 2)["image"])
    outputs = []
    for name in (run, str(run), run / "model.safetensors", run / "checkpoint.pt"):
        model, info = load_model(name)
        assert (
            info["step"] == 12
            and info["seed"] == 0
            and info["recipe"]["name"] == "tiny"
            and not model.training
        )
        with torch.no_grad():
            outputs.append(model(images, generator=generator(0)).reconstruction)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def spoil(run, tmp_path, how):
    "A copy of a finished run's model or checkpoint that something has happened to."
    weights, checkpoint = tmp_path / "bad.safetensors", tmp_path / "bad.pt"
    content = (run / "model.safetensors").read_bytes()
    whole = (run / "checkpoint.pt").read_bytes()
    middle = len(whole) // 2
    if how == "foreign weights":
        save_file({"weight": torch.ones(3)}, weights)
    of_weights = {
        "cut weights": content[: len(content) // 2],
        "bit in weights": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "edited description": content.replace(b"tetrominoes", b"tetrominous"),
        "empty weights": b"",
    }
    if how in of_weights:
        weights.write_bytes(of_weights[how])
    of_checkpoint = {
        "cut checkpoint": whole[:-1000],
        "bit in checkpoint": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "text": b"weights",
    }
    if how in of_checkpoint:
        checkpoint.write_bytes(of_checkpoint[how])
    state = load_checkpoint(run / "checkpoint.pt")
    content_of = {
        "foreign checkpoint": {"model": torch.ones(3)},
        "pickle": {"model": Exploding()},
        "another model": {**state, "ema": {"weight": torch.ones(3)}},
        "another recipe": {**state, "recipe": {"name": "tiny"}},
    }
    if how in content_of:
        torch.save(content_of[how], checkpoint)
    return weights if weights.exists() else checkpoint


class Exploding:
    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize(("how", "words"), [
    ("cut weights", "cut short"),
    ("bit in weights", "altered"),
    ("edited description", "altered"),
    ("foreign weights", "not written by this library"),
    ("empty weights", "not a safetensors file"),
    ("cut checkpoint", "cut short"),
    ("bit in checkpoint", "damaged|not a checkpoint"),
    ("foreign checkpoint", "not a checkpoint of this library"),
    ("pickle", "nothing in it was run"),
    ("text", "not a checkpoint"),
    ("another model", "does not fit"),
    ("another recipe", "does not fit"),
    ("absent", "no such file"),
])  # fmt: skip
def test_load_model_rejects(run, tmp_path, how, words):
    with pytest.raises(FileError, match=words) as error:
        load_model(spoil(run, tmp_path, how))
    assert "bad." in str(error.value)


def test_unknown_name():
    with pytest.raises(InputError, match="no shipped weights"):
        load_model("tetrominoes_fats")


def test_the_first_process_alone_draws_pictures_and_measures_controls(tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the first process does this")

    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    for name in ("preview", "controls", "figure"):
        monkeypatch.setattr(ObjectDiscovery, name, never)
    record = go(tmp_path / "run")
    assert record["finished"] and "controls" not in record["final"]
    # evaluated when it was due, and not once more after each resumption
    assert [p["step"] for p in record["curve"] if "fg_ari" in p] == [8, 12]
    assert not any((tmp_path / "run").glob("*.png"))
