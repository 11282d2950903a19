"Slot-centered frames: invariance, plain loops, gradients, what the caller may bring."

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.autoencoder import small_autoencoder
from slot_attention_nbdev.nn.frames import (
    REACH,
    FramedSlotAttention,
    Frames,
    cell_centers,
    in_frame,
    split_frames,
    waves,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.train.tasks import draw_noise

B, K, D, D_IN, GRID, ORDERS = 2, 3, 8, 5, (4, 6), 2
FLOAT64 = {"dtype": torch.float64}


def make(seed=0, **options):
    "A small module in float64 whose parameters are neither 0 nor 1."
    settings = {"grid": GRID, "slot_dim": D, "num_slots": K, "mlp_hidden_dim": 6, "orders": ORDERS}
    module = FramedSlotAttention(D_IN, **{**settings, **options}).double()
    g = generator(seed, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g, **FLOAT64), alpha=0.3)
    return module


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), **FLOAT64)


def some_frames(batch=B, slots=K, seed=0):
    g = generator(seed, "frames")
    position = 1.6 * torch.rand(batch, slots, 2, generator=g, **FLOAT64) - 0.8
    return Frames(position, 0.2 + torch.rand(batch, slots, 2, generator=g, **FLOAT64))


@pytest.fixture
def inputs():
    return draw(B, GRID[0] * GRID[1], D_IN)


# Against plain loops


def features(y, x, frames, b, j):
    "All products of the waves of both axes, for one token and one slot."
    parts = []
    for i, value in enumerate((y, x)):
        u = (value - frames.position[b, j, i]) / (math.sqrt(3) * frames.scale[b, j, i])
        phase = u.clamp(-REACH, REACH) * math.pi / REACH
        orders = range(1, ORDERS + 1)
        sines, cosines = ([f(m * phase) for m in orders] for f in (torch.sin, torch.cos))
        parts.append([torch.ones_like(phase), *sines, *cosines])
    return torch.stack([a * c for a in parts[0] for c in parts[1]])  # [F * F]


def test_two_small_products_are_a_relative_embedding_of_every_token(inputs):
    module, frames, slots = make(), some_frames(), draw(B, K, D)
    tokens = module.prepare(inputs, frames)
    updates, attn = module.attend(tokens, slots)
    places = [(y, x) for y in module.rows for x in module.columns]
    k, v, q = module.project_k, module.project_v, module.project_q
    x = module.norm_inputs(inputs)
    for b in range(B):
        phi = [[features(*at, frames, b, j) for j in range(K)] for at in places]
        for n in range(len(places)):
            # keys have the relative position added: k + P_k phi
            keys = [k(x[b, n]) + phi[n][j] @ module.position_k.weight for j in range(K)]
            scores = torch.stack([keys[j] @ q(slots[b, j]) for j in range(K)]) * D**-0.5
            assert_close(attn[b, n], scores.softmax(0))
        for j in range(K):
            weights = (attn[b, :, j] + 1e-8) / (attn[b, :, j] + 1e-8).sum()
            values = [v(x[b, n]) + module.position_v.weight @ phi[n][j] for n in range(len(places))]
            assert_close(updates[b, j], sum(w * value for w, value in zip(weights, values)))


def test_frames_are_mean_and_deviation_of_the_attention(inputs):
    module, start = make(), some_frames()
    tokens = module.prepare(inputs, start)
    _, attn = module.attend(tokens, draw(B, K, D))
    assert len(tokens.frames) == 2 and tokens.frames[0] is start
    position, scale = tokens.frames[1]
    places = torch.tensor([[y, x] for y in module.rows for x in module.columns])
    for b in range(B):
        for j in range(K):
            w = [a.item() + 1e-8 for a in attn[b, :, j]]
            for i in range(2):
                mean = sum(a * p[i].item() for a, p in zip(w, places)) / sum(w)
                gaps = [(p[i].item() - mean) ** 2 for p in places]
                variance = sum(a * gap for a, gap in zip(w, gaps)) / sum(w)
                assert position[b, j, i].item() == pytest.approx(mean)
                assert scale[b, j, i].item() == pytest.approx((variance + 0.06**2) ** 0.5)


