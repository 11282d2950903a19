"""Set prediction from end to end: recipes, training, figures, the command, and what is refused."""

import json

import pytest
import torch
from PIL import Image

from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.sets import average_precision
from slot_attention_nbdev.models.framed_sets import SPRITES, FramedSetPredictor
from slot_attention_nbdev.models.set_predictor import SetPredictor
from slot_attention_nbdev.train.recipes import RECIPES, build_model, get_recipe
from slot_attention_nbdev.train.tasks import THRESHOLDS, task_of
from slot_attention_nbdev.train.trainer import evaluate, load_model, train
from slot_attention_nbdev.viz import find_objects

NAME = "multi_dsprites_colored_on_grayscale"
SHORT = dict(
    steps=6,
    batch_size=4,
    eval_images=8,
    log_every=2,
    eval_every=3,
    checkpoint_every=3,
    warmup_steps=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run of few steps."
    out = tmp_path_factory.mktemp("runs") / "sets"
    record = train(get_recipe("sprites_properties", **SHORT), out, device="cpu", progress=False)
    return out, record


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(evaluation_scenes(NAME, 2)["image"].numpy()):
        Image.fromarray(image).save(folder / f"{i}.png")
    return [folder / "0.png", folder / "1.png"]


def test_the_papers_recipe():
    r = RECIPES["clevr10_properties_paper"]
    assert (r.num_slots, r.num_iterations, r.batch_size, r.steps, r.warmup_steps) == (
        10,
        3,
        512,
        150_000,
        1_000,
    )
    assert (r.learning_rate, r.decay_rate, r.decay_steps, r.schedule, r.clip_norm, r.ema_decay) == (
        4e-4,
        0.5,
        50_000,
        "paper",
        0,
        0,
    )
    model = build_model(r)
    assert (
        type(model) is SetPredictor
        and model.resolution == (128, 128)
        and model.schema.name == "CLEVR"
    )
    assert {layer.eps for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm)} == {
        1e-3
    }


def test_training_on_sets(run):
    out, record = run
    assert {
        "ap_inf",
        "ap_8",
        "ap_4",
        "ap_2",
        "ap_1",
        "shape",
        "color",
        "found",
        "count",
        "n",
    } <= record["final"].keys()
    assert [p["step"] for p in record["curve"] if "ap_inf" in p] == [3, 6] and record["final"][
        "n"
    ] == 8
    assert (out / "slots.png").exists() and (out / "curve.png").exists()
    model, info = load_model(out)
    assert isinstance(model, FramedSetPredictor) and info["step"] == 6
    scenes = evaluation_scenes(NAME, 8)
    assert evaluate(model, scenes) == pytest.approx(
        {key: record["final"][key] for key in evaluate(model, scenes)}
    )


def test_resumed_run_ends_with_the_same_weights(run, tmp_path, monkeypatch):
    from slot_attention_nbdev.train import trainer as training

    class Cut(Exception):
        pass

    update = training.Trainer.training_step
    monkeypatch.setattr(
        training.Trainer,
        "training_step",
        lambda self, scenes: (_ for _ in ()).throw(Cut) if self.step == 4 else update(self, scenes),
    )
    recipe = get_recipe("sprites_properties", **SHORT)
    with pytest.raises(Cut):
        train(recipe, tmp_path / "run", device="cpu", progress=False)
    monkeypatch.undo()
    train(recipe, tmp_path / "run", device="cpu", progress=False, resume=True)
    whole, resumed = (load_model(path)[0].state_dict() for path in (run[0], tmp_path / "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_loss_falls_on_one_batch():
    model, scenes = FramedSetPredictor((64, 64), 6, 3), evaluation_scenes(NAME, 8)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(150):
        image = to_model(scenes["image"])
        loss = task_of(model).loss(model, model(image), image, scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_evaluation_is_average_precision():
    model, scenes = FramedSetPredictor((64, 64), 6, 3), evaluation_scenes(NAME, 20)
    found = evaluate(model, scenes, batch_size=7)
    with torch.no_grad():
        said = model(to_model(scenes["image"]), generator=generator(0, "evaluate")).predictions
    # ranked by how sure it is that there is an object, and of its shape
    said[..., -1] *= said[..., 6:9].max(-1).values
    expected = average_precision(
        said, SPRITES.encode(scenes, 6), THRESHOLDS["sprites"], SPRITES
    ).tolist()
    assert [found[name] for name in ("ap_inf", "ap_8", "ap_4", "ap_2", "ap_1")] == pytest.approx(
        expected, abs=1e-6
    )
    assert evaluate(model, scenes, num_slots=8)["n"] == 20


def test_the_number_in_the_picture_stands_at_the_object():
    model = FramedSetPredictor((64, 64), 6, 3)
    objects, places = find_objects(
        model, to_model(evaluation_scenes(NAME, 3)["image"]), generator(0, "slots"), threshold=0.45
    )
    for found, place in zip(objects, places, strict=True):
        assert [[o.properties["x"], o.properties["y"]] for o in found] == [
            pytest.approx(xy) for xy in place.tolist()
        ]


def test_data_without_properties_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(InputError, match="sprites objects have 'scale'"):
        train(
            get_recipe("sprites_properties", data="tetrominoes", **SHORT),
            tmp_path / "run",
            device="cpu",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_predict(run, pictures, tmp_path, capsys):
    assert (
        main(
            ["predict", str(run[0]), *map(str, pictures), "--out", str(tmp_path / "out"), "--json"]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)["predicted"]
    assert [each["image"] for each in said] == [str(path) for path in pictures]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0_objects.png",
        "1_objects.png",
    }
    for each in said:
        assert all(
            {"confidence", "x", "y", "scale", "color", "shape"} == thing.keys()
            for thing in each["objects"]
        )
    assert main(["predict", str(run[0]), str(pictures[0])]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == str(pictures[0]) and text[1].split() == [
        "object",
        "confidence",
        "x",
        "y",
        "scale",
        "color",
        "shape",
    ]
    assert len(text) == 2 + len(said[0]["objects"])


@pytest.mark.parametrize(("verb", "checkpoint", "words"), [
    ("predict", "tetrominoes_small", "predict needs a set predictor"),
    ("segment", "own", "segment needs an autoencoder"),
])  # fmt: skip
def test_the_other_kind_of_checkpoint_is_refused(
    verb, checkpoint, words, run, pictures, tmp_path, capsys
):
    checkpoint = str(run[0]) if checkpoint == "own" else checkpoint
    assert main([verb, checkpoint, str(pictures[0]), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_evaluate_command(run, capsys):
    assert main(["evaluate", str(run[0]), "--data", NAME, "--n", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 8
