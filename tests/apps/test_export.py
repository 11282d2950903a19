"""A model as one file gives the model's own answers, in both formats, for any number of images."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import skip_or_fail
from PIL import Image

from slot_attention_nbdev.apps import export
from slot_attention_nbdev.apps.export import CONTRACT, export_segmenter
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.framed import framed_autoencoder
from slot_attention_nbdev.nn.variants import Implicit, with_attention


def images(n, size=(35, 35)):
    return torch.randint(256, (n, *size, 3), dtype=torch.uint8, generator=generator(n, "test"))


def expected(model, image, seed):
    "What the model itself says of each image alone, from the noise of `segment`."
    with torch.no_grad():
        found = [model(to_model(each[None]), generator=generator(seed, "slots")) for each in image]
    masks = torch.cat([each.masks for each in found])
    error = torch.cat([each.reconstruction for each in found]) - to_model(image)
    return {"masks": masks, "mse": error.square().mean(dim=(1, 2, 3))}


def check(found, wanted):
    assert found["label"].dtype == torch.uint8
    assert torch.equal(found["label"].long(), found["masks"].argmax(1))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def of_torch(path, image):
    return torch.export.load(path).module()(image)


def of_onnx(path, image):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_outputs()]
    arrays = session.run(None, {"image": image.numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays)}


@pytest.mark.parametrize("ending, run", [(".pt2", of_torch), (".onnx", of_onnx)])
@pytest.mark.parametrize("name", ["paper", "framed", "shaped", "slot_mlp_small"])
def test_a_file_answers_as_the_model(tmp_path, name, ending, run):
    if ending == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if find_spec(package) is None:
                skip_or_fail(f"{package}, of the extra onnx, is not installed")
    T = 1 if name == "slot_mlp_small" else 2
    model = create_model(name, (35, 35), 4, T).eval()
    path = tmp_path / f"model{ending}"
    export_segmenter(model, path, seed=5)
    for n in (1, 3):
        check(run(path, images(n)), expected(model, images(n), 5))
    with pytest.raises(Exception, match="image|shape|size|dimension"):
        run(path, images(1, (35, 36)))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_variant_is_exported_as_it_is(tmp_path):
    model = with_attention(create_model("small", (24, 24), 3, 2), Implicit).eval()
    model.slot_attention.implementation = "one_pass"
    export_segmenter(model, tmp_path / "a.pt2")
    check(
        of_torch(tmp_path / "a.pt2", images(2, (24, 24))), expected(model, images(2, (24, 24)), 0)
    )
    assert model.slot_attention.implementation == "one_pass"  # the model itself stays as it was


def test_the_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--format", "torch", "--seed", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"out": f"{run.name}.pt2", "seed": 2} and err == ""
    Image.fromarray(images(1)[0].numpy()).save("a.png")
    assert main(["segment", str(run), "a.png", "--out", "found", "--seed", "2"]) == 0
    description = {"description.json": ""}
    program = torch.export.load(f"{run.name}.pt2", extra_files=description).module()
    label = program(images(1))["label"][0].numpy()
    assert np.array_equal(np.asarray(Image.open("found/a_labels.png")), label)
    about = json.loads(description["description.json"])
    assert about.keys() > CONTRACT.keys() and about["seed"] == 2
    assert about["recipe"]["name"] == "tiny" and about["mse_on_record"] > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("no_such_run", 2, "no shipped weights"),
        ("gone.safetensors", 1, "no such file"),
        ("RUN --format torch --out a.onnx", 2, "ends in .pt2"),
        ("RUN --out a.bin", 2, "ends in .onnx or .pt2"),
        ("RUN --format tf", 2, "invalid choice"),
    ],
)
def test_what_cannot_be_exported(run, words, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words.replace("RUN", str(run)).split()]) == code
    assert said in capsys.readouterr().err and not list(Path().iterdir())


def test_a_set_predictor_is_refused(tmp_path):
    with pytest.raises(InputError, match="only an autoencoder can be exported"):
        export_segmenter(create_model("set_small", (32, 32), 3, 2), tmp_path / "a.pt2")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx needs onnx and onnxscript: .*\.\[onnx\]"):
        export_segmenter(framed_autoencoder(), tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: 1 if image.mean() > 0 else 2, "cannot export this SlotAttentionAutoEncoder"),
        (lambda image: 1 + torch.compiler.is_compiling(), "gives other masks when it is recorded"),
    ],
)
def test_a_model_that_no_file_can_hold(change, said, tmp_path, capfd):
    model = create_model("small", (24, 24), 3, 2)
    inner = model.encoder.forward
    model.encoder.forward = lambda image: inner(image * change(image))
    with pytest.raises(InputError, match=said):
        export_segmenter(model, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""
