"""Methods side by side: each trains on its own loss, costs are right, the record is kept."""

import json

import pytest
import torch
import torch.nn.functional as F
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.experiments.methods import (
    METHODS,
    bench_methods,
    method_step,
    method_table,
)
from slot_attention_nbdev.models.base import MODELS, create_model

SMALL = {"Slot Attention": "small", "Slot MLP": "slot_mlp_small", "MONet": "monet_small"}
SMALL["IODINE"] = "iodine_small"


def images(B, H=35, W=35):
    return 2 * torch.rand(B, 3, H, W, generator=generator(0)) - 1


def test_every_method_is_a_model_at_published_sizes_and_small():
    assert list(METHODS) == list(SMALL)
    assert {*METHODS.values(), *SMALL.values()} <= MODELS.keys()


@pytest.mark.parametrize("name", SMALL.values())
def test_a_step_is_one_update_of_adam_on_the_method_s_own_loss(name):
    twins = []
    for _ in range(2):
        torch.manual_seed(0)
        twins.append(create_model(name, (35, 35), 3, 1))
    image = images(2)
    method_step(twins[0], image)()
    noise = twins[1].initial_noise(2, generator=generator(0, "bench"))
    output = twins[1].from_noise(image, noise)
    if name == "small":
        assert output.loss is None
        loss = F.mse_loss(output.reconstruction, image)
    else:
        loss = output.reconstruction.sub(image).square().mean()
        if output.loss is not None:
            assert output.loss.shape == (2,)
            loss = output.loss.sum() / 2
    loss.backward()
    torch.optim.Adam(twins[1].parameters()).step()
    for a, b in zip(*(twin.parameters() for twin in twins)):
        torch.testing.assert_close(a, b)


def test_costs_are_counted():
    rows = bench_methods("tetrominoes", 2, rounds=1, models=SMALL)
    assert [row["method"] for row in rows] == list(SMALL)
    for row, model in zip(rows, SMALL.values()):
        weights = create_model(model, (35, 35), 4, 1).parameters()
        assert row["parameters"] == sum(weight.numel() for weight in weights)
        assert row["images/s"] == pytest.approx(2 / row["s/step"])
        assert row["time, times"] == row["s/step"] / rows[0]["s/step"]
        assert row["memory, times"] == row["MB"] / rows[0]["MB"]
    more = bench_methods("tetrominoes", 4, rounds=1, models={"a": "small"})
    assert 1.7 < more[0]["MB"] / rows[0]["MB"] < 2.1  # bytes grow with the batch
    header, *lines = method_table(rows)
    assert header[2] == "method" and all(len(line) == len(header) for line in lines)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="size: expected one of tetrominoes"):
        bench_methods("clever", 1)
    with pytest.raises(InputError, match="batch_size"):
        bench_methods("tetrominoes", 0)


def test_the_command_keeps_a_record(tmp_path, capsys):
    arguments = ["bench", "--methods", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["finished"] and kept["methods"] == printed["methods"]
    assert [row["method"] for row in kept["methods"][0]] == list(METHODS)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
