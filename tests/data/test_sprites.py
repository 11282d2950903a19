"""Generated sprites: genuine samples, counts, distributions, determinism."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data import sprites
from slot_attention_nbdev.data.sources import (
    Batches,
    GeneratedScenes,
    collate_rows,
    evaluation_scenes,
)
from slot_attention_nbdev.data.sprites import (
    COUNTS,
    MIN_VISIBLE,
    SPRITE_SETS,
    draw_multi_dsprites,
    draw_tetrominoes,
    in_stripes,
    label_multi_dsprites,
    multi_dsprites,
    tetrominoes,
    to_model,
    to_uint8,
)

REAL = (
    Path(os.environ.get("SLOT_ATTENTION_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    / "real"
)


def real(name: str) -> np.ndarray:
    "A genuine picture or array; the test is skipped where it is not at hand."
    if not (REAL / name).exists():
        pytest.skip(
            f"{name} is not here; set SLOT_ATTENTION_SHARED to the folder that has real/{name}"
        )
    return (
        np.load(REAL / name)["imgs"]
        if name.endswith(".npz")
        else np.asarray(Image.open(REAL / name))
    )


def grid(*index):
    return 16 + 32 / 31 * torch.tensor([index])


def frame(shape, scale=1.0, k=0, x=0, y=0):
    "One sprite's mask at grid position (x, y), as numpy."
    angle = torch.tensor([[2 * torch.pi / 39 * k]])
    label = label_multi_dsprites(
        torch.tensor([[shape]]), grid(x), grid(y), torch.tensor([[scale]]), angle, torch.ones(1, 1)
    )
    return label[0].numpy()


# The genuine samples


def test_tetrominoes_sample():
    yellow, cyan = [1.0, 1, 0], [0.0, 1, 1]
    shape = torch.tensor([[12, 4, 15]])
    x = torch.tensor([[3, 20, 19]])
    y = torch.tensor([[12, 17, 0]])
    image, label = draw_tetrominoes(shape, x, y, torch.tensor([[yellow, cyan, yellow]]))
    assert np.array_equal(label[0], real("tetrominoes_label.png"))
    # palette error
    assert np.abs(image[0].numpy().astype(int) - real("tetrominoes_image.png")[..., :3]).max() <= 33


def test_multi_dsprites_sample():
    colors = torch.tensor([[[45, 49, 93], [48, 46, 148], [23, 71, 55], [48, 6, 0]]]) / 255
    factors = dict(
        shape=torch.tensor([[1, 1, 0, 2]]),
        x=grid(10, 28, 1, 24),
        y=grid(17, 7, 2, 25),
        scale=torch.tensor([[0.7, 0.6, 0.5, 1.0]]),
    )
    angle = 2 * torch.pi / 39 * torch.tensor([[16, 4, 34, 14]])
    image, label = draw_multi_dsprites(
        **factors, orientation=angle, color=colors, background=torch.tensor([[235, 138, 95]]) / 255
    )
    truth = real("multi_dsprites_label.png")
    for entity, pixels in ((1, 133), (2, 103), (3, 85)):
        assert (
            np.array_equal(label[0] == entity, truth == entity)
            and (truth == entity).sum() == pixels
        )
    assert ((label[0].numpy() == 4) != (truth == 4)).sum() <= 6
    same = label[0].numpy() == truth
    assert np.array_equal(image[0].numpy()[same], real("multi_dsprites_image.png")[..., :3][same])


UP = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(
    "shape, first, wrong, pixels", [(0, 256, 8, 16228), (1, 192, 56, 12592), (2, 0, 211, 9788)]
)
def test_genuine_dsprites_frames(shape, first, wrong, pixels):
    """46 frames with known scale and angle: no more wrong pixels than the formulas are known to
    have.
    """
    frames = real("dsprites_320frames.npz")
    ours = [frame(shape, scale) for scale in UP] + [frame(shape, k=k) for k in range(40)]
    genuine = np.concatenate([frames[first : first + 6], frames[first + 18 : first + 58]])
    assert genuine.sum() == pixels
    assert (np.stack(ours) != genuine).sum() <= wrong


def test_genuine_dsprites_positions():
    "The heart walks down and to the right: frames 58-121."
    frames = real("dsprites_320frames.npz")
    ours = [frame(2, y=i) for i in range(32)] + [frame(2, x=i, y=31) for i in range(32)]
    assert (np.stack(ours) != frames[58:122]).sum() / frames[58:122].sum() < 0.03


# What holds for every scene


def test_tetrominoes_counts_and_bounds():
    scenes = tetrominoes(2000, generator(0, "counts"))
    counts = torch.stack([(scenes["label"] == k).sum((1, 2)) for k in range(4)], 1)
    assert (counts == torch.tensor([925, 100, 100, 100])).all()  # nothing overlaps, nothing is cut
    assert (scenes["image"][scenes["label"] == 0] == 0).all() and (
        scenes["image"][scenes["label"] > 0].amax(-1) >= 63
    ).all()
    assert scenes["image"].dtype == scenes["label"].dtype == torch.uint8


@pytest.mark.parametrize("variant", COUNTS)
def test_multi_dsprites_invariants(variant):
    scenes = multi_dsprites(300, variant, generator(0, variant))
    low, high = COUNTS[variant]
    there = scenes["visibility"] > 0
    pixels = torch.stack([(scenes["label"] == k + 1).sum((1, 2)) for k in range(high)], 1)
    assert (pixels[there] >= MIN_VISIBLE).all() and (pixels[~there] == 0).all()
    assert there.sum(1).min() == low and there.sum(1).max() == high
    assert (there[:, :-1] >= there[:, 1:]).all()  # absent ones come last
    if variant != "striped":  # two colors each, see below
        palette = (255 * torch.cat([scenes["background"][:, None], scenes["color"]], 1)).round()
        painted = palette.gather(
            1, scenes["label"].flatten(1).long()[..., None].expand(-1, -1, 3)
        ).view(scenes["image"].shape)
        assert (painted == scenes["image"]).all()
    if variant == "binarized":
        assert set(scenes["image"].unique().tolist()) == {0, 255}
    if variant in ("colored_on_grayscale", "striped"):
        assert (scenes["background"] == scenes["background"][:, :1]).all()


def test_factors_redraw_the_scene():
    scenes = multi_dsprites(100, generator=generator(1))
    factors = {
        key: scenes[key] for key in ("shape", "x", "y", "scale", "orientation", "visibility")
    }
    factors["scale"] = factors["scale"].clamp(min=0.5)  # absent sprites have scale 0
    assert torch.equal(label_multi_dsprites(**factors), scenes["label"])


def test_factors_lie_on_the_grid():
    scenes = multi_dsprites(500, generator=generator(2))
    there = scenes["visibility"] > 0
    for key, step, start in (
        ("x", 32 / 31, 16),
        ("y", 32 / 31, 16),
        ("scale", 0.1, 0.5),
        ("orientation", 2 * torch.pi / 39, 0),
    ):
        index = (scenes[key][there] - start) / step
        assert (index - index.round()).abs().max() < 1e-4


# Distributions (fixed seeds; 99.9 % points of chi-square)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_tetromino_factors_are_uniform():
    scenes = tetrominoes(6000, generator(3))
    # 18 degrees of freedom
    assert chi_square(scenes["shape"].flatten().bincount(minlength=19).float()) < 42.3
    code = (
        (scenes["color"] * torch.tensor([1, 2, 4]))
        .sum(-1)
        .long()
        .flatten()
        .bincount(minlength=8)[1:7]
    )
    assert chi_square(code.float()) < 20.5  # 5
    first = scenes["shape"][:, 0] == 2  # an upright I that comes first has nothing to avoid
    assert chi_square(scenes["x"][first, 0].bincount(minlength=31).float()) < 59.7  # 30
    assert chi_square(scenes["y"][first, 0].bincount(minlength=16).float()) < 37.7  # 15


def test_number_of_sprites_is_uniform():
    for variant, (low, high) in COUNTS.items():
        count = (
            torch.cat(
                [
                    multi_dsprites(200, variant, generator(4, variant, k))["visibility"]
                    for k in range(5)
                ]
            )
            .sum(1)
            .long()
        )
        assert chi_square(count.bincount(minlength=high + 1)[low:].float()) < {
            2: 10.9,
            4: 16.3,
        }.get(high - low + 1, 18.5)


def test_lone_sprite_is_uniform():
    "Nothing lies in front of a scene's only sprite, so no such scene was arranged anew."
    random = generator(5)
    # small batches stay in the cache
    parts = [multi_dsprites(250, "colored_on_colored", random) for _ in range(12)]
    scenes = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    alone = scenes["visibility"].sum(1) == 1
    levels = lambda key, start, step, n: (
        ((scenes[key][alone, 0] - start) / step).round().long().bincount(minlength=n).float()
    )
    assert chi_square(scenes["shape"][alone, 0].bincount(minlength=3).float()) < 13.9
    assert chi_square(levels("scale", 0.5, 0.1, 6)) < 20.5
    assert chi_square(levels("x", 16, 32 / 31, 32)) < 61.1
    assert chi_square(levels("orientation", 0, 2 * torch.pi / 39, 40)) < 72.1


# Seeds


def split_scenes(name, n, split="test", seed=0):
    return collate_rows(GeneratedScenes(name, split, seed), range(n))


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SPRITE_SETS)
def test_deterministic_and_independent(name):
    make = lambda seed: Batches(GeneratedScenes(name), 4, seed)
    stream = make(5)
    assert same(stream.batch(17), make(5).batch(17))
    walked = [stream.batch(step) for step in range(4)]
    assert same(make(5).batch(3), walked[3])  # random access gives what walking gives
    images = [stream.batch(0)["image"], stream.batch(1)["image"], make(6).batch(0)["image"]]
    images += [split_scenes(name, 4, split)["image"] for split in ("train", "test")]
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    state = torch.random.get_rng_state()
    stream.batch(0)
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is not touched


def test_splits_are_fixed_and_disjoint():
    assert same(
        split_scenes("tetrominoes", 7),
        {k: v[:7] for k, v in split_scenes("tetrominoes", 320).items()},
    )
    test = {image.tobytes() for image in split_scenes("tetrominoes", 320)["image"].numpy()}
    train = {
        image.tobytes() for image in split_scenes("tetrominoes", 3000, "train")["image"].numpy()
    }
    other = {image.tobytes() for image in split_scenes("tetrominoes", 320, seed=1)["image"].numpy()}
    assert len(test) == 320 and len(train) == 3000 and not test & train and not test & other
    assert GeneratedScenes("tetrominoes")[59_999]["image"].shape == (35, 35, 3)


def test_stored_numbers_do_not_drift():
    "The first test scene, pinned: a change here changes every published number."
    scene = evaluation_scenes("tetrominoes", 1)
    assert [scene[key][0].tolist() for key in ("shape", "x", "y")] == [
        [7, 0, 4],
        [16, 0, 10],
        [17, 11, 4],
    ]


class Waits(TorchDispatchMode):
    "Notes every operation for which a GPU would have to finish what it was given before."

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if (
            name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "lift_fresh")
            or func is torch.ops.aten.repeat_interleave.Tensor
            or any(each is not None and each.dtype == torch.bool for each in indices)
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SPRITE_SETS)
@pytest.mark.parametrize("n", [1, 3, 64])
def test_a_gpu_waits_for_nothing(name, n, monkeypatch):
    monkeypatch.setattr(sprites, "counting_is_free", lambda device: False)
    SPRITE_SETS[name].draw(n)  # tables are made once
    with Waits() as waits:
        SPRITE_SETS[name].draw(n, generator=generator(0, "waits"))
    assert not waits.found


@pytest.mark.parametrize("name", SPRITE_SETS)
def test_scenes_drawn_as_on_a_gpu_keep_all_rules(name, monkeypatch):
    here = SPRITE_SETS[name].draw(2000, generator=generator(0, "here"))
    monkeypatch.setattr(sprites, "counting_is_free", lambda device: False)
    there = SPRITE_SETS[name].draw(2000, generator=generator(1, "there"))
    assert len(torch.unique(there["image"].flatten(1), dim=0)) == 2000
    entity = torch.arange(1, there["visibility"].shape[1] + 1)[:, None, None]
    pixels = (there["label"][:, None] == entity).sum((2, 3))
    if name == "tetrominoes":
        assert (pixels == 100).all()
        image, label = draw_tetrominoes(there["shape"], there["x"], there["y"], there["color"])
        assert torch.equal(image, there["image"]) and torch.equal(label, there["label"])
    assert (pixels[there["visibility"] > 0] >= 20).all()
    for key in ("visibility", "shape", "x", "y", "color"):
        ours, theirs = (scenes[key].double().flatten(1).mean(1) for scenes in (here, there))
        error = (ours.var() + theirs.var()).div(2000).sqrt()
        assert (ours.mean() - theirs.mean()).abs() <= 4 * error, key


def test_a_scene_without_luck_becomes_a_copy(monkeypatch):
    monkeypatch.setattr(sprites, "counting_is_free", lambda device: False)
    # scenes 3 and 40 never succeed, scene 5 at the second attempt
    attempts = []

    def arrange(rows):
        attempts.append(rows)
        failed = (rows == 3) | (rows == 40) | ((rows == 5) & (len(attempts) == 1))
        return {"number": rows.clone()}, failed

    found = sprites.arrange_until_good(arrange, 64, "cpu")["number"]
    assert found.tolist() == [0 if i in (3, 40) else i for i in range(64)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SPRITE_SETS)
def test_on_the_device(name):
    stream = Batches(GeneratedScenes(name), 64, device="cuda")
    scenes = stream.batch(3)
    assert all(value.is_cuda for value in scenes.values()) and same(scenes, stream.batch(3))
    here = {key: value.cpu() for key, value in scenes.items()}
    if name == "tetrominoes":
        image, label = draw_tetrominoes(here["shape"], here["x"], here["y"], here["color"])
        assert torch.equal(image, here["image"]) and torch.equal(label, here["label"])
    else:
        factors = {key: here[key] for key in ("shape", "x", "y", "orientation", "visibility")}
        label = label_multi_dsprites(**factors, scale=here["scale"].clamp(min=0.5))
        assert (label != here["label"]).sum() <= 5  # sines may differ in the last digit


# Conversion and errors


def test_to_model_round_trip():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_model(image)), image)
    assert (
        to_model(image).is_contiguous()
        and to_model(image).min() == -1
        and to_model(image).max() == 1
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tetrominoes(0), "n: expected an integer ≥ 1, got 0"),
        (lambda: multi_dsprites(1, "grey"), "variant: unknown 'grey'"),
        (lambda: GeneratedScenes("tetrominos"), "did you mean 'tetrominoes'"),
        (lambda: evaluation_scenes("tetrominoes", 321), "≤ 320"),
        (lambda: GeneratedScenes("tetrominoes", "val"), "split: unknown 'val'"),
        (lambda: Batches(GeneratedScenes("tetrominoes"), 0), "batch_size"),
        (lambda: Batches(GeneratedScenes("tetrominoes"), 1, seed=-1), "seed"),
        (lambda: to_model(torch.zeros(1, 4, 4, 3)), "image: expected uint8"),
        (lambda: to_model(torch.zeros(1, 4, 4, 1, dtype=torch.uint8)), "image: expected shape"),
        (lambda: frame_off_canvas(), "x, y, scale"),
        (
            lambda: draw_tetrominoes(*torch.tensor([[[1]], [[16]], [[0]]]), torch.ones(1, 1, 3)),
            "leaves the canvas",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def frame_off_canvas():
    one = torch.ones(1, 1)
    draw_multi_dsprites(
        one.long(), 15 * one, 20 * one, one, one, torch.ones(1, 1, 3), torch.ones(1, 3)
    )


def test_color_does_not_tell_striped_sprites_apart():
    scenes = multi_dsprites(64, "striped", torch.Generator().manual_seed(3))
    there = scenes["visibility"] > 0
    for key in ("color", "second_color"):
        assert (scenes[key][:, 0] == scenes[key][:, 1]).all()
    for key in ("color", "second_color", "stripe_angle", "stripe_width"):
        assert (scenes[key][~there] == 0).all()
    angle, width = (scenes[key][there] for key in ("stripe_angle", "stripe_width"))
    assert 0 <= angle.min() < 0.1 and 3 < angle.max() <= torch.pi
    assert 2 <= width.min() < 2.1 and 3.9 < width.max() <= 4
    assert (scenes["stripe_angle"][:, 0] != scenes["stripe_angle"][:, 1]).all()
    # every pixel has the color of its stripe
    stripes = in_stripes(scenes["label"], scenes["stripe_angle"], scenes["stripe_width"])
    colors = [scenes[key] for key in ("background", "color", "second_color")]
    palette = (255 * torch.cat([colors[0][:, None], *colors[1:]], 1)).round().to(torch.uint8)
    for image, label, second, paints in zip(
        scenes["image"], scenes["label"].long(), stripes, palette, strict=True
    ):
        assert torch.equal(paints[label + 5 * second], image)
    assert 0.4 < stripes[scenes["label"] > 0].float().mean() < 0.6
    # along a sprite's own stripes nothing changes: compare with a plain loop over its pixels
    label = scenes["label"][:1]
    angle, width = torch.tensor([[0.3, 1.2, 2.0, 2.8, 0.0]]), torch.tensor([[2.0, 2.5, 3, 3.5, 4]])
    striped = in_stripes(label, angle, width)
    for row, column in (label[0] > 0).nonzero().tolist():
        k = int(label[0, row, column]) - 1
        across = column * math.cos(angle[0, k]) + row * math.sin(angle[0, k])
        if min(across / width[0, k] % 1, -across / width[0, k] % 1) > 1e-4:  # not on an edge
            assert striped[0, row, column] == (math.floor(across / width[0, k]) % 2 == 1)
    assert not striped[label == 0].any()
