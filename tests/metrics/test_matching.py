"""Matchings against every permutation, the set loss against the original's numbers."""

import math
import subprocess
import sys
from functools import partial
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.metrics.matching import (
    CostPart,
    auction,
    chamfer,
    greedy,
    huber_cost,
    hungarian,
    l2_cost,
    matched_cost,
    mixed_cost,
    set_loss,
    sinkhorn,
)

SOLVERS = {
    "hungarian": hungarian,
    "auction": auction,
    "greedy": greedy,
    "sinkhorn": sinkhorn,
    "chamfer": chamfer,
}
PARTS = [
    CostPart("position", 2),
    CostPart("color", 2, "cross_entropy"),
    CostPart("there", 1, "binary_cross_entropy", 0.5),
]
CASES = [
    "clevr_padded",
    "generic_large",
    "ties",
    "more_targets",
    "more_predictions",
    "permuted_exact",
]


def cheapest(cost):
    "The least sum over every way to match all of the smaller set."
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    rows = range(cost.shape[0])
    return min(
        sum(cost[m, n].item() for m, n in zip(rows, chosen))
        for chosen in permutations(range(cost.shape[1]), cost.shape[0])
    )


def check_pairs(pairs, M, N):
    "Pairs are valid: targets ascend, no prediction twice, all numbers exist."
    assert pairs.shape[1:] == (2, min(M, N)) and not pairs.is_floating_point()
    for targets, predictions in pairs.tolist():
        assert targets == sorted(set(targets)) and len(set(predictions)) == len(predictions)
        assert (
            min(targets) >= 0
            and max(targets) < M
            and min(predictions) >= 0
            and max(predictions) < N
        )


# The original's numbers


@pytest.mark.parametrize("case", CASES)
def test_cost_loss_and_gradients_of_the_original(golden, case):
    arrays = {
        key.removeprefix(case + "/"): torch.as_tensor(x)
        for key, x in golden("hungarian_huber_loss.npz").items()
        if key.startswith(case + "/")
    }
    x, y = arrays["x"].requires_grad_(), arrays["y"].requires_grad_()
    cost = huber_cost(x, y)
    assert_close(cost.detach(), arrays["pairwise_cost"], rtol=1e-6, atol=1e-6)
    pairs = hungarian(cost)
    assert pairs.shape == arrays["indices"].shape
    unique, by_value = arrays["indices_unique"].bool(), arrays["matching_unique"].bool()
    assert torch.equal(pairs[unique], arrays["indices"][unique].long())
    loss = set_loss(x, y)
    assert_close(loss.detach().double(), arrays["loss"].double(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert_close(x.grad[by_value], arrays["grad_x"][by_value], rtol=1e-5, atol=1e-7)
    assert_close(y.grad[unique], arrays["grad_y"][unique], rtol=1e-5, atol=1e-7)


def test_every_case_of_the_original_is_compared(golden):
    assert sorted(map(str, golden("hungarian_huber_loss.npz")["case_names"])) == sorted(CASES)


# Brute force


@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(1, 6),
    N=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([2, 4, 0]),
)
def test_hungarian_and_auction_against_all_permutations(M, N, seed, levels):
    cost = torch.rand(2, M, N, generator=generator(seed), dtype=torch.float64)
    cost = cost if levels == 0 else (cost * levels).floor()  # many ties
    best = torch.tensor([cheapest(c) for c in cost], dtype=torch.float64)
    for solver in (hungarian, auction, greedy):
        check_pairs(solver(cost), M, N)
    assert_close(matched_cost(cost, hungarian(cost)), best)
    span = cost.amax((1, 2)) - cost.amin((1, 2))
    found = matched_cost(cost, auction(cost))
    assert (found >= best - 1e-9).all() and (found <= best + max(M, N) * 1e-3 * span + 1e-9).all()
    assert (matched_cost(cost, greedy(cost)) >= best - 1e-9).all()


@pytest.mark.parametrize("M, N", [(10, 10), (7, 10), (10, 7), (25, 25)])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-6, 0), (1e6, -3e5)])
def test_auction_keeps_its_promise_on_larger_tables(M, N, scale, shift):
    cost = torch.rand(64, M, N, generator=generator(0), dtype=torch.float64) * scale + shift
    pairs = auction(cost)
    check_pairs(pairs, M, N)
    assert (
        matched_cost(cost, pairs) - matched_cost(cost, hungarian(cost)) <= max(M, N) * 1e-3 * scale
    ).all()


