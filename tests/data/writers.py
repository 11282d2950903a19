"""Writers of the published formats, for tests of the readers: TFRecords and a small CLEVR v1.0."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from slot_attention_nbdev.core import InputError, atomic_write, check_int, generator
from slot_attention_nbdev.data.objects import CLEVR_COLORS, CLEVR_WORDS
from slot_attention_nbdev.data.tfrecords import CLEVR_STORED, Schema, find_schema, masked_crc
from torch import Tensor


def write_tfrecords(
    path: str | Path,  # File to write
    payloads: Iterable[bytes],  # One after another, as many as you like; at least one
    compression: str | None = "gzip",  # Or "zlib", or None
) -> None:
    "Write a TFRecord file, whole or not at all."
    kinds = {"gzip": 31, "zlib": 15, None: 15}
    if compression not in kinds:
        raise InputError(f"compression: expected 'gzip', 'zlib' or None, got {compression!r}")
    engine = zlib.compressobj(wbits=kinds[compression])
    payload = None
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for payload in payloads:
            length = len(payload).to_bytes(8, "little")
            for part in (
                length,
                masked_crc(length).to_bytes(4, "little"),
                payload,
                masked_crc(payload).to_bytes(4, "little"),
            ):
                file.write(engine.compress(part) if compression else part)
        if payload is None:
            raise InputError("payloads: expected at least one record, got none")
        file.write(engine.flush() if compression else b"")


def _varint(value: int) -> bytes:
    "A varint."
    value, groups = value & (2**64 - 1), []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _field(number: int, *parts: bytes) -> bytes:
    "A field that has a length."
    return b"".join([_varint(8 * number + 2), _varint(sum(map(len, parts))), *parts])


def encode_example(
    # By name: bytes (one string), uint8 (a string for each value), other integers, floats
    features: dict[str, np.ndarray | bytes],
) -> bytes:  # A tf.train.Example as a protocol buffer
    "Write a `tf.train.Example` as the original files have it."
    entries = []
    for name, value in features.items():
        array = np.asarray(value)
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        elif array.dtype == np.uint8:
            triples = np.full((array.size, 3), (10, 1, 0), np.uint8)
            triples[:, 2] = array.ravel()
            feature = _field(1, triples.tobytes())
        elif array.dtype.kind == "f":
            feature = _field(2, _field(1, array.astype("<f4").tobytes()))
        elif array.dtype.kind in "iu":
            feature = _field(3, _field(1, *map(_varint, array.ravel().tolist())))
        else:
            raise InputError(
                f"features: {name!r}: expected bytes, or an array of integers or floats, got "
                f"{array.dtype}"
            )
        entries.append(_field(1, _field(1, name.encode()), _field(2, feature)))
    return _field(1, *entries)


def encode_scene(
    # As `decode_scene` gives it; properties that the set does not have are left out
    scene: dict[str, Tensor],
    schema: Schema | str,  # The form to write, or a key of SCHEMAS
) -> bytes:  # A record's payload
    "Turn a scene into a record in the original's form."
    schema = find_schema(schema)
    if missing := {"label", *schema.expected()} - {"mask", *scene}:
        raise InputError(
            f"scene: expected {', '.join(sorted(missing))} as well; there are: "
            f"{', '.join(sorted(scene))}"
        )
    E = schema.sizes["E"]
    C = schema.sizes["C"]
    label = scene["label"].numpy()
    if label.max() >= E:
        raise InputError(
            f"scene: 'label': expected at most {E - 1} in a scene of {schema.name}, got "
            f"{label.max()}"
        )
    masks = [255 * (label == k).astype(np.uint8) for k in range(E)]
    features = {
        "image": scene["image"].numpy()[..., :C],
        "mask": np.stack(masks, schema.mask.index("E"))[..., None],
    }
    for name, axes in schema.floats.items():
        value = scene[name].numpy().astype(np.float32)
        value = value.swapaxes(0, 1) if axes[:2] == "ET" else value
        value = (
            np.concatenate([np.full_like(value[:1], name == "visibility"), value])
            if axes[0] == "E"
            else value
        )
        features[name] = value[..., :C] if axes[-1] == "C" else value
    for name in schema.codes:
        table = np.array([1 + CLEVR_STORED[name].index(word) for word in CLEVR_WORDS[name]])
        features[name] = np.append(
            0, table[scene[name].numpy()] * (scene["visibility"].numpy() > 0)
        ).astype(np.uint8)
    for name, (shape, kind) in schema.expected().items():
        if features[name].shape != shape or features[name].dtype != kind:
            raise InputError(
                f"scene: {name!r}: expected {list(shape)} of {kind.__name__} as stored, got "
                f"{list(features[name].shape)} of {features[name].dtype}"
            )
    # CATER's images are one string, the others' are a string for each byte
    whole = "T" in schema.sizes
    return encode_example(
        {
            name: value.tobytes() if whole and value.dtype == np.uint8 else value
            for name, value in features.items()
        }
    )


CAMERA = np.array([7.4811316, -6.5076399, 5.3436651])
# right, up, to the viewer
AXES = np.array(
    [
        [0.6563113, 0.7544903, 0],
        [-0.3579405, 0.3113631, 0.8803020],
        [0.6641793, -0.5777521, 0.4744137],
    ]
)
DIRECTIONS = {
    "right": [0.656311, 0.754490, 0.0],
    "behind": [-0.754490, 0.656311, 0.0],
    "above": [0.0, 0.0, 1.0],
}
DIRECTIONS |= {
    name: [-value for value in DIRECTIONS[other]]
    for name, other in (("left", "right"), ("front", "behind"), ("below", "above"))
}


def project_clevr(
    points: np.ndarray,  # Points of the world [M, 3]
) -> np.ndarray:  # Column, row (at 480 x 320) and depth [M, 3]
    """Where CLEVR's camera sees points (Johnson et al. 2017, generator's base scene.

    35 mm lens, 32 mm sensor).
    """
    # [M, 3] @ [3, 3] -> three of [M]
    right, up, depth = ((points - CAMERA) @ AXES.T * [1, 1, -1]).T
    return np.stack(
        [240 + 240 * right / depth * 35 / 16, 160 - 240 * up / depth * 35 / 16, depth], 1
    )


def _invent_scene(split: str, index: int, random: torch.Generator) -> dict:
    "One entry of a scenes file, all keys as published."
    n = int(torch.randint(3, 11, (), generator=random))
    codes = {
        key: torch.randint(len(words), (n,), generator=random).tolist()
        for key, words in CLEVR_WORDS.items()
    }
    radius = [0.7 if size else 0.35 for size in codes["size"]]
    place = np.concatenate(
        [
            6 * torch.rand(n, 2, generator=random, dtype=torch.float64).numpy() - 3,
            np.array(radius)[:, None],
        ],
        1,
    )
    seen = project_clevr(place)
    objects = [{key: CLEVR_WORDS[key][codes[key][k]] for key in CLEVR_WORDS} for k in range(n)]
    for k, turn in enumerate(torch.rand(n, generator=random).tolist()):
        pixel = [round(seen[k, 0]), round(seen[k, 1]), float(seen[k, 2])]
        objects[k] |= {
            "3d_coords": place[k].tolist(),
            "pixel_coords": pixel,
            "rotation": 360 * turn,
        }
    # [n, 3] @ [3] -> [n]
    further = {
        name: place @ np.array(DIRECTIONS[name]) for name in ("left", "right", "front", "behind")
    }
    relationships = {
        name: [[j for j in range(n) if t[j] - t[i] > 0.2] for i in range(n)]
        for name, t in further.items()
    }
    name = f"CLEVR_{split}_{index:06}.png"
    return {
        "split": split,
        "image_index": index,
        "image_filename": name,
        "objects": objects,
        "relationships": relationships,
        "directions": DIRECTIONS,
    }


def _paint_scene(scene: dict) -> Image.Image:
    "A flat picture, 480 x 320, RGBA: the far objects first."
    row, column = np.mgrid[:320, :480]
    pixels = np.full((320, 480, 4), 255, np.uint8)
    pixels[..., :3] = 128
    for one in sorted(scene["objects"], key=lambda one: -one["pixel_coords"][2]):
        u, v, depth = one["pixel_coords"]
        half = 240 * 35 / 16 * one["3d_coords"][2] / depth
        a, b = abs(column - u) / half, abs(row - v) / half
        inside = {
            "sphere": a**2 + b**2 < 1,
            "cube": np.maximum(a, b) < 0.9,
            "cylinder": np.maximum(a / 0.7, b) < 1,
        }[one["shape"]]
        pixels[inside, :3] = CLEVR_COLORS[one["color"]]
    return Image.fromarray(pixels)


def write_clevr_tree(
    root: str | Path,  # Folder to make, such as CLEVR_v1.0
    n: int,  # How many images in each split
    splits: tuple[str, ...] = ("train", "val", "test"),  # Which splits; test has no scenes file
    seed: int = 0,  # Another seed gives other scenes
) -> None:
    "Write a small tree in the format of CLEVR v1.0, with flat pictures, to test readers."
    for split in splits:
        scenes = [
            _invent_scene(split, index, generator(seed, "clevr tree", split, index))
            for index in range(check_int("n", n))
        ]
        for scene in scenes:
            with atomic_write(Path(root) / "images" / split / scene["image_filename"]) as temporary:
                _paint_scene(scene).save(temporary)
        if split != "test":
            with atomic_write(Path(root) / "scenes" / f"CLEVR_{split}_scenes.json") as temporary:
                temporary.write_text(
                    json.dumps(
                        {
                            "info": {
                                "split": split,
                                "version": "1.0",
                                "date": "2/14/2017",
                                "license": "CC BY 4.0",
                            },
                            "scenes": scenes,
                        }
                    )
                )
