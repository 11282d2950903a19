"""Wrong input of every kind: each is a clear error with the right exit code, and nothing is lost.

Two tables, one for calls and one for command lines; a row is: case, call or command line, error or
exit code, words that must appear.
Below them, what needs a process of its own: a full disk, Ctrl-C in mid-step.
"""

import hashlib
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import (
    FileError,
    InputError,
    TrainingError,
    generator,
    resolve_device,
)
from slot_attention_nbdev.data.files import load_pack, save_pack
from slot_attention_nbdev.data.sources import GeneratedScenes, evaluation_scenes
from slot_attention_nbdev.data.sprites import multi_dsprites, tetrominoes, to_model
from slot_attention_nbdev.metrics.segmentation import (
    adjusted_rand_index,
    mean_iou,
    segmentation_metrics,
)
from slot_attention_nbdev.models.autoencoder import paper_autoencoder
from slot_attention_nbdev.models.original import load_original, original_slot_attention
from slot_attention_nbdev.models.framed import framed_autoencoder
from slot_attention_nbdev.models.weights import load_record
from slot_attention_nbdev.nn.decoder import BroadcastDecoder
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.train import tasks as objective
from slot_attention_nbdev.train.checkpoints import load_checkpoint
from slot_attention_nbdev.train.recipes import get_recipe, parse_overrides
from slot_attention_nbdev.train.trainer import evaluate, load_model, parse_budget, train
from slot_attention_nbdev.viz import plot_decomposition, slot_statistics

