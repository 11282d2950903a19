"""What goes wrong: deviations deviate where they should, runs repeat, records are complete."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.models.weights import load_record
from slot_attention_nbdev.experiments.what_goes_wrong import (
    EVERY,
    HELD_OUT,
    SETTINGS,
    STEPS,
    build,
    evaluate_slots,
    halve,
    measure,
)

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = sorted((ROOT / "results" / "what_goes_wrong").glob("*.json"))
SAME_OUTPUT = {"plain", "fixed_start", "frozen_norms", "detached", "implicit", "no_warmup"}


@pytest.fixture(scope="module")
def image():
    return halve(evaluation_scenes("tetrominoes", 2))[0]


def outputs(name: str, image: torch.Tensor):
    return build(name)(
        image, slots=torch.randn(2, 4, 64, generator=generator(0)), return_attention=True
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_output_on_the_same_weights(name, image):
    if name == "seven_slots":
        assert build(name).slot_attention.num_slots == 7
        return
    plain, changed = outputs("plain", image), outputs(name, image)
    gap = (plain.reconstruction - changed.reconstruction).abs().max()
    assert gap < 1e-5 if name in SAME_OUTPUT else gap > 1e-5
    T = SETTINGS[name].num_iterations
    assert changed.attention.shape == (2, T, 81, 4)
    sums = changed.attention.sum(2 if name == "token_softmax" else 3)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize(
    ("name", "learns"),
    [("plain", True), ("fixed_start", False), ("detached", False), ("implicit", True)],
)
def test_who_gets_a_gradient(name, learns, image):
    model = build(name)
    model(image, generator=generator(0)).reconstruction.square().mean().backward()
    for w in (model.slot_attention.slots_mu, model.slot_attention.slots_log_sigma):
        assert (w.grad is not None and w.grad.abs().sum() > 0) == learns
    assert model.slot_attention.project_q.weight.grad.abs().sum() > 0


def test_norms_that_never_learn():
    norms = [m for m in build("frozen_norms").modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4
    assert not any(w.requires_grad for norm in norms for w in norm.parameters())


def test_symmetric_padding_moves_the_layer_by_a_pixel():
    x = torch.randn(1, 64, 9, 9, generator=generator(0))
    right, shifted = (build(name).decoder.convs[0](x) for name in ("plain", "symmetric_padding"))
    assert shifted.shape == right.shape
    torch.testing.assert_close(shifted[..., :-1, :-1], right[..., 1:, 1:])


def test_normalized_state_forgets_length(image):
    model = build("normalized_state").slot_attention
    updates = torch.randn(3, 64, generator=generator(0))
    slots = torch.randn(3, 64, generator=generator(1))
    torch.testing.assert_close(
        model.gru(updates, slots), model.gru(updates, 10 * slots), atol=1e-4, rtol=0
    )


def test_warm_up_decides_the_first_step():
    moved = []
    for name in ("plain", "no_warmup"):
        before, after = measure(name, steps=1, every=1, held_out=2)["curve"]
        moved.append(abs(after["mse"] - before["mse"]))
    assert moved[1] > 5 * moved[0]


def test_measure_repeats_itself_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second = (measure("implicit", seed=3, steps=2, every=2, held_out=4) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first["curve"] == second["curve"]
    assert [point["step"] for point in first["curve"]] == [0, 2]
    assert first["curve"] != measure("implicit", seed=4, steps=2, every=2, held_out=4)["curve"]
    assert json.loads(json.dumps(first)) == first


def test_known_slots(image):
    class Alike(torch.nn.Module):
        def forward(self, image, generator=None):
            model = build("plain")
            return model(image, slots=torch.ones(len(image), 4, 64))

    found = evaluate_slots(Alike(), evaluation_scenes("tetrominoes", 2))
    assert abs(found["slot_similarity"] - 1) < 1e-5
    assert abs(found["entropy"] - 1) < 1e-5
    assert found["dead"] == 3  # of equal masks, the first wins every pixel


def test_a_run_without_a_number_says_so(monkeypatch):
    nothing = torch.tensor(float("nan"))
    monkeypatch.setattr(F, "mse_loss", lambda *_: nothing)
    record = measure("plain", steps=3, every=1, held_out=2)
    assert "not finite in step 0" in record["failed"]
    assert len(record["curve"]) == 1


@pytest.mark.parametrize(
    "arguments", [dict(name="softmax"), dict(name="plain", steps=0), dict(name="plain", seed=-1)]
)
def test_bad_arguments(arguments):
    with pytest.raises(InputError):
        measure(**arguments)


def script():
    spec = importlib.util.spec_from_file_location(
        "what_goes_wrong_script", ROOT / "scripts" / "what_goes_wrong.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_writes_what_is_missing(tmp_path, capsys):
    call = ["--seeds", "0", "1", "--only", "plain", "--steps", "1", "--out", str(tmp_path)]
    assert script().main(call) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain-0.json", "plain-1.json"]
    before = (tmp_path / "plain-0.json").read_bytes()
    (tmp_path / "plain-1.json").unlink()
    capsys.readouterr()
    assert script().main(call) == 0
    assert (tmp_path / "plain-0.json").read_bytes() == before
    assert capsys.readouterr().out.count("FG-ARI") == 1
    assert load_record(tmp_path / "plain-1.json")["seed"] == 1
    with pytest.raises(SystemExit):
        script().main(["--only", "no_such"])


def test_records_are_complete():
    names = {(load_record(path)["recipe"]["name"], load_record(path)["seed"]) for path in RECORDS}
    assert names == {(name, seed) for name in SETTINGS for seed in (0, 1, 2)}
    assert sum(path.stat().st_size for path in RECORDS) < 300_000


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_record(path):
    record = load_record(path)
    setting = SETTINGS[record["recipe"]["name"]]
    assert record["recipe"]["steps"] == STEPS
    assert all(
        record["recipe"][key] == getattr(setting, key)
        for key in ("about", "num_slots", "num_iterations", "learning_rate", "warmup_steps")
    )
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["commit"])
    assert record["hardware"]["cpu"] and record["threads"] == 1 and record["seconds"] > 0
    assert record["final"] == record["curve"][-1]
    if not record["failed"]:
        assert [point["step"] for point in record["curve"]] == list(range(0, STEPS + 1, EVERY))
    assert record["curve"][0]["fg_ari"] is not None and HELD_OUT == 160


@pytest.mark.parametrize("name", ["plain", "unscaled", "seven_slots"])
def test_records_come_from_this_code(name):
    start = load_record(ROOT / "results" / "what_goes_wrong" / f"{name}-1.json")["curve"][0]
    found = evaluate_slots(build(name, seed=1), evaluation_scenes("tetrominoes", HELD_OUT))
    assert {"step", *found} == set(start)
    for key, value in found.items():
        assert abs(value - start[key]) < 2e-3 * max(1, abs(value)), key


def test_the_table_shows_the_records():
    notebook = json.loads((ROOT / "nbs" / "course/13_what_goes_wrong.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    text = "\n".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    rows = {
        cells[1].strip(): cells
        for cells in (line.split("|") for line in text.split("\n"))
        if len(cells) > 5
    }
    for name, setting in SETTINGS.items():
        records = [load_record(path) for path in RECORDS if path.stem.rpartition("-")[0] == name]
        ends = [sum(point["fg_ari"] for point in record["curve"][-3:]) / 3 for record in records]
        assert rows[setting.about][3].startswith(
            f" {sum(ends) / len(ends):.2f} ({min(ends):.2f} … {max(ends):.2f})"
        ), name
        loss = sum(record["final"]["loss"] for record in records) / len(records)
        assert rows[setting.about][4].strip() == f"{loss:.3f}", name
