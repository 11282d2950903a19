"""Every source through one loader: what it yields, in which order, and what happens when
something breaks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.data import sources, sprites
from slot_attention_nbdev.data.clevr_v1 import ClevrFiles
from slot_attention_nbdev.data.files import (
    ImageFolder,
    load_pack,
    open_pack,
    resize_scenes,
    save_pack,
)
from slot_attention_nbdev.data.sources import (
    DATA_CARDS,
    GENERATED,
    Batches,
    EpochSampler,
    GeneratedScenes,
    collate_rows,
    convert,
    data_card,
    draw_blocks,
    draw_pack,
    evaluation_scenes,
    fixed_split,
    generated_set,
    hold_out,
    open_source,
)
from slot_attention_nbdev.data.sprites import SPRITE_SETS
from slot_attention_nbdev.data.tfrecord_dataset import RECORD_SPLITS
from slot_attention_nbdev.models.weights import load_record, load_weights
from torch.utils.data import DataLoader
from writers import encode_scene, write_clevr_tree, write_tfrecords

N = 24


def pieces():
    return evaluation_scenes("tetrominoes", N)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "One of each: a pack, records, an archive, a folder, a folder with masks."
    place, scenes = tmp_path_factory.mktemp("sources"), pieces()
    np.savez(place / "pack.npz", **{key: value.numpy() for key, value in scenes.items()})
    write_tfrecords(
        place / "pieces.tfrecords",
        (
            encode_scene({key: value[i] for key, value in scenes.items()}, "tetrominoes")
            for i in range(N)
        ),
    )
    write_clevr_tree(place / "CLEVR_v1.0", 12)
    for name in ("photos", "outlined"):
        (place / name / "deep").mkdir(parents=True)
        for i in range(N):
            path = place / name / ("deep" if i % 3 else "") / f"{i:03}.png"
            Image.fromarray(scenes["image"][i].numpy()).save(path)
            if name == "outlined":
                Image.fromarray(scenes["label"][i].numpy()).save(path.with_name(f"{i:03}_mask.png"))
    return place


SOURCES = {
    "pack.npz": "",
    "pieces.tfrecords": "",
    "CLEVR_v1.0": "resolution=32",
    "clevr6:CLEVR_v1.0": "resolution=32",
    "photos/": "resolution=32",
    "outlined/": "resolution=32",
}


def located(place, source):
    name, colon, path = source.rpartition(":")
    return f"{name}{colon}{place}/{path}"


# Training by the command


@pytest.mark.parametrize("source", SOURCES)
def test_train_from_every_source(place, tmp_path, source, capsys):
    data = located(place, source)
    words = [
        "train",
        "tiny",
        f"data={data}",
        "steps=3",
        "log_every=1",
        "eval_every=2",
        "eval_images=4",
        *SOURCES[source].split(),
    ]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "run"), "--json"]) == 0, (
        capsys.readouterr().err
    )
    record = json.loads(capsys.readouterr().out)
    labelled = source in ("pack.npz", "pieces.tfrecords", "outlined/")
    assert record["finished"] and record["resolution"] == (
        [32, 32] if SOURCES[source] else [35, 35]
    )
    assert set(record["final"]) == (
        {"fg_ari", "ari", "miou", "mbo", "mse", "n", "controls"} if labelled else {"mse", "n"}
    )
    # at most a fifth
    assert record["final"]["n"] == 4 if "CLEVR" not in source else record["final"]["n"] in (1, 2)
    assert (tmp_path / "run" / "slots.png").exists()

    code = main(["evaluate", str(tmp_path / "run"), "--data", data, "--n", "6", "--json"])
    out, err = capsys.readouterr()
    if labelled:
        assert code == 0 and json.loads(out)["n"] == 6
    else:
        found = json.loads(out)
        few = 5 if source.startswith("clevr6") else 6  # no more have so few objects
        assert code == 0 and found["n"] == few and "mse" in found and "fg_ari" not in found


def test_a_folder_has_128_pixels_by_default(place, tmp_path, capsys):
    assert (
        main(
            [
                "train",
                "tiny",
                f"data={place}/photos",
                "steps=1",
                "batch_size=1",
                "eval_images=1",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "run"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["resolution"] == [128, 128]


@pytest.mark.parametrize("source", ["pack.npz", "pieces.tfrecords", "photos/"])
def test_a_resumed_run_has_the_weights_of_one_that_was_left_alone(
    place, tmp_path, source, monkeypatch, capsys
):
    from slot_attention_nbdev.train.trainer import Trainer

    words = [
        "train",
        "tiny",
        f"data={located(place, source)}",
        "resolution=24",
        "steps=20",
        "eval_images=4",
        "checkpoint_every=3",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    update = Trainer.training_step

    def breaks(run, scenes):  # in the second epoch: 20 scenes in batches of 4
        if run.step == 8:
            raise RuntimeError("power cut")
        update(run, scenes)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", breaks)
        assert main([*words, "--out", str(tmp_path / "broken")]) == 1
    assert load_record(tmp_path / "broken" / "record.json")["step"] == 6
    assert main([*words, "--out", str(tmp_path / "broken"), "--resume"]) == 0
    ours, theirs = (
        load_weights(tmp_path / name / "model.safetensors")[0] for name in ("whole", "broken")
    )
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


# Order


def test_two_ranks_with_two_workers_share_the_whole(place):
    source = open_source(f"{place}/outlined")
    key = lambda image: image.numpy().tobytes()
    everything = {key(source[i]["image"]): i for i in range(N)}
    runs = []
    for _ in range(2):
        ranks = []
        for rank in range(2):
            loader = DataLoader(
                source,
                batch_size=5,
                sampler=EpochSampler(N, seed=3, epoch=1, rank=rank, world=2),
                num_workers=2,
            )
            ranks.append([everything[key(image)] for batch in loader for image in batch["image"]])
        runs.append(ranks)
    assert runs[0] == runs[1]  # same seed, same order
    assert not set(runs[0][0]) & set(runs[0][1]) and sorted(runs[0][0] + runs[0][1]) == list(
        range(N)
    )
    for start in (1, 5, 11):  # entered in mid-epoch: nothing again, nothing left out
        assert (
            list(EpochSampler(N, seed=3, epoch=1, rank=1, world=2, start=start))
            == runs[0][1][start:]
        )


@pytest.mark.parametrize(("n", "world"), [(1, 1), (5, 2), (7, 7), (3, 5), (100, 3)])
def test_shards_are_disjoint_and_whole(n, world):
    shards = [list(EpochSampler(n, seed=2, rank=rank, world=world)) for rank in range(world)]
    assert sorted(sum(shards, [])) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert [len(EpochSampler(n, seed=2, rank=rank, world=world)) for rank in range(world)] == list(
        map(len, shards)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 0},
        {"rank": 1},
        {"rank": -1},
        {"world": 0},
        {"epoch": -1},
        {"start": -1},
        {"seed": -1},
        {"n": 2.0},
    ],
)
def test_senseless_shards(settings):
    with pytest.raises(InputError):
        EpochSampler(**{"n": 5, **settings})


STREAMS = {
    "pack": lambda place, **settings: Batches(open_source(f"{place}/pack.npz"), **settings),
    "records": lambda place, seed, **settings: Batches(
        open_source(f"{place}/pieces.tfrecords", shuffle=6, seed=seed), **settings
    ),
    "folder": lambda place, **settings: Batches(
        open_source(f"{place}/outlined", resolution=35), **settings
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("batch_size", [1, 7, 24, 30])
def test_batches_depend_on_seed_and_step_alone(place, kind, batch_size):
    make = lambda seed=1: STREAMS[kind](place, batch_size=batch_size, seed=seed)
    look = lambda batch: [image.numpy().tobytes() for image in batch["image"]]
    steps = -(-3 * N // batch_size)  # three epochs
    stream = make()
    walked = [look(stream.batch(step)) for step in range(steps)]
    scenes = sum(walked, [])
    whole = sorted(look(pieces()))
    for epoch in range(3):
        assert sorted(scenes[epoch * N : (epoch + 1) * N]) == whole, (
            f"epoch {epoch} is not the whole"
        )
    assert scenes[:N] != scenes[N : 2 * N]
    for step in {steps - 1, 0, steps // 2, 1 % steps}:
        assert look(make().batch(step)) == walked[step] == look(stream.batch(step))
    assert (
        sum((look(make(seed=2).batch(step)) for step in range(2)), []) != scenes[: 2 * batch_size]
        or batch_size == 1
    )


def test_generated_batches_are_those_of_the_stream():
    for name in SPRITE_SETS:
        ours = Batches(open_source(name), 3, seed=5).batch(11)
        random = generator(5, name, "stream", 11)
        theirs = SPRITE_SETS[name].draw(3, generator=random)
        assert ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[key]) for key, value in ours.items()
        )


def test_generated_splits():
    for name in SPRITE_SETS:
        ours = GeneratedScenes(name, "train", seed=4)
        blocks = [
            SPRITE_SETS[name].draw(320, generator=generator(4, name, "train", i)) for i in range(2)
        ]
        theirs = {key: torch.cat([block[key] for block in blocks])[319:322] for key in blocks[0]}
        assert all(
            torch.equal(collate_rows(ours, range(319, 322))[key], value)
            for key, value in theirs.items()
        )


# What is held out


def test_held_out_scenes_are_never_trained_on(place):
    for source in ("pack.npz", "pieces.tfrecords", "outlined/", "CLEVR_v1.0"):
        for k in (1, 3, 320):
            train, n, aside = hold_out(located(place, source), k, resolution=35)
            stream = Batches(train, 4, 0, "cpu", 35, n)
            key = lambda image: image.numpy().tobytes()
            seen = {key(image) for step in range(12) for image in stream.batch(step)["image"]}
            many = 12 if "CLEVR" in source else N
            assert len(aside["image"]) == min(k, many // 5)
            assert not seen & {key(image) for image in aside["image"]} and len(seen) == many - len(
                aside["image"]
            )


def test_too_little_to_hold_out(tmp_path):
    save_pack(tmp_path / "four.npz", evaluation_scenes("tetrominoes", 4))
    write_tfrecords(
        tmp_path / "four.tfrecords",
        [
            encode_scene({key: value[i] for key, value in pieces().items()}, "tetrominoes")
            for i in range(4)
        ],
    )
    for name in ("four.npz", "four.tfrecords"):
        with pytest.raises(InputError, match="at least 5 scenes"):
            hold_out(str(tmp_path / name), 2)


def test_the_literatures_splits(place, monkeypatch):
    monkeypatch.setitem(
        RECORD_SPLITS,
        "tetrominoes",
        {"train": {"start": 0, "stop": 15}, "test": {"start": 15, "stop": 20}},
    )
    data, scenes = f"tetrominoes:{place}/pieces.tfrecords", pieces()
    assert torch.equal(collate_rows(open_source(data), range(15))["image"], scenes["image"][:15])
    assert torch.equal(evaluation_scenes(data, 5)["label"], scenes["label"][15:20])
    train, n, aside = hold_out(data, 3)
    assert (
        n is None and torch.equal(aside["image"], scenes["image"][15:18]) and len(list(train)) == 15
    )
    wrong = open_source(f"multi_dsprites_binarized:{place}/pieces.tfrecords")
    with pytest.raises(
        FileError, match="not a record of multi_dsprites_binarized.*it has the form of tetrominoes"
    ):
        next(iter(wrong))


# Folders


def test_folder_order_masks_and_sizes(place):
    data = ImageFolder(place / "outlined", resolution=35)
    assert [path.stem for path in data.paths] == [
        path.stem for path in sorted((place / "outlined").rglob("*.png")) if "mask" not in path.stem
    ]
    for i in (0, 7, N - 1):
        number = int(data.paths[i].stem)
        assert torch.equal(data[i]["image"], pieces()["image"][number]) and torch.equal(
            data[i]["label"], pieces()["label"][number]
        )
    small = ImageFolder(place / "outlined", resolution=20)[3]
    assert (
        small["image"].shape == (20, 20, 3)
        and small["label"].dtype == torch.uint8
        and set(small["label"].unique().tolist()) <= {0, 1, 2, 3}
    )


def test_folder_faults(tmp_path):
    with pytest.raises(FileError, match="there is no such folder"):
        ImageFolder(tmp_path / "gone")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    with pytest.raises(FileError, match="there are no images in this folder"):
        ImageFolder(tmp_path)
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(FileError, match="none of its 1 image files can be read"):
        ImageFolder(tmp_path, on_error="skip")
    for name, suffix in (("a", "JPG"), ("c", "bmp"), ("d", "tiff"), ("e", "webp"), ("f", "gif")):
        Image.new("RGB", (30, 20), "red").save(tmp_path / f"{name}.{suffix}")
    with pytest.raises(FileError, match="b.png: cannot be read as an image"):
        collate_rows(ImageFolder(tmp_path), range(6))
    careful = ImageFolder(tmp_path, resolution=8, on_error="skip")
    assert (len(careful), careful.skipped) == (5, 1) and collate_rows(careful, range(5))[
        "image"
    ].shape == (5, 8, 8, 3)
    Image.new("L", (30, 20)).save(tmp_path / "a_mask.png")
    with pytest.raises(FileError, match="c_mask.png: is missing"):
        ImageFolder(tmp_path, on_error="skip")
    for name in "cdef":
        mask = Image.new("P", (30, 20), 2)
        mask.putpalette(range(255, -1, -1))
        mask.save(tmp_path / f"{name}_mask.png")
    careful = ImageFolder(tmp_path, resolution=8, on_error="skip")
    assert [int(careful[i]["label"].max()) for i in range(5)] == [0, 2, 2, 2, 2]
    (tmp_path / "a_mask.png").write_bytes(b"no mask")
    with pytest.raises(FileError, match="a_mask.png: cannot be read as a mask"):
        careful[0]


def test_scaling_keeps_numbers_and_means():
    scenes = evaluation_scenes("multi_dsprites_colored_on_colored", 5)
    for side in (16, 64, 100):
        scaled = resize_scenes(scenes, side)
        assert scaled["image"].shape == (5, side, side, 3) and scaled["image"].dtype == torch.uint8
        assert set(scaled["label"].unique().tolist()) <= set(scenes["label"].unique().tolist())
        assert abs(scaled["image"].float().mean() - scenes["image"].float().mean()) < 1
        assert torch.equal(scaled["x"], scenes["x"])


# Converting


@pytest.mark.parametrize("source", SOURCES)
def test_convert_every_source(place, tmp_path, source, capsys):
    data = located(place, source)
    assert main(["convert", data, "--out", str(tmp_path / "out.npz"), "--n", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 3 and result["skipped"] == 0
    scenes = load_pack(tmp_path / "out.npz", labeled=False)
    expected = collate_rows(open_source(data), range(3))
    assert scenes.keys() == expected.keys() and all(
        torch.equal(value, expected[key]) for key, value in scenes.items()
    )
    assert isinstance(open_pack(tmp_path / "out.npz").arrays["image"], np.memmap)
    # not a second time
    assert main(["convert", data, "--out", str(tmp_path / "out.npz"), "--n", "3"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_convert_all_with_a_split_and_a_size(place, tmp_path, capsys):
    assert (
        main(
            [
                "convert",
                f"{place}/CLEVR_v1.0",
                "--split",
                "test",
                "--resolution",
                "16",
                "--out",
                str(tmp_path / "a.npz"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["n"] == 12 and open_pack(
        tmp_path / "a.npz"
    ).resolution == (16, 16)
    assert (
        main(["convert", "tetrominoes", "--split", "test", "--out", str(tmp_path / "b.npz")]) == 0
    )
    assert torch.equal(
        load_pack(tmp_path / "b.npz")["image"], evaluation_scenes("tetrominoes", 320)["image"]
    )
    capsys.readouterr()
    for words, message in (
        (["--split", "dev"], "no 'dev'"),
        (["--n", "0"], "n: expected"),
        (["--n", "13"], "≤ 12"),
        (["--resolution", "-1"], "resolution: expected"),
    ):
        assert (
            main(["convert", f"{place}/CLEVR_v1.0", "--out", str(tmp_path / "c.npz"), *words]) == 2
        )
        assert message in capsys.readouterr().err and not list(tmp_path.glob("c.npz*"))


def test_convert_skips_if_asked_and_counts(tmp_path, capsys):
    for i in range(6):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"x")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "out.npz")]) == 1
    assert "3.png: cannot be read as an image" in capsys.readouterr().err and not list(
        tmp_path.glob("out*")
    )
    assert (
        main(
            [
                "convert",
                str(tmp_path),
                "--out",
                str(tmp_path / "out.npz"),
                "--skip-errors",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["skipped"]) == (5, 1)
    assert load_pack(tmp_path / "out.npz", labeled=False)["image"][:, 0, 0, 0].tolist() == [
        0,
        1,
        2,
        4,
        5,
    ]


PROGRAM = """
import sys
from slot_attention_nbdev.data.sources import convert, draw_pack, open_source
from slot_attention_nbdev.data.sprites import SPRITE_SETS

