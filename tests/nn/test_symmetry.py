"Proposition 1 for random shapes, K, T and dtypes; modules that break it are caught."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.nn.slot_attention import SlotAttention

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.3}
quick = settings(deadline=None, max_examples=40)


@st.composite
def cases(draw):
    size = lambda high: draw(st.integers(1, high))
    return dict(
        B=size(3),
        N=size(24),
        K=size(9),
        T=size(5),
        d_in=size(10),
        d=1 + size(11),
        seed=draw(st.integers(0, 2**31)),
    )


def shaken(module, seed):
    "Every parameter moved away from 0 and 1, behind which mistakes hide."
    g = generator(seed, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g).to(parameter)
    return module


def deviations(module, case, dtype=torch.float64):
    "Relative deviation from Proposition 1: only tokens shuffled, only slots shuffled, both."
    g = generator(case["seed"], "case")
    x = torch.randn(case["B"], case["N"], case["d_in"], generator=g).to(dtype)
    s = torch.randn(case["B"], case["K"], case["d"], generator=g).to(dtype)
    order_i = torch.randperm(case["N"], generator=g)
    order_s = torch.randperm(case["K"], generator=g)
    module = module.to(dtype)
    with torch.no_grad():
        plain = module(x, slots=s)
        shuffled = (
            module(x[:, order_i], slots=s),
            module(x, slots=s[:, order_s]),
            module(x[:, order_i], slots=s[:, order_s]),
        )
    wanted = plain, plain[:, order_s], plain[:, order_s]
    assert plain.isfinite().all()
    return [((a - b).abs().max() / plain.abs().max()).item() for a, b in zip(shuffled, wanted)]


def build(kind, case, **kwargs):
    sizes = dict(
        slot_dim=case["d"],
        num_slots=case["K"],
        num_iterations=case["T"],
        mlp_hidden_dim=2 * case["d"],
    )
    return shaken(kind(case["d_in"], **sizes, **kwargs), case["seed"])


@pytest.mark.parametrize("implementation", ["plain", "one_pass"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_proposition_1(dtype, implementation):
    @quick
    @given(cases())
    def check(case):
        module = build(SlotAttention, case, implementation=implementation)
        assert max(deviations(module, case, dtype)) < TOLERANCE[dtype]

    check()


@quick
@given(cases())
def test_attention_is_permuted_too(case):
    module = build(SlotAttention, case).double()
    g = generator(case["seed"], "attention")
    x = torch.randn(case["B"], case["N"], case["d_in"], generator=g).double()
    s = torch.randn(case["B"], case["K"], case["d"], generator=g).double()
    order_i = torch.randperm(case["N"], generator=g)
    order_s = torch.randperm(case["K"], generator=g)
    plain = module(x, slots=s, return_attention=True)[1]
    moved = module(x[:, order_i], slots=s[:, order_s], return_attention=True)[1]
    torch.testing.assert_close(moved, plain[:, :, order_i][..., order_s])


@quick
@given(cases())
def test_images_do_not_concern_each_other(case):
    module = build(SlotAttention, case).double()
    g = generator(case["seed"], "batch")
    x = torch.randn(case["B"], case["N"], case["d_in"], generator=g).double()
    s = torch.randn(case["B"], case["K"], case["d"], generator=g).double()
    alone = torch.cat([module(x[b : b + 1], slots=s[b : b + 1]) for b in range(case["B"])])
    torch.testing.assert_close(module(x, slots=s), alone)


@quick
@given(cases())
def test_twice_the_tokens_is_the_same_set(case):
    module = build(SlotAttention, case).double()
    x = torch.randn(2, case["N"], case["d_in"], generator=generator(case["seed"])).double()
    s = module.initial_slots(2, generator=generator(case["seed"], "slots"))
    torch.testing.assert_close(module(torch.cat([x, x], 1), slots=s), module(x, slots=s))


def test_equal_slots_stay_equal():
    module = SlotAttention(5, slot_dim=6).double()
    s = torch.randn(1, 1, 6, generator=generator(0)).double().expand(2, 4, 6)
    out = module(torch.randn(2, 9, 5, generator=generator(1)).double(), slots=s, num_iterations=8)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


# Modules that are broken on purpose: the test above must be able to fail

CASE = dict(B=2, N=12, K=5, T=3, d_in=6, d=8, seed=0)


class SlotVectors(SlotAttention):
    "A learned vector for each slot."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = nn.Parameter(torch.zeros(self.num_slots, self.slot_dim))

    def forward(self, inputs, *, slots):
        return super().forward(inputs, slots=slots + self.own)


class PositionInside(SlotAttention):
    "A learned vector for each token's number."

    def __init__(self, *args, num_tokens=CASE["N"], **kwargs):
        super().__init__(*args, **kwargs)
        self.position = nn.Parameter(torch.zeros(num_tokens, self.input_dim))

    def forward(self, inputs, *, slots):
        return super().forward(inputs + self.position, slots=slots)


class WideLayerNorm(SlotAttention):
    "LayerNorm over tokens x channels, with a gain for each position."

    def __init__(self, *args, num_tokens=CASE["N"], **kwargs):
        super().__init__(*args, **kwargs)
        self.norm_inputs = nn.LayerNorm([num_tokens, self.input_dim])


class MixesSlots(SlotAttention):
    "An MLP that sees all slots at once, in their order."

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        size = self.num_slots * self.slot_dim
        self.mlp = nn.Sequential(
            nn.Flatten(1), nn.Linear(size, size), nn.Unflatten(1, (self.num_slots, self.slot_dim))
        )


@pytest.mark.parametrize(
    "kind, side", [(SlotVectors, 1), (PositionInside, 0), (WideLayerNorm, 0), (MixesSlots, 1)]
)
def test_broken_modules_fail(kind, side):
    broken = deviations(build(kind, CASE), CASE)
    assert broken[side] > 1e-2 and broken[2] > 1e-2  # caught
    assert broken[1 - side] < 1e-10  # and only where it is broken


def test_hypothesis_finds_a_broken_module():
    @settings(deadline=None, max_examples=60, database=None)
    @given(cases())
    def check(case):
        assert max(deviations(build(SlotVectors, case), case)) < 1e-6

    with pytest.raises(AssertionError):
        check()


def test_the_wide_layer_norm_hides_at_initialisation():
    sizes = dict(slot_dim=8, num_slots=5, mlp_hidden_dim=16)
    assert max(deviations(WideLayerNorm(6, **sizes), CASE)) < 1e-10
