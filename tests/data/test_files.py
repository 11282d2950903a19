"""Packs and pictures: round trips, and every way a file can be wrong."""

import os
import pickle
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.data import files
from slot_attention_nbdev.data.files import (
    ImageFolder,
    PackScenes,
    PackWriter,
    decode_folder,
    load_pack,
    open_pack,
    read_image,
    read_pixels,
    save_pack,
)
from slot_attention_nbdev.data.sources import Batches, hold_out
from slot_attention_nbdev.data.sprites import SPRITE_SETS, tetrominoes, to_uint8
from torch.utils.data import DataLoader


@pytest.fixture
def scenes():
    return tetrominoes(6, generator(0))


@pytest.fixture
def pack(tmp_path, scenes):
    save_pack(tmp_path / "good.npz", scenes)
    return tmp_path / "good.npz"


@pytest.mark.parametrize("name", SPRITE_SETS)
def test_round_trip(tmp_path, name):
    scenes = SPRITE_SETS[name].draw(5, generator=generator(1))
    save_pack(tmp_path / "deep" / "pack.npz", scenes)
    back = load_pack(tmp_path / "deep" / "pack.npz")
    assert back.keys() == scenes.keys()
    assert all(
        torch.equal(back[key], scenes[key]) and back[key].dtype == scenes[key].dtype
        for key in scenes
    )
    # no temporary file is left
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pack.npz"]


def test_foreign_pack(tmp_path):
    "Written by plain NumPy: uncompressed, Fortran order, big-endian, no properties but two."
    image = np.asfortranarray(np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3))
    extra = {"x": np.array([[1, 2], [3, 4]], ">i4"), "color": np.ones((2, 2, 3), ">f8")}
    np.savez(tmp_path / "pack.npz", image=image, label=np.zeros((2, 4, 5), np.uint8), **extra)
    back = load_pack(tmp_path / "pack.npz")
    assert (
        np.array_equal(back["image"], image)
        and back["x"].tolist() == [[1, 2], [3, 4]]
        and back["color"].shape == (2, 2, 3)
    )


def test_first_n(pack, scenes):
    assert torch.equal(load_pack(pack, n=2)["image"], scenes["image"][:2])
    assert len(load_pack(pack, n=6)["label"]) == 6
    for n in (7, 0, -1, 2.0, True):
        with pytest.raises(InputError, match="n: expected an integer ≥ 1 and ≤ 6"):
            load_pack(pack, n=n)


def change(**arrays):
    return lambda good: good | arrays


def without(name):
    return lambda good: {key: value for key, value in good.items() if key != name}