nan, zeros = float("nan"), torch.zeros
integers = lambda *shape: zeros(*shape, dtype=torch.long)
module = lambda: SlotAttention(8, slot_dim=16, num_slots=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory, run):
    """A folder with a finished run and one bad file of each kind.

    No command of the table may change it.
    """
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(run, place / "run")
    (place / "empty").mkdir()
    (place / "text.npz").write_text("not a zip archive")
    (place / "text.png").write_text("not an image")
    scenes = {name: value.numpy() for name, value in evaluation_scenes("tetrominoes", 4).items()}
    image, label = scenes["image"], scenes["label"]
    save = lambda name, **arrays: np.savez(place / name, **arrays)
    save("good.npz", **scenes)
    save("no_label.npz", image=image)
    save("no_image.npz", label=label)
    save("float.npz", image=image / 255, label=label)
    save("signed.npz", image=image, label=label.astype(np.int64))
    save("small_label.npz", image=image, label=label[:, :20])
    save("few_labels.npz", image=image, label=label[:2])
    save("grey.npz", image=image[..., :1], label=label)
    save("one.npz", image=image[0], label=label[0])
    save("none.npz", image=image[:0], label=label[:0])
    save("nan.npz", image=image, label=label, x=np.full((4, 3), np.nan))
    save("objects.npz", image=image, label=label, names=np.array([{}] * 4, dtype=object))
    save(
        "large.npz", image=np.zeros((2, 64, 64, 3), np.uint8), label=np.zeros((2, 64, 64), np.uint8)
    )
    good = (place / "good.npz").read_bytes()
    (place / "cut.npz").write_bytes(good[: len(good) // 2])
    (place / "flipped.npz").write_bytes(good[:3000] + bytes([good[3000] ^ 255]) + good[3001:])
    Image.fromarray(image[0]).save(place / "scene.png")
    (place / "cut.png").write_bytes((place / "scene.png").read_bytes()[:150])
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(place / "nan.tiff")
    for name in ("checkpoint.pt", "model.safetensors"):
        content = (place / "run" / name).read_bytes()
        middle = len(content) // 2
        (place / f"cut_{name}").write_bytes(content[:middle])
        (place / f"flipped_{name}").write_bytes(
            content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        )
    torch.save(torch.nn.Linear(2, 2).state_dict(), place / "foreign.pt")
    save_file({"weight": zeros(2)}, place / "foreign.safetensors")
    (place / "evil.pt").write_bytes(pickle.dumps(Evil()))
    return place


class Evil:
    "A pickle that would run a command when it is read."

    def __reduce__(self):
        return os.system, ("exit 1",)


def snapshot(folder):
    "Every file below a folder with a digest of its content."
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


CALLS = [
    # case, call, error, words
    (
        "inputs of the wrong rank",
        lambda place: module()(zeros(4, 8)),
        InputError,
        "inputs: expected shape [B, N, ",
    ),
    (
        "inputs of the wrong width",
        lambda place: module()(zeros(1, 4, 9)),
        InputError,
        "=8], got [1, 4, 9]",
    ),
    (
        "inputs that are no tensor",
        lambda place: module()([[1.0]]),
        InputError,
        "inputs: expected a tensor",
    ),
    (
        "K = 0 in a call",
        lambda place: module()(zeros(1, 4, 8), num_slots=0),
        InputError,
        "num_slots: expected an integer ≥ 1, got 0",
    ),
    (
        "T = 0 in a call",
        lambda place: module()(zeros(1, 4, 8), num_iterations=0),
        InputError,
        "num_iterations: expected an integer ≥ 1, got 0",
    ),
    (
        "K = -1 in the constructor",
        lambda place: SlotAttention(8, num_slots=-1),
        InputError,
        "num_slots",
    ),
    (
        "T = 2.5 in the constructor",
        lambda place: SlotAttention(8, num_iterations=2.5),
        InputError,
        "num_iterations",
    ),
    ("K = True", lambda place: SlotAttention(8, num_slots=True), InputError, "num_slots"),
    (
        "slots of the wrong width",
        lambda place: module()(zeros(1, 4, 8), slots=zeros(1, 3, 9)),
        InputError,
        "slots",
    ),
    (
        "slots of another batch",
        lambda place: module()(zeros(2, 4, 8), slots=zeros(3, 3, 16)),
        InputError,
        "slots",
    ),
    (
        "slots and num_slots disagree",
        lambda place: module()(zeros(1, 4, 8), slots=zeros(1, 3, 16), num_slots=4),
        InputError,
        "slots: expected shape [B=1, K=4, D=16], got [1, 3, 16]",
    ),
    (
        "four channels",
        lambda place: framed_autoencoder()(zeros(1, 4, 35, 35)),
        InputError,
        "image: expected shape [B, C=3, H=35, W=35], got [1, 4, 35, 35]",
    ),
    (
        "channels last",
        lambda place: framed_autoencoder()(zeros(1, 35, 35, 3)),
        InputError,
        "image: expected shape",
    ),
    (
        "one image without a batch",
        lambda place: framed_autoencoder()(zeros(3, 35, 35)),
        InputError,
        "image: expected shape",
    ),
    (
        "another resolution",
        lambda place: framed_autoencoder()(zeros(1, 3, 64, 64)),
        InputError,
        "got [1, 3, 64, 64]",
    ),
    (
        "a decoder that misses its resolution",
        lambda place: BroadcastDecoder(8, (35, 35)),
        InputError,
        "resolution",
    ),
    (
        "128-pixel model, odd size",
        lambda place: paper_autoencoder((100, 100)),
        InputError,
        "resolution: broadcast (6, 6)",
    ),
    (
        "bytes expected, floats given",
        lambda place: to_model(zeros(1, 4, 4, 3)),
        InputError,
        "image: expected uint8, got torch.float32",
    ),
    (
        "labels of another size",
        lambda place: mean_iou(integers(1, 4, 4), integers(1, 4, 5)),
        InputError,
        "expected the same images",
    ),
    (
        "labels as floats",
        lambda place: adjusted_rand_index(zeros(1, 4, 4), integers(1, 4, 4)),
        InputError,
        "labels: expected integers",
    ),
    (
        "negative labels",
        lambda place: adjusted_rand_index(integers(1, 4, 4) - 1, integers(1, 4, 4)),
        InputError,
        "0…255",
    ),
    (
        "masks with NaN",
        lambda place: segmentation_metrics(integers(1, 4, 4), zeros(1, 2, 4, 4) + nan),
        InputError,
        "finite",
    ),
    (
        "scenes without labels",
        lambda place: evaluate(framed_autoencoder(), {"image": zeros(1, 35, 35, 3).byte()}),
        InputError,
        "there is no label",
    ),
    (
        "labels of another size to draw",
        lambda place: slot_statistics(zeros(1, 2, 4, 4), zeros(1, 5, 5)),
        InputError,
        "label: expected shape",
    ),
    (
        "an image of another batch to draw",
        lambda place: plot_decomposition(
            zeros(2, 3, 35, 35), framed_autoencoder()(zeros(1, 3, 35, 35))
        ),
        InputError,
        "masks: expected shape",
    ),
    ("a negative seed", lambda place: generator(-1), InputError, "seed: expected an integer ≥ 0"),
    (
        "no such device",
        lambda place: resolve_device("gpu"),
        InputError,
        "device: expected auto, cpu, cuda",
    ),
    (
        "a device this machine lacks",
        lambda place: resolve_device("cuda:99"),
        InputError,
        "not available",
    ),
    ("no scenes", lambda place: tetrominoes(0), InputError, "n: expected an integer ≥ 1"),
    (
        "more scenes than the split holds",
        lambda place: evaluation_scenes("tetrominoes", 321),
        InputError,
        "≤ 320",
    ),
    (
        "a variant misspelt",
        lambda place: multi_dsprites(1, "coloured_on_grayscale"),
        InputError,
        "did you mean 'colored_on_grayscale'?",
    ),
    (
        "a data set misspelt",
        lambda place: GeneratedScenes("tetromino"),
        InputError,
        "did you mean 'tetrominoes'?",
    ),
    (
        "a recipe misspelt",
        lambda place: get_recipe("tetrominoes_quick"),
        InputError,
        "did you mean 'tetrominoes_",
    ),
    (
        "a setting misspelt",
        lambda place: parse_overrides(["lerning_rate=1"]),
        InputError,
        "did you mean 'learning_rate'?",
    ),
    (
        "a budget without a unit",
        lambda place: parse_budget("5"),
        InputError,
        "budget: expected a time such as",
    ),
    (
        "a pack without labels to write",
        lambda place: save_pack(place / "new.npz", {"image": zeros(1, 4, 4, 3).byte()}),
        InputError,
        "no array 'label'",
    ),
    (
        "a pack of floats to write",
        lambda place: save_pack(
            place / "new.npz", {"image": zeros(1, 4, 4, 3), "label": zeros(1, 4, 4)}
        ),
        InputError,
        "expected uint8",
    ),
    (
        "more scenes than the pack holds",
        lambda place: load_pack(place / "good.npz", 5),
        InputError,
        "≤ 4",
    ),
    (
        "arrays of another model",
        lambda place: load_original(original_slot_attention(), {"weights/nothing": np.zeros(3)}),
        InputError,
        "missing slots_mu",
    ),
    (
        "weights that are a text",
        lambda place: load_model(place / "text.npz"),
        FileError,
        "text.npz",
    ),
    ("a loss that explodes", lambda place: train_to_nan(place), TrainingError, "not finite"),
]


def train_to_nan(place):
    "Train with a loss that is not a number."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective.F, "mse_loss", lambda x, y: (x - y).square().mean() * nan)
        return train(
            get_recipe("tiny", steps=5, eval_images=4),
            place.parent / "nan",
            device="cpu",
            progress=False,
        )


LINES = [
    # case, command line, exit code, words
    ("no verb", "", 2, "usage: slot-attention"),
    ("a verb misspelt", "trian tiny", 2, "invalid choice: 'trian'"),
    ("an unknown option", "recipes --colour", 2, "unrecognized arguments: --colour"),
    ("an abbreviated option", "train tiny --see 1", 2, "unrecognized arguments: --see"),
    (
        "too many words",
        "data tetrominoes --out {place}/a.png b.png",
        2,
        "unrecognized arguments: b.png",
    ),
    ("no recipe", "train", 2, "required: RECIPE, or --config FILE"),
    (
        "a recipe that does not exist",
        "train tetrominos_small",
        2,
        "did you mean 'tetrominoes_small'?",
    ),
    ("settings of a recipe that does not exist", "recipes tinny --json", 2, "did you mean 'tiny'?"),
    ("a key that does not exist", "train tiny learningrate=1", 2, "did you mean 'learning_rate'?"),
    ("a value of the wrong type", "train tiny steps=many", 2, "steps: expected an integer"),
    ("a value out of range", "train tiny num_slots=0", 2, "num_slots: expected an integer ≥ 1"),
    (
        "a rate that is no number",
        "train tiny learning_rate=nan",
        2,
        "learning_rate: expected a number",
    ),
    ("a choice that does not exist", "train tiny model=frmaed", 2, "did you mean 'framed'?"),
    ("a key without a value", "train tiny steps", 2, "setting: expected key=value, got 'steps'"),
    ("a key given twice", "train tiny steps=1 steps=2", 2, "steps: given twice"),
    ("a budget that is no time", "train tiny --budget soon", 2, "budget: expected a time such as"),
    ("an empty budget", "train tiny --budget ''", 2, "budget: expected a time such as"),
    ("a seed that is no number", "train tiny --seed one", 2, "--seed: invalid int value"),
    (
        "a negative seed",
        "train tiny --seed -1 --out {place}/new",
        2,
        "seed: expected an integer ≥ 0",
    ),
    (
        "a device that does not exist",
        "train tiny --device gpu --out {place}/new",
        2,
        "device: expected auto, cpu",
    ),
    ("data that do not exist", "train tiny data=tetromino", 2, "did you mean 'tetrominoes'?"),
    (
        "a pack to train on that is not there",
        "train tiny data={place}/absent.npz --out {place}/new",
        1,
        "there is no such file",
    ),
    ("a folder that holds a run", "train tiny --out {place}/run", 2, "already holds a run"),
    (
        "a folder that holds another run",
        "train tiny steps=9 --out {place}/run --resume",
        2,
        "steps was 12 and is now 9",
    ),
    (
        "another seed to resume",
        "train tiny steps=4 log_every=2 eval_images=4 --seed 1 --out {place}/run --resume",
        2,
        "seed was 0 and is now 1",
    ),
    ("nothing to resume", "train tiny --out {place}/empty --resume", 2, "there is no checkpoint"),
    (
        "a folder that is a file",
        "train tiny --out {place}/scene.png",
        2,
        "is a file; name a folder",
    ),
    ("a folder below a file", "train tiny --out {place}/scene.png/run", 1, "scene.png"),
    ("no data named", "evaluate {place}/run", 2, "required: --data"),
    ("data misspelt", "evaluate {place}/run --data tetrominos", 2, "did you mean 'tetrominoes'?"),
    (
        "zero images",
        "evaluate {place}/run --data tetrominoes --n 0",
        2,
        "n: expected an integer ≥ 1, got 0",
    ),
    ("more images than held out", "evaluate {place}/run --data tetrominoes --n 321", 2, "≤ 320"),
    (
        "a pack that is not there",
        "evaluate {place}/run --data absent.npz",
        1,
        "there is no such file",
    ),
    (
        "a pack without labels",
        "evaluate {place}/run --data {place}/no_label.npz",
        1,
        "no array 'label'",
    ),
    (
        "a pack without images",
        "evaluate {place}/run --data {place}/no_image.npz",
        1,
        "no array 'image'",
    ),
    (
        "a pack of floats",
        "evaluate {place}/run --data {place}/float.npz",
        1,
        "'image': expected uint8",
    ),
    (
        "a pack with wide labels",
        "evaluate {place}/run --data {place}/signed.npz",
        1,
        "'label': expected uint8 [N, H, W], got int64",
    ),
    (
        "labels of another size",
        "evaluate {place}/run --data {place}/small_label.npz",
        1,
        "expected the images' size [4, 35, 35], got [4, 20, 35]",
    ),
    (
        "fewer labels than images",
        "evaluate {place}/run --data {place}/few_labels.npz",
        1,
        "got [2, 35, 35]",
    ),
    (
        "a pack of grey images",
        "evaluate {place}/run --data {place}/grey.npz",
        1,
        "expected uint8 [N, H, W, 3]",
    ),
    (
        "a pack of one image without N",
        "evaluate {place}/run --data {place}/one.npz",
        1,
        "expected uint8 [N, H, W, 3]",
    ),
    (
        "a pack of no images",
        "evaluate {place}/run --data {place}/none.npz",
        1,
        "at least one image",
    ),
    (
        "a pack with NaN",
        "evaluate {place}/run --data {place}/nan.npz",
        1,
        "'x': expected finite numbers",
    ),
    (
        "a pack with Python objects",
        "evaluate {place}/run --data {place}/objects.npz",
        1,
        "objects.npz",
    ),
    ("a pack cut short", "evaluate {place}/run --data {place}/cut.npz", 1, "cut short"),
    ("a pack with a flipped bit", "evaluate {place}/run --data {place}/flipped.npz", 1, "damaged"),
    (
        "a pack that is a text",
        "evaluate {place}/run --data {place}/text.npz",
        1,
        "not a zip archive",
    ),
    (
        "a pack of larger images",
        "evaluate {place}/run --data {place}/large.npz",
        2,
        "image: expected shape [B, C=3, H=35, W=35], got [2, 3, 64, 64]",
    ),
    (
        "weights that are not there",
        "evaluate absent/model.safetensors --data tetrominoes",
        1,
        "no such file or folder",
    ),
    ("weights misspelt", "evaluate tetromino --data tetrominoes", 2, "no shipped weights"),
    (
        "a folder without a model",
        "evaluate {place}/empty --data tetrominoes",
        1,
        "no model and no checkpoint",
    ),
    (
        "a checkpoint cut short",
        "evaluate {place}/cut_checkpoint.pt --data tetrominoes",
        1,
        "cut short",
    ),
    (
        "a checkpoint with a flipped bit",
        "evaluate {place}/flipped_checkpoint.pt --data tetrominoes",
        1,
        "flipped_checkpoint.pt",
    ),
    (
        "weights cut short",
        "evaluate {place}/cut_model.safetensors --data tetrominoes",
        1,
        "cut short",
    ),
    (
        "weights with a flipped bit",
        "evaluate {place}/flipped_model.safetensors --data tetrominoes",
        1,
        "altered",
    ),
    (
        "a foreign checkpoint",
        "evaluate {place}/foreign.pt --data tetrominoes",
        1,
        "not a checkpoint of this library",
    ),
    (
        "foreign weights",
        "evaluate {place}/foreign.safetensors --data tetrominoes",
        1,
        "not written by this library",
    ),
    (
        "a checkpoint that would run code",
        "evaluate {place}/evil.pt --data tetrominoes",
        1,
        "evil.pt",
    ),
    (
        "an image that is not there",
        "segment {place}/run {place}/scene.png {place}/absent.png --out {place}/out",
        1,
        "there is no such file",
    ),
    (
        "an image that is a text",
        "segment {place}/run {place}/text.png --out {place}/out",
        1,
        "cannot be read as an image",
    ),
    (
        "an image cut short",
        "segment {place}/run {place}/cut.png --out {place}/out",
        1,
        "cannot be read as an image",
    ),
    (
        "an empty folder of images",
        "segment {place}/run {place}/empty --out {place}/out",
        1,
        "there are no images in this folder",
    ),
    (
        "an image with NaN",
        "segment {place}/run {place}/nan.tiff --out {place}/out",
        1,
        "expected finite pixels",
    ),
    ("no image", "segment {place}/run --out {place}/out", 2, "required: IMAGE"),
    (
        "an output folder that is a file",
        "segment {place}/run {place}/scene.png --out {place}/text.png",
        1,
        "cannot be written",
    ),
    ("a data set misspelt", "data tetromino --out {place}/a.png", 2, "did you mean 'tetrominoes'?"),
    (
        "a sheet in an odd format",
        "data tetrominoes --out {place}/a.gif",
        2,
        "ends in .png (a sheet) or .npz (a dataset file)",
    ),
    (
        "a sheet of thousands",
        "data tetrominoes --n 5000 --out {place}/a.png",
        2,
        "n: expected an integer ≥ 1 and ≤ 512",
    ),
    (
        "no scenes",
        "data tetrominoes --n 0 --out {place}/a.npz",
        2,
        "n: expected an integer ≥ 1, got 0",
    ),
    (
        "a pack below a file",
        "data tetrominoes --out {place}/scene.png/a.npz",
        1,
        "cannot be written",
    ),
    ("a pack over a folder", "data tetrominoes --out {place}/run/../run", 2, "ends in .png"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS]
)
def test_call(call, error, words, place):
    before = snapshot(place)
    with pytest.raises(error) as caught:
        call(place)
    assert words in str(caught.value)
    assert snapshot(place) == before


@pytest.mark.parametrize(
    ("line", "code", "words"), [row[1:] for row in LINES], ids=[row[0] for row in LINES]
)
def test_line(line, code, words, place, capsys):
    before = snapshot(place)
    found = main(shlex.split(line.format(place=place)))
    out, err = capsys.readouterr()
    assert found == code and words in err, err
    assert out == "" and "Traceback" not in err
    assert snapshot(place) == before  # nothing lost, nothing half made


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize(
    "line",
    [
        "train tiny steps=3 eval_images=4 --device cpu --out {new}/run",
        "segment {place}/run {place}/scene.png --out {new}",
        "data tetrominoes --out {new}/a.npz",
        "data tetrominoes --out {new}/a.png",
        "data tetrominoes --out {old}/good.npz",
    ],
)
def test_no_space(line, call, place, tmp_path, monkeypatch, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(place / "good.npz", old)
    before = snapshot(old)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:  # whatever the commands write with
        for owner, name in (
            (Path, "write_bytes"),
            (np, "savez_compressed"),
            (Image.Image, "save"),
            (Figure, "savefig"),
        ):
            monkeypatch.setattr(owner, name, full)
    assert main(shlex.split(line.format(place=place, old=old, new=new))) == 1
    out, err = capsys.readouterr()
    assert "No space left on device" in err and "Traceback" not in err and out == ""
    assert snapshot(old) == before and not [
        p for p in new.rglob("*") if p.suffix in (".png", ".npz", ".pt") or ".part" in p.name
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_record_that_cannot_be_written_keeps_the_old_one(tmp_path):
    from slot_attention_nbdev.core import atomic_write

    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(FileError, match="No space left on device"),
        atomic_write(tmp_path / "a.txt"),
        open("/dev/full", "w") as full,
    ):
        full.write("new" * 10_000)
    assert snapshot(tmp_path).keys() == {"a.txt"} and (tmp_path / "a.txt").read_text() == "old"


LONG = (
    "train tiny steps=100000 batch_size=1 eval_images=1 eval_every=100000 checkpoint_every=1"
    " --device cpu --out {out}"
)


def start(line):
    command = [
        sys.executable,
        "-c",
        "from slot_attention_nbdev.cli import console; console()",
        *shlex.split(line),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, condition, limit=90):
    "Look again and again, with hardly a pause, until the condition holds."
    end = time.monotonic() + limit
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=10)
        time.sleep(0.0005)


def test_ctrl_c_in_training(tmp_path):
    "Ctrl-C somewhere in a step or in a save: the run ends in order and says how to go on."
    out = tmp_path / "run"
    steps = lambda: (
        load_record(out / "record.json")["step"] if (out / "record.json").exists() else 0
    )
    process = start(LONG.format(out=out))
    wait_for(process, lambda: steps() >= 3)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and printed == "" and "Traceback" not in errors
    assert "stopped after step" in errors and "nothing is lost; go on with --resume" in errors
    state = load_checkpoint(out / "checkpoint.pt")
    record = load_record(out / "record.json")
    assert state["step"] == record["step"] >= 3 and record["finished"] is False
    assert not list(out.glob(".*.part*"))
    json.dumps(record, allow_nan=False)


def test_ctrl_c_outside_of_training(monkeypatch, capsys):
    from slot_attention_nbdev.data import sprites

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(
        sprites.SPRITE_SETS,
        "tetrominoes",
        sprites.SPRITE_SETS["tetrominoes"]._replace(draw=interrupted),
    )
    assert main(["data", "tetrominoes", "--out", "never.png"]) == 1
    assert (
        capsys.readouterr().err == "slot-attention: interrupted\n"
        and not Path("never.png").exists()
    )


def test_an_error_of_ours_is_one_line_too(monkeypatch, capsys):
    from slot_attention_nbdev.train import recipes

    monkeypatch.setattr(recipes, "to_dict", lambda recipe: 1 / 0)
    assert main(["recipes", "tiny"]) == 1
    assert (
        capsys.readouterr().err
        == "slot-attention: unexpected ZeroDivisionError: division by zero (--debug shows where)\n"
    )
