"The small autoencoder: what its encoder sees, and where and how its decoder draws."

import copy
import io

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.framed import LocalEncoder, PatchDecoder, framed_autoencoder
from slot_attention_nbdev.nn.frames import split_frames

B, K, D, S, SIZE = 2, 3, 6, 5, (12, 17)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=dtype)


def make(seed=0, least=0.0, **options):
    "A small decoder in float64 whose parameters are neither 0 nor 1."
    settings = {"slot_dim": D, "resolution": SIZE, "patch_size": S, "hidden_dim": 7}
    decoder = PatchDecoder(**{**settings, **options}).double()
    g = generator(seed, "weights")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    decoder.min_shading.fill_(least)
    return decoder


def make_like(decoder, least):
    "A copy with another least shading."
    other = copy.deepcopy(decoder)
    other.min_shading.fill_(least)
    return other


def some_slots(seed=0):
    "Vectors and frames, near the middle."
    return torch.cat([draw(B, K, D, seed=seed), 0.2 * draw(B, K, 2), torch.ones(B, K, 2)], dim=-1)


# The decoder


@pytest.mark.parametrize("least", [0.0, 0.2])
def test_gradcheck(least):
    decoder = make(least=least, resolution=(4, 3), patch_size=2, hidden_dim=3)
    names = [name for name, _ in decoder.named_parameters()]
    slots = some_slots()[:1, :2].requires_grad_()

    def run(slots, *weights):
        return torch.func.functional_call(decoder, dict(zip(names, weights)), (slots,))

    # all directions would be thousands of calls; a random one of each tensor finds a mistake, too
    assert torch.autograd.gradcheck(run, (slots, *decoder.parameters()), fast_mode=True)
    assert torch.autograd.gradcheck(decoder, (slots,))


@pytest.mark.parametrize("steps", [(3, 0), (0, -2), (-1, 4)])
def test_a_move_by_whole_pixels_moves_the_picture(steps):
    decoder, slots = make(), some_slots()
    moved = slots.clone()
    pixel = 2 / (torch.tensor(SIZE, dtype=torch.float64) - 1)  # in coordinates of the image
    moved[..., D : D + 2] += torch.tensor(steps) * pixel
    before, after = decoder(slots), decoder(moved)
    assert (after - before).abs().max() > 0.1  # otherwise nothing could be seen to move
    # a row or column that came in reads the patch's border, which extends over the image
    inner = [slice(max(0, step), n + min(0, step)) for step, n in zip(steps, SIZE)]
    rolled = before.roll(steps, (3, 4))
    assert_close(after[..., inner[0], inner[1]], rolled[..., inner[0], inner[1]])


def test_the_scale_of_a_frame_changes_nothing():
    decoder, slots = make(), some_slots()
    wide = slots.clone()
    wide[..., -2:] *= 3
    assert torch.equal(decoder(wide), decoder(slots))


def test_a_shift_is_at_most_what_was_said():
    still, near = make(max_shift=0.0), make(max_shift=1.5)
    for decoder in (still, near):
        with torch.no_grad():
            decoder.shift[-1].weight.zero_()
            decoder.shift[-1].bias.copy_(torch.tensor([50.0, -50.0]))  # tanh is ±1
    slots = some_slots()
    moved = slots.clone()
    moved[..., D] += 1.5 * 2 / (SIZE[0] - 1)
    moved[..., D + 1] -= 1.5 * 2 / (SIZE[1] - 1)
    assert_close(near(slots), still(moved))


@pytest.mark.parametrize("least", [0.0, 0.3, 0.9])
def test_every_color_keeps_the_least_shading(least):
    decoder = make(least=least)
    with torch.no_grad():
        decoder.patch[-1].bias.view(2, S, S)[0, :2].fill_(-60.0)  # as dark as may be
        decoder.patch[-1].bias.view(2, S, S)[0, 2:].fill_(60.0)  # as light as may be
    slots = some_slots()
    drawn = (decoder(slots)[:, :, :3] + 1) / 2  # in [0, 1]
    color = decoder.color(split_frames(slots)[0]).sigmoid()[..., None, None]
    share = drawn / color
    assert_close(share.amin((2, 3, 4)), torch.full((B, K), least, dtype=torch.float64))
    assert_close(share.amax((2, 3, 4)), torch.ones(B, K, dtype=torch.float64))
    # the mask has no part in it
    assert_close(decoder(slots)[:, :, 3], make_like(decoder, 0.0)(slots)[:, :, 3])


def test_deepcopy_and_state_dict():
    decoder, slots = make(least=0.3), some_slots()
    want = decoder(slots)
    assert torch.equal(copy.deepcopy(decoder)(slots), want)
    assert not torch.equal(make_like(decoder, 0.0)(slots), want)
    assert decoder.min_shading == 0.3  # the copy has a number of its own
    file = io.BytesIO()
    torch.save(decoder.state_dict(), file)
    file.seek(0)
    other = make(seed=9)
    assert not torch.equal(other(slots), want)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(slots), want) and other.min_shading == 0.3
    # no optimizer moves it
    assert "min_shading" in decoder.state_dict()
    assert "min_shading" not in dict(decoder.named_parameters())


# The whole model


def test_every_weight_gets_a_gradient():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = framed_autoencoder((14, 11), num_slots=3, slot_dim=8, patch_size=5)
    image = 2 * torch.rand(2, 3, 14, 11, generator=generator(1)) - 1
    found = model(image, generator=generator(2)).reconstruction
    (found - image).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PatchDecoder(8, (1, 5)), "resolution: expected an integer ≥ 2, got 1"),
        (lambda: PatchDecoder(8, (5, 5.0)), "resolution: expected an integer ≥ 2, got 5.0"),
        (lambda: PatchDecoder(0, (5, 5)), "slot_dim: expected an integer ≥ 1, got 0"),
        (lambda: PatchDecoder(8, (5, 5), 1), "patch_size: expected an integer ≥ 2, got 1"),
        (lambda: LocalEncoder(stride=0), "stride: expected an integer ≥ 1, got 0"),
        (lambda: framed_autoencoder((3, 3)), "at least 2 rows and 2 columns"),
        (lambda: framed_autoencoder(num_slots=0), "num_slots"),
        (lambda: framed_autoencoder(num_iterations=0), "num_iterations"),
        (lambda: framed_autoencoder(patch_size=0), "patch_size"),
        (lambda: make()(draw(B, K, D)), r"slots: expected shape \[B, K, width=10\], got"),
        (lambda: make()(draw(B, D + 4)), "slots: expected shape"),
        (lambda: LocalEncoder()(torch.zeros(1, 1, 9, 9)), r"image: expected shape \[B, C=3, H, W"),
        (lambda: LocalEncoder()(torch.zeros(3, 9, 9)), "image: expected shape"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