FAULTS = {
    "no image": (without("image"), "no array 'image'; there are: color, label, shape, x"),
    "no label": (without("label"), "no array 'label'"),
    "nothing": (lambda good: {}, "no array 'image'; there are: none"),
    "float image": (
        lambda good: good | {"image": good["image"] / 255.0},
        "'image': expected uint8 .*, got float64",
    ),
    "int64 label": (
        lambda good: good | {"label": good["label"].astype(np.int64)},
        "'label': expected uint8 .*, got int64",
    ),
    "grey image": (
        lambda good: good | {"image": good["image"][..., 0]},
        r"'image': expected uint8 \[N, H, W, 3\], got uint8 \[6, 35, 35\]",
    ),
    "RGBA image": (
        lambda good: good | {"image": np.concatenate([good["image"]] * 2, -1)[..., :4]},
        r"got uint8 \[6, 35, 35, 4\]",
    ),
    "label rank": (
        lambda good: good | {"label": good["label"][..., None]},
        r"'label': expected uint8 \[N, H, W\]",
    ),
    "label size": (
        lambda good: good | {"label": good["label"][:, 1:]},
        r"'label': expected the images' size \[6, 35, 35\], got \[6, 34, 35\]",
    ),
    "label count": (lambda good: good | {"label": good["label"][:5]}, r"got \[5, 35, 35\]"),
    "property count": (
        lambda good: good | {"x": good["x"][:5]},
        r"'x': expected numbers \[N=6, M\]",
    ),
    "property rank": (change(x=np.float64(3)), "'x': expected numbers"),
    "property NaN": (change(x=np.full((6, 3), np.nan)), "'x': expected finite numbers"),
    "property text": (change(x=np.full((6, 3), "red")), "'x': expected numbers"),
    "object array": (
        change(x=np.full((6, 3), None)),
        "array 'x': damaged, or not part of a pack: Object arrays",
    ),
    "object image": (change(image=np.full((6, 3), None)), "array 'image': damaged"),
    "no images": (
        lambda good: {key: value[:0] for key, value in good.items()},
        "expected at least one image",
    ),
    "no pixels": (
        lambda good: good | {"image": good["image"][:, :0], "label": good["label"][:, :0]},
        "at least one image and one pixel",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(tmp_path, scenes, fault):
    spoil, message = FAULTS[fault]
    path = tmp_path / "bad.npz"
    np.savez(
        path,
        **spoil({key: scenes[key].numpy() for key in ("image", "label", "shape", "x", "color")}),
    )
    with pytest.raises(FileError, match=message) as error:
        load_pack(path)
    assert str(error.value).startswith(str(path))  # names the file


def test_refused_containers(tmp_path, pack):
    whole = pack.read_bytes()
    empty, text, npy, foreign = (
        tmp_path / name for name in ("empty.npz", "text.npz", "array.npy", "foreign.zip")
    )
    empty.write_bytes(b"")
    text.write_text("hello")
    np.save(npy, np.zeros(3))
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("image", b"not an array")
    for path, message in (
        (empty, "not a zip"),
        (text, "not a zip"),
        (npy, "not a zip"),
        (foreign, "'image'"),
        (tmp_path, "no such file"),
        (tmp_path / "gone.npz", "no such file"),
    ):
        with pytest.raises(FileError, match=message):
            load_pack(path)
    for size in range(0, len(whole), max(1, len(whole) // 40)):  # cut anywhere
        text.write_bytes(whole[:size])
        with pytest.raises(FileError):
            load_pack(text)


def test_damaged_anywhere(tmp_path, pack, scenes):
    "A changed byte is either noticed or harmless; nothing but FileError comes out."
    whole, path = pack.read_bytes(), tmp_path / "damaged.npz"
    for at in torch.randint(len(whole), (150,), generator=generator(2)).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            back = load_pack(path)
        except FileError:
            continue
        assert torch.equal(back["image"], scenes["image"]) and torch.equal(
            back["label"], scenes["label"]
        )


@pytest.mark.parametrize(
    "scenes, message",
    [
        ({}, "scenes: no array 'image'"),
        (
            {"image": torch.zeros(1, 4, 4, 3), "label": torch.zeros(1, 4, 4, dtype=torch.uint8)},
            "'image': expected uint8",
        ),
        (
            {"image": torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "label": torch.zeros(1, 4, 4)},
            "'label': expected uint8",
        ),
        (
            {
                "image": torch.zeros(0, 4, 4, 3, dtype=torch.uint8),
                "label": torch.zeros(0, 4, 4, dtype=torch.uint8),
            },
            "at least one image",
        ),
    ],
)
def test_save_refuses(tmp_path, scenes, message):
    with pytest.raises(InputError, match=message):
        save_pack(tmp_path / "pack.npz", scenes)
    assert not any(tmp_path.iterdir())


def test_failed_write_leaves_the_old_pack(pack, scenes, monkeypatch):
    old = pack.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(FileError, match="No space left on device"):
        save_pack(pack, scenes)
    assert pack.read_bytes() == old and len(list(pack.parent.iterdir())) == 1


# Pictures


def picture(path: Path, mode: str) -> Path:
    pixels = torch.randint(256, (20, 30, 3), generator=generator(3), dtype=torch.uint8).numpy()
    image = Image.fromarray(pixels)
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    path = path / ("picture.tif" if mode in ("CMYK", "F", "I", "LAB") else "picture.png")
    if mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    image.save(path)
    return path


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LAB"]
)
@pytest.mark.parametrize("resolution", [(20, 30), (35, 35), (7, 64)])
def test_any_mode_and_size(tmp_path, mode, resolution):
    image = read_image(picture(tmp_path, mode), resolution)
    assert image.shape == (1, 3, *resolution) and image.dtype == torch.float32
    assert image.min() >= -1 and image.max() <= 1


def test_values(tmp_path):
    pixels = torch.randint(256, (1, 20, 30, 3), generator=generator(3), dtype=torch.uint8)
    for mode, expected in (
        ("RGB", pixels),
        ("RGBA", pixels),
        ("F", pixels[..., :1]),
        ("I;16", pixels[..., :1]),
    ):
        read = to_uint8(read_image(picture(tmp_path, mode), (20, 30)))
        assert (read.int() - expected.int()).abs().max() == 0, mode


def test_camera_rotation(tmp_path):
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    image.save(tmp_path / "photo.png", exif=exif)
    read = read_image(tmp_path / "photo.png", (20, 10))
    assert read[0, 0, 0, 9] == 1 and (read[0, 0] == 1).sum() == 1


def test_unreadable_pictures(tmp_path, pack):
    good = picture(tmp_path, "RGB")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.png", "empty.png", pack.name, "."):
        with pytest.raises(FileError, match="cannot be read as an image"):
            read_image(tmp_path / name, (8, 8))
    with pytest.raises(FileError, match="no such file"):
        read_image(tmp_path / "gone.png", (8, 8))
    for bad in (np.nan, np.inf):
        Image.fromarray(np.full((4, 4), bad, np.float32)).save(tmp_path / "bad.tif")
        with pytest.raises(FileError, match="expected finite pixels"):
            read_image(tmp_path / "bad.tif", (4, 4))
    for resolution in ((0, 8), (8, 2.0)):
        with pytest.raises(InputError, match="resolution: expected an integer"):
            read_image(good, resolution)


def test_pictures_as_they_would_be_seen(tmp_path):
    seen = lambda name, **options: read_pixels(tmp_path / name, **options)[0, 0].tolist()
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., :3] = (255, 0, 255)
    clear[2:6, 2:6] = (0, 255, 0, 255)
    Image.fromarray(clear).save(tmp_path / "a.png")
    Image.fromarray(clear).save(tmp_path / "a.webp", lossless=True, exact=True)
    Image.fromarray(clear[..., 2:]).save(tmp_path / "la.png")
    flat = Image.new("P", (8, 8), 1)
    flat.putpalette([0, 0, 0, 255, 0, 255])
    flat.save(tmp_path / "p.png", transparency=1)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "rgb.png", transparency=(9, 8, 7))
    Image.new("L", (8, 8), 9).save(tmp_path / "l.png", transparency=9)
    for name in ("a.png", "a.webp", "la.png", "p.png", "rgb.png", "l.png"):
        assert seen(name) == [255, 255, 255], name
        assert seen(name, background=(1, 2, 3)) == [1, 2, 3], name
    half = np.full((8, 8, 4), (0, 0, 0, 127), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert seen("half.png") == [128, 128, 128]


def test_numbers_that_are_no_pixels(tmp_path):
    def save(values):
        Image.fromarray(values).save(tmp_path / "a.tif")
        return tmp_path / "a.tif"

    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    assert read_pixels(save(ramp.astype(np.float32))).float().mean() == pytest.approx(127.5, abs=1)
    whole = (255 * ramp).astype(np.int32)
    assert read_pixels(save(whole))[..., 0].equal(torch.from_numpy(whole.astype(np.uint8)))
    for odd in (255 * ramp, ramp - 0.5, 1.01 * ramp):
        with pytest.raises(FileError, match="expected pixels from 0 to 1 in mode F"):
            read_pixels(save(odd.astype(np.float32)))
    for odd in (whole - 1, 70_000 * (whole > 9)):
        with pytest.raises(FileError, match="expected pixels from 0 to"):
            read_pixels(save(odd.astype(np.int32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(12, 8), (8, 8)])
def test_masks_turn_with_their_photos(tmp_path, size, orientation):
    label = np.random.default_rng(0).integers(0, 2, size[::-1], dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(255 * label).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(label).save(tmp_path / "a_mask.png")
    scene = ImageFolder(tmp_path, 24)[0]
    middle = slice(1, None, 3)  # of enlarged pixels
    if size == (8, 8):
        assert ((scene["image"][..., 0] > 127) == scene["label"])[middle, middle].all()
    Image.fromarray(label).save(tmp_path / "a_mask.png", exif=exif)  # it says so itself
    assert scene["label"].equal(ImageFolder(tmp_path, 24)[0]["label"])
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a_mask.png"))
    if upright.size != size:  # turned already, as its shape shows
        Image.fromarray(np.asarray(upright)).save(tmp_path / "a_mask.png")
        assert scene["label"].equal(ImageFolder(tmp_path, 24)[0]["label"])


def test_files_that_are_no_pictures(tmp_path, caplog):
    picture(tmp_path, "RGB")
    others = ("a.hdf", "b.h5", "c.mpg", "d.eps", "e.wmf", "f.grib", "g.bufr", "h.pdf", "i.fits")
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    assert len(ImageFolder(tmp_path, 8)) == 1
    assert "left out, since they are no pictures: a.hdf, b.h5" in caplog.text
    Image.new("RGB", (4, 4)).save(tmp_path / "real.eps")
    (tmp_path / "real.eps").rename(tmp_path / "fake.png")
    with pytest.raises(FileError, match="cannot be read as an image"):
        read_pixels(tmp_path / "fake.png")


# Packs that are mapped, and packs that are written in parts


def stored(path, scenes):
    np.savez(path, **{key: value.numpy() for key, value in scenes.items()})
    return path


def test_a_stored_pack_is_mapped_and_a_compressed_one_is_loaded(tmp_path, pack, scenes):
    for path, mapped in ((stored(tmp_path / "stored.npz", scenes), True), (pack, False)):
        opened = open_pack(path, labeled=True, checked=True)
        assert [isinstance(opened.arrays[name], np.memmap) for name in ("image", "label", "x")] == [
            mapped,
            mapped,
            False,
        ]
        assert len(opened) == 6 and opened.resolution == (35, 35)
        for i in (0, 5, -1):
            assert all(
                torch.equal(value, scenes[name][i]) and value.dtype == scenes[name].dtype
                for name, value in opened[i].items()
            )
        assert all(
            torch.equal(value, scenes[name][[4, 0, 4]]) for name, value in opened[[4, 0, 4]].items()
        )
        with pytest.raises(IndexError):
            opened[6]


def test_opening_and_reading_does_not_load(tmp_path):
    n = 4_000  # 65 MB of images
    image = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.uint8, (n, 64, 64, 3))
    image[::100] = 7
    image.flush()
    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.write(tmp_path / "image.npy", "image.npy")
    tracemalloc.start()
    opened = open_pack(tmp_path / "large.npz", checked=True)
    assert (opened[3_900]["image"] == 7).all() and (opened[3_901]["image"] == 0).all()
    opened[list(range(50))]
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_mapped_from_another_order_and_by_workers(tmp_path, scenes):
    arrays = {
        "image": np.asfortranarray(scenes["image"].numpy()),
        "label": np.asfortranarray(scenes["label"].numpy()),
    }
    np.savez(tmp_path / "pack.npz", **arrays)
    opened = open_pack(tmp_path / "pack.npz")
    assert isinstance(opened.arrays["image"], np.memmap)
    again = pickle.loads(pickle.dumps(opened))
    assert len(pickle.dumps(opened)) < 1000 and torch.equal(again[2]["image"], scenes["image"][2])
    batches = list(DataLoader(opened, batch_size=2, num_workers=2))
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), scenes["label"])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "no label"])
def test_mapped_packs_are_checked_likewise(tmp_path, scenes, fault):
    spoil, message = FAULTS[fault]
    np.savez(
        tmp_path / "bad.npz",
        **spoil({key: scenes[key].numpy() for key in ("image", "label", "shape", "x", "color")}),
    )
    with pytest.raises(FileError, match=message):
        open_pack(tmp_path / "bad.npz")


