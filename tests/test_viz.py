"""Figures and statistics: right pixels, no state left behind, clear errors."""

import math
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from slot_attention_nbdev import viz
from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.models.autoencoder import small_autoencoder


@pytest.fixture(scope="module")
def scenes():
    return evaluation_scenes("tetrominoes", 4)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return small_autoencoder()


@pytest.fixture(scope="module")
def output(model, scenes):
    return model(to_model(scenes["image"]), generator=generator(0), return_attention=True)


def pixels(figure):
    "The canvas that a grid figure shows, uint8 [height, width, 3]."
    return torch.from_numpy(figure.axes[0].images[0].get_array().copy())


def names(figure, axis="x"):
    return [tick.get_text() for tick in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def test_slot_colors_differ_for_every_eye():
    assert len(set(viz.SLOT_COLORS)) == len(viz.SLOT_COLORS) >= 11  # CLEVR10 has K = 11
    assert all(len(color) == 7 and color[0] == "#" for color in viz.SLOT_COLORS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_color_labels(dtype):
    label = torch.arange(24, dtype=dtype).reshape(2, 3, 4)
    plain, truth = viz.color_labels(label), viz.color_labels(label, background=True)
    assert plain.shape == truth.shape == (2, 3, 4, 3) and plain.dtype == truth.dtype == torch.uint8
    assert truth[0, 0, 0].tolist() == [0, 0, 0]
    # object i has the colour of slot i - 1
    assert torch.equal(truth.flatten(0, 2)[1:], plain.flatten(0, 2)[:-1])


def test_figures_leave_no_pyplot_state(scenes, output, tmp_path):
    before = plt.get_fignums()
    image = to_model(scenes["image"])
    for figure in (
        viz.show_scenes(scenes, 4),
        viz.plot_decomposition(image, output, scenes["label"], masks=True),
        viz.plot_attention(
            output.attention[0], viz.grid_size(output.attention.shape[2], (35, 35)), image[0]
        ),
    ):
        viz.save_figure(figure, tmp_path / "figure.png")
    assert plt.get_fignums() == before


def test_figures_need_no_screen(tmp_path):
    code = (
        "import torch; from slot_attention_nbdev.viz import draw_grid, save_figure;"
        "grid = draw_grid([[torch.zeros(4, 4, 3, dtype=torch.uint8)]], ['a']);"
        f"save_figure(grid, {str(tmp_path / 'a.png')!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PATH": "", "MPLCONFIGDIR": str(tmp_path)}
    )
    assert Image.open(tmp_path / "a.png").size[0] > 96


@pytest.mark.parametrize(("size", "zoom"), [(35, 3), (64, 2), (128, 1), (240, 1)])
def test_every_pixel_is_magnified_alike(size, zoom, tmp_path):
    panel = torch.randint(0, 256, (size, size, 3), generator=generator(0), dtype=torch.uint8)
    path = viz.save_figure(viz.draw_grid([[panel]], ["random"]), tmp_path / "grid.png")
    shown = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    edge = max(1, size // 64)
    inner = shown[-zoom * (size + 2 * edge) :][: zoom * size, -zoom * (size + 2 * edge) :][
        :, : zoom * size
    ]
    assert torch.equal(inner, panel.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1))


def test_decomposition_shows_what_it_says(scenes, output):
    image = to_model(scenes["image"])
    figure = viz.plot_decomposition(image, output, scenes["label"])
    assert names(figure) == [
        "input",
        "reconstruction",
        "segmentation",
        "truth",
        "slot 1",
        "slot 2",
        "slot 3",
        "slot 4",
    ]
    canvas = pixels(figure)
    assert canvas.shape == (4 * 39, 8 * 39, 3)
    panel = lambda row, column: canvas[39 * row + 2 :, 39 * column + 2 :][:35, :35]
    for b in range(4):
        assert torch.equal(panel(b, 0), scenes["image"][b])
        assert torch.equal(panel(b, 2), viz.color_labels(output.masks[b].argmax(0)))
        assert torch.equal(panel(b, 3), viz.color_labels(scenes["label"][b], background=True))
    assert names(viz.plot_decomposition(image, output))[3] == "slot 1"
    assert pixels(viz.plot_decomposition(image, output, masks=True)).shape == (8 * 39, 7 * 39, 3)


def test_a_slot_without_mask_is_white(scenes, output):
    masks = torch.zeros_like(output.masks)
    masks[:, 0] = 1
    canvas = pixels(viz.plot_decomposition(to_model(scenes["image"]), output._replace(masks=masks)))
    assert canvas[2:37, 4 * 39 + 2 :][:, :35].unique().tolist() == [255]


def test_contact_sheet(scenes):
    figure = viz.show_scenes(scenes, 3, columns=2)
    assert names(figure, "y") == ["image", "label"] * 2
    canvas = pixels(figure)
    assert torch.equal(canvas[2:37, 39 + 2 : 39 + 37], scenes["image"][1])
    assert torch.equal(canvas[2 * 39 + 2 :][:35, 2:37], scenes["image"][2])
    assert canvas[2 * 39 :, 39:].unique().tolist() == [255]  # there is no fourth scene
    # fewer scenes than asked for
    assert pixels(viz.show_scenes(scenes, 100)).shape == (2 * 39, 4 * 39, 3)


@pytest.mark.parametrize(
    ("tokens", "resolution", "grid"),
    [
        (1225, (35, 35), (35, 35)),
        (256, (35, 35), (16, 16)),
        (16384, (128, 128), (128, 128)),
        (600, (40, 60), (20, 30)),
        (1, (9, 9), (1, 1)),
    ],
)
def test_grid_size(tokens, resolution, grid):
    assert viz.grid_size(tokens, resolution) == grid


def test_attention_is_drawn_where_it_is(scenes):
    attention = torch.zeros(2, 4, 3)  # T, N, K
    attention[:, torch.arange(4), torch.tensor([0, 1, 2, 0])] = 1
    image = to_model(scenes["image"])[0, :, :4, :4]
    canvas = pixels(viz.plot_attention(attention, (2, 2), image))
    assert canvas.shape == (2 * 8, 4 * 8, 3)
    first = canvas[2:6, 8 + 2 : 8 + 6]  # slot 1 has the upper left and the lower right token
    on, off = viz.heat_map(torch.tensor([[1.0, 0.0]]))[0]
    assert torch.equal(first[:2, :2], on.expand(2, 2, 3)) and torch.equal(
        first[2:, 2:], on.expand(2, 2, 3)
    )
    assert torch.equal(first[:2, 2:], off.expand(2, 2, 3))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (2, 4, 5, 7), (3, 7, 8, 8)])
