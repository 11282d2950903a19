"""Variants of Slot Attention: each deviates where it should; layers stay the same."""

import math

import pytest
import torch
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.pixel import pixel_autoencoder
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.nn.variants import (
    Detached,
    Implicit,
    ScaledSum,
    TokenSoftmax,
    Unscaled,
    WeightedSum,
    with_attention,
)
from slot_attention_nbdev.train.recipes import build_model, get_recipe
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model


def seeded(build, *args, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(*args, **options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def module_pair(cls, **options):
    ours, other = SlotAttention(5, 8, **options).double(), cls(5, 8, **options).double()
    with torch.no_grad():
        for i, w in enumerate(ours.parameters()):  # biases of 0 and gains of 1 would hide mistakes
            w.copy_(torch.randn(w.shape, generator=generator(0, i), dtype=w.dtype) * 0.4)
    other.load_state_dict(ours.state_dict())
    return (
        ours,
        other,
        torch.randn(2, 11, 5, generator=generator(1), dtype=torch.float64),
        torch.randn(2, 3, 8, generator=generator(2), dtype=torch.float64),
    )


@pytest.mark.parametrize("T", [1, 2, 4])
@pytest.mark.parametrize("cls", [Detached, Implicit])
def test_same_function(cls, T):
    ours, other, inputs, slots = module_pair(cls)
    for mine, its in zip(
        ours(inputs, slots=slots, num_iterations=T, return_attention=True),
        other(inputs, slots=slots, num_iterations=T, return_attention=True),
    ):
        torch.testing.assert_close(mine, its, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        ours(inputs, num_slots=5, generator=generator(3)),
        other(inputs, num_slots=5, generator=generator(3)),
    )


@pytest.mark.parametrize("cls", [TokenSoftmax, WeightedSum, ScaledSum, Unscaled])
def test_another_function(cls):
    ours, other, inputs, slots = module_pair(cls)
    assert (ours(inputs, slots=slots) - other(inputs, slots=slots)).abs().max() > 1e-3


def test_detached_gradient_is_that_of_the_last_step():
    ours, other, inputs, slots = module_pair(Detached)
    other(inputs, slots=slots).square().sum().backward()
    early = ours(inputs, slots=slots, num_iterations=2).detach()
    ours(inputs, slots=early, num_iterations=1).square().sum().backward()
    for (name, w), own in zip(ours.named_parameters(), other.parameters()):
        assert (w.grad is None) == (own.grad is None), name
        if w.grad is not None:
            torch.testing.assert_close(own.grad, w.grad, msg=name)


def test_straight_through_gradient():
    ours, other, inputs, slots = module_pair(Implicit)
    start = slots.clone().requires_grad_()
    (found,) = torch.autograd.grad(other(inputs, slots=start).square().sum(), start)
    early = ours(inputs, slots=slots, num_iterations=2).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(
        ours(inputs, slots=early, num_iterations=1).square().sum(), early
    )
    torch.testing.assert_close(found, wanted)


def test_one_iteration_of_implicit_is_plain():
    ours, other, inputs, slots = module_pair(Implicit)
    grads = [
        torch.autograd.grad(m(inputs, slots=s, num_iterations=1).sum(), s)[0]
        for m in (ours, other)
        for s in [slots.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("cls, divisor", [(WeightedSum, 1), (ScaledSum, 30 / 4)])
def test_sums_against_a_loop(cls, divisor):
    tokens, slots = draw(2, 30, 16), draw(2, 4, 16)
    ours = seeded(cls, 16, 16, 4, 2, seed=3).double()
    double = seeded(SlotAttention, 16, 16, 4, 2, seed=3).double()
    with torch.no_grad():
        x, s = double.norm_inputs(tokens[0]), slots[0]
        for _ in range(2):
            q = double.project_q(double.norm_slots(s))
            updates = torch.zeros(4, 16, dtype=torch.float64)
            for i in range(30):
                score = torch.stack(
                    [(double.project_k(x[i]) * q[j]).sum() / 4 for j in range(4)]
                ).softmax(0)
                for j in range(4):
                    updates[j] += score[j] * double.project_v(x[i])
            s = double.gru(updates / divisor, s)
            s = s + double.mlp(double.norm_mlp(s))
        torch.testing.assert_close(ours(tokens, slots=slots)[0], s)


@pytest.mark.parametrize(
    "cls", [TokenSoftmax, WeightedSum, ScaledSum, Unscaled, Detached, Implicit]
)
def test_layers_stay_when_the_class_is_exchanged(cls):
    "A bias, a hook and frozen weights stay; an optimizer made before still holds the weights."
    model = torch.nn.Module()
    model.slot_attention = seeded(SlotAttention, 6, 8, 3, 2, 20).eval()
    module = model.slot_attention
    module.project_k.bias = torch.nn.Parameter(torch.ones(8))
    module.slots_mu.requires_grad_(False)
    calls = []
    module.mlp.register_forward_hook(lambda *_: calls.append(1))
    before = dict(model.named_parameters())
    assert with_attention(model, cls) is model
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    changed = model.slot_attention
    assert type(changed) is cls and not changed.training and not changed.slots_mu.requires_grad
    assert (changed.num_slots, changed.num_iterations, changed.eps) == (3, 2, module.eps)
    changed(torch.zeros(1, 5, 6))
    assert len(calls) == 2
    with pytest.raises(InputError, match=f"got {cls.__name__}"):
        with_attention(model, SlotAttention)


def textbook_step(module, inputs, slots):
    "One iteration, from the paper's page: no absorbed projections, no hand-written gradients."
    x = module.norm_inputs(inputs)
    k = module.project_k(x)
    v = module.project_v(x)
    q = module.project_q(module.norm_slots(slots))
    attn = (k @ q.mT / math.sqrt(q.shape[-1])).softmax(-1) + module.eps
    updates = (attn / attn.sum(1, keepdim=True)).mT @ v
    slots = module.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
    return slots + module.mlp(module.norm_mlp(slots))


@pytest.mark.parametrize("T", [1, 2, 3, 5])
def test_gradients_of_the_last_step(T):
    model = seeded(pixel_autoencoder, (4, 4), 3).double()
    module = with_attention(model, Implicit).slot_attention
    inputs = draw(2, 10, 32).requires_grad_()
    noise = draw(2, 3, 64)
    weight = draw(2, 3, 64, seed=1)
    start = lambda: module.slots_mu + module.slots_log_sigma.exp() * noise
    watched = [inputs, *module.parameters()]

    got = torch.autograd.grad(
        (module(inputs, slots=start(), num_iterations=T) * weight).sum(), watched
    )
    slots = start()
    for _ in range(T - 1):
        slots = textbook_step(module, inputs, slots).detach()
    if T > 1:
        slots.requires_grad_()
    loss = (textbook_step(module, inputs, slots) * weight).sum()
    names = ["inputs", *dict(module.named_parameters())]
    if T == 1:
        want = dict(zip(names, torch.autograd.grad(loss, watched)))
    else:
        # what arrives at the last iteration's slots goes straight to μ, and times the derivative of
        # the start to log σ
        others = [w for name, w in zip(names, watched) if not name.startswith("slots_")]
        arrived, *rest = torch.autograd.grad(loss, [slots, *others])
        want = dict(zip((name for name in names if not name.startswith("slots_")), rest))
        want["slots_mu"] = arrived.sum((0, 1), keepdim=True)
        want["slots_log_sigma"] = (arrived * noise * module.slots_log_sigma.exp()).sum(
            (0, 1), keepdim=True
        )
    for name, grad in zip(names, got):
        torch.testing.assert_close(
            grad, want[name], rtol=1e-8, atol=1e-10, msg=lambda m: f"{name}: {m}"
        )
    assert (
        got[names.index("slots_mu")].norm() > 1e-3
        and got[names.index("slots_log_sigma")].norm() > 1e-3
    )


def test_last_step_computes_the_same_and_keeps_less():
    plain = seeded(pixel_autoencoder, (6, 6), 4)
    model = with_attention(seeded(pixel_autoencoder, (6, 6), 4), Implicit)
    image = to_model(evaluation_scenes("tetrominoes", 2)["image"])[:, :, :6, :6]
    for options in ({}, {"return_attention": True}, {"num_iterations": 5, "num_slots": 2}):
        for a, b in zip(
            *(m(image, generator=generator(0), **options) for m in (plain, model)), strict=True
        ):
            assert a is b is None or torch.allclose(a, b, atol=1e-6)
    assert list(model.state_dict()) == list(plain.state_dict()) and isinstance(
        model.slot_attention, SlotAttention
    )

    def kept(module, T):
        sizes = {}
        keep = lambda t: (
            sizes.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t
        )
        inputs = torch.zeros(1, 8, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            held = module(inputs, num_iterations=T, slots=torch.zeros(1, 64, 64))
        return sum(sizes.values()) if held is not None else 0

    assert kept(plain.slot_attention, 9) > 2 * kept(plain.slot_attention, 3)
    # memory does not grow with T
    assert kept(model.slot_attention, 9) == kept(model.slot_attention, 3)


def test_last_step_of_other_models():
    "Whatever is not plain Slot Attention is refused."
    with pytest.raises(InputError, match="got FramedSlotAttention"):
        build_model(get_recipe("tiny", gradient="implicit"), (35, 35))
    model = with_attention(seeded(pixel_autoencoder, (6, 6), 4), Implicit)
    with pytest.raises(InputError, match="got Implicit"):
        with_attention(model, Implicit)
