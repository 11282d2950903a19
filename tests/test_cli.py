"""The command line: what it prints, what it writes, and how fast it helps."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from slot_attention_nbdev import __version__
from slot_attention_nbdev import cli
from slot_attention_nbdev.apps.predict import segment_files
from slot_attention_nbdev.cli import console, main
from slot_attention_nbdev.core import FileError, InputError, TrainingError, generator
from slot_attention_nbdev.data.files import FITS, load_pack, read_image, save_pack
from slot_attention_nbdev.data.sources import GeneratedScenes, collate_rows, evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.segmentation import segmentation_metrics
from slot_attention_nbdev.models.autoencoder import small_autoencoder
from slot_attention_nbdev.train.recipes import RECIPES, SETTINGS, load_model, setting_texts, to_dict
from slot_attention_nbdev.train.trainer import Trainer

COMMANDS = list(cli.COMMANDS)
SHORT = ("steps=4", "log_every=2", "eval_images=4", "--device", "cpu")


@pytest.fixture
def say(capsys):
    "Run a command line that must succeed; its standard output."

    def run_line(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0 and "Traceback" not in err, err
        return out

    return run_line


def script(*words, **options):
    "The console script in a process of its own."
    command = [
        sys.executable,
        "-c",
        "from slot_attention_nbdev.cli import console; console()",
        *map(str, words),
    ]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples(command, say):
    text = say(*command.split(), "--help")
    assert "examples:\n  slot-attention" in text and "--json" in text and "--debug" in text


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_examples_parse(command):
    parser, commands = cli.build_parsers()
    title, *examples = (commands[command] if command else parser).epilog.splitlines()
    assert title == "examples:" and examples
    for line in examples:
        name, *words = line.split()
        found = cli.parse(words).command
        assert name == "slot-attention" and found == (command or found)


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys; from slot_attention_nbdev.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'scipy'} & sys.modules.keys()"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_version(say):
    assert say("--version").strip() == __version__


def test_recipes(say):
    lines = say("recipes").splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *RECIPES]
    assert json.loads(say("recipes", "--json")) == {
        name: to_dict(recipe) for name, recipe in RECIPES.items()
    }
    assert json.loads(say("--json", "recipes", "tiny")) == to_dict(RECIPES["tiny"])
    assert "learning_rate" in say("recipes", "tiny")


def test_train_says_how_well_and_where(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = say("train", "tiny", *SHORT, "--seed", "3", "num_slots=5")
    folder = Path("runs/tiny-seed3")
    assert {"checkpoint.pt", "model.safetensors", "record.json", "curve.png", "slots.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert str(folder / "slots.png") in text and "fg_ari" in text and "mse" in text
    record = json.loads((folder / "record.json").read_text())
    assert (record["seed"], record["recipe"]["num_slots"], record["recipe"]["steps"]) == (3, 5, 4)


def test_train_json_is_the_record_and_resumes(say, tmp_path):
    words = ("train", "tiny", *SHORT, "--out", tmp_path / "run", "--json")
    record = json.loads(say(*words))
    assert record["final"]["n"] == 4 and record["finished"]
    again = json.loads(say(*words, "--resume"))  # it had ended, so there is nothing left to do
    assert again["final"] == record["final"] and again["step"] == 4


METHODS = ("tetrominoes_slot_mlp", "tetrominoes_monet", "tetrominoes_iodine")
BRIEF = ("batch_size=2", "eval_images=4", "log_every=2", "eval_every=3")
BRIEF += ("checkpoint_every=3", "compile=off", "--device", "cpu")


@pytest.mark.parametrize("recipe", METHODS)
def test_the_compared_methods_do_all_that_slot_attention_does(recipe, say, tmp_path, monkeypatch):
    folder, update = tmp_path / "run", Trainer.training_step
    words = ("train", recipe, "steps=6", *BRIEF, "--out", folder, "--json")

    def interrupted(self, scenes):
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)
        update(self, scenes)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", interrupted)
        assert main([str(word) for word in words]) == 0
    stopped = json.loads((folder / "record.json").read_text())
    assert stopped["step"] == 4 and not stopped["finished"]
    resumed = json.loads(say(*words, "--resume"))
    whole = json.loads(
        say("train", recipe, "steps=6", *BRIEF, "--out", tmp_path / "whole", "--json")
    )
    assert resumed["step"] == 6 and resumed["finished"] and whole["final"] == resumed["final"]
    weights = [load_file(path / "model.safetensors") for path in (folder, tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    words = ("evaluate", folder, "--data", "tetrominoes", "--n", "4", "--controls", "--json")
    found = json.loads(say(*words))
    assert list(found["controls"]) == ["untrained", "color_rule", "position_rule"]
    assert {"fg_ari", "ari", "miou", "mse"} <= found.keys() and found["n"] == 4
    image = evaluation_scenes("tetrominoes", 1)["image"][0].numpy()
    Image.fromarray(image).save(tmp_path / "x.png")
    words = ("segment", folder, tmp_path / "x.png", "--out", tmp_path / "out", "--json")
    [entry] = json.loads(say(*words))["written"]
    assert Image.open(entry["labels"]).size == (35, 35)
    say("report", folder, tmp_path / "whole", "--format", "markdown", "--out", tmp_path / "r.md")
    assert recipe in (tmp_path / "r.md").read_text()


def test_weights_of_one_method_are_no_start_for_another(say, tmp_path, capsys):
    models = {name: recipe.model for name, recipe in RECIPES.items()}
    classes = dict(zip(METHODS, ("SlotMLP", "MONet", "IODINE"), strict=True))
    for name in METHODS:
        say("train", name, "steps=1", *BRIEF, "--out", tmp_path / name)
    for old, new in zip(METHODS, (*METHODS[1:], METHODS[0])):
        words = ["train", new, "steps=1", *BRIEF]
        assert main([*words, "--out", str(tmp_path / old), "--resume"]) == 2
        told = capsys.readouterr().err
        assert models[old] in told and models[new] in told and "Traceback" not in told
        assert main([*words, "--out", str(tmp_path / "new"), "--init", str(tmp_path / old)]) == 2
        told = capsys.readouterr().err
        assert "another model's weights" in told and "Traceback" not in told
        assert f"got those of '{models[old]}'" in told
        assert f"expected those of this {classes[new]}, got" in told


def test_train_fits_its_budget(say, tmp_path):
    record = json.loads(
        say(
            "train",
            "tiny",
            "steps=100000",
            "eval_images=4",
            "--device",
            "cpu",
            "--budget",
            "1s",
            "--out",
            tmp_path / "run",
            "--json",
        )
    )
    assert record["finished"] and record["step"] < 100_000 and record["budget"] == 1.0


def test_evaluate_agrees_with_its_parts(say, run, tmp_path):
    scenes = collate_rows(GeneratedScenes("tetrominoes", "test", seed=5), range(20))
    save_pack(tmp_path / "pack.npz", scenes)
    found = json.loads(say("evaluate", run, "--data", tmp_path / "pack.npz", "--json"))
    assert list(found) == ["fg_ari", "ari", "miou", "mbo", "mse", "n"] and found["n"] == 20
    model, _ = load_model(run)
    with torch.no_grad():
        image = to_model(scenes["image"])
        output = model(image, generator=generator(0, "evaluate"))
    for name, values in segmentation_metrics(scenes["label"], output.masks).items():
        assert found[name] == pytest.approx(float(values.nanmean()), abs=1e-6)
    assert found["mse"] == pytest.approx(
        float((output.reconstruction - image).square().mean()), abs=1e-6
    )


def test_several_draws_of_initial_slots(say, run, tmp_path):
    words = ["evaluate", run, "--data", "tetrominoes", "--n", "4", "--json"]
    one, again, three = (json.loads(say(*words, *more)) for more in (
        (), ("--n-init", "1"), ("--n-init", "3")
    ))  # fmt: skip
    assert one == again and three["mse"] <= one["mse"]
    assert main([str(word) for word in words] + ["--n-init", "0"]) == 2
    Image.new("RGB", (35, 35), "red").save(tmp_path / "red.png")
    say("segment", run, tmp_path / "red.png", "--out", tmp_path / "out", "--n-init", "2")
    bad = ["segment", str(run), str(tmp_path / "red.png"), "--out", str(tmp_path / "no")]
    assert main([*bad, "--n-init", "0"]) == 2 and not (tmp_path / "no").exists()


def test_several_numbers_of_slots(say, run, tmp_path):
    words = ["evaluate", run, "--data", "tetrominoes", "--n", "4", "--json"]
    two, three, both = (
        json.loads(say(*words, "--num-slots", given)) for given in ("2", "3", "2-3")
    )
    assert both["mse"] <= min(two["mse"], three["mse"]) and 2 <= both["num_slots"] <= 3
    assert two != three and "num_slots" not in two
    assert json.loads(say(*words, "--num-slots", "4")) == json.loads(say(*words))
    controls = json.loads(say(*words, "--num-slots", "2-3", "--controls"))["controls"]
    assert controls["untrained"].keys() == {"fg_ari", "ari", "miou", "mbo"}
    image = evaluation_scenes("tetrominoes", 1)["image"][0].numpy()
    Image.fromarray(image).save(tmp_path / "x.png")
    segment = ["segment", run, tmp_path / "x.png", "--out", tmp_path / "out"]
    text = say(*segment, "--num-slots", "2-6")
    [entry] = json.loads(say(*segment, "--num-slots", "2-6", "--json"))["written"]
    assert 2 <= entry["num_slots"] <= 6 and f"({entry['num_slots']} slots)" in text
    assert np.asarray(Image.open(entry["labels"])).max() < entry["num_slots"]
    errors, picture = {}, Image.open(entry["slots"]).copy()
    for K in range(2, 7):
        [each] = json.loads(say(*segment, "--num-slots", K, "--json"))["written"]
        assert each["num_slots"] == K
        errors[K] = each["mse"]
        if entry["num_slots"] == K:  # no column for a slot that the image does not have
            assert np.array_equal(picture, Image.open(each["slots"]))
    assert entry["num_slots"] == min(errors, key=errors.get)


def test_a_label_map_has_room_for_so_many_slots(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (35, 35), "red").save(path)
    for words in ({"num_slots": 256}, {"num_slots": [2, 300]}, {}):
        with pytest.raises(InputError, match="num_slots: expected an integer ≥ 1 and ≤ 255, got"):
            segment_files(small_autoencoder(num_slots=256), [path], tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given", ["7-2", "0", "0-3", "a", "2-", "-3", "2-3-4", "2.5", "256", "2-256", ""]
)
def test_numbers_of_slots_that_make_no_sense(given, run, tmp_path, capsys):
    Image.new("RGB", (35, 35), "red").save(tmp_path / "red.png")
    for words in (
        ["evaluate", str(run), "--data", "tetrominoes"],
        ["segment", str(run), str(tmp_path / "red.png"), "--out", str(tmp_path / "no")],
    ):
        assert main([*words, f"--num-slots={given}"]) == 2
        assert (
            "num_slots: expected an integer ≥ 1 and ≤ 255, or a range of them such as 2-7, "
            f"got {given!r}" in capsys.readouterr().err
        )
    assert not (tmp_path / "no").exists()


def test_evaluate_by_name_file_and_number(say, run):
    by_folder = json.loads(say("evaluate", run, "--data", "tetrominoes", "--n", "8", "--json"))
    by_file = json.loads(
        say("evaluate", run / "model.safetensors", "--data", "tetrominoes", "--n", "8", "--json")
    )
    by_checkpoint = json.loads(
        say("evaluate", run / "checkpoint.pt", "--data", "tetrominoes", "--n", "8", "--json")
    )
    assert by_folder == by_file == by_checkpoint and by_folder["n"] == 8


def test_evaluate_without_objects_says_null(say, run, tmp_path):
    save_pack(
        tmp_path / "empty.npz",
        {
            "image": torch.zeros(2, 35, 35, 3, dtype=torch.uint8),
            "label": torch.zeros(2, 35, 35, dtype=torch.uint8),
        },
    )
    assert (
        json.loads(say("evaluate", run, "--data", tmp_path / "empty.npz", "--json"))["miou"] is None
    )
    assert "miou nan" in say("evaluate", run, "--data", tmp_path / "empty.npz")


def test_segment_writes_label_maps_and_pictures(say, run, tmp_path):
    image = evaluation_scenes("tetrominoes", 2)["image"].numpy()
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    for path, pixels in zip(paths, image):
        path.parent.mkdir()
        Image.fromarray(pixels).save(path)
    out = tmp_path / "out"
    found = json.loads(say("segment", run, paths[0], "--out", out, "--json", paths[1]))["written"]
    assert [Path(entry["labels"]).name for entry in found] == ["x_labels.png", "x_2_labels.png"]
    assert len(list(out.iterdir())) == 4
    model, _ = load_model(run)
    for path, entry in zip(paths, found):
        with torch.no_grad():
            output = model(read_image(path, (35, 35)), generator=generator(0, "slots"))
        labels = Image.open(entry["labels"])
        assert labels.mode == "L" and np.array_equal(
            np.asarray(labels), output.masks[0].argmax(0).numpy()
        )
        assert Image.open(entry["slots"]).size[0] > 400
    assert str(out / "x_2_slots.png") in say("segment", run, *paths, "--out", out)


def test_segment_keeps_the_size_of_the_image(say, run, tmp_path):
    photo = Image.new("RGB", (60, 40), "red")
    photo.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright: shown as 40 x 60
    photo.save(tmp_path / "turned.jpg", exif=exif)
    say("segment", run, tmp_path / "plain.png", tmp_path / "turned.jpg", "--out", tmp_path)
    assert Image.open(tmp_path / "plain_labels.png").size == (60, 40)
    assert Image.open(tmp_path / "turned_labels.png").size == (40, 60)


def test_data_draws_packs_and_sheets(say, tmp_path):
    say("data", "tetrominoes", "--n", "300", "--seed", "2", "--out", tmp_path / "many.npz")
    say("data", "tetrominoes", "--n", "7", "--seed", "2", "--out", tmp_path / "few.npz")
    say("data", "tetrominoes", "--n", "7", "--out", tmp_path / "other.npz")
    many, few, other = (load_pack(tmp_path / f"{name}.npz") for name in ("many", "few", "other"))
    assert len(many["image"]) == 300 and torch.equal(many["image"][:7], few["image"])
    assert not torch.equal(few["image"], other["image"])
    held_out = {
        scene.numpy().tobytes()
        for split in ("train", "test")
        for scene in collate_rows(GeneratedScenes("tetrominoes", split, seed=2), range(320))[
            "image"
        ]
    }
    assert not held_out & {scene.numpy().tobytes() for scene in many["image"]}
    assert (
        json.loads(
            say(
                "data",
                "multi_dsprites_binarized",
                "--n",
                "3",
                "--out",
                tmp_path / "sheet.png",
                "--json",
            )
        )["n"]
        == 3
    )
    assert Image.open(tmp_path / "sheet.png").size[0] > 300


def test_data_goes_on_where_it_was_stopped(say, tmp_path, monkeypatch, capsys):
    from slot_attention_nbdev.data import files

    save, calls = files.save_pack, []

    def full(path, scenes, labeled=True):
        calls.append(path)
        if len(calls) == 3:
            raise FileError(f"{path}: cannot be written: No space left on device")
        save(path, scenes, labeled)

    words = ("data", "tetrominoes", "--n", "1000", "--out", str(tmp_path / "pack.npz"))
    with monkeypatch.context() as patched:
        patched.setattr(files, "save_pack", full)
        assert main(list(words)) == 1
    out, err = capsys.readouterr()
    # the bar, then the reason
    assert out == "" and "writing scenes" in err and "No space left on device" in err
    assert main(["data", "tetrominoes", "--n", "999", "--out", str(tmp_path / "pack.npz")]) == 2
    assert "n was 1000 and is now 999" in capsys.readouterr().err
    assert json.loads(say(*words, "--json"))["n"] == 1000
    say(*words[:-1], tmp_path / "again.npz")
    assert (tmp_path / "pack.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_evaluate_with_controls(say, run):
    words = ("evaluate", run, "--data", "tetrominoes", "--n", "8")
    plain = json.loads(say(*words, "--json"))
    found = json.loads(say(*words, "--controls", "--json"))
    controls = found.pop("controls")
    assert found == plain
    assert list(controls) == ["untrained", "color_rule", "position_rule"]
    assert all({"fg_ari", "ari", "miou"} <= scores.keys() for scores in controls.values())
    lines = say(*words, "--controls").splitlines()
    assert lines[0] == say(*words).strip()
    assert lines[2].split() == ["FG-ARI", "ARI", "mIoU"]
    for line, name in zip(
        lines[3:], ("this model", "untrained model", "color rule: ", "position rule: "), strict=True
    ):
        assert line.startswith(name)


def test_controls_need_masks(run, tmp_path, capsys):
    Image.new("RGB", (50, 40), (80, 0, 0)).save(tmp_path / "a.png")
    words = ["evaluate", str(run), "--data", str(tmp_path), "--device", "cpu", "--controls"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "there is no label, and controls are measured against" in err


def test_evaluate_says_when_nobody_knows_the_truth(say, run, tmp_path):
    for i in range(3):
        Image.new("RGB", (50, 40), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    text = say("evaluate", run, "--data", tmp_path, "--device", "cpu")
    assert "mse" in text and "slot_entropy" in text and "fg_ari" not in text
    assert "NAME_mask.png" in text
    words = ["evaluate", run, "--data", tmp_path, "--device", "cpu", "--json", "--num-slots"]
    two, four, several = (json.loads(say(*words, given)) for given in ("2", "4", "2-3"))
    assert {**four, "mse": 0} != {**two, "mse": 0} and four["slot_entropy"] <= 1
    assert four.keys() == two.keys() == {"mse", "n", "slot_entropy", "dead_slots"}
    assert several.keys() == {"mse", "n", "num_slots"}
    for i in range(3):
        mask = np.zeros((40, 50), np.uint8)
        mask[10:20, 10:20] = 1
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
    # in the model's size, 35 x 35
    assert json.loads(say("evaluate", run, "--data", tmp_path, "--json"))["n"] == 3


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where(place):
    words = ["evaluate", "no/such", "--data", "tetrominoes"]
    with pytest.raises(FileError):
        main(["--debug", *words] if place == "before" else [*words, "--debug"])
    with pytest.raises(InputError):
        main(["recipes", "x", "--debug"])


def test_positionals_may_come_late():
    arguments = cli.parse(
        ["train", "tiny", "--seed", "1", "steps=2", "--budget", "5m", "num_slots=3"]
    )
    assert arguments.overrides == ["steps=2", "num_slots=3"]
    assert main(["data", "tetrominoes", "--out", "x.png", "extra"]) == 2
    assert main(["train", "tiny", "--see", "1"]) == 2  # no abbreviations


def test_a_missing_package_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.delitem(sys.modules, "slot_attention_nbdev.viz", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["data", "tetrominoes", "--out", str(tmp_path / "a.png")]) == 1
    err = capsys.readouterr().err
    assert "needs matplotlib" in err and "pip install '.[train]'" in err and err.count("\n") == 1


def test_console_exits_with_the_code(monkeypatch):
    for code in (0, 1, 2):
        monkeypatch.setattr(cli, "main", lambda code=code: code)
        with pytest.raises(SystemExit) as stop:
            console()
        assert stop.value.code == code


def test_a_reader_may_leave_early(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    ended = script("recipes", stdout=writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    # nor is a training that nobody watches any more
    command = "from slot_attention_nbdev.cli import console; console()"
    words = ["train", "tiny", *SHORT, "--out", str(tmp_path / "run"), "--verbose"]
    ended = subprocess.run([sys.executable, "-c", command, *words], stdout=writer, stderr=writer)
    os.close(writer)
    assert (
        ended.returncode == 0
        and json.loads((tmp_path / "run" / "record.json").read_text())["finished"]
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output():
    with open("/dev/full", "w") as full:
        ended = script("recipes", stdout=full)
    assert (
        ended.returncode == 1
        and "No space left on device" in ended.stderr
        and "Traceback" not in ended.stderr
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1:strict"])
def test_output_in_any_encoding(tmp_path, encoding):
    environment = {"PYTHONIOENCODING": encoding}
    (tmp_path / "ü 日本").mkdir()
    (tmp_path / "ü 日本" / "record.json").write_text("{}")
    ended = script("runs", tmp_path, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr


def test_closed_output():
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        command = f"{sys.executable} -m slot_attention_nbdev.cli recipes {closed}"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--steps", "100"], "steps=100"),
        (["--steps=100"], "steps=100"),
        (["--batch-size", "8"], "batch_size=8"),
        (["--lr", "0.1"], "learning_rate=0.1"),
        (["--data", "photos/"], "data=photos/"),
        (["--see", "1"], "did you mean --seed?"),
        (["lr=0.1"], "did you mean 'learning_rate'?"),
    ],
)
def test_settings_that_are_nearly_right(words, hint, capsys):
    assert main(["train", "tiny", *words]) == 2
    assert hint in capsys.readouterr().err


def test_settings_from_a_file(say, tmp_path, capsys):
    config = tmp_path / "mine.json"
    config.write_text(say("recipes", "tiny", "--json"))
    out = ("--out", str(tmp_path / "run"))
    record = json.loads(say("train", "--config", config, *SHORT, *out, "--json"))
    assert record["recipe"]["name"] == "tiny" and record["recipe"]["steps"] == 4
    for text, words in {
        "[": "is not JSON",
        "3": "expected an object, got int",
        '{"stepz": 3}': "stepz: there is no such setting; did you mean 'steps'?",
        '{"steps": "3"}': "steps: expected an integer ≥ 1, got '3'",
        '{"steps": [3]}': "steps: expected an integer",
        '{"model": 3}': "model: expected text",
        '{"name": 3}': "name: expected text",
        '{"clip_norm": null}': "clip_norm: expected a number",
        '{"learning_rate": NaN}': "learning_rate: expected a number",
    }.items():
        config.write_text(text)
        assert main(["train", "--config", str(config), *out]) == 2, text
        assert words in capsys.readouterr().err, text
    assert main(["train", "tiny", "--config", str(config)]) == 2  # one of them, not both
    assert main(["train"]) == 2
    assert main(["train", "--config", str(tmp_path / "gone.json")]) == 1


def test_every_setting_is_explained(say):
    shown = say("recipes", "tiny").splitlines()
    texts = setting_texts()
    for name in SETTINGS.keys() - {"name", "about"}:
        assert texts[name], name
        assert any(line.startswith(f"{name} ") and texts[name] in line for line in shown), name


def test_a_shared_failure_is_told_once(monkeypatch, capsys):
    def fail(arguments):
        "Fail."
        raise TrainingError("loss not finite")

    monkeypatch.setitem(cli.COMMANDS, "recipes", (fail, cli.add_recipes_arguments))
    for rank, told in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["recipes"]) == 1
        assert capsys.readouterr().err.count("loss not finite") == told


SETS = ("steps=1", "batch_size=2", "eval_images=2", "--device", "cpu")


def photographs(folder, n=3):
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_folder_stands_for_its_images(say, run, tmp_path, caplog):
    photos = photographs(tmp_path / "photos")
    words = ("segment", run, photos, photos / "0.png", "--out", tmp_path / "out", "--json")
    written = json.loads(say(*words))["written"]
    assert [Path(each["labels"]).stem for each in written] == [
        f"{name}_labels" for name in ("0", "1", "2", "0_2")
    ]
    seen = np.asarray(Image.open(written[0]["labels"]))
    assert seen.shape == (40, 64) and set(np.unique(seen[:, 12:52])) <= set(range(4))
    assert (seen[:, :12] == 255).all() and (seen[:, 52:] == 255).all()  # cut off, as in training
    say("train", "sprites_properties", *SETS, "--out", tmp_path / "sets")
    found = json.loads(say("predict", tmp_path / "sets", photos, "--json"))["predicted"]
    assert len(found) == 3
    (tmp_path / "empty").mkdir()
    assert main(["segment", str(run), str(tmp_path / "empty"), "--out", str(tmp_path)]) == 1


def test_foreign_images_are_noticed(say, tmp_path, caplog):
    photos = photographs(tmp_path / "photos")
    warned = lambda: any("means little" in m or "mean little" in m for m in caplog.messages)
    say("segment", "tetrominoes_small", photos, "--out", tmp_path / "out")
    assert warned()
    caplog.clear()
    say("evaluate", "tetrominoes_small", "--data", photos)
    assert warned()
    caplog.clear()
    say("evaluate", "tetrominoes_small", "--data", "tetrominoes", "--n", "32")
    say("data", "tetrominoes", "--n", "4", "--out", tmp_path / "scenes")
    say("segment", "tetrominoes_small", tmp_path / "scenes", "--out", tmp_path / "out")
    assert not warned()


def test_data_writes_single_images(say, run, tmp_path):
    say("data", "tetrominoes", "--n", "3", "--out", tmp_path / "scenes")
    names = sorted(path.name for path in (tmp_path / "scenes").iterdir())
    assert names == [f"{i:04}{end}.png" for i in range(3) for end in ("", "_mask")]
    say("data", "tetrominoes", "--n", "3", "--out", tmp_path / "same.npz")
    same = load_pack(tmp_path / "same.npz")
    for i in range(3):
        image = np.asarray(Image.open(tmp_path / "scenes" / f"{i:04}.png"))
        mask = np.asarray(Image.open(tmp_path / "scenes" / f"{i:04}_mask.png"))
        assert np.array_equal(image, same["image"][i]) and np.array_equal(mask, same["label"][i])
    by_folder = json.loads(say("evaluate", run, "--data", tmp_path / "scenes", "--json"))
    assert by_folder == json.loads(say("evaluate", run, "--data", tmp_path / "same.npz", "--json"))


OWN = """
from slot_attention_nbdev.models.autoencoder import small_autoencoder

