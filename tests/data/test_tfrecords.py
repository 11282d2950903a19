"""TFRecords: bytes against a slow parser, round trips of every set, sharding and resuming, and
ten thousand damaged records.
"""

import gzip
import itertools
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from slot_attention_nbdev.core import FileError, InputError, SlotAttentionError, generator
from slot_attention_nbdev.data import tfrecords
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import SPRITE_SETS, multi_dsprites
from slot_attention_nbdev.data.tfrecord_dataset import (
    RECORD_SPLITS,
    TFRecordScenes,
    frames,
    objects_in,
    shuffled,
)
from slot_attention_nbdev.data.objects import CLEVR_WORDS
from slot_attention_nbdev.data.tfrecords import (
    SCHEMAS,
    Schema,
    decode_scene,
    detect_schema,
    masked_crc,
    parse_example,
    read_tfrecords,
)
from writers import encode_example, encode_scene, write_tfrecords

ASSETS = Path(__file__).resolve().parents[1] / "assets"
GOLDEN = bytes.fromhex(
    "0a1e 0a0d 0a0178 1208 1206 0a04 0000803f 0a0d 0a016d 1208 0a06 0a0107 0a01ff"
)
FRAMED = bytes.fromhex("2000000000000000 29eda950") + GOLDEN + bytes.fromhex("9f87708d")
PACKED = {"plain": bytes, "gzip": gzip.compress, "zlib": zlib.compress}


