"""CLEVR: the original's preprocessing, number by number, and the archive as it is unzipped."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from slot_attention_nbdev.core import FileError, InputError
from slot_attention_nbdev.data.clevr_v1 import (
    WIDE_WINDOW,
    WINDOW,
    ClevrFiles,
    crop_scene,
    preprocess_clevr,
)
from slot_attention_nbdev.data.files import load_pack, save_pack
from slot_attention_nbdev.data.objects import CLEVR_COLORS, CLEVR_WORDS
from torch.utils.data import DataLoader
from writers import project_clevr, write_clevr_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("clevr") / "CLEVR_v1.0"
    write_clevr_tree(root, 8, seed=3)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "copy")


@pytest.mark.parametrize("size", ["240x320", "320x480"])
def test_preprocessing_is_the_originals(golden, size):
    arrays = golden("preprocess_clevr.npz")
    image = torch.from_numpy(arrays[f"{size}/image"])[None]
    for name, window in (("crop", WINDOW), ("nocrop", None)):
        ours = preprocess_clevr(image, window)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - arrays[f"{size}/{name}/image"]).max() < 1e-5
        as_bytes = crop_scene({"image": image[0]}, window)["image"].float().numpy() / 127.5 - 1
        # rounded to bytes
        assert np.abs(as_bytes - arrays[f"{size}/{name}/image"]).max() < 0.5 / 127.5 + 1e-5
    averaged = (
        np.asarray(Image.fromarray(image[0].numpy()).resize((128, 128), Image.Resampling.BILINEAR))
        / 127.5
        - 1
    )
    assert np.abs(averaged - arrays[f"{size}/nocrop/image"]).max() > 0.1  # the test can tell


def test_label_follows_the_image():
    label = torch.zeros(240, 320, dtype=torch.uint8)
    label[100:140, 150:200] = 3
    image = (label == 3)[..., None].expand(-1, -1, 3) * torch.tensor(255, dtype=torch.uint8)
    scene = crop_scene({"image": image, "label": label})
    inside = scene["image"][scene["label"] == 3].float()
    outside = scene["image"][scene["label"] == 0].float()
    assert scene["label"].unique().tolist() == [0, 3] and inside.min() > 127 and outside.max() < 128


def test_scenes_are_what_was_written(tree):
    for split in ("train", "val"):
        scenes = json.loads((tree / "scenes" / f"CLEVR_{split}_scenes.json").read_text())["scenes"]
        data = ClevrFiles(tree, split)
        assert len(data) == len(scenes) == 8
        for scene, noted in zip(data, scenes):
            n = len(noted["objects"])
            assert 3 <= n <= 10 and scene["visibility"].sum() == n
            for k, one in enumerate(noted["objects"]):
                assert [float(scene[axis][k]) for axis in "xyz"] == pytest.approx(
                    one["3d_coords"], abs=1e-6
                )
                assert scene["pixel_coords"][k].tolist() == pytest.approx(
                    one["pixel_coords"], abs=1e-5
                )
                assert float(scene["rotation"][k]) == pytest.approx(one["rotation"], abs=1e-4)
                assert all(CLEVR_WORDS[key][scene[key][k]] == one[key] for key in CLEVR_WORDS)
            assert all((value[n:] == 0).all() for name, value in scene.items() if name != "image")
    assert [tuple(CLEVR_WORDS[key][:2]) for key in CLEVR_WORDS] == [
        ("small", "large"),
        ("rubber", "metal"),
        ("cube", "sphere"),
        ("gray", "red"),
    ]


def test_the_nearest_object_has_its_colour_where_it_should_be(tree):
    data = ClevrFiles(tree, crop=False)
    for i, scene in enumerate(data):
        pixels = np.asarray(Image.open(data.paths[i]))
        assert pixels.shape == (320, 480, 4) and (pixels[..., 3] == 255).all()
        nearest = torch.where(scene["visibility"] > 0, scene["pixel_coords"][:, 2], 99).argmin()
        column, row, _ = scene["pixel_coords"][nearest].long().tolist()
        if 0 <= row < 320 and 0 <= column < 480:
            assert pixels[row, column, :3].tolist() == list(
                CLEVR_COLORS[CLEVR_WORDS["color"][scene["color"][nearest]]]
            )


def test_the_writers_camera():
    points = np.array([[0, 0, 0], [0, 0, 0.7], [3, 3, 0.35], [-3, -3, 0.35]])
    expected = [
        [240, 160, 11.2637],
        [240, 130.406, 10.9316],
        [445.013, 151.844, 10.8384],
        [44.348, 139.298, 11.3570],
    ]
    assert np.abs(project_clevr(points) - expected).max() < 2e-3


def test_views(tree):
    data, whole = ClevrFiles(tree, resolution=64), ClevrFiles(tree, crop=False)
    pixels = torch.from_numpy(np.array(Image.open(data.paths[2])))[..., :3]
    assert torch.equal(data[2]["image"], crop_scene({"image": pixels}, WIDE_WINDOW, 64)["image"])
    assert torch.equal(whole[2]["image"], crop_scene({"image": pixels}, None)["image"])
    assert (data.resolution, whole.resolution) == ((64, 64), (128, 128))


def test_limits_and_ranges(tree):
    counts = [int(scene["visibility"].sum()) for scene in ClevrFiles(tree)]
    for limit in (3, 6, 9):
        assert [
            int(scene["visibility"].sum()) for scene in ClevrFiles(tree, max_objects=limit)
        ] == [n for n in counts if n <= limit]
    assert [
        int(scene["visibility"].sum()) for scene in ClevrFiles(tree, start=2, stop=5)
    ] == counts[2:5]
    assert [
        int(scene["visibility"].sum()) for scene in ClevrFiles(tree, max_objects=6, start=2, stop=7)
    ] == [n for n in counts[2:7] if n <= 6]
    assert len(ClevrFiles(tree, "test")) == 8 and list(ClevrFiles(tree, "test")[3]) == ["image"]


def test_batches_by_workers_and_packs(tree, tmp_path):
    data = ClevrFiles(tree, resolution=32)
    batches = list(DataLoader(data, batch_size=3, num_workers=2))
    assert torch.equal(
        torch.cat([batch["image"] for batch in batches]),
        torch.stack([scene["image"] for scene in data]),
    )
    scenes = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    save_pack(tmp_path / "clevr.npz", scenes, labeled=False)
    assert all(
        torch.equal(value, scenes[key])
        for key, value in load_pack(tmp_path / "clevr.npz", labeled=False).items()
    )


def edit(change):
    def spoil(root):
        path = root / "scenes" / "CLEVR_train_scenes.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


FAULTS = {
    "extra image": (
        lambda root: shutil.copy(
            root / "images/train/CLEVR_train_000000.png",
            root / "images/train/CLEVR_train_000099.png",
        ),
        "000099.png: has no scene",
    ),
    "missing image": (
        lambda root: (root / "images/train/CLEVR_train_000003.png").unlink(),
        "000003.png: is missing, though .* lists it",
    ),
    "all images missing": (
        lambda root: [path.unlink() for path in (root / "images/train").iterdir()],
        "000000.png: is missing",
    ),
    "no scenes file": (
        lambda root: (root / "scenes/CLEVR_train_scenes.json").unlink(),
        "CLEVR_train_scenes.json: cannot be read",
    ),
    "val scenes for train": (
        lambda root: shutil.copy(
            root / "scenes/CLEVR_val_scenes.json", root / "scenes/CLEVR_train_scenes.json"
        ),
        "expected 'train', got 'val'",
    ),
    "no JSON": (
        lambda root: (root / "scenes/CLEVR_train_scenes.json").write_text("hello"),
        "not as in CLEVR",
    ),
    "binary": (
        lambda root: (root / "scenes/CLEVR_train_scenes.json").write_bytes(bytes(range(256))),
        "not as in CLEVR",
    ),
    "a list": (
        lambda root: (root / "scenes/CLEVR_train_scenes.json").write_text("[1]"),
        "not as in CLEVR",
    ),
    "no scenes": (edit(lambda new: new.pop("scenes")), "there is no 'scenes'"),
    "no objects": (
        edit(lambda new: new["scenes"][4].pop("objects")),
        "scene 4: there is no 'objects'",
    ),
    "unknown word": (
        edit(lambda new: new["scenes"][4]["objects"][1].update(shape="cone")),
        "scene 4: .*shape: unknown 'cone'",
    ),
    "short position": (
        edit(lambda new: new["scenes"][1]["objects"][0].update({"3d_coords": [1.0]})),
        "scene 1: not as in",
    ),
    "eleven objects": (
        edit(lambda new: new["scenes"][1].update(objects=[new["scenes"][1]["objects"][0]] * 11)),
        "scene 1: not as in",
    ),
    "NaN": (
        edit(lambda new: new["scenes"][1]["objects"][0].update(rotation=float("nan"))),
        "expected finite numbers",
    ),
    "no folder": (
        lambda root: shutil.rmtree(root / "images/train"),
        "there is no folder images/train",
    ),
    "broken image": (
        lambda root: (root / "images/train/CLEVR_train_000002.png").write_bytes(b"x" * 50),
        "000002.png: cannot be read as an image",
    ),
    "other size": (
        lambda root: Image.new("RGB", (320, 240)).save(
            root / "images/train/CLEVR_train_000002.png"
        ),
        "000002.png: expected 320 x 480 pixels, got 240 x 320",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(copy, fault):
    spoil, message = FAULTS[fault]
    spoil(copy)
    with pytest.raises(FileError, match=message):
        [scene["image"] for scene in ClevrFiles(copy)]
    assert len(list(ClevrFiles(copy, "val"))) == 8  # the other split is not harmed


def test_skipping_is_asked_for_and_counted(copy, tree):
    for number in (0, 5):
        (copy / f"images/train/CLEVR_train_{number:06}.png").write_bytes(b"")
    data, good = ClevrFiles(copy, on_error="skip"), ClevrFiles(tree)
    assert (len(data), data.skipped) == (6, 2)
    for scene, i in zip(data, (1, 2, 3, 4, 6, 7)):
        assert all(torch.equal(scene[key], good[i][key]) for key in scene)
    with pytest.raises(FileError, match="000000.png"):
        ClevrFiles(copy)[0]


def test_wrong_requests(tree):
    for settings, message in (
        ({"split": "dev"}, "split: unknown 'dev'"),
        ({"split": "test", "max_objects": 6}, "no annotations"),
        ({"resolution": 0}, "resolution"),
        ({"on_error": "no"}, "on_error"),
    ):
        with pytest.raises(InputError, match=message):
            ClevrFiles(tree, **settings)
