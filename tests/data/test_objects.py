"Object schemas there and back, and the original's targets."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.objects import (
    CLEVR,
    CLEVR_COLORS,
    CLEVR_WORDS,
    MULTI_DSPRITES,
    Angle,
    Categorical,
    Continuous,
    ObjectSchema,
)
from slot_attention_nbdev.data.sprites import multi_dsprites
from slot_attention_nbdev.metrics.matching import mixed_cost, set_loss

ORDERS = {  # the vector's and the scenes' orders, written down once more
    "size": (["small", "large"], ["small", "large"]),
    "material": (["rubber", "metal"], ["rubber", "metal"]),
    "shape": (["cube", "sphere", "cylinder"], ["cube", "sphere", "cylinder"]),
    "color": (
        ["gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan"],
        ["gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"],
    ),
}


def clevr_scene(seed=0, B=4, M=6):
    g = generator(seed, "clevr")
    scene = {axis: 6 * torch.rand(B, M, generator=g) - 3 for axis in "xyz"}
    scene |= {
        name: torch.randint(len(stored), (B, M), generator=g)
        for name, (_, stored) in ORDERS.items()
    }
    return scene | {"visibility": (torch.rand(B, M, generator=g) < 0.7).float()}


# Targets


def test_the_vocabulary_is_that_of_the_scenes():
    assert {name: list(words) for name, words in CLEVR_WORDS.items()} == {
        name: stored for name, (_, stored) in ORDERS.items()
    }
    assert list(CLEVR_COLORS) == ORDERS["color"][1]


def test_clevr_has_the_nineteen_columns():
    assert CLEVR.width == 19
    columns = {name: (s.start, s.stop) for name, s in CLEVR.slices.items()}
    assert columns == {
        "x": (0, 1),
        "y": (1, 2),
        "z": (2, 3),
        "size": (3, 5),
        "material": (5, 7),
        "shape": (7, 10),
        "color": (10, 18),
    }
    assert {
        p.name: (list(p.values), list(p.stored))
        for p in CLEVR.properties
        if isinstance(p, Categorical)
    } == ORDERS


def test_clevr_targets_row_by_row():
    scene = clevr_scene()
    target = CLEVR.encode(scene, max_objects=10)
    assert target.shape == (4, 10, 19) and target.dtype == torch.float32
    for b in range(4):
        rows = []
        for m in range(6):
            if scene["visibility"][b, m]:
                row = [(scene[axis][b, m].item() + 3) / 6 for axis in "xyz"]
                for name, (values, stored) in ORDERS.items():
                    row += [float(value == stored[scene[name][b, m]]) for value in values]
                rows.append(row + [1.0])
        expected = torch.tensor(rows + [[0.0] * 19] * (10 - len(rows)))
        assert_close(target[b], expected)


@pytest.mark.parametrize(
    "name",
    [
        "240x320",
        "320x480",
        "objects_0",
        "objects_1",
        "objects_3",
        "objects_6",
        "objects_10",
        "objects_4_max6",
    ],
)
def test_targets_of_the_original(golden, name):
    arrays = golden("preprocess_clevr.npz")
    target = torch.as_tensor(arrays[f"{name}/target"])
    at = f"{name}/objects/" if f"{name}/objects/size" in arrays else f"{name}/"
    own = {
        key: torch.as_tensor(arrays[f"{at}{key}"])
        for key in ("size", "material", "shape", "color", "3d_coords")
    }
    n = len(own["size"])
    if n == 0:
        assert not target.any()
        return
    scene = {axis: own["3d_coords"][None, :, i] for i, axis in enumerate("xyz")} | {
        "visibility": torch.ones(1, n)
    }
    for key, (values, stored) in ORDERS.items():  # the original's codes are in the vector's order
        scene[key] = torch.tensor([[stored.index(values[code]) for code in own[key].tolist()]])
    assert_close(CLEVR.encode(scene, max_objects=len(target))[0], target, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), M=st.integers(1, 8))
def test_there_and_back(seed, M):
    scene = clevr_scene(seed, M=M)
    there = scene["visibility"] > 0
    back = CLEVR.decode(CLEVR.encode(scene, max_objects=9))
    real = back["confidence"] > 0
    assert real.sum(1).tolist() == there.sum(1).tolist()
    for name in ("x", "y", "z", *ORDERS):
        assert_close(
            back[name][real], scene[name][there].to(back[name].dtype), rtol=1e-5, atol=1e-5
        )


def test_sprites_fit_their_schema():
    scene = multi_dsprites(200, generator=generator(0, "sprites"))
    target = MULTI_DSPRITES.encode(scene, max_objects=6)
    assert MULTI_DSPRITES.width == 12 and (target >= 0).all() and (target <= 1).all()
    back, there = MULTI_DSPRITES.decode(target), scene["visibility"] > 0
    real = back["confidence"] > 0
    for name in ("x", "y", "scale", "color", "shape"):
        assert_close(
            back[name][real], scene[name][there].to(back[name].dtype), rtol=1e-4, atol=1e-4
        )
    turn = back["orientation"][real] - scene["orientation"][there]
    assert torch.sin(turn / 2).abs().max() < 1e-3


