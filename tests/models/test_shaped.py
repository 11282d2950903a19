"Slots that carry shapes: what their series says, and what the decoder draws from it."

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.shaped import (
    ShapedSlotAttention,
    ShapeDecoder,
    series_weights,
    shaped_autoencoder,
)
from slot_attention_nbdev.nn.frames import Frames, cell_centers

B, K, D, ORDERS, SIZE = 2, 3, 6, 2, (12, 17)
F = 1 + 2 * ORDERS


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def make(resolution=SIZE, shading=False):
    "A small decoder in float64 whose parameters are neither 0 nor 1."
    decoder = ShapeDecoder(D, resolution, ORDERS, shading).double()
    g = generator(0, "weights")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return decoder


def some_slots():
    "Vectors, series and frames, near the middle."
    return torch.cat([draw(B, K, D + F * F), 0.2 * draw(B, K, 2), torch.ones(B, K, 2) / 3], dim=-1)


def small_model(stride=3, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaped_autoencoder((48, 39), num_slots=3, slot_dim=8, stride=stride, **options)


# The series


@pytest.mark.parametrize("wide", [0.15, 0.2])
@pytest.mark.parametrize("place", [(0.0, 0.0), (-0.3, 0.25)])
def test_the_series_is_the_attention(wide, place):
    # a bell is smooth: five frequencies draw it as it is, wherever it lies
    module = ShapedSlotAttention(4, (40, 50), 8, num_slots=1)
    y, x = cell_centers(40), cell_centers(50)

    def bell(rows, columns):
        square = ((rows - place[0]) ** 2)[:, None] + (columns - place[1]) ** 2
        return (-square / (2 * wide**2)).exp()

    attn = bell(y, x).view(1, -1, 1)
    frames = module.measure(module.token_weights(attn))
    assert_close(frames.position[0, 0], torch.tensor(place), rtol=0, atol=2e-3)
    slots = torch.cat([module.read_shape(torch.zeros(1, 1, 8), attn, frames), *frames], dim=-1)
    decoder = ShapeDecoder(8, (90, 70))
    with torch.no_grad():
        logit = decoder(slots)[0, 0, 3]
    seen = logit / decoder.sharpness + 0.5
    assert_close(seen, bell(cell_centers(90), cell_centers(70)), rtol=0, atol=0.03)


def test_few_tokens_are_not_seen_one_by_one():
    # a bar of three tokens, far apart in its frame: no gap between them
    module = ShapedSlotAttention(4, (16, 16), 8, num_slots=1)
    attn = torch.zeros(1, 16, 16)
    attn[:, 8, 6:9] = 1
    attn = attn.view(1, 256, 1)
    frames = module.measure(module.token_weights(attn))
    slots = torch.cat([module.read_shape(torch.zeros(1, 1, 8), attn, frames), *frames], dim=-1)
    with torch.no_grad():
        logit = ShapeDecoder(8, (64, 64))(slots)[0, 0, 3]
    middle = round((8 * 2 / 15) * 63 / 2)
    along = logit[middle, round(6 * 63 / 15) : round(8 * 63 / 15) + 1]
    assert along.min() > 0.6 * along.max() > 0


def test_weights_of_a_fine_grid_are_those_of_a_fourier_series():
    weights = series_weights(torch.full((1, 1), 1e-4), 3).flatten()
    assert_close(weights, 1e-4 / 1.7 * torch.tensor([0.5, *[1.0] * 6]))


# The decoder


@pytest.mark.parametrize("shading", [False, True])
def test_gradcheck(shading):
    decoder = make(resolution=(4, 3), shading=shading)
    names = [name for name, _ in decoder.named_parameters()]
    slots = some_slots()[:1, :2].requires_grad_()

    def run(slots, *weights):
        return torch.func.functional_call(decoder, dict(zip(names, weights)), (slots,))

    assert torch.autograd.gradcheck(run, (slots, *decoder.parameters()), fast_mode=True)


@pytest.mark.parametrize("steps", [(3, 0), (0, -2), (-1, 4)])
@pytest.mark.parametrize("shading", [False, True])
def test_a_move_by_whole_pixels_moves_the_picture(steps, shading):
    decoder, slots = make(shading=shading), some_slots()
    moved = slots.clone()
    pixel = 2 / (torch.tensor(SIZE, dtype=torch.float64) - 1)
    moved[..., -4:-2] += torch.tensor(steps) * pixel
    before, after = decoder(slots), decoder(moved)
    assert (after - before).abs().max() > 0.1  # otherwise nothing could be seen to move
    inner = [slice(max(0, step), n + min(0, step)) for step, n in zip(steps, SIZE)]
    rolled = before.roll(steps, (3, 4))
    # the pixels' coordinates are in single precision
    assert_close(after[..., inner[0], inner[1]], rolled[..., inner[0], inner[1]], rtol=0, atol=1e-4)


def test_colors_come_from_vectors_and_outlines_from_series():
    decoder, slots = make(), some_slots()
    other = slots.clone()
    other[..., D : D + F * F] += draw(B, K, F * F, seed=1)
    assert torch.equal(decoder(other)[:, :, :3], decoder(slots)[:, :, :3])
    assert not torch.equal(decoder(other)[:, :, 3], decoder(slots)[:, :, 3])


# The whole model


def test_every_weight_gets_a_gradient():
    model = small_model()
    with torch.no_grad():
        model.decoder.mask[-1].weight.normal_(generator=generator(3))  # it starts at zero
    image = 2 * torch.rand(2, 3, 48, 39, generator=generator(1)) - 1
    found = model(image, generator=generator(2)).reconstruction
    (found - image).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_an_object_that_moves_takes_its_mask_along():
    model = small_model().eval()
    image = torch.full((1, 3, 48, 39), -0.2)
    image[..., 12:21, 12:18] = torch.tensor([0.9, -0.9, 0.4])[:, None, None]
    moved = image.roll((6, 3), (2, 3))
    slots = model.slot_attention.initial_slots(1, generator=generator(0))
    there = slots.clone()
    there[..., -4] += 6 * 2 / 47
    there[..., -3] += 3 * 2 / 38
    with torch.no_grad():
        tokens = [model.encoder(each) for each in (image, moved)]
        attn = [
            model.slot_attention.attend(
                model.slot_attention.prepare(t, Frames(s[..., 8:10], s[..., 10:])), s[..., :8]
            )[1]
            for t, s in zip(tokens, (slots, there))
        ]
    # what the first iteration sees, away from the border, is what it saw before, elsewhere
    before, after = (each.unflatten(1, (16, 13)) for each in attn)
    assert_close(after[:, 4:-1, 3:-1], before.roll((2, 1), (1, 2))[:, 4:-1, 3:-1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ShapeDecoder(8, (1, 5)), "resolution: expected an integer ≥ 2, got 1"),
        (lambda: ShapeDecoder(0, (5, 5)), "slot_dim: expected an integer ≥ 1, got 0"),
        (lambda: ShapeDecoder(8, (5, 5), 0), "orders: expected an integer ≥ 1, got 0"),
        (lambda: shaped_autoencoder((3, 3)), "at least 2 rows and 2 columns"),
        (lambda: shaped_autoencoder(stride=0), "stride: expected an integer ≥ 1, got 0"),
        (lambda: make()(draw(B, K, D + 4)), r"slots: expected shape \[B, K, width=35\], got"),
        (
            lambda: small_model()(
                torch.zeros(1, 3, 48, 39), slots=small_model()(torch.zeros(1, 3, 48, 39)).slots
            ),
            r"slots: expected shape",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