def test_statistics_against_loops(shape):
    random = generator(1, *shape)
    masks = (3 * torch.randn(shape, generator=random)).softmax(1)
    label = torch.randint(0, 3, (shape[0], *shape[2:]), generator=random)
    found = viz.slot_statistics(masks, label, min_coverage=0.1)
    for b in range(shape[0]):
        points = [(y, x) for y in range(shape[2]) for x in range(shape[3])]
        entropy = sum(-float(m) * math.log(m) for y, x in points for m in masks[b, :, y, x])
        wins = [
            sum(int(masks[b, :, y, x].argmax()) == k for y, x in points) / len(points)
            for k in range(shape[1])
        ]
        share = torch.stack([masks[b, :, y, x] for y, x in points if label[b, y, x] == 0]).mean(0)
        expected = entropy / len(points) / math.log(shape[1]) if shape[1] > 1 else 0.0
        assert float(found["entropy"][b]) == pytest.approx(expected, abs=1e-5)
        assert int(found["dead"][b]) == sum(w < 0.1 for w in wins)
        assert float(found["background_split"][b]) == pytest.approx(
            math.exp(-sum(float(p) * math.log(p) for p in share)), rel=1e-4
        )


def test_statistics_do_not_depend_on_the_order_of_slots(output, scenes):
    a, b = (
        viz.slot_statistics(masks, scenes["label"])
        for masks in (output.masks, output.masks[:, [3, 1, 0, 2]])
    )
    for key in a:
        torch.testing.assert_close(a[key], b[key])


def test_draw_slots_is_determined_by_its_settings(model, scenes):
    image = to_model(scenes["image"])
    draw = lambda **settings: viz.to_png(viz.draw_slots(model, image, **settings))
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert draw(num_slots=2) != draw() != draw(num_iterations=2)


def test_widget_follows_its_sliders(model, scenes):
    pytest.importorskip("ipywidgets")
    image = to_model(scenes["image"])
    sliders, picture = viz.explore_slots(model, image).children
    settings = {"index": 2, "num_iterations": 2, "num_slots": 5, "seed": 7}
    for slider, value in zip(sliders.children, settings.values()):
        before = picture.value
        slider.value = value
        assert picture.value != before, slider.description
    assert picture.value == viz.to_png(viz.draw_slots(model, image, **settings))


def test_save_figure_is_whole_or_absent(tmp_path, monkeypatch):
    figure = viz.draw_grid([[torch.zeros(4, 4, 3, dtype=torch.uint8)]], ["a"])
    path = viz.save_figure(figure, tmp_path / "deep" / "a.png")
    content = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(FileError, match="No space left on device"):
        viz.save_figure(figure, path)
    assert path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda image, output: viz.plot_decomposition(image[0], output),
            "image: expected shape [B, C=3, H, W]",
        ),
        (
            lambda image, output: viz.plot_decomposition(image[:2], output),
            "masks: expected shape [B=2",
        ),
        (
            lambda image, output: viz.plot_decomposition(image, output, torch.zeros(4, 9, 9).int()),
            "label: expected shape [B=4, H=35, W=35]",
        ),
        (
            lambda image, output: viz.plot_attention(output.attention, (1, 1), image[0]),
            "attention: expected shape [T, N, K]",
        ),
        (
            lambda image, output: viz.plot_attention(output.attention[0], (2, 3), image[0]),
            "resolution: expected height x width = N",
        ),
        (lambda image, output: viz.slot_statistics(image[0]), "masks: expected shape [B, K, H, W]"),
        (
            lambda image, output: viz.slot_statistics(output.masks, torch.zeros(4, 9, 9)),
            "label: expected shape",
        ),
        (lambda image, output: viz.color_labels(image), "label: expected integers"),
        (
            lambda image, output: viz.draw_slots(None, image, index=-1),
            "index: expected an integer ≥ 0 and ≤ 3",
        ),
        (
            lambda image, output: viz.save_figure(
                viz.draw_grid([[torch.zeros(2, 2, 3)]], [""]), "a.txt"
            ),
            "use .png, .svg or .pdf",
        ),
    ],
)
def test_bad_input(call, words, scenes, output):
    with pytest.raises(InputError) as caught:
        call(to_model(scenes["image"]), output)
    assert words in str(caught.value)
