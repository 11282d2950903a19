"""Pixel decoder and shortcuts: exact where they claim, unbiased where they draw, off by default."""

import importlib.util
import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.models.pixel import PixelDecoder, pixel_autoencoder
from slot_attention_nbdev.train.tasks import Objective, draw_noise, draw_pixels
from slot_attention_nbdev.train.recipes import (
    Recipe,
    build_data,
    build_model,
    get_recipe,
    run_fingerprint,
    load_model,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.train.trainer import Trainer, train

SHORT = dict(
    steps=6,
    scenes=0,
    batch_size=2,
    resolution=9,
    eval_images=4,
    log_every=2,
    eval_every=6,
    checkpoint_every=3,
    warmup_steps=1,
)
SOME_PIXELS = dict(model="paper_mlp", pixels=27)
ALL_FOUR = SOME_PIXELS | dict(gradient="implicit", first_iterations=1, iteration_steps=3)


def seeded(build, *args, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


@pytest.mark.parametrize("resolution", [(5, 7), (1, 4), (3, 1)])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_pixel_is_a_pixel(resolution, layers):
    decoder = seeded(PixelDecoder, 6, resolution, hidden_dim=8, num_layers=layers).double()
    slots, (H, W) = draw(2, 3, 6), resolution
    whole = decoder(slots)
    assert whole.shape == (2, 3, 4, H, W)
    linears = [layer for layer in decoder.mlp if isinstance(layer, torch.nn.Linear)]
    assert len(linears) == layers
    for y in range(H):  # by hand, in Python's own loop over pixels
        for x in range(W):
            down, across = (i / (n - 1) if n > 1 else 0.0 for i, n in ((y, H), (x, W)))
            h = (
                slots @ decoder.from_slot.weight.T
                + decoder.from_slot.bias
                + decoder.from_position.weight
                @ torch.tensor([down, across, 1 - down, 1 - across]).double()
            )
            for linear in linears:
                h = h.clamp(min=0) @ linear.weight.T + linear.bias
            torch.testing.assert_close(whole[..., y, x], h)
    pixels = torch.stack(
        [torch.randperm(H * W, generator=generator(b))[: max(1, H * W // 2)] for b in range(2)]
    )
    some = decoder(slots, pixels)
    assert some.shape == (2, 3, 4, 1, pixels.shape[1])
    for b in range(2):
        torch.testing.assert_close(
            some[b, :, :, 0], whole[b].flatten(2)[..., pixels[b]], rtol=0, atol=1e-12
        )


def test_some_pixels_have_the_gradients_of_the_whole():
    "Scoring some pixels is scoring the whole picture with weight zero elsewhere."
    model = seeded(pixel_autoencoder, (6, 5), 3)
    scenes = {
        "image": torch.randint(0, 256, (2, 6, 5, 3), dtype=torch.uint8, generator=generator(0))
    }
    pixels = torch.tensor([[0, 29, 7], [11, 12, 13]])
    noise = draw_noise(model, 2, 0, 0)
    found = []
    for masked in (False, True):
        model.zero_grad()
        if masked:
            image = to_model(scenes["image"])
            slots = (
                model.slot_attention.slots_mu + model.slot_attention.slots_log_sigma.exp() * noise
            )
            scored = torch.zeros(2, 30).scatter(1, pixels, 1.0).view(2, 1, 6, 5)
            loss = ((model(image, slots=slots).reconstruction - image).square() * scored).sum() / (
                2 * 3 * 3
            )
        else:
            loss = Objective(model)(scenes | {"pixels": pixels}, noise)
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_mean_over_all_draws_is_the_whole_loss(count):
    model = seeded(pixel_autoencoder, (2, 3), 2)
    scenes = {
        "image": torch.randint(0, 256, (1, 2, 3, 3), dtype=torch.uint8, generator=generator(1))
    }
    objective, noise = Objective(model), draw_noise(model, 1, 0, 0)
    with torch.no_grad():
        whole = objective(scenes, noise)
        drawn = torch.stack(
            [
                objective(scenes | {"pixels": torch.tensor([which])}, noise)
                for which in combinations(range(6), count)
            ]
        )
    assert len(drawn) == math.comb(6, count) and drawn.std() > 1e-3
    torch.testing.assert_close(drawn.mean(), whole)


def test_every_pixel_is_as_likely():
    model = seeded(pixel_autoencoder, (4, 5), 2)
    n = 4000
    drawn = []
    drawn = torch.cat([draw_pixels(model, 6, n // 10, 3, step)["pixels"] for step in range(10)])
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    # 6 / 20 each; its standard deviation is under 0.0073
    share = torch.bincount(drawn.flatten(), minlength=20) / n
    assert len(share) == 20 and (share - 0.3).abs().max() < 0.03
    together = (
        torch.stack(
            [(drawn == a).any(1) & (drawn == b).any(1) for a, b in combinations(range(20), 2)]
        )
        .float()
        .mean(1)
    )
    # no two of them come together more often
    assert (together - 6 * 5 / (20 * 19)).abs().max() < 0.03


def test_pixels_need_a_decoder_for_each_pixel():
    scenes = evaluation_scenes("tetrominoes", 2)
    with pytest.raises(
        InputError, match="pixels: expected 0, since SlotAttentionAutoEncoder decodes whole images"
    ):
        Trainer(
            get_recipe("tetrominoes_paper", pixels=10, batch_size=2), resolution=(35, 35)
        ).training_step(scenes)
    with pytest.raises(InputError, match="pixels: expected an integer ≥ 1 and ≤ 1225"):
        Trainer(
            get_recipe("tetrominoes_paper", model="paper_mlp", pixels=1226, batch_size=2),
            resolution=(35, 35),
        ).training_step(scenes)
    with pytest.raises(InputError, match="pixels: expected shape"):
        PixelDecoder(4, (3, 3))(torch.zeros(2, 1, 4), torch.zeros(2, dtype=torch.long))


def test_the_schedule_of_iterations():
    rise = Recipe("rise", "", num_iterations=5, first_iterations=2, iteration_steps=90)
    found = [rise.iterations_at(step) for step in range(200)]
    assert (
        [found.count(T) for T in (2, 3, 4)] == [30, 30, 30]
        and found == sorted(found)
        and found[-1] == 5
    )
    assert Recipe("x", "", num_iterations=4, first_iterations=4).iterations_at(0) == 4
    assert Recipe("x", "", first_iterations=1).iterations_at(0) == 3  # a rise of no steps is over
    assert Recipe("x", "", first_iterations=9, iteration_steps=10).iterations_at(0) == 3


def test_a_run_uses_its_schedule(monkeypatch):
    recipe = get_recipe("tetrominoes_paper", **SHORT, first_iterations=1, iteration_steps=4)
    run = Trainer(recipe, resolution=(9, 9))
    (stream, held_out) = build_data(recipe)
    seen = []
    forward = run.model.slot_attention.forward
    monkeypatch.setattr(
        run.model.slot_attention,
        "forward",
        lambda *a, num_iterations=None, **k: (
            seen.append(num_iterations),
            forward(*a, num_iterations=num_iterations, **k),
        )[1],
    )
    for step in range(6):
        run.training_step(stream.batch(step))
    assert seen == [1, 1, 2, 2, 3, 3]
    run.model(to_model(held_out["image"]))
    assert seen[-1] is None  # the model's own: looking is done with all of them


def test_the_defaults_change_nothing():
    before = get_recipe("tetrominoes_paper")
    assert (before.pixels, before.gradient) == (0, "all")
    assert (before.first_iterations, before.iteration_steps) == (0, 0)
    for setting in (
        dict(model="paper_mlp", pixels=5),
        dict(gradient="implicit"),
        dict(first_iterations=1),
    ):
        assert (
            run_fingerprint(get_recipe("tetrominoes_paper", **setting), 0).items()
            >= setting.items()
        )
    for bad in (dict(pixels=-1), dict(gradient="some"), dict(first_iterations=1.0)):
        with pytest.raises(InputError, match=next(iter(bad))):
            get_recipe("tetrominoes_paper", **bad)
    model = build_model(before, (9, 9))
    assert type(model.slot_attention) is SlotAttention
    scenes = {"image": evaluation_scenes("tetrominoes", 2)["image"][:, :9, :9]}
    noise = draw_noise(model, 2, 0, 0)
    image = to_model(scenes["image"])
    slots = model.slot_attention.slots_mu + model.slot_attention.slots_log_sigma.exp() * noise
    assert torch.equal(
        Objective(model)(scenes, noise), F.mse_loss(model(image, slots=slots).reconstruction, image)
    )


def test_the_benchmark_compares_each_shortcut_and_all_of_them():
    path = Path(__file__).parents[2] / "benchmarks" / "variants.py"
    spec = importlib.util.spec_from_file_location("variants_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    recipe = get_recipe("tetrominoes_paper", **SHORT)
    found = benchmark.variants(recipe)
    assert found["paper"] == recipe and len(found) == 6
    assert found["some pixels"] == get_recipe("tetrominoes_paper", **SHORT, **SOME_PIXELS)
    assert found["all four"] == get_recipe("tetrominoes_paper", **SHORT, **ALL_FOUR)


def test_all_four_train_and_resume(tmp_path):
    recipe = get_recipe("tetrominoes_paper", **SHORT, **ALL_FOUR)
    whole = train(recipe, tmp_path / "whole", device="cpu", progress=False)
    assert whole["finished"] and 0 <= whole["final"]["mse"] < 4 and whole["recipe"]["pixels"] == 27
    run, (stream, _) = Trainer(recipe, resolution=(9, 9)), build_data(recipe)
    for step in range(3):
        run.training_step(stream.batch(step))
    run.save(tmp_path / "half")
    train(recipe, tmp_path / "half", device="cpu", resume=True, progress=False)
    ends = [load_model(tmp_path / name / "model.safetensors")[0] for name in ("whole", "half")]
    assert all(
        torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in ends), strict=True)
    )


@pytest.mark.parametrize("pieces", [2, 3])
def test_pieces_of_a_batch_take_their_own_pixels(pieces):
    settings = SHORT | SOME_PIXELS | dict(batch_size=6)
    stream, grads = build_data(get_recipe("tetrominoes_paper", **settings))[0], []
    for accumulate in (1, pieces):
        run = Trainer(
            get_recipe("tetrominoes_paper", **settings, accumulate=accumulate), resolution=(9, 9)
        )
        run.training_step(stream.batch(0))
        grads.append([weight.grad for weight in run.model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    settings = SHORT | dict(warmup_steps=0)
    settings |= SOME_PIXELS | dict(gradient="implicit")
    recipe = get_recipe("tetrominoes_paper", **settings)
    run, plain = (
        Trainer(get_recipe("tetrominoes_paper", **settings, compile=kind), resolution=(9, 9))
        for kind in ("on", "off")
    )
    stream = build_data(recipe)[0]
    for step in range(3):
        run.training_step(stream.batch(step))
        plain.training_step(stream.batch(step))
        assert run.flush_metrics() == pytest.approx(plain.flush_metrics(), rel=1e-3)