def test_objects_are_named_most_confident_first():
    vectors = CLEVR.encode(clevr_scene(), max_objects=6)[:1]
    vectors[0, :, -1] = torch.tensor([0.6, 0.9, 0.5, 0.2, 0.7, 0.0])
    found = CLEVR.objects(vectors)[0]
    assert [round(o.confidence, 3) for o in found] == [0.9, 0.7, 0.6, 0.5]
    first = vectors[0, 1]
    assert found[0].properties["color"] == ORDERS["color"][0][first[10:18].argmax()]
    assert found[0].properties["x"] == pytest.approx(6 * first[0].item() - 3, abs=1e-5)
    assert CLEVR.objects(vectors, threshold=0.95) == [[]]


def test_invisible_objects_may_hold_anything():
    scene = clevr_scene()
    gone = scene["visibility"] == 0
    assert gone.any()
    wild = {
        **scene,
        "x": torch.where(gone, math.nan, scene["x"]),
        "color": torch.where(gone, -1, scene["color"]),
    }
    assert torch.equal(CLEVR.encode(wild, 6), CLEVR.encode(scene, 6))


def test_a_schema_gives_its_own_cost():
    target = CLEVR.encode(clevr_scene(), max_objects=10)
    right, wrong = target.clamp(0.01, 0.99), 1 - target.clamp(0.01, 0.99)
    cost = lambda p, t: mixed_cost(p, t, CLEVR.parts())
    assert set_loss(right, target, cost) < 0.2 * set_loss(wrong, target, cost)


# Bad input

scene = clevr_scene()
without = lambda name: {key: x for key, x in scene.items() if key != name}
BAD = [
    (
        "missing property",
        lambda: CLEVR.encode(without("material"), 10),
        "scene: CLEVR objects have 'material', this scene has not",
    ),
    ("no visibility", lambda: CLEVR.encode(without("visibility"), 10), "objects have 'visibility'"),
    (
        "sprites are not CLEVR",
        lambda: CLEVR.encode(multi_dsprites(2, generator=generator(0)), 10),
        "scene: CLEVR objects have 'z'",
    ),
    (
        "too many",
        lambda: CLEVR.encode({**scene, "visibility": torch.ones(4, 6)}, 5),
        "scene: image 0 has 6 objects, expected at most max_objects = 5",
    ),
    (
        "place outside",
        lambda: CLEVR.encode({**scene, "y": scene["y"] + 9}, 10),
        "scene: y: expected numbers in [-3, 3]",
    ),
    (
        "NaN place",
        lambda: CLEVR.encode({**scene, "z": scene["z"] * math.nan}, 10),
        "scene: z: expected numbers in [-3, 3], got [nan]",
    ),
    (
        "code too large",
        lambda: CLEVR.encode({**scene, "shape": scene["shape"] + 3}, 10),
        "scene: shape: expected a code in 0…2 (cube, sphere, cylinder)",
    ),
    (
        "float codes",
        lambda: CLEVR.encode({**scene, "color": scene["x"]}, 10),
        "scene: color: expected integer codes, got torch.float32",
    ),
    (
        "another count",
        lambda: CLEVR.encode({**scene, "x": scene["x"][:, :5]}, 10),
        "scene: x: expected shape [B=4, M=6, dims=1]",
    ),
    ("max_objects", lambda: CLEVR.encode(scene, 0), "max_objects: expected an integer"),
    (
        "another width",
        lambda: CLEVR.decode(torch.zeros(1, 2, 18)),
        "vectors: expected shape [B, K, width=19], got [1, 2, 18]",
    ),
    (
        "NaN prediction",
        lambda: CLEVR.objects(torch.full((1, 2, 19), math.nan)),
        "vectors: expected finite numbers",
    ),
    ("low above high", lambda: Continuous("x", 1, 1), "x: expected low < high"),
    (
        "orders differ",
        lambda: Categorical("c", ("a", "b"), ("a", "d")),
        "c: expected the same different names",
    ),
    (
        "one name twice",
        lambda: ObjectSchema("d", (Angle("a"), Angle("a")), ()),
        "properties: expected different names",
    ),
    (
        "no such position",
        lambda: ObjectSchema("d", (Angle("a"),), ("x",)),
        "position: expected names of continuous properties, got 'x'",
    ),
]


@pytest.mark.parametrize("call, words", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("schema", [CLEVR, MULTI_DSPRITES], ids=lambda each: each.name)
def test_a_gpu_is_not_waited_for(schema):
    "On the meta device there are no numbers: a value that is looked at is an error."
    given = scene if schema is CLEVR else multi_dsprites(4, generator=generator(0))
    away = {key: value.to("meta") for key, value in given.items()}
    assert schema.encode(away, 6).shape == (4, 6, schema.width)


def test_where_looking_costs_a_bad_object_becomes_nan(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda x: False))
    good = CLEVR.encode(scene, 6)
    assert good.isfinite().all()
    for bad in (
        {"y": scene["y"] + 9},
        {"z": scene["z"] * math.nan},
        {"shape": scene["shape"] + 3},
        {"visibility": torch.ones(4, 6)},  # one too many
    ):
        found = CLEVR.encode({**scene, **bad}, 5 if "visibility" in bad else 6)
        assert found.isnan().any()
        with pytest.raises(InputError, match="cost: expected finite numbers"):
            set_loss(torch.zeros_like(found), found)
