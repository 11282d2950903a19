"""Packs and pictures: round trips, and every way a file can be wrong."""
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.data.files import load_pack, read_image, save_pack
from slot_attention_nbdev.data.sprites import SPRITES, tetrominoes, to_uint8


@pytest.fixture
def scenes():
    return tetrominoes(6, generator(0))


@pytest.fixture
def pack(tmp_path, scenes):
    save_pack(tmp_path / "good.npz", scenes)
    return tmp_path / "good.npz"


@pytest.mark.parametrize("name", SPRITES)
def test_round_trip(tmp_path, name):
    scenes = SPRITES[name].draw(5, generator=generator(1))
    save_pack(tmp_path / "deep" / "pack.npz", scenes)
    back = load_pack(tmp_path / "deep" / "pack.npz")
    assert back.keys() == scenes.keys()
    assert all(torch.equal(back[key], scenes[key]) and back[key].dtype == scenes[key].dtype for key in scenes)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["pack.npz"]  # no temporary file is left


def test_foreign_pack(tmp_path):
    "Written by plain NumPy: uncompressed, Fortran order, big-endian, no properties but two."
    image = np.asfortranarray(np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3))
    extra = {"x": np.array([[1, 2], [3, 4]], ">i4"), "color": np.ones((2, 2, 3), ">f8")}
    np.savez(tmp_path / "pack.npz", image=image, label=np.zeros((2, 4, 5), np.uint8), **extra)
    back = load_pack(tmp_path / "pack.npz")
    assert np.array_equal(back["image"], image) and back["x"].tolist() == [[1, 2], [3, 4]] and back["color"].shape == (2, 2, 3)


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
    "float image": (lambda good: good | {"image": good["image"] / 255.0}, "'image': expected uint8 .*, got float64"),
    "int64 label": (lambda good: good | {"label": good["label"].astype(np.int64)}, "'label': expected uint8 .*, got int64"),
    "grey image": (lambda good: good | {"image": good["image"][..., 0]}, r"'image': expected uint8 \[N, H, W, 3\], got uint8 \[6, 35, 35\]"),
    "RGBA image": (lambda good: good | {"image": np.concatenate([good["image"]] * 2, -1)[..., :4]}, r"got uint8 \[6, 35, 35, 4\]"),
    "label rank": (lambda good: good | {"label": good["label"][..., None]}, r"'label': expected uint8 \[N, H, W\]"),
    "label size": (lambda good: good | {"label": good["label"][:, 1:]}, r"'label': expected the images' size \[6, 35, 35\], got \[6, 34, 35\]"),
    "label count": (lambda good: good | {"label": good["label"][:5]}, r"got \[5, 35, 35\]"),
    "property count": (lambda good: good | {"x": good["x"][:5]}, r"'x': expected numbers \[N=6, M\]"),
    "property rank": (change(x=np.float64(3)), "'x': expected numbers"),
    "property NaN": (change(x=np.full((6, 3), np.nan)), "'x': expected finite numbers"),
    "property text": (change(x=np.full((6, 3), "red")), "'x': expected numbers"),
    "object array": (change(x=np.full((6, 3), None)), "array 'x': damaged, or not part of a pack: Object arrays"),
    "object image": (change(image=np.full((6, 3), None)), "array 'image': damaged"),
    "no images": (lambda good: {key: value[:0] for key, value in good.items()}, "expected at least one image"),
    "no pixels": (lambda good: good | {"image": good["image"][:, :0], "label": good["label"][:, :0]}, "at least one image and one pixel"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(tmp_path, scenes, fault):
    spoil, message = FAULTS[fault]
    path = tmp_path / "bad.npz"
    np.savez(path, **spoil({key: scenes[key].numpy() for key in ("image", "label", "shape", "x", "color")}))
    with pytest.raises(FileError, match=message) as error:
        load_pack(path)
    assert str(error.value).startswith(str(path))  # names the file


def test_refused_containers(tmp_path, pack):
    whole = pack.read_bytes()
    empty, text, npy, foreign = (tmp_path / name for name in ("empty.npz", "text.npz", "array.npy", "foreign.zip"))
    empty.write_bytes(b"")
    text.write_text("hello")
    np.save(npy, np.zeros(3))
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("image", b"not an array")
    for path, message in ((empty, "not a zip"), (text, "not a zip"), (npy, "not a zip"), (foreign, "'image'"), (tmp_path, "no such file"), (tmp_path / "gone.npz", "no such file")):
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
        assert torch.equal(back["image"], scenes["image"]) and torch.equal(back["label"], scenes["label"])


@pytest.mark.parametrize(
    "scenes, message",
    [
        ({}, "scenes: no array 'image'"),
        ({"image": torch.zeros(1, 4, 4, 3), "label": torch.zeros(1, 4, 4, dtype=torch.uint8)}, "'image': expected uint8"),
        ({"image": torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "label": torch.zeros(1, 4, 4)}, "'label': expected uint8"),
        ({"image": torch.zeros(0, 4, 4, 3, dtype=torch.uint8), "label": torch.zeros(0, 4, 4, dtype=torch.uint8)}, "at least one image"),
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
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = path / ("picture.tif" if mode in ("CMYK", "F", "I", "LAB") else "picture.png")
    if mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LAB"])
@pytest.mark.parametrize("resolution", [(20, 30), (35, 35), (7, 64)])
def test_any_mode_and_size(tmp_path, mode, resolution):
    image = read_image(picture(tmp_path, mode), resolution)
    assert image.shape == (1, 3, *resolution) and image.dtype == torch.float32
    assert image.min() >= -1 and image.max() <= 1


def test_values(tmp_path):
    pixels = torch.randint(256, (1, 20, 30, 3), generator=generator(3), dtype=torch.uint8)
    for mode, expected in (("RGB", pixels), ("RGBA", pixels), ("F", pixels[..., :1]), ("I;16", pixels[..., :1])):
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
