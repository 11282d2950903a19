"What came after the paper: plans, heads and gates against independent computations."

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.after import (
    AFTER,
    AdaptiveAutoEncoder,
    Mesh,
    MultiHead,
    Transport,
    transport_plan,
)
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.nn.decoder import CoarseDecoder, mix_slots
from slot_attention_nbdev.nn.encoder import PatchEncoder
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.nn.variants import with_attention
from slot_attention_nbdev.train.recipes import get_recipe, load_model
from slot_attention_nbdev.train.trainer import train

B, N, K, D = 2, 11, 3, 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def shaken(cls, **options):
    "A module none of whose parameters is 0 or 1."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = cls(5, D, K, mlp_hidden_dim=12, **options).double()
    with torch.no_grad():
        for i, w in enumerate(module.parameters()):
            w += 0.3 * draw(*w.shape, seed=i)
    return module


def sinkhorn_numpy(cost, capacity, tolerance=1e-13):
    "Rows and columns scaled in turn, in plain numbers, until nothing moves."
    kernel, rows, columns = np.exp(-cost), np.ones(len(cost)), np.ones(len(capacity))
    for _ in range(100_000):
        before = columns
        rows = 1 / (kernel @ columns)
        columns = capacity / (kernel.T @ rows)
        if np.abs(columns / before - 1).max() < tolerance:
            break
    return rows[:, None] * kernel * columns


def test_plan_against_sinkhorn_in_numpy():
    cost, capacity = draw(N, K) * 2, np.array([1.0, 3.5, 6.5])
    plan = transport_plan(cost[None], torch.tensor(capacity)[None], 500)[0]
    np.testing.assert_allclose(plan, sinkhorn_numpy(cost.numpy(), capacity), atol=1e-10)


def test_marginals():
    cost = draw(B, N, K) * 3
    capacity = N * draw(B, K).softmax(-1)
    for iterations in (0, 1, 5, 300):
        plan = transport_plan(cost, capacity, iterations)
        torch.testing.assert_close(plan.sum(2), torch.ones(B, N).double())  # always
    torch.testing.assert_close(plan.sum(1), capacity)
    torch.testing.assert_close(transport_plan(cost, capacity, 0), (-cost).softmax(2))
    assert transport_plan(torch.full((1, 4, 2), 1e4), torch.full((1, 2), 2.0)).isfinite().all()


def test_a_sharp_plan_is_the_optimal_assignment():
    cost = draw(1, 5, 5)
    plan = transport_plan(cost * 200, torch.ones(1, 5).double(), 5000)[0]
    rows, columns = linear_sum_assignment(cost[0])
    assert plan[rows, columns].min() > 0.99


@pytest.mark.parametrize("cls", [MultiHead, Transport, Mesh])
def test_symmetry(cls):
    module, x, slots = shaken(cls), draw(B, N, 5), draw(B, K, D)
    order_i, order_s = torch.randperm(N, generator=generator(1)), torch.tensor([2, 0, 1])
    with torch.no_grad():
        plain, attn = module(x, slots=slots, return_attention=True)
        moved, moved_attn = module(x[:, order_i], slots=slots[:, order_s], return_attention=True)
    # MESH enlarges differences, and those of rounding
    torch.testing.assert_close(moved, plain[:, order_s], atol=1e-6, rtol=0)
    torch.testing.assert_close(moved_attn, attn[:, :, order_i][..., order_s], atol=1e-6, rtol=0)
    torch.testing.assert_close(attn.sum(-1), torch.ones_like(attn[..., 0]))


def test_a_capacity_for_each_number_would_break_it():
    class Numbered(Transport):
        def attend(self, tokens, slots):
            k, v = tokens
            capacity = torch.tensor([1.0, 3.0, 7.0]).double().expand(len(k), -1)
            attn = transport_plan(-(k @ self.project_q(slots).mT), capacity)
            return attn.mT @ v, attn

    module, x, slots = shaken(Numbered), draw(B, N, 5), draw(B, K, D)
    assert (module(x, slots=slots.flip(1)) - module(x, slots=slots).flip(1)).abs().max() > 1e-2


def test_images_do_not_concern_each_other():
    module, x, slots = shaken(Mesh), draw(B, N, 5), draw(B, K, D)
    alone = module(x[:1], slots=slots[:1])
    torch.testing.assert_close(module(x, slots=slots)[:1], alone, atol=1e-6, rtol=0)


