"""The benchmark: its rivals compute the same function, its scales weigh right, its command writes what it says."""

import json

import pytest
import torch
from slot_attention_nbdev.experiments.bench import (
    STEPS,
    TextbookSlotAttention,
    bench_growth,
    bench_module,
    kept_bytes,
    race,
    slope,
    textbook,
)
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.autoencoder import paper_autoencoder
from slot_attention_nbdev.nn.slot_attention import LOOPS, SlotAttention
from torch.testing import assert_close


@pytest.mark.parametrize(
    "B, N, K, D, T", [(2, 9, 3, 8, 3), (1, 1, 1, 4, 1), (3, 4, 7, 5, 2), (2, 300, 4, 64, 3)]
)
def test_the_textbook_is_the_same_module(B, N, K, D, T):
    ours = SlotAttention(D, D, K, T, 2 * D).double()
    plain = TextbookSlotAttention(D, D, K, T, 2 * D).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(B, N, D, generator=generator(0), dtype=torch.float64)
    slots = torch.randn(B, K, D, generator=generator(1), dtype=torch.float64)
    results = []
    for module in (ours, plain):
        inputs = x.clone().requires_grad_()
        out, attention = module(inputs, slots=slots, return_attention=True)
        (out.square().sum() + attention.square().sum()).backward()
        results.append((out, attention, inputs.grad))
    for a, b in zip(*results):
        assert_close(a, b, rtol=1e-9, atol=1e-11)
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters()):
        if a.grad is not None:
            assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("size", STEPS)
def test_the_textbook_autoencoder_shares_values_not_memory(size):
    (resolution, K) = STEPS[size]
    ours = paper_autoencoder(resolution, K)
    plain = textbook(ours)
    assert all(
        torch.equal(a, b) and a.data_ptr() != b.data_ptr()
        for a, b in zip(ours.parameters(), plain.parameters())
    )
    assert (
        type(plain.slot_attention) is TextbookSlotAttention
        and type(ours.slot_attention) is SlotAttention
    )


def test_memory_grows_with_tokens_not_with_attention(monkeypatch):
    monkeypatch.delitem(LOOPS, "cpu", raising=False)
    growth = bench_growth(
        B=1,
        rounds=1,
        middle={"N": 8192, "K": 4, "D": 64, "T": 2},
        sweeps={"N": (4096, 16384), "T": (1, 8), "K": (2, 16)},
    )
    exponent = {factor: each["exponents"] for factor, each in growth.items()}
    assert 0.9 < exponent["N"]["ours MB"] < 1.05
    assert exponent["T"]["ours MB"] < 0.1 < exponent["T"]["textbook MB"]
    assert exponent["K"]["ours MB"] < 0.1 < exponent["K"]["textbook MB"]


def test_by_compiled_loops_nothing_is_kept_that_grows_with_tokens():
    pytest.importorskip("numba")
    growth = bench_growth(
        B=1, rounds=1, middle={"N": 8192, "K": 4, "D": 64, "T": 2}, sweeps={"N": (4096, 16384)}
    )["N"]
    assert abs(growth["exponents"]["ours MB"]) < 0.01
    assert all(10 * row["ours MB"] < row["textbook MB"] for row in growth["rows"])


def test_kept_bytes_counts_a_storage_once():
    x = torch.ones(10, requires_grad=True)
    assert kept_bytes(lambda: (y := x.exp()) * y, x) == 40
    assert kept_bytes(lambda: x + 1, x) == 0


def test_every_contestant_runs_once_more_than_counts():
    laps = {"a": 0, "b": 0}
    order = []

    def lap(name):
        laps[name] += 1
        order.append(name)

    race({name: lambda name=name: lap(name) for name in laps}, rounds=3)
    assert laps == {"a": 4, "b": 4} and order == ["a", "b"] * 4


def test_slope_of_a_power():
    assert slope([1, 10, 100], [2, 2e3, 2e6]) == pytest.approx(3)


def test_without_the_peer(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "slot_attention", None)
    assert "slot-attention ms" not in bench_module(1, 8, 2, rounds=1)
    assert main(["bench", "--peers", "--quick", "--device", "cpu"]) == 2
    assert "pip install slot-attention" in capsys.readouterr().err


def test_the_command_writes_record_and_picture(tmp_path, capsys):
    assert (
        main(["bench", "--quick", "--device", "cpu", "--out", str(tmp_path / "b"), "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert (
        said["modules"] == kept["modules"]
        and kept["hardware"]
        and kept["commit"] is not None
        or "commit" in kept
    )
    assert (tmp_path / "b" / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize("rounds", [0, 1.5, None])
def test_bad_rounds(rounds):
    with pytest.raises(InputError, match="rounds"):
        race({"a": lambda: None}, rounds)
