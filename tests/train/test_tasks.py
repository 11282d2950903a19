"""The switches that make training quicker or smaller change nothing else."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.segmentation import segmentation_metrics
from slot_attention_nbdev.models.autoencoder import SlotAttentionAutoEncoder, small_autoencoder
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.train import tasks
from slot_attention_nbdev.train.checkpoints import load_checkpoint
from slot_attention_nbdev.train.recipes import build_data, build_model, get_recipe, run_fingerprint
from slot_attention_nbdev.train.tasks import (
    Objective,
    SetPrediction,
    draw_noise,
    evaluate,
    resolve_precision,
    speed_up,
    task_of,
    tune_gpu,
)
from slot_attention_nbdev.train.trainer import Trainer, train

SHORT = dict(
    eval_images=4,
    log_every=4,
    eval_every=8,
    checkpoint_every=4,
    batch_size=4,
    warmup_steps=2,
    scenes=0,
)
MODELS = {
    "small": ("tetrominoes_small", (35, 35)),
    "paper": ("tetrominoes_paper", (35, 35)),
    "sets": ("sprites_properties", (64, 64)),
}


def losses(name, steps=4, **settings):
    recipe = get_recipe(name, steps=steps, **SHORT | settings)
    run, (stream, _) = Trainer(recipe), build_data(recipe)
    found = []
    for step in range(steps):
        run.training_step(stream.batch(step))
        found.append(run.flush_metrics()["loss"])
        run.window.clear()
    return torch.tensor(found), run


@pytest.mark.parametrize("name", ["tetrominoes_small", "tetrominoes_paper", "sprites_properties"])
def test_half_precision_stays_close(name):
    steps = 2 if name == "tetrominoes_paper" else 6
    full, half = (
        losses(name, steps, precision=precision, batch_size=2)[0] for precision in ("fp32", "bf16")
    )
    assert 0 < ((half - full) / full).abs().max() < 0.03  # bf16 has two to three digits


def test_weights_and_loss_stay_in_full_precision():
    _, run = losses("tiny", 2, precision="bf16")
    assert all(
        p.dtype == torch.float32 and p.grad.dtype == torch.float32
        for p in run.model.parameters()
        if p.grad is not None
    )
    assert (
        run.facts["precision"] == "bf16"
        and resolve_precision("auto", torch.device("cpu")) == "fp32"
    )


@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 2}, {"accumulate": 3}, {"checkpoint_activations": "on"}, {"fused": "on"}],
)
def test_switches_change_rounding_alone(settings):
    plain, run = losses("tiny", 6)
    other, changed = losses("tiny", 6, **settings)
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=0)
    if settings == {"checkpoint_activations": "on"}:
        assert all(
            torch.equal(a, b)
            for a, b in zip(run.model.parameters(), changed.model.parameters(), strict=True)
        )


def test_resume_across_switches(tmp_path):
    recipe = get_recipe("tiny", steps=8, **SHORT)
    whole = train(recipe, tmp_path / "whole", device="cpu", progress=False)
    Trainer(recipe).save(tmp_path / "half")
    run, (stream, _) = Trainer(recipe), build_data(recipe)
    while run.step < 4:
        run.training_step(stream.batch(run.step))
        if run.step % 4 == 0:
            run.curve.append(
                {"step": 4, "seconds": 0.0, **run.flush_metrics(), "learning_rate": run.lr}
            )
            run.window.clear()
    run.save(tmp_path / "half")
    other = get_recipe(
        "tiny", steps=8, **SHORT, fused="on", accumulate=2, checkpoint_activations="on"
    )
    assert run_fingerprint(other, 0) == run_fingerprint(recipe, 0)
    ended = train(other, tmp_path / "half", device="cpu", resume=True, progress=False)
    for a, b in zip(whole["curve"], ended["curve"], strict=True):
        assert {**b, "seconds": 0} == pytest.approx({**a, "seconds": 0}, rel=1e-3, abs=1e-2)
    state = load_checkpoint(tmp_path / "half" / "checkpoint.pt")
    assert state["optimizer"]["param_groups"][0]["fused"] is True
    train(recipe, tmp_path / "half", device="cpu", resume=True, progress=False)  # and back
    with pytest.raises(InputError, match="precision was 'auto' and is now 'bf16'"):
        train(
            get_recipe("tiny", steps=8, **SHORT, precision="bf16"),
            tmp_path / "half",
            device="cpu",
            resume=True,
        )


def test_evaluate_keeps_the_best_of_several_draws():
    model = small_autoencoder()
    scenes = evaluation_scenes("tetrominoes", 6)
    found = evaluate(model, scenes, n_init=3)
    image = to_model(scenes["image"])
    errors = []
    for words in ((), (1,), (2,)):
        with torch.no_grad():
            output = model(image, generator=generator(0, "evaluate", *words))
        errors.append((output.reconstruction - image).square().mean((1, 2, 3)))
    assert found["mse"] == pytest.approx(torch.stack(errors).min(0).values.mean().item())
    assert found["mse"] < evaluate(model, scenes)["mse"]
    # the batch size does not matter
    assert evaluate(model, scenes, batch_size=4, n_init=3) == pytest.approx(found, rel=1e-4)
    with pytest.raises(InputError, match="n_init: expected an integer ≥ 1, got 0"):
        evaluate(model, scenes, n_init=0)


def test_evaluate_keeps_the_best_of_several_numbers_of_slots():
    model = small_autoencoder()
    scenes = evaluation_scenes("tetrominoes", 6)
    found = evaluate(model, scenes, num_slots=[5, 2], n_init=2)
    image = to_model(scenes["image"])
    errors, scores = [], []
    for K in (5, 2):
        for words in ((), (1,)):
            with torch.no_grad():
                output = model(image, num_slots=K, generator=generator(0, "evaluate", *words))
            errors.append((output.reconstruction - image).square().mean((1, 2, 3)))
            scores.append(segmentation_metrics(scenes["label"], output.masks)["ari"])
    lowest = torch.stack(errors).min(0)
    assert found["mse"] == pytest.approx(lowest.values.mean().item())
    ari = [scores[i][b].item() for b, i in enumerate(lowest.indices)]
    assert found["ari"] == pytest.approx(sum(ari) / 6, abs=1e-6)
    assert found["num_slots"] == pytest.approx(sum((5, 5, 2, 2)[i] for i in lowest.indices) / 6)
    # the batch size does not matter: each K goes on with its own draws
    small = evaluate(model, scenes, batch_size=4, num_slots=[5, 2], n_init=2)
    assert small == pytest.approx(found, rel=1e-4)
    one = evaluate(model, scenes, batch_size=4, num_slots=5)
    assert evaluate(model, scenes, batch_size=4, num_slots=[5]) == one and "num_slots" not in one
    controls = task_of(model).controls(model, model, scenes, num_slots=[5, 2], n_init=2)
    assert controls["untrained"]["ari"] == found["ari"]
    with pytest.raises(InputError, match="num_slots: expected an integer ≥ 1, got 0"):
        evaluate(model, scenes, num_slots=[2, 0])


def test_the_counts_of_an_evaluation_take_no_more_room_than_they_need(monkeypatch):
    model, scenes = small_autoencoder(), evaluation_scenes("tetrominoes", 3)
    found, sizes, count = evaluate(model, scenes), [], tasks.count_masks

    def counted(*arguments):
        sizes.append(count(*arguments).shape[1])
        return count(*arguments)

    monkeypatch.setattr(tasks, "count_masks", counted)
    assert evaluate(model, scenes) == found and sizes == [4]  # three pieces and the ground
    for label in (255, 256, 10**9, -1):  # the last ones are none
        odd = {**scenes, "label": scenes["label"].long()}
        odd["label"][1, 0, 0] = label
        if label == 255:
            assert evaluate(model, odd)["n"] == 3 and sizes[-1] == 256
            continue
        with pytest.raises(InputError, match="labels in 0…255 .* the first is image 1"):
            evaluate(model, odd)
        assert sizes[-1] <= 256
    with pytest.raises(InputError, match="true: expected integer labels"):
        evaluate(model, {**scenes, "label": scenes["label"] / 1})


def test_a_check_reads_no_image():
    recipe = get_recipe("sprites_properties")
    model, scenes = build_model(recipe), evaluation_scenes(recipe.data, 2)
    scenes["image"] = scenes["image"].to("meta")  # there are no numbers to be copied
    task_of(model).check(model, scenes)
    scenes.pop("shape")
    with pytest.raises(InputError, match="have 'shape', this scene has not; .*image"):
        task_of(model).check(model, scenes)


def test_a_set_predictor_has_nothing_to_choose_by():
    with pytest.raises(InputError, match="n_init: expected 1, got 2"):
        SetPrediction().evaluate(None, {}, n_init=2)
    for several in ([2, 3], range(2, 4)):
        with pytest.raises(InputError, match="num_slots: expected one integer, .* no recons"):
            SetPrediction().evaluate(None, {}, num_slots=several)


def test_learned_means_train_by_the_same_noise():
    model = small_autoencoder()
    old = model.slot_attention
    sizes = (old.input_dim, old.slot_dim, old.num_slots, old.num_iterations)
    model.slot_attention = SlotAttention(*sizes, old.mlp[0].out_features, init="learned")
    scenes = evaluation_scenes("tetrominoes", 2)
    noise = draw_noise(model, 2, 0, 5)
    loss = Objective(model)(scenes, noise)
    slots = model.slot_attention.initial_slots(2, generator=generator(0, "slots", 5))
    output = model(to_model(scenes["image"]), slots=slots)
    assert torch.equal(loss, F.mse_loss(output.reconstruction, to_model(scenes["image"])))
    loss.backward()
    assert model.slot_attention.slots_mu.grad.abs().sum((0, 2)).min() > 0


def test_noise_is_the_models_own():
    model = build_model(get_recipe("tetrominoes_paper"))
    noise = draw_noise(model, 3, 5, 7)
    module = model.slot_attention
    random = torch.Generator().manual_seed(0)
    ours = module.slots_mu + module.slots_log_sigma.exp() * torch.empty(3, 4, 64).normal_(
        generator=random
    )
    assert torch.equal(ours, module.initial_slots(3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(noise, draw_noise(model, 3, 5, 7)) and not torch.equal(
        noise, draw_noise(model, 3, 5, 8)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_one_graph_from_the_images_to_the_loss(kind, monkeypatch):
    monkeypatch.setattr(SlotAttentionAutoEncoder, "check_image", lambda self, image: None)
    name, resolution = MODELS[kind]
    recipe = get_recipe(name)
    model = build_model(recipe, resolution)
    objective, graphs = Objective(model), []
    noise = draw_noise(model, 2, 0, 0)
    scenes = evaluation_scenes(recipe.data, 2)
    objective.compile_parts(backend=lambda graph, inputs: graphs.append(graph) or graph)
    assert_close(objective(scenes, noise), Objective(model)(scenes, noise))
    assert len(graphs) == 1  # fullgraph: a break would have been an error
    scored = [node for node in graphs[0].graph.nodes if "mse_loss" in str(node.target)]
    assert len(scored) == objective.task.compiles_loss


def test_a_gpu_replays_what_is_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda part, **options: asked.append(options) or part)
    for replay in (True, False):
        speed_up(Objective(build_model(get_recipe("tiny"))), True, False, replay)
    assert asked == [{"fullgraph": True, "mode": "reduce-overhead"}, {"fullgraph": True}]


def test_only_a_gpu_is_tuned(monkeypatch):
    precision = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precision.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    tune_gpu(torch.device("cpu"))
    assert not torch.backends.cudnn.benchmark and not precision
    tune_gpu(torch.device("cuda"))
    assert torch.backends.cudnn.benchmark and precision == ["high"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_without_graph_breaks(kind, recompute):
    name, resolution = MODELS[kind]
    settings = dict(
        compile="on",
        checkpoint_activations="on" if recompute else "off",
        batch_size=2,
        warmup_steps=0,
    )
    run, plain = (
        Trainer(get_recipe(name, **{**settings, **extra}), resolution=resolution)
        for extra in ({}, {"compile": "off"})
    )
    scenes = evaluation_scenes(
        "tetrominoes" if resolution[0] == 35 else "multi_dsprites_colored_on_grayscale", 2
    )
    for _ in range(3):
        run.training_step(scenes)
        plain.training_step(scenes)
        assert run.flush_metrics() == pytest.approx(plain.flush_metrics(), rel=1e-3)


def test_objective_uses_images_alone():
    model, scenes = build_model(get_recipe("tiny")), evaluation_scenes("tetrominoes", 2)
    noise = draw_noise(model, 2, 0, 0)
    slots = model.slot_attention.slots_from_noise(noise)
    loss = Objective(model)({"image": scenes["image"]}, noise)
    assert loss.item() == pytest.approx(
        (model(to_model(scenes["image"]), slots=slots).reconstruction - to_model(scenes["image"]))
        .square()
        .mean()
        .item()
    )


@pytest.mark.parametrize("name", ["tetrominoes_small", "tetrominoes_paper", "sprites_properties"])
def test_slots_shown_against_plain_loops(name):
    recipe = get_recipe(name)
    scenes, model = evaluation_scenes(recipe.data, 5), build_model(recipe)
    metrics, sheet = task_of(model).preview(model, scenes, seed=3, most=3, shown=2)
    image = to_model(scenes["image"][:3])
    with torch.no_grad():
        output = model(image, generator=generator(3, "evaluate"), return_attention=True)
    # [B, K, h, w]
    masks = (
        output.masks
        if hasattr(output, "masks")
        else output.attention[:, -1].mT.unflatten(-1, (32, 32))
    )
    entropies = []
    dead = []
    K = masks.shape[1]
    for mask in masks:
        pixels = mask.flatten(1).T.tolist()
        entropies.append(
            sum(-p * math.log(p) for pixel in pixels for p in pixel if p > 0)
            / len(pixels)
            / math.log(K)
        )
        winners = [pixel.index(max(pixel)) for pixel in pixels]
        dead.append(sum(winners.count(k) < 0.001 * len(pixels) for k in range(K)))
    assert metrics["slot_entropy"] == pytest.approx(sum(entropies) / 3, abs=1e-4)
    assert metrics["dead_slots"] == pytest.approx(sum(dead) / 3)
    height, width = image.shape[-2:]
    columns = K + (3 if hasattr(output, "masks") else 2)
    assert sheet.dtype == torch.uint8 and sheet.shape == (
        3,
        2 * (height + 2),
        columns * (width + 2),
    )
    assert torch.equal(sheet[:, 1 : height + 1, 1 : width + 1], scenes["image"][0].permute(2, 0, 1))
    assert (sheet[:, 0] == 255).all()  # a white frame


def test_slots_are_shown_without_labels_and_change_nothing():
    model, scenes = build_model(get_recipe("tiny")), evaluation_scenes("tetrominoes", 4)
    before, state = evaluate(model, scenes), torch.get_rng_state()
    task_of(model).preview(model, {"image": scenes["image"]})
    assert torch.equal(torch.get_rng_state(), state) and evaluate(model, scenes) == before
    with pytest.raises(InputError, match="most"):
        task_of(model).preview(model, scenes, most=0)


class Waits(TorchDispatchMode):
    "Counts operators that a GPU would have to be waited for."

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2].partition(".")[0]
        if name.startswith(self.WAITING):
            self.found.append(name)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", ["tetrominoes_small", "tetrominoes_paper"])
def test_an_update_reads_no_number(name, monkeypatch):
    # the one look at the numbers that is taken on a CPU alone
    monkeypatch.setattr(SlotAttentionAutoEncoder, "check_image", lambda self, image: None)
    run = Trainer(get_recipe(name, **SHORT | {"batch_size": 2}))
    scenes = evaluation_scenes("tetrominoes", 2)
    with Waits() as waits:
        run.training_step(scenes)
    assert not waits.found
    with Waits() as waits:
        run.flush_metrics()
    assert waits.found  # the counter counts


@pytest.mark.parametrize("name", ["tetrominoes_small", "tetrominoes_paper", "sprites_properties"])
def test_an_evaluation_reads_all_numbers_at_its_end(name, monkeypatch):
    recipe = get_recipe(name)
    model, scenes = build_model(recipe).train(), evaluation_scenes(recipe.data, 3)
    expected = evaluate(model, scenes)
    cpu, reads, forwards = torch.Tensor.cpu, [], []
    model.register_forward_hook(lambda *_: forwards.append(len(reads)))
    with Waits() as waits, monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cpu", property(lambda x: False))
        patch.setattr(torch.Tensor, "cpu", lambda x: reads.append([*waits.found]) or cpu(x))
        found = evaluate(model, scenes, batch_size=2)
        assert forwards == [0, 0] and reads[0] == []  # nothing was read or waited for before
        reads.clear()
        waits.found.clear()
        task_of(model).preview(model, scenes)
        assert forwards[2:] == [0] and reads[0] == []
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tetrominoes_small", "sprites_properties"])
def test_an_evaluation_waits_for_a_gpu_once(name):
    recipe = get_recipe(name)
    model, scenes = build_model(recipe).train().cuda(), evaluation_scenes(recipe.data, 5)
    scenes = {key: value.cuda() for key, value in scenes.items()}
    evaluate(model, scenes)  # what is done once
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            evaluate(model, scenes, batch_size=2)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in found if "synchronizing" in str(each.message)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_model_without_an_average_is_evaluated(tmp_path, precision):
    settings = SHORT | dict(batch_size=2, log_every=1, eval_every=2)
    recipe = get_recipe("tetrominoes_paper", steps=2, compile="on", precision=precision, **settings)
    record = train(recipe, tmp_path / "run", device="cpu", progress=False)
    assert record["finished"] and record["final"]["n"] == 4
    assert recipe.ema_decay == 0