def build(resolution, num_slots, num_iterations):
    return small_autoencoder(resolution, num_slots, num_iterations)
"""


def test_a_model_of_ones_own(say, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and forgotten afterwards
    (tmp_path / "my_module.py").write_text(OWN)
    own = ("--model", "my_module:build")
    train = ("train", "tiny", *SHORT, "--out", "run")
    record = json.loads(say(*train, *own, "--resolution", "35", "--json"))
    assert record["recipe"]["model"] == "my_module:build" and record["recipe"]["resolution"] == 35
    say("evaluate", "run", "--data", "tetrominoes", "--n", "4", *own)
    say("train", "tiny", *SHORT, "--out", "second", "--init", "run", "resolution=35", *own)
    say("runs", ".")
    # a file that names code makes nothing happen, also where the code could be imported
    from slot_attention_nbdev.models.base import MODELS

    monkeypatch.delitem(MODELS, "my_module:build")
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "tetrominoes"]) == 1
    assert "--model my_module:build" in capsys.readouterr().err
    assert main(["train", "tiny", "model=my_module:build"]) == 2
    assert main(["train", "tiny", "--model", "gone_module:build"]) == 2
    assert "gone_module:build cannot be imported" in capsys.readouterr().err
    assert main(["train", "tiny", "--init", "no_such_weights", "--out", "third"]) == 2
    assert main(["train", "tiny", "--resolution", "35", "resolution=35"]) == 2
    assert "resolution: given twice" in capsys.readouterr().err


def test_train_says_as_much_as_is_wanted(tmp_path, capsys):
    words = ["train", "tiny", "steps=2", "log_every=1", "eval_images=4", "--device", "cpu"]
    said = {}
    for how in ("--quiet", "--verbose"):
        assert main([*words, how, "--out", str(tmp_path / how)]) == 0
        said[how] = capsys.readouterr()
        assert "fg_ari" in said[how].out
    assert "updates" not in said["--quiet"].err
    lines = said["--verbose"].err.splitlines()
    assert sum(line.startswith("step ") for line in lines) == 3  # two losses, one evaluation
    assert main([*words, "--quiet", "--verbose"]) == 2


def test_convert_makes_squares_as_it_is_told(say, tmp_path, capsys):
    photos = photographs(tmp_path / "photos")
    words = ("convert", photos, "--resolution", "32")
    packs = {}
    for fit in FITS:
        say(*words, "--fit", fit, "--out", tmp_path / f"{fit}.npz")
        packs[fit] = load_pack(tmp_path / f"{fit}.npz", labeled=False)["image"]
    say(*words, "--out", tmp_path / "usual.npz")
    assert torch.equal(load_pack(tmp_path / "usual.npz", labeled=False)["image"], packs["crop"])
    assert not packs["pad"][:, :5].any() and packs["crop"][:, :5].any()  # 40 x 64 in 32 x 32
    assert not torch.equal(packs["crop"], packs["stretch"])
    out = str(tmp_path / "no.npz")
    assert main(["convert", "tetrominoes", "--fit", "pad", "--out", out]) == 2
    assert "tetrominoes is none" in capsys.readouterr().err
    assert main(["convert", str(photos), "--fit", "bend", "--out", out]) == 2
