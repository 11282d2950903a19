"""Recipes: the paper's settings, overrides from the command line, models and batches by seed."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.data.files import save_pack
from slot_attention_nbdev.data.sources import GENERATED, evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.train.recipes import (
    RECIPES,
    Recipe,
    build_data,
    build_model,
    describe_recipe,
    from_dict,
    get_recipe,
    parse_overrides,
    run_fingerprint,
    to_dict,
)


@pytest.mark.parametrize(
    ("name", "data", "slots"),
    [
        ("tetrominoes_paper", "tetrominoes", 4),
        ("multi_dsprites_paper", "multi_dsprites_colored_on_grayscale", 6),
        ("clevr6_paper", "clevr6", 7),
    ],
)
def test_paper_settings(name, data, slots):
    r = RECIPES[name]
    assert (r.data, r.model, r.num_slots, r.num_iterations, r.batch_size) == (
        data,
        "paper",
        slots,
        3,
        64,
    )
    assert (r.learning_rate, r.warmup_steps, r.decay_rate, r.decay_steps, r.steps) == (
        4e-4,
        10_000,
        0.5,
        100_000,
        500_000,
    )
    assert (r.schedule, r.clip_norm, r.ema_decay) == ("paper", 0, 0)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_builds_and_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # with the folder that the recipe for photographs reads
    (tmp_path / "photos").mkdir()
    for i in range(10):
        Image.new("RGB", (90, 60), (20 * i, 0, 0)).save(f"photos/{i}.jpg")
    model = build_model(recipe)
    stream, held_out = build_data(
        replace(recipe, batch_size=2, eval_images=2, scenes=2), progress=False
    )
    size = (
        (recipe.resolution, recipe.resolution)
        if recipe.resolution
        else GENERATED[recipe.data].resolution
    )
    assert model.resolution == size == stream.batch(0)["image"].shape[1:3]
    assert len(held_out["image"]) == 2
    assert f"slot-attention train {recipe.name}" in describe_recipe(recipe)
    assert from_dict(to_dict(recipe)) == recipe


BAD = [
    ("steps", "expected key=value"),
    ("=3", "no such setting"),
    ("stpes=3", "did you mean 'steps'?"),
    ("about=x", "no such setting"),
    ("steps=", "steps: expected an integer"),
    ("steps=1.5", "steps: expected an integer"),
    ("steps=-3", "steps: expected an integer ≥ 1"),
    ("num_slots=0", "num_slots: expected an integer ≥ 1"),
    ("num_slots=65", "and ≤ 64"),
    ("num_iterations=0", "num_iterations: expected an integer ≥ 1"),
    ("learning_rate=big", "learning_rate: expected a number"),
    ("learning_rate=nan", "learning_rate: expected a number in [0, 1]"),
    ("learning_rate=2", "learning_rate: expected a number in [0, 1]"),
    ("clip_norm=inf", "clip_norm: expected a number"),
    ("schedule=linear", "schedule: unknown 'linear'"),
    ("model=frmaed", "did you mean 'framed'?"),
    ("data=tetromino", "did you mean 'tetrominoes'?"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[text for text, _ in BAD])
def test_bad_overrides(text, words):
    with pytest.raises(InputError) as error:
        parse_overrides([text])
    assert words in str(error.value)


def test_overrides_are_typed():
    given = parse_overrides(
        ["steps=1_000", "clip_norm=1", "learning_rate=1e-3", "schedule=paper", "data=a=b.npz"]
    )
    assert given == {
        "steps": 1000,
        "clip_norm": 1.0,
        "learning_rate": 1e-3,
        "schedule": "paper",
        "data": "a=b.npz",
    }
    assert isinstance(given["clip_norm"], float)
    assert get_recipe("tiny", **given).steps == 1000
    with pytest.raises(InputError, match="given twice"):
        parse_overrides(["steps=1", "steps=1"])
    with pytest.raises(InputError, match="did you mean 'tetrominoes_small'"):
        get_recipe("tetrominoes_smal")


@pytest.mark.parametrize("settings", [
    {"steps": True}, {"steps": 3.0}, {"learning_rate": math.nan}, {"learning_rate": "1"},
    {"clip_norm": -0.1}, {"data": 3}, {"name": None}, {"decay_rate": 1.5}, {"warmup_steps": -1},
])  # fmt: skip
def test_bad_settings_in_python(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Recipe(**{"name": "x", "about": "y", **settings})


def test_fingerprint():
    tiny = RECIPES["tiny"]
    assert run_fingerprint(tiny, 0) == run_fingerprint(replace(tiny, about="other words"), 0)
    assert run_fingerprint(tiny, 0) != run_fingerprint(tiny, 1)
    assert run_fingerprint(tiny, 0) != run_fingerprint(replace(tiny, clip_norm=2.0), 0)
    with pytest.raises(InputError, match="seed"):
        run_fingerprint(tiny, -1)


def test_model_depends_on_the_seed_alone():
    torch.manual_seed(1)
    a = build_model(RECIPES["tiny"], seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = build_model(RECIPES["tiny"], seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    c = build_model(RECIPES["tiny"], seed=6)
    assert any(
        not torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True)
    )


def test_settings_that_are_not_named_have_their_defaults():
    tiny = RECIPES["tiny"]
    old = {key: value for key, value in to_dict(tiny).items() if key != "resolution"}
    assert from_dict(old) == tiny
    assert run_fingerprint(get_recipe("tiny", resolution=64), 0)["resolution"] == 64
    for wrong in (
        {**old, "dropout": 0.1},
        {key: value for key, value in old.items() if key != "name"},
    ):
        with pytest.raises(InputError, match="missing or unknown"):
            from_dict(wrong)


@pytest.mark.parametrize(
    "data",
    ["pack.npz", "a/b.tfrecords", "clevr6:x.tfrecords", "photos/", "CLEVR_v1.0", "x-*.tfrecords"],
)
def test_data_need_not_be_there_to_be_named(data):
    assert Recipe("x", "y", data=data).data == data


def test_resolution(tmp_path):
    save_pack(tmp_path / "mine.npz", evaluation_scenes("tetrominoes", 10))
    for data in ("tetrominoes", str(tmp_path / "mine.npz")):
        recipe = get_recipe("tiny", data=data, resolution=20)
        stream, held_out = build_data(recipe)
        assert (
            build_model(recipe).resolution
            == stream.batch(0)["image"].shape[1:3]
            == held_out["label"].shape[1:3]
            == (20, 20)
        )
    with pytest.raises(InputError, match="resolution"):
        get_recipe("tiny", resolution=-1)


def test_pack(tmp_path):
    path = tmp_path / "mine.npz"
    save_pack(path, evaluation_scenes("tetrominoes", 30))
    recipe = get_recipe("tiny", data=str(path))
    stream, held_out = build_data(recipe, seed=2)
    assert len(held_out["image"]) == 6 and stream.n == 24  # at most a fifth is held out
    assert torch.equal(held_out["image"], evaluation_scenes("tetrominoes", 30)["image"][24:])
    again, _ = build_data(recipe, seed=2)
    again.batch(0)
    assert all(
        torch.equal(stream.batch(9)[key], again.batch(9)[key])
        for key in ("image", "label", "shape")
    )
    assert not torch.equal(stream.batch(9)["image"], stream.batch(10)["image"])
    with pytest.raises(FileError, match="no such file"):
        build_model(get_recipe("tiny", data="absent.npz"))


def test_set_prediction_of_the_paper():
    r = RECIPES["clevr10_properties_paper"]
    assert (r.data, r.model, r.num_slots, r.num_iterations, r.batch_size, r.steps) == (
        "clevr10_full",
        "properties_clevr",
        10,
        3,
        512,
        150_000,
    )
    assert (
        r.learning_rate,
        r.warmup_steps,
        r.decay_rate,
        r.decay_steps,
        r.schedule,
        r.clip_norm,
    ) == (4e-4, 1_000, 0.5, 50_000, "paper", 0)


@pytest.mark.parametrize("name", ["tetrominoes", "multi_dsprites", "clevr6", "clevr10_properties"])
def test_short_recipes_keep_the_model_and_fit_ten_minutes(name):
    short, paper = RECIPES[f"{name}_short"], RECIPES[f"{name}_paper"]
    assert (short.model, short.data, short.num_slots, short.num_iterations) == (
        paper.model,
        paper.data,
        paper.num_slots,
        paper.num_iterations,
    )
    assert (
        short.budget == 600
        and short.schedule == "cosine"
        and short.warmup_steps < short.steps / 10
        and short.steps < paper.steps
    )


def test_head_tells_every_seed(tmp_path, monkeypatch):
    from slot_attention_nbdev.models.weights import save_record
    from slot_attention_nbdev.train import recipes

    monkeypatch.setattr(recipes, "records_folder", lambda: tmp_path)
    assert describe_recipe(RECIPES["tiny"]).count("not run yet") == 3
    record = {
        "recipe": to_dict(RECIPES["tiny"]),
        "hardware": {"cpu": "a CPU"},
        "threads": 2,
        "seconds": 10.0,
    }
    for seed, final in enumerate([{"fg_ari": 0.5, "n": 16}, None, {"fg_ari": 0.25, "n": 16}]):
        save_record(tmp_path / "tiny" / f"seed{seed}.json", record | {"seed": seed, "final": final})
    head = describe_recipe(RECIPES["tiny"])
    assert (
        "FG-ARI 0.500, failed, 0.250 on 16 held-out images (seeds 0, 1, 2)" in head
        and "a CPU, 2 CPU threads" in head
        and "about 10 s" in head
    )
    assert "0.500" in describe_recipe(replace(RECIPES["tiny"], about="other words"))
    assert "not run yet" in describe_recipe(replace(RECIPES["tiny"], steps=41))


def test_scenes_and_budget_are_settings():
    recipe = get_recipe("tiny", **parse_overrides(["scenes=6", "budget=30"]))
    assert (recipe.scenes, recipe.budget) == (6, 30.0)
    assert run_fingerprint(recipe, 0)["scenes"] == 6
    stream, _ = build_data(recipe)
    seen = {image.numpy().tobytes() for step in range(6) for image in stream.batch(step)["image"]}
    assert len(seen) == 6
    again, _ = build_data(recipe)
    # whatever was drawn before
    assert torch.equal(again.batch(5)["image"], stream.batch(5)["image"])
    for bad in ("scenes=-1", "budget=-3", "budget=inf"):
        with pytest.raises(InputError, match=bad.split("=")[0]):
            parse_overrides([bad])


@pytest.mark.parametrize(
    "model", ["paper", "small", "set_paper", "properties_clevr", "properties_framed"]
)
def test_no_least_shading_without_shading(model):
    build_model(get_recipe("tiny", model=model), (64, 64))  # it is the setting that is refused
    with pytest.raises(InputError, match=f"min_shading: expected 0 for model '{model}'.*got 0.2"):
        build_model(get_recipe("tiny", model=model, min_shading=0.2), (64, 64))


@pytest.mark.parametrize("name", ["plain", "one_pass"])
def test_implementation_is_set_on_the_model_and_changes_rounding_alone(name):
    recipe = get_recipe("tetrominoes_paper", implementation=name)
    model = build_model(recipe)
    assert model.slot_attention.implementation == name
    assert run_fingerprint(recipe, 0) == run_fingerprint(RECIPES["tetrominoes_paper"], 0)
    image = to_model(evaluation_scenes("tetrominoes", 2)["image"])
    plain = build_model(get_recipe("tetrominoes_paper", implementation="plain"))
    ours, theirs = (each(image, generator=generator(0)).reconstruction for each in (model, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="implementation: unknown 'fast'"):
        get_recipe("tiny", implementation="fast")
