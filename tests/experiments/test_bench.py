"""The benchmark: both forms are one function, bytes are counted right, the record is written."""

import json

import pytest
import torch
from slot_attention_nbdev.cli import main
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.experiments import bench
from slot_attention_nbdev.experiments.bench import (
    STEPS,
    bench_growth,
    bench_module,
    bench_step,
    saved_tensor_bytes,
    slope,
    time_interleaved,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from torch.testing import assert_close


@pytest.mark.parametrize(
    "B, N, K, D, T", [(2, 9, 3, 8, 3), (1, 1, 1, 4, 1), (3, 4, 7, 5, 2), (2, 300, 4, 64, 3)]
)
def test_both_forms_are_the_same_module(B, N, K, D, T):
    ours = SlotAttention(D, D, K, T, 2 * D, implementation="one_pass").double()
    plain = SlotAttention(D, D, K, T, 2 * D).double()
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
def test_a_step_is_timed_in_each_form(size, monkeypatch):
    forms = []
    forward = SlotAttention.forward

    def watched(module, *arguments, **options):
        forms.append(module.implementation)
        return forward(module, *arguments, **options)

    monkeypatch.setattr(SlotAttention, "forward", watched)
    row = bench_step(size, 1, rounds=1)
    assert forms == ["plain", "one_pass"] * 2
    assert row["plain / one_pass"] == row["plain ms"] / row["one_pass ms"]
    assert "plain / plain" not in row


def test_memory_grows_with_tokens_not_with_attention():
    growth = bench_growth(
        B=1,
        rounds=1,
        middle={"N": 8192, "K": 4, "D": 64, "T": 2},
        sweeps={"N": (4096, 16384), "T": (1, 8), "K": (2, 16)},
    )
    exponent = {factor: each["exponents"] for factor, each in growth.items()}
    assert 0.9 < exponent["N"]["one_pass MB"] < 1.05
    assert exponent["T"]["one_pass MB"] < 0.1 < exponent["T"]["plain MB"]
    assert exponent["K"]["one_pass MB"] < 0.1 < exponent["K"]["plain MB"]


def test_a_storage_is_counted_once():
    x = torch.ones(10, requires_grad=True)
    assert saved_tensor_bytes(lambda: (y := x.exp()) * y, x) == 40
    assert saved_tensor_bytes(lambda: x + 1, x) == 0


def test_every_call_runs_once_more_than_counts():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    assert list(time_interleaved(calls, rounds=3)) == ["a", "b"]
    assert order == ["a", "b"] * 4


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
    assert said["modules"] == kept["modules"] and "one_pass ms" in kept["modules"][0]
    assert kept["hardware"] and "commit" in kept and kept["finished"]
    assert (tmp_path / "b" / "growth.png").stat().st_size > 1000


def test_a_bench_that_is_stopped_leaves_what_it_has(tmp_path, monkeypatch, capsys):
    def stop(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "bench_growth", stop)
    assert main(["bench", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "interrupted" in capsys.readouterr().err
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["modules"] and kept["steps"] and not kept["finished"] and kept["hardware"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
def test_without_a_card_the_bench_says_so(capsys):
    assert main(["bench", "--device", "cuda", "--peers"]) == 2
    assert "'cuda' is not available on this machine; use auto or cpu" in capsys.readouterr().err


@pytest.mark.parametrize("rounds", [0, 1.5, None])
def test_bad_rounds(rounds):
    with pytest.raises(InputError, match="rounds"):
        time_interleaved({"a": lambda: None}, rounds)
