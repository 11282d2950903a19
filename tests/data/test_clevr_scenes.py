"""Traced CLEVR scenes: the rules of the scenes, geometry and light against published figures,
images against Blender's.
"""

import json
import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_attention_nbdev.core import InputError
from slot_attention_nbdev.data.clevr_scenes import (
    ASIDE,
    CLEVR_SETS,
    all_but,
    clevr,
    denoise,
    label_scenes,
    project,
    render_scenes,
    sample_scenes,
    to_srgb,
    trace,
)
from slot_attention_nbdev.data.shading import LAMPS, hit_floor, sample_lamp
from slot_attention_nbdev.data.objects import CLEVR_WORDS
from slot_attention_nbdev.data.rays import (
    CAMERA,
    FRAMES,
    POSE,
    RADIUS,
    make_solids,
    pixel_rays,
    unit,
)

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SLOT_ATTENTION_SHARED", ROOT.parent / "shared"))
ANNOTATIONS = (*POSE, *CLEVR_WORDS, "visibility", "camera", "lamps")
MISSING = (
    "the larger set of Blender renders is not here; set SLOT_ATTENTION_SHARED to the folder that "
    "has clevr_blender/"
)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def few_renders() -> dict[str, torch.Tensor]:
    "The twelve Blender scenes that lie in this repository."
    return {
        name: torch.from_numpy(array)
        for name, array in np.load(ROOT / "tests" / "assets" / "clevr_blender.npz").items()
    }


@cache
def all_renders() -> dict[str, torch.Tensor] | None:
    "All Blender scenes at hand, in the same form; None where they are absent."
    files = sorted((SHARED / "clevr_blender").glob("*.npz"))
    if not files:
        return None
    parts = [dict(np.load(file)) for file in files]
    arrays = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("image", "label", *POSE, *CLEVR_WORDS, "visibility", "camera", "lights")
    }
    scene = {
        name: torch.from_numpy(value[:, 1:] if value.ndim == 2 else value)
        for name, value in arrays.items()
    }
    return {**scene, "camera": scene["camera"][:, :3, 3].contiguous(), "lamps": scene["lights"]}


def annotations(renders, rows=slice(None)):
    return {name: renders[name][rows] for name in ANNOTATIONS}


def psnr(image, truth):
    return 10 * (255**2 / (image.float() - truth.float()).square().mean((1, 2, 3))).log10()


def test_label_maps_agree_with_blender():
    for renders in filter(None, (few_renders(), all_renders())):
        agree = (label_scenes(annotations(renders)) == renders["label"]).float().mean((1, 2))
        assert agree.mean() >= 0.998 and agree.min() > 0.995


def test_images_are_close_to_blender():
    pytest.importorskip("pyoidn")
    renders = few_renders()
    ours = render_scenes(
        annotations(renders, slice(6)), "full", (240, 320), denoised=True, generator=random()
    )
    assert psnr(ours["image"], renders["image"][:6]).mean() >= 38
    noisy = render_scenes(annotations(renders, slice(2)), "full", (240, 320), generator=random())
    assert psnr(noisy["image"], renders["image"][:2]).mean() >= 29


@pytest.mark.slow
def test_images_of_the_whole_set_reach_38_dB():
    pytest.importorskip("pyoidn")
    renders = all_renders() or pytest.skip(MISSING)
    scores = []
    for row in range(len(renders["image"])):
        ours = render_scenes(
            annotations(renders, slice(row, row + 1)),
            "full",
            (240, 320),
            samples=16,
            denoised=True,
            generator=random(row),
        )
        scores.append(psnr(ours["image"], renders["image"][row : row + 1]))
    assert torch.cat(scores).mean() >= 38


def test_reference_scenes():
    "Means over objects and background, and areas, of three scenes rendered elsewhere."
    pytest.importorskip("pyoidn")
    path = SHARED / "clevr_check" / "scenes.json"
    if not path.exists():
        pytest.skip(MISSING)
    renders = few_renders()  # its first three are these scenes
    ours = render_scenes(
        annotations(renders, slice(3)),
        "full",
        (240, 320),
        samples=16,
        denoised=True,
        generator=random(),
    )
    numbers = [
        int(scene["index"]) if "index" in scene else None
        for scene in json.loads(path.read_text())["scenes"]
    ]
    assert len(numbers) == 3
    for image, truth, label, mine in zip(
        ours["image"].float(), renders["image"].float(), renders["label"], ours["label"]
    ):
        for k in range(int(label.max()) + 1):
            there = label == k
            assert (image[there].mean(0) - truth[there].mean(0)).abs().max() < (
                1.2 if k == 0 else 3.5
            )
            assert abs(int((mine == k).sum()) - int(there.sum())) <= 0.01 * int(there.sum()) + 5