def test_it_is_algorithm_1_with_a_last_look(inputs):
    module, frames = make(), some_frames()
    slots = torch.cat([draw(B, K, D), *frames], dim=-1)
    found, attention, history = module(
        inputs, slots=slots, num_iterations=2, return_attention=True, return_frames=True
    )
    tokens, vectors = module.prepare(inputs, frames), slots[..., :D]
    for t in range(3):
        updates, attn = module.attend(tokens, module.norm_slots(vectors))
        assert_close(attention[:, t], attn)
        assert_close(history.position[:, t + 1], tokens.frames[-1].position)
        if t < 2:
            vectors = module.update(updates, vectors)
    assert_close(split_frames(found)[0], vectors)
    assert_close(history.scale[:, 0], frames.scale)
    for got, want in zip(split_frames(found)[1], history):
        assert torch.equal(got, want[:, -1])
    assert attention.shape == (B, 3, 24, K) and history.position.shape == (B, 4, K, 2)
    assert_close(attention.sum(-1), torch.ones(B, 3, 24, **FLOAT64))


def test_without_relative_positions_it_is_slot_attention(inputs):
    module, plain = make(), SlotAttention(D_IN, D, K, mlp_hidden_dim=6).double()
    with torch.no_grad():
        module.position_k.weight.zero_()
        module.position_v.weight.zero_()
    own = {name: w for name, w in module.state_dict().items() if "position" not in name}
    plain.load_state_dict({**own, "slots_mu": own["slots_mu"][:, :1]})
    slots = torch.cat([draw(B, K, D), *some_frames()], dim=-1)
    want = plain(inputs, slots=slots[..., :D])
    assert_close(module(inputs, slots=slots)[..., :D], want)


# Invariance


@pytest.mark.parametrize("readout", [False, True])
def test_shifted_and_scaled_coordinates_change_nothing_but_the_frames(inputs, readout):
    "Exact, whatever the tokens are: only relative positions count."
    one = make(readout=readout)
    frames, slots = some_frames(), draw(B, K, D + 4)
    options = {"slots": slots, "return_attention": True, "return_frames": True}
    a = one(inputs, frames=frames, **options)
    shift, factor = torch.tensor([0.7, -0.3], **FLOAT64), torch.tensor([2.0, 2.0], **FLOAT64)
    other = copy.deepcopy(one)
    other.rows = one.rows * factor[0] + shift[0]
    other.columns = one.columns * factor[1] + shift[1]
    other.min_scale = one.min_scale * 2
    moved = Frames(frames.position * factor + shift, frames.scale * factor)
    b = other(inputs, frames=moved, **options)
    assert_close(a[1], b[1])
    assert_close(split_frames(a[0])[0], split_frames(b[0])[0])
    assert_close(a[2].position * factor + shift, b[2].position)
    assert_close(a[2].scale * factor, b[2].scale)


def test_an_object_that_moves_by_a_token_takes_its_slot_along():
    "Away from the border, and where another slot holds the background."
    size = 12
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = FramedSlotAttention(2, (size, size), D, 2, mlp_hidden_dim=6, eps=0.0).double()
    scene = torch.tensor([1.0, -1.0], **FLOAT64).repeat(1, size, size, 1)
    scene[:, 4:7, 3:7] = torch.tensor([-1.0, 1.0], **FLOAT64)
    scene[:, 5, 3:5] = torch.tensor([1.0, -1.0], **FLOAT64)  # no rectangle
    # slot 0 holds what is object, slot 1 what is background, by far
    with torch.no_grad():
        module.project_k.weight.zero_()
        module.project_q.weight.zero_()
        module.project_k.weight[0] = torch.tensor([-300.0, 300.0])
        module.project_q.weight[0, 0] = 300.0
        module.gru.bias_ih[D : 2 * D] = 6.0  # slots change slowly
        module.mlp[2].weight.mul_(0.1)
    vectors = torch.zeros(1, 2, D, **FLOAT64)
    vectors[0, :, 0] = torch.tensor([3.0, -3.0])
    spacing = 2 / (size - 1)
    for steps in ((0, 1), (2, -1), (-3, 4)):
        found = []
        for by in ((0, 0), steps):
            shift = torch.tensor(by, **FLOAT64) * spacing
            position = torch.tensor([[0.1, -0.2], [0.0, 0.0]], **FLOAT64)[None] + shift
            frames = Frames(position, torch.full_like(position, 0.5))
            tokens = scene.roll(by, (1, 2)).flatten(1, 2)
            slots = torch.cat([vectors, *frames], dim=-1)
            out, attn = module(tokens, slots=slots, return_attention=True)
            found.append((split_frames(out), attn.unflatten(2, (size, size)), shift))
        (a, frames_a), attention_a, _ = found[0]
        (b, frames_b), attention_b, shift = found[1]
        assert attention_a[0, -1, ..., 0].sum().item() == pytest.approx(
            10
        )  # the object, and all of it
        assert_close(a[:, 0], b[:, 0])  # the slot stays
        assert_close(attention_a.roll(steps, (2, 3)), attention_b)  # its attention moves
        assert_close(frames_a.position[:, 0] + shift, frames_b.position[:, 0])
        assert_close(frames_a.scale[:, 0], frames_b.scale[:, 0])