def test_auction_of_padded_targets_and_equal_tables():
    "Rows of zeros are bidders that want the same goods: the price war that takes longest."
    g = generator(1)
    targets = (
        torch.rand(256, 10, 19, generator=g).round()
        * (torch.arange(10) < torch.randint(0, 11, (256, 1), generator=g))[..., None]
    )
    cost = huber_cost(torch.rand(256, 10, 19, generator=g), targets)
    span = cost.amax((1, 2)) - cost.amin((1, 2))
    assert (
        matched_cost(cost, auction(cost)) - matched_cost(cost, hungarian(cost))
        <= 10 * 1e-3 * span + 1e-5
    ).all()
    check_pairs(auction(torch.zeros(3, 6, 6)), 6, 6)
    check_pairs(auction(cost, phases=1, rounds=1), 10, 10)  # far too short: still a matching


def test_auction_and_the_other_device_solvers_do_not_synchronize():
    "On the meta device there are no numbers: a value that is looked at is an error."
    cost = torch.zeros(4, 5, 7, device="meta")
    for solver in (auction, greedy, sinkhorn, chamfer):
        assert matched_cost(cost, solver(cost)).shape == (4,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        hungarian(cost)


def test_device_solvers_need_torch_alone():
    code = (
        "import sys; sys.modules['scipy'] = sys.modules['numpy'] = None\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch; from slot_attention_nbdev.metrics.matching import set_loss, auction\n"
        "print(set_loss(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), matching=auction).item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr


# Order does not matter


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(1, 6),
    N=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(SOLVERS)),
)
def test_loss_and_gradients_follow_permutations(M, N, seed, name):
    g = generator(seed, "order")
    x, y = (torch.rand(2, n, 5, generator=g, dtype=torch.float64) for n in (N, M))
    p, q = torch.randperm(N, generator=g), torch.randperm(M, generator=g)
    solver = partial(auction, tolerance=1e-7, phases=11) if name == "auction" else SOLVERS[name]
    a, b = x.clone().requires_grad_(), x[:, p].clone().requires_grad_()
    one, other = set_loss(a, y, matching=solver), set_loss(b, y[:, q], matching=solver)
    assert_close(one, other)
    one.backward()
    other.backward()
    assert_close(a.grad[:, p], b.grad)


# Costs and gradients


@pytest.mark.parametrize(
    "cost", [huber_cost, partial(huber_cost, delta=0.2), l2_cost, partial(mixed_cost, parts=PARTS)]
)
@pytest.mark.parametrize(
    "matching",
    [hungarian, auction, greedy, partial(sinkhorn, temperature=0.1, iterations=10), chamfer],
)
def test_gradients_in_float64(cost, matching):
    g = generator(2)
    x = (0.1 + 0.8 * torch.rand(2, 4, 5, generator=g, dtype=torch.float64)).requires_grad_()
    y = torch.rand(2, 3, 5, generator=g, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: set_loss(x, y, cost, matching), x)


def test_huber_bends_at_delta():
    error = torch.tensor([[[0.5], [1.0], [3.0]]])
    assert huber_cost(error, torch.zeros(1, 1, 1)).tolist() == [[[0.125, 0.5, 2.5]]]
    assert huber_cost(error, torch.zeros(1, 1, 1), delta=0.5)[0, 0].tolist() == pytest.approx(
        [0.125, 0.375, 1.375]
    )


def test_absolute_errors_against_a_plain_loop():
    x, y = torch.rand(2, 3, 4), torch.rand(2, 5, 4)
    cost = mixed_cost(x, y, [CostPart("one", 1, "l1", 2.0), CostPart("three", 3, "l1")])
    for b in range(2):
        for m in range(5):
            for n in range(3):
                off = [abs(float(x[b, n, i] - y[b, m, i])) for i in range(4)]
                assert cost[b, m, n].item() == pytest.approx(2 * off[0] + sum(off[1:]) / 3)


def test_cross_entropy_of_a_sure_mistake_is_finite():
    wrong = mixed_cost(
        torch.tensor([[[1.0, 0.0]]]),
        torch.tensor([[[0.0, 1.0]]]),
        [CostPart("color", 2, "cross_entropy")],
    )
    assert 10 < wrong.item() < 20
    nothing = mixed_cost(
        torch.zeros(1, 1, 2), torch.tensor([[[0.0, 1.0]]]), [CostPart("color", 2, "cross_entropy")]
    )
    assert math.isfinite(nothing.item())