@pytest.mark.parametrize(
    "point, u, v, depth",
    [
        ((0, 0, 0), 160, 120, 11.2637),
        ((0, 0, 0.7), 160, 100.271, 10.9316),
        ((3, 3, 0.35), 296.675, 114.563, 10.8384),
        ((3, -3, 0.35), 146.016, 200.703, 7.3719),
        ((-3, 3, 0.35), 166.954, 65.316, 14.8235),
        ((-3, -3, 0.35), 29.565, 106.198, 11.3570),
        ((2, -1, 1.4), 182.471, 111.739, 8.6934),
    ],
)
def test_projection(point, u, v, depth):
    seen = project(torch.tensor([CAMERA]), torch.tensor([[point]], dtype=torch.float32))[0, 0]
    assert torch.allclose(seen, torch.tensor([u, v, depth]), atol=2e-3)


def test_projection_of_a_jittered_camera():
    seen = project(
        torch.tensor([[7.9, -6.1, 5.0]]), torch.tensor([[[1.0, 2.0, 0.7], [-2.5, 1.5, 0.35]]])
    )[0]
    assert torch.allclose(
        seen, torch.tensor([[228.354, 94.492, 11.235], [151.230, 78.557, 13.595]]), atol=2e-3
    )


@given(st.integers(0, 239), st.integers(0, 319))
@settings(max_examples=30, deadline=None)
def test_rays_and_projection_undo_each_other(row, column):
    camera = torch.tensor([CAMERA], dtype=torch.float64)
    ray = pixel_rays(camera, FRAMES["full"], (240, 320), torch.tensor([320 * row + column]))
    seen = project(camera, (camera + 9 * ray.T)[None])[0, 0]
    assert torch.allclose(
        seen[:2], torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64), atol=1e-4
    )


@pytest.mark.parametrize(
    "point, expected",
    [
        ((0.0, 0, 0), (0.18906, 0.06998, 0.26320, 0.40005)),
        ((2.0, -2, 0), (0.42413, 0.04789, 0.12983, 0.40005)),
        ((-2.5, 2.5, 0), (0.07270, 0.04726, 0.28712, 0.40005)),
        ((2.5, 2.5, 0), (0.19293, 0.02136, 0.19213, 0.40005)),
    ],
)
def test_irradiance(point, expected):
    u = (torch.cartesian_prod(torch.arange(100), torch.arange(100)).T + 0.5) / 100
    for lamp in range(4):
        light, across, _ = sample_lamp(
            torch.tensor([LAMPS]),
            lamp,
            torch.zeros(10_000, dtype=torch.long),
            torch.tensor(point)[:, None].expand(3, 10_000),
            u,
        )
        assert (across * light[2]).mean().item() == pytest.approx(
            expected[lamp], rel=3e-3 if lamp == 3 else 2e-4
        )


def test_radiance_of_the_empty_scene():
    """Linear green around some pixels: Blender's values, direct light alone and with all its
    bounces.
    """
    places = {name: torch.zeros(1, 1) for name in (*POSE, "visibility")} | {
        name: torch.zeros(1, 1, dtype=torch.long) for name in CLEVR_WORDS
    }
    scene = places | {"camera": torch.tensor([CAMERA]), "lamps": torch.tensor([LAMPS])}
    direct, full = (
        trace(scene, samples=8, bounces=bounces, generator=random())[0][0, ..., 1]
        for bounces in (0, 2)
    )
    for (u, v), one, all_of_it in [
        ((160, 120), 0.2286, 0.2423),
        ((160, 60), 0.1579, 0.1767),
        ((160, 200), 0.2687, 0.2780),
        ((60, 120), 0.2221, 0.2362),
        ((260, 120), 0.2056, 0.2183),
        ((20, 20), 0.1218, 0.1435),
        ((160, 10), 0.1221, 0.1443),
        ((300, 220), 0.2890, 0.2977),
    ]:
        window = slice(v - 6, v + 6), slice(u - 6, u + 6)
        assert direct[window].mean() == pytest.approx(one, rel=0.01)
        assert full[window].mean() == pytest.approx(all_of_it, rel=0.03)


def test_scenes_follow_the_rules():
    scene = sample_scenes(300, generator=random(1))
    there = scene["visibility"] > 0
    counts = there.sum(1)
    # even, though crowded scenes are drawn again
    assert counts.bincount(minlength=11)[3:].float().div(300).sub(1 / 8).abs().max() < 0.06
    radius = torch.tensor(RADIUS)[scene["size"].long()]
    for i in range(300):
        for j in range(counts[i]):
            for k in range(j):
                dx = float(scene["x"][i, j] - scene["x"][i, k])
                dy = float(scene["y"][i, j] - scene["y"][i, k])
                assert math.hypot(dx, dy) - radius[i, j] - radius[i, k] >= 0.25 - 1e-5
                assert all(abs(sx * dx + sy * dy) >= 0.4 - 1e-5 for sx, sy in ASIDE)
    assert scene["x"].abs().max() <= 3 and scene["y"].abs().max() <= 3
    assert torch.equal(scene["z"][there], radius[there])
    assert (scene["camera"] - torch.tensor(CAMERA)).abs().max() <= 0.5 and (
        scene["lamps"] - torch.tensor(LAMPS)
    ).abs().max() <= 1
    label = label_scenes(scene)
    pixels = torch.stack([(label == k).sum((1, 2)) for k in range(11)], 1)
    assert (pixels[:, 1:][there] > 160).all() and (pixels[:, 0] > 160).all()
    assert torch.equal(pixels[:, 1:] > 0, there)
    for name in (*POSE, *CLEVR_WORDS, "pixel_coords"):
        assert (scene[name][~there] == 0).all()