def test_tokens_in_another_order_are_another_scene(inputs):
    module = make()
    slots = torch.cat([draw(B, K, D), *some_frames()], dim=-1)
    order = torch.randperm(24, generator=generator(0))
    assert (module(inputs[:, order], slots=slots) - module(inputs, slots=slots)).abs().max() > 1e-3
    turn = [2, 0, 1]  # slots stay exchangeable, each with its frame
    assert_close(module(inputs, slots=slots[:, turn]), module(inputs, slots=slots)[:, turn])


# What the decoder needs


def test_cell_centers_are_pixels():
    assert_close(cell_centers(35), torch.linspace(-1, 1, 35))
    assert_close(cell_centers(12, 35, 3), torch.linspace(-1, 1, 35)[::3])
    assert_close(cell_centers(6, 12, 2, 1), torch.linspace(-1, 1, 12)[1::2])


def test_a_bar_reaches_from_minus_one_to_one_in_its_frame():
    axis = torch.linspace(-0.2, 0.6, 4001, **FLOAT64)
    u = in_frame(axis, axis.mean().view(1, 1), axis.std().view(1, 1))
    assert_close(u[0, 0, [0, -1]], torch.tensor([-1.0, 1.0], **FLOAT64), atol=1e-3, rtol=0)


def test_waves_are_one_sines_and_cosines():
    u = torch.tensor([[[0.0, REACH / 2, REACH, 9.0]]])
    found = waves(u, 2)[0, 0]
    want = [[1, 0, 0, 1, 1], [1, 1, 0, 0, -1], [1, 0, 0, -1, 1], [1, 0, 0, -1, 1]]
    assert_close(found, torch.tensor(want).float(), atol=1e-5, rtol=0)


# Draws