@pytest.mark.parametrize("M, N", [(5, 5), (3, 5), (5, 3)])
def test_sinkhorn_gives_a_plan_that_sharpens(M, N):
    cost = torch.rand(8, M, N, generator=generator(3), dtype=torch.float64)
    plan = sinkhorn(cost, 0.05, 2000)
    assert (plan >= 0).all()
    assert_close(
        plan.sum((1, 2)), torch.full((8,), float(min(M, N)), dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert plan.sum(1).max() <= 1 + 1e-6 and plan.sum(2).max() <= 1 + 1e-6
    best = matched_cost(cost, hungarian(cost))
    gaps = [
        (matched_cost(cost, sinkhorn(cost, t, 3000)) - best).mean().item()
        for t in (0.1, 0.03, 0.01)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > -1e-9


# Bad input

x = torch.rand(2, 4, 5, generator=generator(4))
y = torch.rand(2, 3, 5, generator=generator(5))
nan = torch.where(torch.arange(5) == 2, math.nan, x)
BAD = [
    ("NaN predictions", lambda: set_loss(nan, y), "cost: expected finite numbers"),
    ("NaN targets", lambda: set_loss(x, nan[:, :3]), "cost: expected finite numbers"),
    (
        "infinite cost",
        lambda: hungarian(torch.full((1, 2, 2), math.inf)),
        "cost: expected finite numbers, got 4 NaN or Inf",
    ),
    ("no predictions", lambda: set_loss(x[:, :0], y), "predictions: expected at least one set"),
    ("no targets", lambda: set_loss(x, y[:, :0]), "targets: expected at least one set"),
    ("no sets", lambda: set_loss(x[:0], y[:0]), "predictions: expected at least one set"),
    (
        "empty cost",
        lambda: auction(torch.zeros(1, 0, 3)),
        "cost: expected at least one set with a target and a prediction",
    ),
    (
        "another width",
        lambda: l2_cost(x, y[..., :4]),
        "targets: expected shape [B=2, M, D=5], got [2, 3, 4]",
    ),
    (
        "another batch",
        lambda: huber_cost(x, y[:1]),
        "targets: expected shape [B=2, M, D=5], got [1, 3, 5]",
    ),
    ("two dimensions", lambda: huber_cost(x[0], y[0]), "predictions: expected shape [B, N, D]"),
    ("a list", lambda: huber_cost([[1.0]], y), "predictions: expected a tensor"),
    (
        "more targets, strict",
        lambda: set_loss(y, x, strict=True),
        "4 targets for 3 predictions, so 1 would go unmatched",
    ),
    (
        "strict hungarian",
        lambda: hungarian(torch.zeros(1, 3, 2), strict=True),
        "cost: 3 targets for 2 predictions",
    ),
    ("delta", lambda: huber_cost(x, y, delta=math.nan), "delta: expected a number > 0"),
    (
        "temperature",
        lambda: sinkhorn(torch.zeros(1, 2, 2), temperature=-1),
        "temperature: expected a number > 0",
    ),
    (
        "iterations",
        lambda: sinkhorn(torch.zeros(1, 2, 2), iterations=0),
        "iterations: expected an integer",
    ),
    (
        "tolerance",
        lambda: auction(torch.zeros(1, 2, 2), tolerance=0),
        "tolerance: expected a number > 0",
    ),
    ("rounds", lambda: auction(torch.zeros(1, 2, 2), rounds=0), "rounds: expected an integer"),
    (
        "widths",
        lambda: mixed_cost(x, y, PARTS[:2]),
        "parts: expected widths that sum to 5, got position 2, color 2",
    ),
    ("kind", lambda: mixed_cost(x, y, [CostPart("all", 5, "l3")]), "parts: all: unknown kind 'l3'"),
    (
        "not a share",
        lambda: mixed_cost(x - 1, y, PARTS),
        "predictions: color: cross_entropy expects numbers in [0, 1]",
    ),
]


@pytest.mark.parametrize("call, words", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)


def test_more_targets_than_predictions_are_allowed_unless_strict():
    cost = l2_cost(y, x)
    assert_close(set_loss(y, x, l2_cost), torch.tensor([cheapest(c) for c in cost]).mean())


def test_a_batch_goes_to_the_cpu_and_back_once(monkeypatch):
    ways = []
    there, back = torch.Tensor.cpu, torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: ways.append("there") or there(x))
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *to: ways.append("back") or back(x, *to))
    x, y = torch.rand(2, 16, 5, 4, generator=generator(3))
    set_loss(x, y)
    assert ways == ["there", "back"]