def test_the_same_seed_gives_the_same_scenes():
    a, b, c = (clevr(2, (3, 6), generator=random(seed), size=(32, 32)) for seed in (3, 3, 4))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["image"], c["image"])


def test_images_do_not_depend_on_the_chunk():
    scene = sample_scenes(3, generator=random(5))
    images = [
        trace(scene, "discovery", (24, 24), generator=random(6), chunk=chunk)[0]
        for chunk in (24 * 24, 24 * 24 * 4, 24 * 24 * 12, None)
    ]
    for image in images[1:]:
        assert ((image - images[0]).abs() > 1e-3).float().mean() < 0.01


def test_held_out_combinations_are_never_drawn():
    allowed = all_but("red cube", "large metal sphere")
    scene = sample_scenes(60, allowed=allowed, generator=random(7))
    there = scene["visibility"] > 0
    size, material, shape, color = (scene[name][there].long() for name in CLEVR_WORDS)
    assert allowed[size, material, shape, color].all()
    alone = sample_scenes(20, (3, 4), ~all_but("red cube"), generator=random(8))
    there = alone["visibility"] > 0
    assert (alone["color"][there] == 1).all() and (alone["shape"][there] == 0).all()


def test_sets_by_name():
    assert list(CLEVR_SETS) == [
        "clevr6",
        "clevr10",
        "clevr10_full",
        "clevr_cogent_a",
        "clevr_cogent_b",
    ]
    scene = CLEVR_SETS["clevr6"].draw(2, generator=random(9), samples=1, bounces=0)
    assert (
        scene["image"].shape == (2, 128, 128, 3)
        and scene["image"].dtype == scene["label"].dtype == torch.uint8
    )
    assert scene["x"].shape == (2, 6) and scene["visibility"].sum(1).max() <= 6


def test_the_curve():
    assert to_srgb(torch.tensor([-1.0, 0.0, 0.0031308, 0.5, 1.0, 2.0])).tolist() == [
        0,
        0,
        10,
        188,
        255,
        255,
    ]


def test_rays_that_cannot_meet_the_floor():
    up, back, level = (
        unit(torch.tensor([[x], [y], [z]]))
        for x, y, z in ((0.0, 0, 1), (0.66, -0.58, 0.2), (0.66, -0.58, 1e-6))
    )
    for d in (up, back, level):
        assert hit_floor(torch.tensor([[0.0], [0.0], [1.0]]), d).isinf().all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_scenes(0), "n: expected an integer ≥ 1, got 0"),
        (lambda: sample_scenes(1, (0, 3)), "num_objects: expected an integer ≥ 1, got 0"),
        (lambda: sample_scenes(1, (5, 4)), "num_objects: expected an integer ≥ 5 and ≤ 64, got 4"),
        (lambda: sample_scenes(1, allowed=torch.ones(2, 2)), "allowed: expected shape"),
        (
            lambda: sample_scenes(1, allowed=all_but("cube", "sphere", "cylinder")),
            "allowed: no combination",
        ),
        (
            lambda: sample_scenes(1, (10, 10), all_but("small"), extent=1.0, attempts=5),
            "1 of 1 scenes found no arrangement in 5 attempts",
        ),
        (lambda: sample_scenes(1, (3, 3), min_visible=60_000, attempts=5), "found no arrangement"),
        (lambda: all_but("red box"), "phrases: unknown word 'box'"),
        (lambda: clevr(1, frame="left"), "frame: unknown 'left'"),
        (lambda: clevr(1, size=(128, 0)), "size: expected an integer ≥ 1"),
        (lambda: clevr(1, samples=0), "samples: expected an integer ≥ 1"),
        (lambda: clevr(1, bounces=-1), "bounces: expected an integer ≥ 0"),
        (lambda: make_solids({"x": torch.zeros(1, 1)}), "scene: there is no y"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        call()


def test_wrong_annotations():
    scene = sample_scenes(1, (3, 3), generator=random())
    for name, value, message in (
        ("shape", scene["shape"] + 3, "shape: expected integers in"),
        ("x", scene["x"] / 0, "x: expected finite"),
        ("size", scene["size"][:, :2], "size: expected shape"),
    ):
        with pytest.raises(InputError, match=message):
            make_solids({**scene, name: value})


def test_without_the_denoiser(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyoidn", None)
    with pytest.raises(InputError, match=r"denoised: needs pyoidn: pip install"):
        denoise(*3 * [torch.zeros(1, 4, 4, 3)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    device = torch.device("cuda")
    scene = clevr(4, generator=torch.Generator(device).manual_seed(0), device=device)
    assert scene["image"].is_cuda and scene["image"].float().std() > 10
    known = {name: value.to(device) for name, value in annotations(few_renders()).items()}
    assert (label_scenes(known).cpu() == few_renders()["label"]).float().mean() > 0.998