def test_draws_are_uniform_positions_and_repeatable(inputs):
    module = make()
    noise = module.initial_noise(4000, generator=generator(0))
    assert noise.shape == (4000, K, D + 2)
    vectors, frames = split_frames(module.slots_from_noise(noise))
    assert torch.equal(vectors, SlotAttention.slots_from_noise(module, noise[..., :D]))
    assert (frames.scale == 0.5).all() and frames.position.abs().max() <= 1
    assert frames.position.mean().abs() < 0.02
    assert frames.position.std().item() == pytest.approx(1 / 3**0.5, abs=0.02)
    split = torch.cat([module.initial_slots(1, generator=g) for g in [generator(1)] * 3])
    assert torch.equal(module.initial_slots(3, generator=generator(1)), split)
    a, b = (module(inputs, generator=generator(2)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, module(inputs, generator=generator(3)))


@pytest.mark.parametrize("init", ["gaussian", "learned"])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_another_number_of_slots(init, slots, inputs):
    module = make(init=init)
    assert module.slots_mu.shape[1] == (1 if init == "gaussian" else K)
    assert module(inputs, num_slots=slots).shape == (B, slots, D + 4)
    assert module(inputs, frames=some_frames(slots=slots)).shape == (B, slots, D + 4)
    assert module(inputs[:0]).shape == (0, K, D + 4)


def test_training_draws_the_same_noise():
    model = small_autoencoder()
    model.slot_attention = FramedSlotAttention(64, (18, 18), num_slots=4)
    noise = draw_noise(model, 5, 0, 7)
    want = model.slot_attention.initial_slots(5, generator=generator(0, "slots", 7))
    assert torch.equal(model.slot_attention.slots_from_noise(noise), want)
    assert torch.equal(draw_noise(model, 5, 0, 7, slice(2, 4)), noise[2:4])


# What PyTorch may do to a module


def test_gradients_reach_every_parameter(inputs):
    module = make(readout=True)
    module(inputs, generator=generator(0)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("readout", [False, True])
def test_gradcheck(readout):
    module = make(grid=(2, 3), slot_dim=3, num_slots=2, orders=1, readout=readout)
    x = draw(1, 6, D_IN).requires_grad_()
    frames = some_frames(1, 2)
    vectors = draw(1, 2, 3).requires_grad_()
    parts = [part.clone().requires_grad_() for part in frames]

    def run(x, vectors, position, scale):
        slots = torch.cat([vectors, position, scale], dim=-1)
        return module(x, slots=slots, num_iterations=2)

    assert torch.autograd.gradcheck(run, (x, vectors, *parts))


def test_deepcopy_and_state_dict(inputs):
    module = make(readout=True)
    slots = module.initial_slots(B, generator=generator(0))
    want = module(inputs, slots=slots)
    assert torch.equal(copy.deepcopy(module)(inputs, slots=slots), want)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = make(seed=9, readout=True)
    assert not torch.equal(other(inputs, slots=slots), want)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(inputs, slots=slots), want)
    names = set(module.state_dict()) - set(SlotAttention(4).state_dict())
    readout = {f"readout.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert names == {"position_k.weight", "position_v.weight"} | readout


def test_half_precision_measures_frames_in_full():
    module = FramedSlotAttention(D_IN, GRID, D, K, readout=True)
    x = torch.randn(B, 24, D_IN, generator=generator(0))
    slots = module.initial_slots(B, generator=generator(0))
    want = module(x, slots=slots)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x, slots=slots)
    assert got.dtype == torch.float32
    assert_close(got, want, atol=0.05, rtol=0.05)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_transforms_and_tracing(inputs):
    module = make(readout=True).requires_grad_(False)
    slots = module.initial_slots(B, generator=generator(0))
    frames = some_frames()
    direction = torch.randn(inputs.shape, generator=generator(1), **FLOAT64)

    def run(x, s=slots, f=frames):
        return module(x, slots=s, frames=Frames(*f))

    want, slope = torch.func.jvp(run, (inputs,), (direction,))
    step = 1e-5
    change = (run(inputs + step * direction) - run(inputs - step * direction)) / (2 * step)
    assert_close(slope, change, atol=1e-5, rtol=1e-4)
    one = torch.func.vmap(lambda x, s, p, z: run(x[None], s[None], (p[None], z[None]))[0])
    assert_close(one(inputs, slots, *frames), want)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: run(x), (inputs,), check_trace=False)
    assert_close(traced(-inputs), run(-inputs).detach())
    program = torch.export.export(module, (inputs,), {"slots": slots})
    assert_close(program.module()(-inputs, slots=slots), module(-inputs, slots=slots))


def test_the_layers_are_called(inputs):
    module = make(readout=True)
    called = []
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.LayerNorm, nn.GRUCell)):
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
    module(inputs, num_iterations=1)
    assert {"position_k", "position_v", "project_k", "readout.2", "gru"} <= set(called)


# Bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": (1, 1)}, "at least 2 rows and 2 columns"),
        ({"grid": (1, 6)}, "at least 2 rows and 2 columns"),
        ({"grid": 6}, "expected rows and columns"),
        ({"orders": 0}, "orders"),
        ({"init": "lerned"}, "did you mean 'learned'"),
        ({"axes": (torch.zeros(4), torch.zeros(5))}, r"axes\[1\]"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InputError, match=words):
        make(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": draw(B, K, D)}, "slots"),
        ({"slots": draw(B, 0, D + 4)}, "at least one slot"),
        ({"num_slots": 0}, "num_slots"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"slots": draw(B, K, D + 4), "num_slots": 4}, "slots"),
        ({"frames": some_frames(slots=4), "num_slots": 3}, "slots"),
        ({"frames": some_frames(), "slots": draw(B, 4, D + 4)}, "frames.position"),
        ({"frames": draw(B, K, 4)}, "expected Frames"),
        ({"frames": Frames(draw(B, K, 2), torch.zeros(B, K, 2))}, "expected numbers > 0"),
    ],
)
def test_bad_calls(options, words, inputs):
    with pytest.raises(InputError, match=words):
        make()(inputs, **options)


def test_bad_tokens(inputs):
    for wrong in (inputs[0], inputs[:, :1], inputs[:, :-1], inputs[..., :-1]):
        with pytest.raises(InputError, match="inputs"):
            make()(wrong)
    for wrong in (lambda: cell_centers(1), lambda: cell_centers(3, 1)):
        with pytest.raises(InputError):
            wrong()