def test_mesh_lowers_the_entropy_and_its_steps_are_constants():
    module = shaken(Mesh)
    cost, capacity = draw(B, N, K), N * draw(B, K).softmax(-1)
    entropy = lambda cost: torch.special.entr(transport_plan(cost, capacity)).sum((1, 2))
    leaf = cost.clone().requires_grad_()
    sharp = module.sharpen(leaf, capacity)
    assert (entropy(sharp) < 0.7 * entropy(cost)).all()
    (grad,) = torch.autograd.grad(sharp, leaf, draw(B, N, K, seed=2))
    torch.testing.assert_close(grad, draw(B, N, K, seed=2))  # the identity
    # the first step, its slope by finite differences
    one = type("One", (Mesh,), {"steps": 1})
    step = shaken(one).sharpen(cost, capacity) - cost
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((B,), 8.0).double())
    slope = torch.zeros(N, K, dtype=torch.float64)
    for i in range(N):
        for j in range(K):
            nudge = torch.zeros_like(cost)
            nudge[0, i, j] = 1e-5
            slope[i, j] = (entropy(cost + nudge)[0] - entropy(cost - nudge)[0]) / 2e-5
    torch.testing.assert_close(step[0], -8 * slope / slope.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cls", [MultiHead, Transport, Mesh])
def test_gradients_are_finite_and_reach_all(cls):
    module = shaken(cls)
    module(draw(B, N, 5), generator=generator(0)).square().sum().backward()
    for name, w in module.named_parameters():
        assert w.grad is not None and w.grad.isfinite().all(), name
        if name != "norm_slots.bias":
            assert w.grad.abs().sum() > 0, name


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_mesh_evaluates_as_it_trains(context):
    module, x, slots = shaken(Mesh), draw(B, N, 5), draw(B, K, D)
    expected = module(x, slots=slots).detach()
    with context():
        found = module(x, slots=slots)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_one_head_is_slot_attention():
    one = type("One", (MultiHead,), {"heads": 1})
    ours, other = shaken(one), shaken(SlotAttention)
    x, slots = draw(B, N, 5), draw(B, K, D)
    for a, b in zip(*(m(x, slots=slots, return_attention=True) for m in (ours, other))):
        torch.testing.assert_close(a, b)


def test_heads_are_modules_of_their_own():
    "Each part of the update is that of a narrow module with the same rows of the weights."
    module, x, slots = shaken(MultiHead), draw(B, N, 5), draw(B, K, D)
    tokens = module.prepare(x)
    updates, attn = module.attend(tokens, slots)
    q, attentions = module.project_q(slots), []
    for h in range(4):
        part = slice(2 * h, 2 * h + 2)
        narrow = SlotAttention(2, 2, K).double()
        with torch.no_grad():
            narrow.project_q.weight.copy_(torch.eye(2))
        k, v = (each[..., part] for each in tokens)
        expected, each = narrow.attend((k, v), q[..., part])
        torch.testing.assert_close(updates[..., part], expected)
        attentions.append(each)
    torch.testing.assert_close(attn, torch.stack(attentions).mean(0))
    with pytest.raises(InputError, match="heads"):
        shaken(type("Three", (MultiHead,), {"heads": 3}))(x)


@pytest.mark.parametrize("cls", [MultiHead, Transport, Mesh])
def test_they_go_into_a_model(cls):
    model = create_model("small", (35, 35), 4, 3)
    weights = dict(model.named_parameters())
    with_attention(model, cls)
    assert type(model.slot_attention) is cls
    changed = dict(model.named_parameters())
    assert all(changed[name] is w for name, w in weights.items())
    assert model(torch.zeros(1, 3, 35, 35) - 1).masks.isfinite().all()


def adaptive(seed=0, num_slots=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = (PatchEncoder(16, 16), SlotAttention(16, 16, num_slots))
        return AdaptiveAutoEncoder(*parts, CoarseDecoder(16, (12, 12), 8, (2,)))


def halved(model, image):
    "Move the gate so that about half of the slots are dropped."
    with torch.no_grad():
        slots = model(image, generator=generator(1)).slots
        model.gate[-1].bias -= model.gate(slots).median()
    return model


@pytest.fixture
def image():
    return torch.rand(3, 3, 12, 12, generator=generator(0)) * 2 - 1


def test_dropped_slots_take_no_part(image):
    model = halved(adaptive().eval(), image)
    with torch.no_grad():
        output = model(image, generator=generator(1))
        kept = output.slots.any(-1)
        assert 3 <= kept.sum() < 15 and kept.any(1).all()
        assert output.count_slots().tolist() == kept.sum(1).tolist()
        for b in range(3):
            alone, _, masks = mix_slots(model.decoder(output.slots[b : b + 1, kept[b]]))
            torch.testing.assert_close(output.reconstruction[b], alone[0], atol=1e-6, rtol=0)
            torch.testing.assert_close(output.masks[b, kept[b]], masks[0], atol=1e-6, rtol=0)
    expected = (output.reconstruction - image).square().mean((1, 2, 3)) + 0.005 * kept.sum(1)
    torch.testing.assert_close(output.loss, expected)


def test_gradients_reach_the_gate_also_by_dropped_slots(image):
    model = halved(adaptive().eval(), image)
    model.price = 0.0
    keeps, keep = [], model.keep

    def watched(*args):
        keeps.append(keep(*args))
        keeps[-1].retain_grad()
        return keeps[-1]

    model.keep = watched
    output = model(image, generator=generator(1))
    output.loss.sum().backward()
    (z,) = keeps
    assert z.grad.isfinite().all()
    assert (z.grad[z == 0].abs() > 1e-9).all()
    for w in model.gate.parameters():
        assert w.grad.isfinite().all() and w.grad.abs().sum() > 0


def test_straight_through_against_the_formula():
    "The derivative of the masks by z is that of z e^α / Σ z e^α, also where z is 0."
    alpha = draw(4)
    weights = draw(4, seed=1)
    z = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()

    def value(z, masks):
        return (masks(z) * weights).sum()

    plain = lambda z: z * alpha.exp() / (z * alpha.exp()).sum()
    ours = lambda z: (alpha + (z + AdaptiveAutoEncoder.nothing).log()).softmax(0)
    grads = [
        torch.autograd.grad(value(leaf, masks), leaf)[0]
        for masks in (plain, ours)
        for leaf in [z.clone().requires_grad_()]
    ]
    torch.testing.assert_close(*grads)


def test_the_gate_draws_with_its_probability():
    model = adaptive()
    slots = torch.randn(1, 1, 16, generator=generator(0)).expand(20_000, 2, 16)
    noise = torch.randn(20_000, 2, generator=generator(1))
    with torch.no_grad():
        model.gate[-1].bias -= 1.5
        rate = model.keep(slots, noise).mean(0)
        # at least one of the two is kept: of both dropped the better one comes back
        p = model.gate(slots[0, 0]).sigmoid().item()
    expected = p + (1 - p) ** 2 / 2
    assert abs(rate.mean().item() - expected) < 0.01
    assert 0.2 < p < 0.8


def test_noise_is_of_training_alone_and_comes_from_the_generator(image):
    model = adaptive()
    with torch.no_grad():
        model.gate[-1].bias -= 2.0
        noise = model.initial_noise(3, generator=generator(4))
        assert noise.shape == (3, 5, 17)
        kept = [model(image, generator=generator(4)).slots.any(-1) for _ in range(2)]
        assert kept[0].equal(kept[1])
        torch.testing.assert_close(
            model.from_noise(image, noise).masks, model(image, generator=generator(4)).masks
        )
        other = noise.clone()
        other[..., -1] *= -1
        assert not model.from_noise(image, other).slots.any(-1).equal(kept[0])
        model.eval()
        torch.testing.assert_close(
            model.from_noise(image, other).masks, model.from_noise(image, noise).masks
        )
        model.gate[-1].bias -= 100  # nobody wants to stay
        assert model(image, generator=generator(4)).count_slots().tolist() == [1, 1, 1]


def test_adaptive_is_symmetric_in_its_slots(image):
    model, order = halved(adaptive().train(), image), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        noise = model.initial_noise(3, generator=generator(5))
        plain, moved = model.from_noise(image, noise), model.from_noise(image, noise[:, order])
        torch.testing.assert_close(moved.masks, plain.masks[:, order], atol=1e-5, rtol=0)
        torch.testing.assert_close(moved.loss, plain.loss)
        assert model(image, num_slots=2, generator=generator(0)).masks.shape[1] == 2


@pytest.mark.parametrize("name", AFTER)
def test_every_variant_takes_a_step(name):
    model = create_model(name, (12, 12), 5, 2)
    image = torch.rand(2, 3, 12, 12, generator=generator(0)) * 2 - 1
    output = model(image, generator=generator(0))
    assert output.masks.shape == (2, 5, 12, 12)
    (output.squared_error(image) if output.loss is None else output.loss).mean().backward()
    for key, w in model.named_parameters():
        assert w.grad is None or w.grad.isfinite().all(), key
    assert type(model.slot_attention) is AFTER[name].attention
    assert model.slot_attention.init == AFTER[name].init


def test_a_recipe_trains_a_variant_and_loads_it(tmp_path):
    few = dict(steps=2, eval_every=2, eval_images=4, batch_size=2, warmup_steps=1)
    recipe = get_recipe("tetrominoes_slot_attention", model="after_adaptive", num_slots=7, **few)
    record = train(recipe, tmp_path / "run", device="cpu", progress=False)
    assert record["step"] == 2 and {"untrained", "color_rule"} <= record["final"]["controls"].keys()
    model, _ = load_model(tmp_path / "run")
    assert isinstance(model, AdaptiveAutoEncoder) and model.num_slots == 7