def write(kind, out):
    if kind == "draw":
        draw_pack("tetrominoes", SPRITE_SETS["tetrominoes"], 4000, out, seed=3, progress=False)
    else:
        convert(open_source(kind), out, {"data": kind}, n=4000, progress=False)

if __name__ == "__main__":
    write(*sys.argv[1:])
"""


def parts(out):
    return len(list(Path(f"{out}.parts").glob("[0-9]*.npz")))


@pytest.mark.parametrize("kind", ["draw", "tetrominoes", "records"])
def test_killed_midway_and_resumed(tmp_path, kind):
    if kind == "records":
        scenes = evaluation_scenes("tetrominoes", 200)
        payloads = [
            encode_scene({key: value[i] for key, value in scenes.items()}, "tetrominoes")
            for i in range(200)
        ]
        write_tfrecords(tmp_path / "many.tfrecords", payloads * 20, None)
        kind = str(tmp_path / "many.tfrecords")
    out, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    command = [sys.executable, "-c", PROGRAM, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, str(out)], env=environment)
    end = time.monotonic() + 60
    while parts(out) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= parts(out) < 16 and not out.exists(), "it was not killed midway"
    with pytest.raises(FileError, match="is being written, or was left unfinished"):
        load_pack(out)
    exec(PROGRAM, program := {"__name__": "program"})
    if kind == "draw":  # by a process that knows nothing of the first, as after a real kill
        subprocess.run([*command, str(out)], env=environment, check=True, timeout=200)
    else:
        program["write"](kind, out)
    program["write"](kind, whole)
    assert out.read_bytes() == whole.read_bytes() and not Path(f"{out}.parts").exists()
    assert len(load_pack(out)["image"]) == 4000


def test_an_interrupted_conversion_does_not_read_again(tmp_path):
    class Source(torch.utils.data.Dataset):
        def __init__(self, limit):
            self.limit, self.asked = limit, []

        def __len__(self):
            return 700

        def __getitem__(self, i):
            self.asked.append(i)
            if i >= self.limit:
                raise KeyboardInterrupt
            return {"image": torch.full((4, 4, 3), i % 256, dtype=torch.uint8)}

    first, second = Source(600), Source(700)
    with pytest.raises(KeyboardInterrupt):
        convert(first, tmp_path / "a.npz", {}, progress=False)
    assert convert(second, tmp_path / "a.npz", {}, progress=False) == 700
    assert second.asked == list(range(512, 700))
    assert load_pack(tmp_path / "a.npz", labeled=False)["image"][:, 0, 0, 0].tolist() == [
        i % 256 for i in range(700)
    ]


def test_drawn_packs_begin_alike(tmp_path):
    draw_pack(
        "tetrominoes", SPRITE_SETS["tetrominoes"], 400, tmp_path / "a.npz", seed=1, progress=False
    )
    draw_pack(
        "tetrominoes", SPRITE_SETS["tetrominoes"], 10, tmp_path / "b.npz", seed=1, progress=False
    )
    assert torch.equal(
        load_pack(tmp_path / "a.npz", 10)["image"], load_pack(tmp_path / "b.npz")["image"]
    )


# Cards and wrong requests


def test_every_named_set_has_a_card(capsys):
    for name in {*GENERATED, *RECORD_SPLITS}:
        assert main(["data", name, "--card"]) == 0
        assert str(data_card(name)) in capsys.readouterr().out
    assert (
        json.loads((main(["data", "clevr6", "--card", "--json"]), capsys.readouterr().out)[1])
        == DATA_CARDS["clevr6"]._asdict()
    )
    assert (
        main(["data", "clevr7", "--card"]) == 2
        and "did you mean 'clevr'?" in capsys.readouterr().err
    )
    assert (
        main(["data", "tetrominoes"]) == 2
        and "out: expected a name that ends in .png" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("data", "error", "words"), [
    ("tetromino", InputError, "did you mean 'tetrominoes'?"),
    ("clevr6:absent.tfrecords", FileError, "absent.tfrecords: there is no such file"),
    ("absent*.tfrecords", FileError, "there is no such file"),
    ("absent.npz", FileError, "there is no such file"),
    ("absent/photos", FileError, "there is no such folder"),
    ("clevr6:pack.npz", InputError, "cannot stand before a pack"),
    ("tetrominoes:photos/", InputError, "cannot stand before a folder"),
    ("tetrominoes:CLEVR_v1.0", InputError, "cannot stand before a clevr"),
    ("", InputError, "data: unknown ''"),
])  # fmt: skip
def test_wrong_data(place, data, error, words, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(error) as found:
        open_source(data)
    assert words in str(found.value)


def test_clevr_by_name_takes_few_objects(place):
    counts = [int(scene["visibility"].sum()) for scene in ClevrFiles(place / "CLEVR_v1.0")]
    few = open_source(f"clevr6:{place}/CLEVR_v1.0")
    assert [int(scene["visibility"].sum()) for scene in few] == [n for n in counts if n <= 6]
    assert len(open_source(f"clevr10:{place}/CLEVR_v1.0")) == len(counts)


def test_denoised_packs(tmp_path, capsys):
    pytest.importorskip("pyoidn")
    plain, clean = (tmp_path / f"{name}.npz" for name in ("plain", "clean"))
    assert (
        main(["data", "clevr6", "--n", "2", "--out", str(plain)])
        == main(["data", "clevr6", "--n", "2", "--out", str(clean), "--denoise"])
        == 0
    )
    noisy, quiet = load_pack(plain), load_pack(clean)
    assert torch.equal(noisy["label"], quiet["label"]) and not torch.equal(
        noisy["image"], quiet["image"]
    )
    rough = lambda scenes: scenes["image"].float().diff(dim=2).abs().mean()
    assert rough(quiet) < 0.7 * rough(noisy)
    assert main(["data", "tetrominoes", "--n", "2", "--out", str(plain), "--denoise"]) == 2
    assert "denoise: only traced scenes have noise to take out" in capsys.readouterr().err


def test_denoised_by_several_processes_after_denoising_here():
    """The denoiser keeps threads.

    A worker that is a copy of this process would wait for them for ever.
    """
    pytest.importorskip("pyoidn")
    spec = generated_set("clevr6", denoised=True)._replace(block=1)
    alone, shared = (list(draw_blocks("clevr6", spec, 2, cores=cores)) for cores in (1, 2))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, shared, strict=True))


def test_training_on_traced_scenes(tmp_path):
    assert (
        main(
            [
                "train",
                "tiny",
                "data=clevr6",
                "steps=2",
                "batch_size=1",
                "eval_images=2",
                "eval_every=2",
                "--out",
                str(tmp_path / "run"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    record = load_record(tmp_path / "run" / "record.json")
    assert record["finished"] and record["final"]["n"] == 2 and np.isfinite(record["final"]["mse"])


def test_traced_scenes_at_any_size_show_the_same_world():
    small, large = (GeneratedScenes("clevr6", "test", resolution=side)[3] for side in (32, 64))
    assert small["image"].shape == (32, 32, 3) and large["label"].shape == (64, 64)
    for key in ("coords", "color", "visibility") if "coords" in small else ("visibility",):
        assert torch.equal(small[key], large[key])
    agree = (small["label"] == large["label"][1::2, 1::2]).float().mean()
    assert agree > 0.9  # the same objects in the same places, but for outlines
    # pixel art has one size
    assert GeneratedScenes("tetrominoes", resolution=20).resolution == (35, 35)


# Fixed splits, drawn once


def look(batch):
    return [image.numpy().tobytes() for image in batch["image"]]


def test_a_fixed_split_is_drawn_once_and_walked_through_in_epochs(tmp_path):
    make = lambda: hold_out("tetrominoes", 4, scenes=8, cache=str(tmp_path), progress=False)
    source, n, _ = make()
    (file,) = tmp_path.glob("*.npz")
    before = file.stat().st_mtime_ns
    assert make()[1] == n == 8 and file.stat().st_mtime_ns == before
    split = collate_rows(GeneratedScenes("tetrominoes"), range(8))
    scenes = source[list(range(8))]
    assert all(torch.equal(scenes[name], value) for name, value in split.items())
    stream = Batches(source, 3, seed=1, n=n)
    shown = [image for step in range(16) for image in look(stream.batch(step))]
    for start in range(0, 48, 8):
        epoch = shown[start : start + 8]
        assert sorted(epoch) == sorted(shown[:8]) and len(set(epoch)) == 8
    assert hold_out("tetrominoes", 4)[1] is None


def test_traced_splits_by_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "count_cores", lambda: 2)
    source, n, held_out = hold_out("clevr6", 3, 16, scenes=33, cache=str(tmp_path), progress=False)
    in_order = GeneratedScenes("clevr6", resolution=16)
    assert n == 33 and len(in_order) == 70_000
    for row in (0, 32):
        assert all(torch.equal(source[row][key], each) for key, each in in_order[row].items())
    aside = GeneratedScenes("clevr6", "test", resolution=16)
    assert torch.equal(held_out["label"][2], aside[2]["label"])
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [
        "clevr6-test-3-16x16-v1.npz",
        "clevr6-train-33-16x16-v1.npz",
    ]


def test_a_split_of_another_version_is_not_used(tmp_path, monkeypatch):
    fixed_split("tetrominoes", 5, cache=tmp_path, progress=False)
    monkeypatch.setattr(sources, "DATA_VERSION", 99)
    fixed_split("tetrominoes", 5, cache=tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.npz"))) == 2


SPLIT = """
import sys
from slot_attention_nbdev.data.sources import fixed_split
fixed_split("tetrominoes", 6000, cache=sys.argv[1], progress=False)
"""


def test_a_split_is_drawn_on_after_a_kill_by_one_of_two(tmp_path):
    start = lambda: subprocess.Popen(
        [sys.executable, "-c", SPLIT, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    done = lambda: sorted(tmp_path.glob("*.parts/[0-9]*.npz"))
    process, end = start(), time.monotonic() + 60
    while len(done()) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in done()[:2]}
    assert len(before) == 2 and not list(tmp_path.glob("*.npz")), "it was not killed midway"
    pair = [start(), start()]
    while not list(tmp_path.glob("*.npz")) and None in [each.poll() for each in pair]:
        assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.exists())
        time.sleep(0.005)
    assert [each.wait(100) for each in pair] == [0, 0]
    (file,) = tmp_path.glob("*.npz")
    split = open_pack(file, checked=True)
    assert len(split) == 6000 and not list(tmp_path.glob("*.parts"))
    last = GeneratedScenes("tetrominoes")[5999]
    assert all(torch.equal(split[5999][name], value) for name, value in last.items())


def test_a_full_disk_leaves_no_half_of_a_split(tmp_path, monkeypatch):
    from slot_attention_nbdev.data import files

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for name in (
        "savez_compressed",
        "load",
    ):  # while a part is written; while they are put together
        with monkeypatch.context() as patched:
            patched.setattr(files.np, name, full)
            with pytest.raises(FileError, match="cannot be written: No space left"):
                fixed_split("tetrominoes", 700, cache=tmp_path, progress=False)
        assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.rglob("*.part.npz"))
    assert len(fixed_split("tetrominoes", 700, cache=tmp_path, progress=False)) == 700
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"):
        fixed_split("tetrominoes", 7, cache=tmp_path / "file" / "deep", progress=False)


# For a GPU


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    "The ways of a GPU, on the CPU."
    monkeypatch.setattr(sources, "counting_is_free", lambda device: False)
    monkeypatch.setattr(sprites, "counting_is_free", lambda device: False)


STREAMS_OF_FILES = {kind: STREAMS[kind] for kind in ("pack", "records", "folder")}


@pytest.mark.parametrize("kind", STREAMS_OF_FILES)
def test_a_gpu_gets_the_same_batches(place, kind, request):
    make = lambda **rest: STREAMS_OF_FILES[kind](place, batch_size=7, seed=1, **rest)
    plain = make()
    order = (0, 1, 2, 3, 4, 2, 9, 10)
    expected = [plain.batch(step) for step in order]
    request.getfixturevalue("as_on_a_gpu")
    for world in (1, 2):
        ranks = [make(rank=rank, world=world) for rank in range(world)]
        assert all((each.table is not None) == (kind == "pack") for each in ranks)
        for step, batch in zip(order, expected):
            shares = [each.batch(step) for each in ranks]
            for name, value in batch.items():
                assert torch.equal(torch.cat([share[name] for share in shares]), value)


def test_a_reader_hands_errors_on(place, as_on_a_gpu, monkeypatch):
    stream = STREAMS["folder"](place, batch_size=2, seed=1)
    monkeypatch.setattr(
        ImageFolder, "__getitem__", lambda *_: (_ for _ in ()).throw(FileError("x"))
    )
    with pytest.raises(FileError):
        stream.batch(0)


# Shares


def test_a_rank_draws_its_own_scenes(monkeypatch):
    drawn = []
    plain = SPRITE_SETS["tetrominoes"].draw
    for world, most in ((1, 64), (2, 32), (8, 8), (3, 32)):
        whole = Batches(GeneratedScenes("tetrominoes"), 64, seed=4).batch(3)
        shares = []
        for rank in range(world):
            source = GeneratedScenes("tetrominoes")
            draw = lambda n, **rest: drawn.append(n) or plain(n, **rest)
            source.spec = source.spec._replace(draw=draw)
            drawn.clear()
            shares.append(Batches(source, 64, seed=4, rank=rank, world=world).batch(3))
            assert sum(drawn) <= most
        assert all(
            torch.equal(torch.cat([share[name] for share in shares]), value)
            for name, value in whole.items()
        )


def test_a_rank_decodes_its_own_records(place, monkeypatch):
    from slot_attention_nbdev.data import tfrecord_dataset

    decoded, plain = [], tfrecord_dataset.decode_scene
    monkeypatch.setattr(
        tfrecord_dataset, "decode_scene", lambda *args: decoded.append(1) or plain(*args)
    )
    make = lambda rank, world: STREAMS["records"](
        place, batch_size=8, seed=1, rank=rank, world=world
    )
    whole = look(make(0, 1).batch(5))
    decoded.clear()
    shares = []
    for rank in range(4):
        stream = make(rank, 4)
        shares += look([stream.batch(step) for step in range(6)][5])
    assert shares == whole and len(decoded) == 6 * 8