def test_labels_may_be_missing_if_asked(tmp_path, scenes):
    images = {"image": scenes["image"], "x": scenes["x"]}
    save_pack(tmp_path / "pack.npz", images, labeled=False)
    assert (
        list(load_pack(tmp_path / "pack.npz", labeled=False))
        == ["image", "x"]
        == list(open_pack(tmp_path / "pack.npz")[0])
    )
    for strict in (
        lambda: load_pack(tmp_path / "pack.npz"),
        lambda: open_pack(tmp_path / "pack.npz", labeled=True),
    ):
        with pytest.raises(FileError, match="no array 'label'"):
            strict()


def test_a_damaged_stored_pack_is_noticed_when_asked(tmp_path, scenes):
    path, damaged = stored(tmp_path / "stored.npz", scenes), tmp_path / "damaged.npz"
    whole = path.read_bytes()
    for at in torch.randint(len(whole), (60,), generator=generator(4)).tolist():
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            opened = open_pack(damaged, checked=True)
        except FileError:
            continue
        # the byte said nothing of the scenes
        assert torch.equal(opened[list(range(6))]["image"], scenes["image"])
    for size in range(0, len(whole), len(whole) // 20):
        damaged.write_bytes(whole[:size])
        with pytest.raises(FileError):
            open_pack(damaged)


def part(scenes, first, stop):
    return {key: value[first:stop] for key, value in scenes.items()}


def test_interrupted_packs_are_the_same_to_the_byte(tmp_path, scenes):
    for name in ("a", "b"):
        writer = PackWriter(tmp_path / f"{name}.npz", {"seed": 1})
        writer.add(part(scenes, 0, 2))
        if name == "b":  # killed here, while it wrote a part
            (tmp_path / "b.npz.parts" / ".000000000004.npz.x.part.npz").write_bytes(b"half")
            writer = PackWriter(tmp_path / "b.npz", {"seed": 1})
        assert writer.written == 2
        writer.add(part(scenes, 2, 6))
        writer.finish()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    assert all(
        torch.equal(value, scenes[key]) for key, value in load_pack(tmp_path / "a.npz").items()
    )


def test_a_pack_in_the_making_is_not_taken_for_whole(tmp_path, scenes, pack):
    writer = PackWriter(tmp_path / "new.npz", {})
    for read in (load_pack, open_pack):
        with pytest.raises(FileError, match="there is no such file"):
            read(tmp_path / "new.npz")
    writer.add(scenes)
    for read in (load_pack, open_pack):
        with pytest.raises(FileError, match="new.npz: is being written, or was left unfinished"):
            read(tmp_path / "new.npz")
    old = load_pack(pack)  # while a new one is made, the old one can be read
    over = PackWriter(pack, {})
    over.add(part(scenes, 0, 1))
    assert all(torch.equal(value, old[key]) for key, value in load_pack(pack).items())
    over.finish()
    assert len(load_pack(pack)["image"]) == 1


def test_parts_of_something_else_are_refused(tmp_path, scenes):
    PackWriter(tmp_path / "p.npz", {"data": "a", "n": 6}).add(part(scenes, 0, 2))
    with pytest.raises(InputError, match="n was 6 and is now 7"):
        PackWriter(tmp_path / "p.npz", {"data": "a", "n": 7})
    writer = PackWriter(tmp_path / "p.npz", {"data": "a", "n": 6})
    for wrong in (
        part(scenes, 2, 4) | {"x": scenes["x"][2:4].double()},
        {"image": scenes["image"][2:4]},
        part(scenes, 2, 4)
        | {"image": scenes["image"][2:4, :30], "label": scenes["label"][2:4, :30]},
    ):
        with pytest.raises(InputError, match="unlike the first part"):
            writer.add(wrong)
    assert writer.written == 2


@pytest.mark.parametrize("call", ["replace", "fsync", "savez"])
def test_a_full_disk_costs_one_part(tmp_path, scenes, call, monkeypatch):
    writer = PackWriter(tmp_path / "p.npz", {})
    writer.add(part(scenes, 0, 2))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(
            *{
                "replace": (os, "replace"),
                "fsync": (os, "fsync"),
                "savez": (np, "savez_compressed"),
            }[call],
            full,
        )
        with pytest.raises(FileError, match="No space left on device"):
            writer.add(part(scenes, 2, 4))
    # the note and the first part
    assert writer.written == 2 and len(list((tmp_path / "p.npz.parts").iterdir())) == 2
    writer.add(part(scenes, 2, 6))
    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "open", full)
        with pytest.raises(
            FileError, match="p.npz: cannot be written: No space left on device|damaged"
        ):
            writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz.parts"]
    writer.finish()
    assert torch.equal(load_pack(tmp_path / "p.npz")["image"], scenes["image"])