def frame(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    return (
        length
        + struct.pack("<I", masked_crc(length))
        + payload
        + struct.pack("<I", masked_crc(payload))
    )


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# An oracle: slow, plain, and written without a look at the library's parser


def oracle_varint(data, at):
    groups = []
    while True:
        groups.append(data[at] & 0x7F)
        at += 1
        if data[at - 1] < 0x80:
            return sum(group * 128**i for i, group in enumerate(groups)) % 2**64, at


def oracle_message(data):
    at = 0
    while at < len(data):
        key, at = oracle_varint(data, at)
        if key % 8 == 0:
            value, at = oracle_varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(key % 8)
            if size is None:
                size, at = oracle_varint(data, at)
            value, at = data[at : at + size], at + size
        yield key // 8, key % 8, value


def oracle_example(payload):
    "Every feature as (kind, list of values); byte strings are kept apart."
    result = {}
    features = b"".join(value for field, _, value in oracle_message(payload) if field == 1)
    for field, _, entry in oracle_message(features):
        if field != 1:
            continue
        parts = list(oracle_message(entry))
        name = [value for field, _, value in parts if field == 1][-1].decode()
        kind, body = None, b""
        for field, _, value in oracle_message(
            b"".join(value for field, _, value in parts if field == 2)
        ):
            if field in (1, 2, 3):
                kind, body = field, (body if field == kind else b"") + value
        values = []
        for field, wire, value in oracle_message(body):
            if field != 1:
                continue
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            elif wire == 0:
                values.append(value)
            else:
                at = 0
                while at < len(value):
                    number, at = oracle_varint(value, at)
                    values.append(number)
        result[name] = kind, [v - 2**64 if kind == 3 and v >= 2**63 else v for v in values]
    return result


# Bytes


def test_checksums():
    assert masked_crc(b"hello") == 0x191C1FBB
    assert masked_crc(struct.pack("<Q", 10)) == 0x3ABFA3AE
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    assert frame(GOLDEN) == FRAMED


def test_golden_example(tmp_path):
    assert encode_example({"x": np.array([1.0]), "m": np.array([7, 255], np.uint8)}) == GOLDEN
    for name, pack in PACKED.items():
        records = list(read_tfrecords(write(tmp_path / name, pack(FRAMED))))
        assert [bytes(record.payload()) for record in records] == [GOLDEN]
        assert records[0].where == f"{tmp_path / name}: record 0"
    example = parse_example(GOLDEN)
    assert example["x"].tolist() == [1] and example["x"].dtype == np.float32
    assert example["m"].tolist() == [7, 255] and example["m"].dtype == np.uint8


def test_without_crc32c(monkeypatch):
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(SlotAttentionError, match="pip install crc32c"):
        masked_crc(b"")


@st.composite
def messages(draw):
    "An Example in any of the forms that protocol buffers allow, and unknown fields among them."
    varint = lambda n: tfrecords_number(n)
    field = lambda number, body: varint(8 * number + 2) + varint(len(body)) + body
    unknown = st.sampled_from(
        [
            b"",
            b"",
            varint(8 * 9) + varint(300),
            varint(8 * 10 + 5) + b"abcd",
            varint(8 * 11 + 1) + b"abcdefgh",
            field(12, b"xyz"),
        ]
    )

    def body(kind):
        if kind == 1:
            size = draw(st.sampled_from([1, 1, 1, None]))
            strings = draw(st.lists(st.binary(min_size=size or 0, max_size=size or 5), max_size=6))
            return b"".join(
                field(1, string) + (draw(unknown) if size is None else b"") for string in strings
            )
        result = draw(unknown)
        for packed in draw(st.lists(st.booleans(), max_size=3)):
            if kind == 2:
                numbers = [
                    struct.pack("<f", x)
                    for x in draw(st.lists(st.floats(width=32, allow_nan=False), max_size=4))
                ]
                result += (
                    field(1, b"".join(numbers))
                    if packed
                    else b"".join(varint(13) + number for number in numbers)
                )
            else:
                numbers = [
                    varint(n % 2**64)
                    for n in draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
                ]
                result += (
                    field(1, b"".join(numbers))
                    if packed
                    else b"".join(varint(8) + number for number in numbers)
                )
        return result

    entries = []
    for name in draw(st.lists(st.sampled_from(["x", "mask", "Größe", ""]), max_size=4)):
        kind = draw(st.sampled_from([1, 2, 3]))
        feature = (
            field(kind, body(kind))
            + draw(unknown)
            + (field(kind, body(kind)) if draw(st.booleans()) else b"")
        )
        parts = [field(1, name.encode()), field(2, feature)]
        entries.append(
            field(1, b"".join(draw(st.permutations(parts))) + draw(unknown)) + draw(unknown)
        )
    cut = draw(st.integers(0, len(entries)))
    return field(1, b"".join(entries[:cut])) + draw(unknown) + field(1, b"".join(entries[cut:]))


def tfrecords_number(value):
    groups = [value >> 7 * i & 127 for i in range(max(1, (value.bit_length() + 6) // 7))]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


@settings(max_examples=300, deadline=None)
@given(messages())
def test_any_form_of_message(payload):
    expected, got = oracle_example(payload), parse_example(payload)
    assert got.keys() == expected.keys()
    for name, (kind, values) in expected.items():
        assert got[name].dtype == {1: np.uint8, 2: np.float32, 3: np.int64}[kind]
        assert got[name].tobytes() == (
            b"".join(values) if kind == 1 else np.array(values, got[name].dtype).tobytes()
        )
    for name in expected:
        assert list(parse_example(payload, [name])) == [name]


def test_the_pattern_and_the_walk_agree():
    for size in (0, 1, 2, 9, 300):
        body = b"".join(b"\x0a\x01" + bytes([value % 256]) for value in range(size))
        assert tfrecords._byte_strings(memoryview(body)).tolist() == [
            value % 256 for value in range(size)
        ]
    for body, values in (
        (b"\x0a\x03abc", b"abc"),
        (b"\x0a\x00", b""),
        (b"\x0a\x01a\x0a\x04\x0a\x01b\x0a", b"a\x0a\x01b\x0a"),
        (b"\x0a\x01a\x12\x01b", b"a"),
        (b"\x12\x01a\x0a\x01b", b"b"),
    ):
        assert tfrecords._byte_strings(memoryview(body)).tobytes() == values
    long = bytes(range(256)) * 30
    assert parse_example(encode_example({"film": long}))["film"].tobytes() == long


@settings(max_examples=100, deadline=None)
@given(messages(), st.integers(0, 2**32 - 1))
def test_a_changed_message_gives_values_or_a_sentence(payload, seed):
    "Messages of any form, changed without a change of length: never another kind of error."
    random = np.random.default_rng(seed)
    for _ in range(20):
        changed = bytearray(payload)
        for at in random.integers(len(payload), size=random.integers(3)) if payload else ():
            changed[at] = random.choice(
                [0, 1, 2, 4, 8, 9, 10, 13, 18, 26, 128, int(random.integers(256))]
            )
        try:
            values = parse_example(bytes(changed))
        except FileError:
            continue
        assert all(value.dtype in (np.uint8, np.float32, np.int64) for value in values.values())


def test_values_are_copies():
    pieces = evaluation_scenes("tetrominoes", 6)
    for n in range(6):
        scene = {name: value[n] for name, value in pieces.items()}
        payload = bytearray(encode_scene(scene, "tetrominoes"))
        expected = parse_example(bytes(payload))
        values = parse_example(payload)
        payload[:] = bytes(len(payload))  # the message goes
        assert all(
            np.array_equal(values[name], expected[name]) and values[name].flags.writeable
            for name in expected
        )


def test_the_files_that_notebooks_read_are_what_was_written(tmp_path):
    batch = multi_dsprites(60, generator=generator(0))
    batch["scale"][:, 0] = torch.arange(60)
    for name, schema, scenes in (
        ("tetrominoes", "tetrominoes", evaluation_scenes("tetrominoes", 40)),
        ("multi_dsprites", SPRITE, batch),
    ):
        records = list(read_tfrecords(ASSETS / f"{name}.tfrecords"))
        assert len(records) == len(scenes["image"])
        for n, record in enumerate(records):
            scene = {name: value[n] for name, value in scenes.items()}
            assert bytes(record.payload()) == encode_scene(scene, schema)


# Container


@pytest.mark.parametrize("chunk, piece", [(1, 1), (7, 5), (64, 3), (1 << 16, 1 << 20)])
@pytest.mark.parametrize("form", [*PACKED, "members", "padded members"])
def test_streams(tmp_path, monkeypatch, chunk, piece, form):
    monkeypatch.setattr(tfrecords, "CHUNK", chunk)
    monkeypatch.setattr(tfrecords, "PIECE", piece)
    payloads = [GOLDEN, b"", bytes(1000), bytes(range(256)) * 4]
    data = b"".join(map(frame, payloads))
    between = {"members": b"", "padded members": bytes(20)}.get(form)
    packed = (
        PACKED[form](data)
        if form in PACKED
        else between.join(gzip.compress(data[at : at + 300]) for at in range(0, len(data), 300))
        + between
    )
    path = write(tmp_path / "x.tfrecords", packed)
    assert [bytes(record.payload()) for record in read_tfrecords(path)] == payloads
    passed = list(read_tfrecords(path, wanted=lambda number: number in (0, 3)))
    assert [len(record.data) for record in passed] == [len(GOLDEN) + 4, 0, 0, 1028]


def test_lengths_that_look_like_magic(tmp_path):
    "A plain file whose first record's length begins with the bytes of gzip or zlib."
    for length in (0x8B1F, 0x9C78, 0x0178):
        path = write(tmp_path / "x.tfrecords", frame(bytes(length)))
        assert [len(record.payload()) for record in read_tfrecords(path)] == [length]


@pytest.mark.parametrize("compression", ["gzip", "zlib", None])
def test_writer(tmp_path, compression):
    path = tmp_path / "deep" / "x.tfrecords"
    payloads = [encode_example({"x": np.arange(n, dtype=np.uint8)}) for n in range(50)]
    write_tfrecords(path, iter(payloads), compression)
    data = {"gzip": gzip.decompress, "zlib": zlib.decompress, None: bytes}[compression](
        path.read_bytes()
    )
    assert data == b"".join(map(frame, payloads))
    with pytest.raises(InputError, match="at least one record"):
        write_tfrecords(path, [], compression)
    assert [bytes(record.payload()) for record in read_tfrecords(path)] == payloads and len(
        list(path.parent.iterdir())
    ) == 1


@pytest.mark.parametrize("form", PACKED)
def test_cut_anywhere(tmp_path, form):
    data = PACKED[form](FRAMED + frame(GOLDEN * 3))
    for size in range(len(data)):
        path = write(tmp_path / "x.tfrecords", data[:size])
        # whole records only: nothing shows that there were more
        clean = form == "plain" and size == len(FRAMED)
        if clean:
            assert len(list(read_tfrecords(path))) == 1
            continue
        with pytest.raises(FileError, match="x.tfrecords: ") as error:
            for record in read_tfrecords(path):
                record.payload()
        assert size < 12 or "record" in str(error.value)


FAULTS = {
    "empty": (b"", "expected records, there are none"),
    "empty gzip": (gzip.compress(b""), "expected records, there are none"),
    "text": (b"hello, this is a text file", "not a TFRecord file"),
    "zip": (b"PK\x03\x04" + bytes(100), "not a TFRecord file.*looks like zip"),
    "bzip2": (b"BZh9" + bytes(100), "looks like bzip2"),
    "gzip in gzip": (gzip.compress(gzip.compress(FRAMED)), "looks like gzip in gzip"),
    "bit in length": (
        FRAMED + b"\x21" + FRAMED[1:],
        "record 1: the checksum of its length is wrong",
    ),
    "bit in payload": (
        FRAMED + FRAMED[:30] + b"\x00" + FRAMED[31:],
        "record 1: damaged: the checksum of its 32 bytes is wrong",
    ),
    "bit in checksum": (FRAMED[:-1] + b"\x00", "record 0: damaged"),
    "bit in gzip": (
        gzip.compress(FRAMED)[:20] + b"\xff\xff" + gzip.compress(FRAMED)[22:],
        "record 0: ",
    ),
    "gzip, then garbage": (gzip.compress(FRAMED) + b"garbage", "record 1: cannot be read"),
    "gzip without end": (gzip.compress(FRAMED)[:-3], "the file ends in the middle"),
    "zlib as raw deflate": (zlib.compress(FRAMED)[2:], "not a TFRecord file"),
    "absurd length": (
        struct.pack("<QI", 2**60, masked_crc(struct.pack("<Q", 2**60))),
        "record 0: expected at most",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(tmp_path, fault):
    data, message = FAULTS[fault]
    path = write(tmp_path / "x.tfrecords", data)
    with pytest.raises(FileError, match=message) as error:
        for record in read_tfrecords(path):
            record.payload()
    assert str(error.value).startswith(str(path))


def test_no_file(tmp_path):
    for path, message in (
        (tmp_path / "gone", "there is no such file"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(FileError, match=message):
            list(read_tfrecords(path))


# Scenes


def random_scene(schema: Schema, seed: int = 0) -> dict:
    random, sizes = np.random.default_rng([seed, *schema.name.encode()]), schema.sizes
    M, time = sizes["E"] - 1, [sizes["T"]] if "T" in sizes else []
    there = np.arange(M) < (M if schema.drawn else random.integers(1, M + 1))
    if "visibility" not in schema.floats:
        there[:] = True
    corner = [*time, (sizes["H"] + 4) // 5, (sizes["W"] + 4) // 5]
    label = (
        random.integers(1 + there.sum(), size=corner)
        .repeat(5, -1)
        .repeat(5, -2)[..., : sizes["H"], : sizes["W"]]
        .astype(np.uint8)
    )
    if schema.drawn:
        label[0, :M] = np.arange(1, M + 1)  # every object is to be seen
    image = random.integers(256, size=(*label.shape, sizes["C"]), dtype=np.uint8) // 8 * 8
    scene = {"image": image.repeat(3 // sizes["C"], -1), "label": label}
    for name, axes in schema.floats.items():
        value = random.normal(
            size=[size - (axis == "E") for axis, size in zip(axes, schema.shape(axes))]
        ).astype(np.float32)
        if axes[0] == "E":
            value[~there] = 0
        scene[name] = value.swapaxes(0, 1) if axes[:2] == "ET" else value
    if "visibility" in scene:
        scene["visibility"] = there.astype(np.float32)
    if sizes["C"] == 1:
        scene["color"] = scene["color"].repeat(3, -1)
    scene |= {
        name: random.integers(len(CLEVR_WORDS[name]), size=M) * there for name in schema.codes
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in scene.items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


@pytest.mark.parametrize("name", SCHEMAS)
def test_round_trip(tmp_path, name):
    schema = SCHEMAS[name]
    scenes = [random_scene(schema, seed) for seed in range(2)]
    write_tfrecords(
        tmp_path / "x",
        (encode_scene(scene, name) for scene in scenes),
        "zlib" if "cater" in name else "gzip",
    )
    payloads = [record.payload() for record in read_tfrecords(tmp_path / "x")]
    assert all(
        same(decode_scene(payload, name), scene)
        for payload, scene in zip(payloads, scenes, strict=True)
    )
    alike = {"objects_room_test_identical_color": "objects_room_test_six_objects"}
    assert detect_schema(payloads[0]).name == alike.get(name, name)
    assert same(next(iter(TFRecordScenes(tmp_path / "x"))), scenes[0])


@pytest.mark.parametrize(
    "name",
    [
        "tetrominoes",
        "multi_dsprites_binarized",
        "multi_dsprites_colored_on_grayscale",
        "objects_room_train",
    ],
)
def test_stored_form(name):
    "What is written has the publishers' axes, by the oracle."
    schema, scene = SCHEMAS[name], random_scene(SCHEMAS[name])
    stored = oracle_example(encode_scene(scene, name))
    E, H, W, C = (schema.sizes[axis] for axis in "EHWC")
    assert all(
        kind == 1 and {len(v) for v in values} == {1}
        for kind, values in (stored["image"], stored["mask"])
    )
    image, mask = (
        np.frombuffer(b"".join(stored[feature][1]), np.uint8) for feature in ("image", "mask")
    )
    assert np.array_equal(image.reshape(H, W, C), scene["image"].numpy()[..., :C])
    one_hot = (
        mask.reshape(H, W, E).transpose(2, 0, 1)
        if name.startswith("multi")
        else mask.reshape(E, H, W)
    )
    assert set(mask.tolist()) == {0, 255} and np.array_equal(
        one_hot.argmax(0), scene["label"].numpy()
    )
    if "x" in scene:
        assert stored["x"][1] == [0, *scene["x"].tolist()] and stored["visibility"][1] == [
            1,
            *scene["visibility"].tolist(),
        ]
        assert np.allclose(
            np.reshape(stored["color"][1], (E, C))[1:], scene["color"].numpy()[:, :C]
        )


def test_clevr_words():
    "The stored integers, spelled out one by one."
    schema = SCHEMAS["clevr_with_masks"]
    table = {
        "size": "large small",
        "material": "rubber metal",
        "shape": "sphere cylinder cube",
        "color": "red cyan green blue brown gray purple yellow",
    }
    scene = random_scene(schema, 3)
    scene["visibility"][:] = 1
    values = parse_example(encode_scene(scene, schema))
    values["visibility"][:] = 1
    for name, words in table.items():
        words = words.split()
        values[name] = np.array([0] + [1 + n % len(words) for n in range(10)], np.uint8)
        decoded = decode_scene(encode_example(values), schema)[name]
        assert [CLEVR_WORDS[name][code] for code in decoded.tolist()] == [
            words[n % len(words)] for n in range(10)
        ] and decoded.dtype == torch.int64
    assert CLEVR_WORDS["color"] == (
        "gray",
        "red",
        "blue",
        "green",
        "brown",
        "purple",
        "cyan",
        "yellow",
    )
    for bad in (0, 9):
        with pytest.raises(
            FileError, match="r: record 5: feature 'color': expected 1 to 8 for every object"
        ):
            decode_scene(
                encode_example(values | {"color": np.array([0] * 10 + [bad], np.uint8)}),
                schema,
                "r: record 5",
            )


def test_absent_objects_are_zero():
    values = parse_example(
        encode_scene(random_scene(SCHEMAS["clevr_with_masks"], 1), "clevr_with_masks")
    )
    values |= {
        name: np.full_like(values[name], 2)
        for name in ("x", "rotation", "pixel_coords", "size", "color")
    }
    values["x"][9] = np.nan
    values["visibility"] = np.array([1] * 3 + [0] * 8, np.float32)
    scene = decode_scene(encode_example(values), "clevr_with_masks")
    assert scene["visibility"].tolist() == [1, 1] + [0] * 8
    assert all(
        (scene[name][2:] == 0).all()
        for name in ("x", "rotation", "pixel_coords", "size", "material", "shape", "color")
    )
    assert (
        scene["x"][:2].tolist() == [2, 2]
        and objects_in(encode_example(values), SCHEMAS["clevr_with_masks"]) == 2
    )


def test_tetrominoes_count_masks():
    "The stored visibility of Tetrominoes is not believed."
    values = parse_example(encode_scene(random_scene(SCHEMAS["tetrominoes"]), "tetrominoes"))
    for stored in ([0, 0, 0, 0], [1, 1, 1, 1], [9, np.nan, 0, 1]):
        payload = encode_example(values | {"visibility": np.array(stored, np.float32)})
        assert (
            decode_scene(payload, "tetrominoes")["visibility"].tolist() == [1, 1, 1]
            and objects_in(payload, SCHEMAS["tetrominoes"]) == 3
        )


def test_cater_frames():
    clip = random_scene(SCHEMAS["cater_with_masks"])
    stored = oracle_example(encode_scene(clip, "cater_with_masks"))
    assert len(stored["image"][1]) == len(stored["mask"][1]) == 1  # one string
    positions = np.reshape(stored["object_positions"][1], (11, 33, 3))
    assert (
        np.allclose(positions[1:].transpose(1, 0, 2), clip["object_positions"])
        and (positions[0] == 0).all()
    )
    pictures = list(frames(clip))
    assert len(pictures) == 33 and all(
        torch.equal(picture["image"], clip["image"][t]) for t, picture in enumerate(pictures)
    )
    assert pictures[0]["image"].untyped_storage().nbytes() == 64 * 64 * 3


WRONG = {
    "no mask": (
        lambda v: {name: value for name, value in v.items() if name != "mask"},
        "no feature 'mask', there are: color, image",
    ),
    "no x": (lambda v: {name: value for name, value in v.items() if name != "x"}, "no feature 'x'"),
    "image too short": (
        lambda v: v | {"image": v["image"][1:]},
        r"feature 'image': expected 3,675 values of uint8 \[35, 35, 3\], got 3,674",
    ),
    "x as integers": (
        lambda v: v | {"x": v["x"].astype(int)},
        "feature 'x': expected 4 values of float32 .*, got 4 of int64",
    ),
    "color too long": (
        lambda v: v | {"color": np.append(v["color"], 1)},
        "feature 'color': expected 12",
    ),
    "NaN": (lambda v: v | {"x": v["x"] * np.nan}, "feature 'x': expected finite numbers"),
    "two masks": (
        lambda v: v | {"mask": v["mask"] | 255 * (np.arange(4900) % 1225 == 500).astype(np.uint8)},
        r"masks: expected 255 in exactly one .* 1 pixels differ, the first at \[14, 10\]",
    ),
    "no mask there": (
        lambda v: v | {"mask": v["mask"] * (np.arange(4900) % 1225 != 500)},
        "masks: .* 1 pixels differ",
    ),
    "grey mask": (lambda v: v | {"mask": v["mask"] // 2}, "masks: .* 1,225 pixels differ"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_records(fault):
    spoil, message = WRONG[fault]
    values = spoil(parse_example(encode_scene(random_scene(SCHEMAS["tetrominoes"]), "tetrominoes")))
    with pytest.raises(FileError, match="f: record 3: .*" + message):
        decode_scene(encode_example(values), "tetrominoes", "f: record 3")


def test_other_sets_are_named():
    for name, other in itertools.permutations(SCHEMAS, 2):
        if {name, other} == {
            "objects_room_test_six_objects",
            "objects_room_test_identical_color",
        } or "clevr" in name:
            continue
        payload = encode_scene(random_scene(SCHEMAS[name]), name)
        with pytest.raises(
            FileError, match=f"not a record of {other}: .*; it has the form of {name[:17]}"
        ):
            decode_scene(payload, other)
    with pytest.raises(FileError, match="none of the sets tetrominoes, .*; its features are: m"):
        detect_schema(GOLDEN)


def test_grey_sets_of_your_own():
    grey = Schema("grey", {"E": 2, "H": 2, "W": 3, "C": 1}, "EHW1", {"mass": "E"})
    scene = {
        "image": torch.full((2, 3, 3), 7, dtype=torch.uint8),
        "label": torch.eye(2, 3, dtype=torch.uint8),
        "mass": torch.tensor([2.0]),
    }
    assert same(decode_scene(encode_scene(scene, grey), grey), scene)


def test_visibility_must_be_sane():
    values = parse_example(
        encode_scene(random_scene(SCHEMAS["multi_dsprites_binarized"]), "multi_dsprites_binarized")
    )
    for bad in (0.5, 2, np.nan):
        with pytest.raises(FileError, match="'visibility': expected 0 or 1"):
            decode_scene(
                encode_example(values | {"visibility": np.array([1, 1, bad, 0], np.float32)}),
                "multi_dsprites_binarized",
            )


def test_encoding_refuses():
    scene = random_scene(SCHEMAS["tetrominoes"])
    for change, message in (
        ({"image": scene["image"][:30]}, "'image': expected"),
        ({"label": scene["label"] + 7}, "'label': expected at most 3"),
        ({"x": scene["x"][:2]}, r"'x': expected \[4\] of float32 as stored, got \[3\]"),
    ):
        with pytest.raises(InputError, match=message):
            encode_scene(scene | change, "tetrominoes")
    with pytest.raises(InputError, match="expected color, x as well"):
        encode_scene({name: scene[name] for name in scene.keys() - {"x", "color"}}, "tetrominoes")
    with pytest.raises(InputError, match="did you mean 'tetrominoes'"):
        encode_scene(scene, "tetromino")


# The stream

SPRITE = "multi_dsprites_colored_on_grayscale"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "103 scenes; the first sprite's `scale` is the scene's number."
    path = tmp_path_factory.mktemp("tfrecords") / "scenes.tfrecords"
    scenes = evaluation_scenes(SPRITE, 103)
    scenes["scale"][:, 0] = torch.arange(103)
    write_tfrecords(
        path,
        (
            encode_scene({name: value[n] for name, value in scenes.items()}, SPRITE)
            for n in range(103)
        ),
    )
    return path, scenes["visibility"].sum(1).int().tolist()


def numbers(scenes) -> list[int]:
    return [int(scene["scale"][0]) for scene in scenes]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 80), st.integers(1, 90), st.integers(0, 2**40), st.integers(0, 90))
def test_shuffle_and_resume(n, size, seed, skip):
    loaded, whole = [], list(shuffled(range(n), size, seed))
    assert sorted(whole) == list(range(n)) and (size > 1 or whole == list(range(n)))
    # nothing comes earlier than the buffer is large
    assert all(item - place < size for place, item in enumerate(whole))
    assert (
        list(shuffled(range(n), size, seed, skip, lambda item: loaded.append(item) or item))
        == whole[skip:]
    )
    assert set(whole[skip:]) <= set(loaded) and len(loaded) == len(set(loaded))
    assert len(loaded) - len(whole[skip:]) <= (min(size, n) if skip > n - size else 0)


def test_order_depends_on_seed_and_epoch_alone(file):
    order = lambda **more: numbers(TFRecordScenes(file[0], shuffle=20, **more))
    base = order(seed=1, epoch=2)
    assert base == order(seed=1, epoch=2) and sorted(base) == list(range(103))
    torch.manual_seed(99)
    assert base == order(seed=1, epoch=2)
    assert (
        len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)})
        == 9
    )
    scenes = TFRecordScenes(file[0], shuffle=20, seed=1)
    scenes.set_epoch(2, skip=50)
    assert numbers(scenes) == base[50:]


@pytest.mark.parametrize("filter", [None, 3])
def test_two_ranks_of_two_workers(file, filter):
    path, counts = file
    passing = [n for n in range(103) if filter is None or counts[n] <= filter]
    shares, again = ([], [])
    for result in (shares, again):
        for rank in range(2):
            scenes = TFRecordScenes(path, rank=rank, world=2, max_objects=filter, shuffle=7, seed=3)
            result.append(numbers(DataLoader(scenes, batch_size=None, num_workers=2)))
    assert shares == again
    assert sorted(shares[0] + shares[1]) == passing and abs(len(shares[0]) - len(shares[1])) <= 1
    assert sorted(shares[0]) == passing[0::2]


def test_what_belongs_to_others_is_not_parsed(file, monkeypatch):
    import slot_attention_nbdev.data.tfrecord_dataset as stream

    decoded = []
    monkeypatch.setattr(
        stream,
        "decode_scene",
        lambda payload, schema, where: (
            decoded.append(where) or decode_scene(payload, schema, where)
        ),
    )
    scenes = TFRecordScenes(file[0], SPRITE, rank=1, world=5, shuffle=8, skip=15)
    assert len(list(scenes)) == 6  # 21 in this share
    assert len(decoded) <= 6 + 8
    decoded.clear()
    assert (
        len(list(TFRecordScenes(file[0], SPRITE, start=40, stop=60))) == 20 and len(decoded) == 20
    )
    assert decoded[0] == f"{file[0]}: record 40"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("filter", [None, 4])
def test_resume_after_any_batch(file, workers, filter):
    def batches(skip=0):
        scenes = TFRecordScenes(
            file[0],
            shuffle=9,
            seed=4,
            epoch=1,
            skip=skip,
            batch_size=8,
            max_objects=filter,
            rank=1,
            world=2,
        )
        return [
            batch["scale"][:, 0].tolist()
            for batch in DataLoader(scenes, batch_size=8, num_workers=workers)
        ]

    whole = batches()
    assert len(whole) > 4
    for done in range(1, len(whole) + 1) if workers == 0 else (1, 2, len(whole) - 1, len(whole)):
        assert batches(8 * done) == whole[done:]


def test_skip_inside_a_batch(file):
    whole = numbers(TFRecordScenes(file[0], shuffle=9))
    assert numbers(TFRecordScenes(file[0], shuffle=9, skip=37)) == whole[37:]
    scenes = TFRecordScenes(file[0], shuffle=9, skip=37, batch_size=4)
    assert numbers(scenes) == whole[37:]
    with pytest.raises(InputError, match="skip: expected a multiple of batch_size=4, got 37"):
        list(DataLoader(scenes, batch_size=4, num_workers=2))


def test_many_files_and_ranges(file, tmp_path):
    payloads = [bytes(record.payload()) for record in read_tfrecords(file[0])]
    for part in range(3):
        write_tfrecords(tmp_path / f"part-{part}", payloads[30 * part : 30 * part + 30], "zlib")
    assert numbers(TFRecordScenes(tmp_path / "part-*")) == list(range(90))
    assert numbers(TFRecordScenes([tmp_path / "part-2", str(tmp_path / "part-[01]")])) == [
        *range(60, 90),
        *range(60),
    ]
    assert numbers(TFRecordScenes(tmp_path / "part-*", start=25, stop=65)) == list(range(25, 65))
    assert sorted(
        numbers(TFRecordScenes(tmp_path / "part-*", start=25, stop=65, rank=2, world=3, shuffle=5))
    ) == list(range(27, 65, 3))
    assert numbers(TFRecordScenes(tmp_path / "part-*", stop=90)) == list(range(90))
    for start, stop in ((0, 91), (90, None), (200, 300)):
        with pytest.raises(
            FileError, match="part-2: expected records up to .*, the files end after 90"
        ):
            list(TFRecordScenes(tmp_path / "part-*", start=start, stop=stop))
    with pytest.raises(
        FileError, match="expected scenes with at most 1 objects, there is none in the range"
    ):
        list(TFRecordScenes(tmp_path / "part-*", max_objects=1))


def test_splits():
    assert RECORD_SPLITS["tetrominoes"] == {
        "train": {"start": 0, "stop": 60_000},
        "test": {"start": 60_000, "stop": 60_320},
    }
    assert RECORD_SPLITS["clevr6"]["train"] == {"start": 0, "stop": 70_000, "max_objects": 6}
    # ours; no file of it exists
    assert set(SPRITE_SETS) - set(RECORD_SPLITS) == {"multi_dsprites_striped"}


def test_damaged_records(file, tmp_path):
    payloads = [bytes(record.payload()) for record in read_tfrecords(file[0])]
    short = encode_example({"x": np.zeros(3)})
    # another set's record
    framed = [frame(short if n == 40 else payload) for n, payload in enumerate(payloads)]
    for n in (0, 7, 50):
        framed[n] = framed[n][:1000] + bytes([framed[n][1000] ^ 1]) + framed[n][1001:]
    path = write(tmp_path / "x", b"".join(framed))
    bad = {0, 7, 40, 50}
    with pytest.raises(FileError, match="x: record 0: damaged"):
        TFRecordScenes(path)
    with pytest.raises(FileError, match="x: record 40: not a record of multi_dsprites"):
        list(TFRecordScenes(path, SPRITE, start=8, stop=45))
    scenes = TFRecordScenes(path, on_error="skip", shuffle=10)
    order = numbers(scenes)
    assert sorted(order) == [n for n in range(103) if n not in bad] and scenes.skipped == 4
    for skip in (1, 30, 98):
        scenes.set_epoch(0, skip)
        assert numbers(scenes) == order[skip:] and scenes.skipped == 4
    shares = [
        TFRecordScenes(path, on_error="skip", max_objects=4, rank=rank, world=3)
        for rank in range(3)
    ]
    assert sorted(sum(map(numbers, shares), [])) == [
        n for n in range(103) if n not in bad and file[1][n] <= 4
    ]
    assert sum(share.skipped for share in shares) == 4
    with pytest.raises(FileError, match="record 102: the file ends in the middle"):
        list(TFRecordScenes(write(tmp_path / "y", path.read_bytes()[:-5]), on_error="skip"))
    # all of them are wrong: not a matter of damage
    with pytest.raises(FileError, match="record 0: not a record of tetrominoes"):
        list(TFRecordScenes(file[0], "tetrominoes", on_error="skip"))


def test_frames_are_scenes(tmp_path):
    clips = [random_scene(SCHEMAS["cater_with_masks"], seed) for seed in range(3)]
    write_tfrecords(
        tmp_path / "x", (encode_scene(clip, "cater_with_masks") for clip in clips), "zlib"
    )
    pictures = list(TFRecordScenes(tmp_path / "x", frames=True))
    assert len(pictures) == 99 and torch.equal(pictures[70]["image"], clips[2]["image"][4])
    order = [
        picture["object_positions"].sum().item()
        for picture in TFRecordScenes(tmp_path / "x", frames=True, shuffle=40, seed=2)
    ]
    assert sorted(order) == sorted(picture["object_positions"].sum().item() for picture in pictures)
    assert [
        p["object_positions"].sum().item()
        for p in TFRecordScenes(tmp_path / "x", frames=True, shuffle=40, seed=2, skip=61)
    ] == order[61:]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"schema": "tetromino"}, "schema: unknown 'tetromino'; did you mean 'tetrominoes'"),
        ({"schema": 3}, "schema: unknown 3; there are: "),
        ({"schema": ["tetrominoes"]}, "schema: unknown"),
        ({"start": -1}, "start: expected an integer ≥ 0"),
        ({"start": 5, "stop": 5}, "stop: expected an integer ≥ 6"),
        ({"max_objects": -1}, "max_objects: expected an integer ≥ 0"),
        ({"shuffle": 0}, "shuffle: expected an integer ≥ 1"),
        ({"rank": 1}, "rank: expected an integer ≥ 0 and ≤ 0, got 1"),
        ({"world": 0}, "world: expected an integer ≥ 1"),
        ({"skip": -1}, "skip: expected an integer ≥ 0"),
        ({"batch_size": 0}, "batch_size: expected an integer ≥ 1"),
        ({"seed": 1.5}, "seed: expected an integer"),
        ({"epoch": None}, "epoch: expected an integer"),
        ({"on_error": "ignore"}, "on_error: expected 'raise' or 'skip', got 'ignore'"),
        ({"frames": True}, "frames: .*clips"),
    ],
)
def test_bad_arguments(file, arguments, message):
    with pytest.raises(InputError, match=message):
        TFRecordScenes(file[0], **arguments)


def test_no_files(tmp_path):
    for files in (tmp_path / "gone", str(tmp_path / "*.tfrecords"), [tmp_path]):
        with pytest.raises(FileError, match="there is no such file, and none that matches"):
            TFRecordScenes(files)
    with pytest.raises(InputError, match="files: expected at least one"):
        TFRecordScenes([])


def test_bounded_memory(tmp_path):
    "400 records of 111 kB, 44 MB in all; what is held is a piece of the stream and the buffer."
    scene = {name: value[0] for name, value in evaluation_scenes(SPRITE, 1).items()}
    payload = encode_scene(scene, SPRITE)
    write_tfrecords(tmp_path / "x", itertools.repeat(payload, 400))
    scenes = TFRecordScenes(tmp_path / "x", SPRITE, shuffle=50, skip=100)
    tracemalloc.start()
    try:
        assert sum(1 for _ in scenes) == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7e6, f"{peak / 1e6:.1f} MB"


def test_bombs(tmp_path):
    """Lengths that lie, and much from little, take no more memory than the largest record that is
    believed.
    """
    header = struct.pack("<Q", 60_000_000)
    bomb = gzip.compress(
        header + struct.pack("<I", masked_crc(header)) + bytes(200_000_000), compresslevel=1
    )
    path = write(tmp_path / "x", bomb)
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="record 0: damaged"):
            for record in read_tfrecords(path):
                record.payload()
        assert tracemalloc.get_traced_memory()[1] < 3 * tfrecords.MAX_PAYLOAD
        del record
        tracemalloc.reset_peak()
        with pytest.raises(FileError, match="record 1: the checksum of its length"):
            list(read_tfrecords(path, wanted=lambda number: False))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


# Ten thousand damaged records

TINY = Schema(
    "tiny",
    {"E": 3, "H": 3, "W": 4, "C": 3},
    "EHW1",
    {"x": "E", "visibility": "E", "color": "EC"},
    codes=("size", "shape"),
)
FILM = Schema(
    "film",
    {"E": 3, "H": 3, "W": 4, "C": 1, "T": 2},
    "TEHW1",
    {"color": "EC", "object_positions": "ET3"},
    image="THWC",
)


def tiny_scene(schema, random):
    time = [2] if "T" in schema.sizes else []
    scene = {
        "image": random.integers(256, size=(*time, 3, 4, 3)).astype(np.uint8),
        "label": random.integers(3, size=(*time, 3, 4)).astype(np.uint8),
    }
    if schema is FILM:
        scene |= {
            "color": np.ones((2, 3), np.float32),
            "object_positions": random.normal(size=(2, 2, 3)).astype(np.float32),
        }
    else:
        scene |= {
            "x": random.normal(size=2),
            "visibility": np.ones(2),
            "color": random.random((2, 3)),
            "size": np.array([0, 1]),
            "shape": np.array([2, 0]),
        }
    return {name: torch.from_numpy(value) for name, value in scene.items()}


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    "Bytes flipped, set, put in, left out, doubled, cut."
    data = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at = (
            int(random.integers(len(data) + 1))
            if random.random() < 0.7
            else int(random.integers(min(len(data), 60) + 1))
        )
        size = int(random.integers(1, 9))
        kind = random.integers(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1 and at < len(data):
            data[at] = int(random.choice([0, 1, 9, 10, 18, 127, 128, 255]))
        elif kind == 2:
            data[at:at] = random.bytes(size)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at : at + size] = random.bytes(size)
        elif random.random() < 0.3:
            del data[at:]
    return bytes(data)


def check_scene(scene, schema):
    E, M = schema.sizes["E"], schema.sizes["E"] - 1
    time = [schema.sizes["T"]] if "T" in schema.sizes else []
    size = [*time, schema.sizes["H"], schema.sizes["W"]]
    assert scene["image"].dtype == torch.uint8 and list(scene["image"].shape) == [*size, 3]
    assert (
        scene["label"].dtype == torch.uint8
        and list(scene["label"].shape) == size
        and scene["label"].max() < E
    )
    for name, axes in schema.floats.items():
        assert (
            torch.isfinite(scene[name]).all()
            and scene[name].shape[len(time) if axes[:2] == "ET" else 0] == M
        )
    if "visibility" in scene:
        assert set(scene["visibility"].tolist()) <= {0, 1}
    for name in schema.codes:
        assert scene[name].min() >= 0 and scene[name].max() < len(CLEVR_WORDS[name])


SEEN = {"mutants": 0, "refused": 0, "valid": 0}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    random = np.random.default_rng(0)
    pieces = {name: value[0] for name, value in evaluation_scenes("tetrominoes", 1).items()}
    sets = [
        (schema, [encode_scene(tiny_scene(schema, random), schema) for _ in range(3)])
        for schema in (TINY, FILM)
    ]
    return (
        tmp_path_factory.mktemp("fuzz") / "x",
        sets,
        (SCHEMAS["tetrominoes"], [encode_scene(pieces, "tetrominoes")]),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["payload", "payload", "large payload", "framing", "length", "gzip", "zlib"]),
)
def test_fuzz(fuzzed, seed, what):
    """A damaged record gives a FileError with its place, or a scene that is one.

    Nothing else comes out.
    """
    path, sets, large = fuzzed
    random = np.random.default_rng(seed)
    for turn in range(20 if what == "large payload" else 100):
        schema, payloads = large if what == "large payload" else sets[turn % 2]
        if "payload" in what:
            data = b"".join(frame(mutated(payload, random)) for payload in payloads)
        elif what == "framing":
            data = mutated(b"".join(map(frame, payloads)), random)
        elif what == "length":
            lengths = [
                struct.pack(
                    "<Q",
                    int(
                        random.choice(
                            [len(p), len(p) + 1, 0, 2**26, 2**31, 2**63, random.integers(2**62)]
                        )
                    ),
                )
                for p in payloads
            ]
            data = b"".join(
                n + struct.pack("<I", masked_crc(n)) + p + struct.pack("<I", masked_crc(p))
                for n, p in zip(lengths, payloads)
            )
        else:
            data = mutated(PACKED[what](b"".join(map(frame, payloads))), random)
        note(f"{what}, {schema.name}: {data.hex() if len(data) < 2000 else len(data)}")
        path.write_bytes(data)
        SEEN["mutants"] += len(payloads)
        try:
            for record in read_tfrecords(path):
                try:
                    scene = decode_scene(record.payload(), schema, record.where)
                    objects_in(record.payload(), schema, record.where)
                except FileError as error:
                    assert str(error).startswith(f"{path}: record ")
                    SEEN["refused"] += 1
                    continue
                check_scene(scene, schema)
                SEEN["valid"] += 1
        except FileError as error:
            assert str(error).startswith(f"{path}: ")
            SEEN["refused"] += 1


def test_fuzz_was_large_enough():
    if SEEN["mutants"] == 0:
        pytest.skip("test_fuzz was not run here")
    assert SEEN["mutants"] >= 10_000 and SEEN["refused"] > 3000 and SEEN["valid"] > 1000, SEEN


def test_beside_the_package_tfrecord(file):
    "If somebody's reader is installed, it must see the same."
    reader = pytest.importorskip("tfrecord.reader")
    theirs = reader.tfrecord_loader(
        str(file[0]),
        None,
        {"image": "byte", "mask": "byte", "x": "float", "color": "float"},
        compression_type="gzip",
    )
    for other, record in zip(theirs, read_tfrecords(file[0])):
        ours = parse_example(record.payload())
        assert all(
            np.array_equal(other[name].view(np.uint8), ours[name]) for name in ("image", "mask")
        )
        assert all(np.array_equal(other[name], ours[name]) for name in ("x", "color"))