# Folders, decoded once into the cache


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "A folder of eight images, each with a mask, and an empty cache beside it."
    monkeypatch.setenv("SLOT_ATTENTION_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i in range(8):
        path = folder / ("deep" if i % 2 else ".") / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (30, 40 + i, 3), np.uint8)).save(path)
        mask = random.integers(0, 4, (30, 40 + i), np.uint8)
        Image.fromarray(mask).save(path.with_name(f"{i}_mask.png"))
    return folder


def cached(photos):
    return sorted((photos.parent / "cache").glob("*.npz"))


@pytest.mark.parametrize("fit", files.FITS)
def test_a_decoded_folder_is_the_folder(photos, fit):
    folder = ImageFolder(photos, 20, fit=fit)
    decoded = decode_folder(folder)
    assert isinstance(decoded, PackScenes) and len(decoded) == len(folder) == 8
    for one, other in zip(decoded, folder):
        assert one.keys() == other.keys() == {"image", "label"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    load_pack(cached(photos)[0])  # every checksum is right
    # nothing but the file and its lock is left
    assert {path.suffix for path in (photos.parent / "cache").iterdir()} == {".npz", ".lock"}


def test_fits(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = 50, 100, 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    seen = {fit: read_pixels(tmp_path / "wide.png", (20, 20), fit=fit) for fit in files.FITS}
    assert (seen["crop"] == 100).all()
    assert seen["pad"][0].max() == 0 and set(seen["pad"][10, :, 0].tolist()) >= {50, 100, 200}
    assert set(seen["stretch"][0, :, 0].tolist()) >= {50, 100, 200}
    with pytest.raises(InputError, match="fit: unknown 'fill'"):
        ImageFolder(tmp_path, fit="fill")[0]


def test_the_cache_is_rebuilt_when_it_must_be(photos, monkeypatch):
    calls = []
    write = files._write_folder
    monkeypatch.setattr(files, "_write_folder", lambda *args: calls.append(args) or write(*args))
    again = lambda **options: decode_folder(ImageFolder(photos, **{"resolution": 20, **options}))
    again()
    again()
    assert len(calls) == 1
    again(resolution=16)
    again(fit="pad")
    assert len(calls) == 3 == len(cached(photos))  # one for each way of seeing the folder
    os.utime(photos / "0.png", ns=(1, 1))
    again()
    (photos / "0_mask.png").write_bytes((photos / "2_mask.png").read_bytes())
    again()
    (photos / "0.png").rename(photos / "9.png")
    (photos / "0_mask.png").rename(photos / "9_mask.png")
    again()
    monkeypatch.setattr(files, "CACHE_VERSION", 0)
    again()
    assert len(calls) == 7 and len(cached(photos)) == 3  # the old ones are gone
    for path in cached(photos):
        path.write_bytes(path.read_bytes()[:1000])
    assert len(again()) == 8 and len(calls) == 8


@pytest.mark.parametrize("at", [0, 3])
def test_a_full_disk_while_caching(photos, monkeypatch, at):
    store, calls = files._store, []

    def full(archive, name, shape, dtype, pieces):
        def until_full():
            for i, piece in enumerate(pieces):
                if i == at:
                    raise OSError(28, "No space left on device")
                yield piece

        calls.append(name)
        store(archive, name, shape, dtype, until_full())

    monkeypatch.setattr(files, "_store", full)
    folder = ImageFolder(photos, 20)
    with pytest.warns(UserWarning, match="No space left on device; so images are decoded again"):
        source = decode_folder(folder)
    assert source is folder and not cached(photos)
    assert not list((photos.parent / "cache").glob(".*"))


def test_a_cache_that_cannot_be_made(photos, monkeypatch):
    (photos.parent / "file").write_text("not a folder")
    monkeypatch.setenv("SLOT_ATTENTION_CACHE", str(photos.parent / "file" / "cache"))
    with pytest.warns(UserWarning, match="Not a directory"):
        assert isinstance(decode_folder(ImageFolder(photos, 20)), ImageFolder)


def test_images_at_fault_are_named_and_nothing_is_kept(photos, monkeypatch):
    folder = ImageFolder(photos, 20)
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:300])
    with pytest.raises(FileError, match=r"2\.png: cannot be read as an image"):
        decode_folder(folder)
    (photos / "2.png").unlink()  # between listing and reading
    with pytest.raises(FileError, match=r"2\.png: cannot be read: No such file"):
        decode_folder(folder)
    names = files._folder_names(ImageFolder(photos / "deep", 20))
    monkeypatch.setattr(files, "_folder_names", lambda source: names)
    with pytest.raises(FileError, match=r"2\.png: there is no such file"):
        decode_folder(folder)
    assert not cached(photos)


def test_of_several_processes_one_decodes(photos, monkeypatch):
    calls, write = [], files._write_folder
    monkeypatch.setattr(files, "_write_folder", lambda *args: calls.append(args) or write(*args))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode_folder, [ImageFolder(photos, 20) for _ in range(4)]))
    assert len(calls) == 1 and all(isinstance(each, PackScenes) for each in found)


def test_a_batch_of_a_folder_costs_the_training_thread_little(photos):
    source, n, aside = hold_out(str(photos), 2, resolution=64, scenes=2_000)
    assert n == 7 and len(aside["image"]) == 1
    batches, seconds = Batches(source, 64, n=n), []
    for step in range(8):
        start = time.thread_time()
        assert batches.batch(step)["image"].shape == (64, 64, 64, 3)
        seconds.append(time.thread_time() - start)
    assert min(seconds) <= 3e-3
