"Our small model: seeds, shape read-out, stamps, the autoencoder around plain Slot Attention."

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sprites import multi_dsprites, tetrominoes, to_model
from slot_attention_nbdev.models.seeded import (
    FastAutoEncoder,
    HueEncoder,
    ShapeReadout,
    SolidsAutoEncoder,
    StampDecoder,
    choose_seeds,
    farthest_first,
    fast_autoencoder,
    gaussian_logits,
    hues,
    seeded_autoencoder,
    token_grid,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=dtype)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FastAutoEncoder()


@pytest.fixture(scope="module")
def image():
    return to_model(tetrominoes(4, generator=generator(0, "test"))["image"])


@pytest.mark.parametrize("size", [(35, 35), (64, 64), (34, 35), (17, 24)])
def test_tokens_lie_where_the_patches_look(size):
    encoder = FastAutoEncoder(size, num_slots=2).encoder
    picture = torch.zeros(1, 3, *size, requires_grad=True)
    features = encoder.features(picture)
    grid = token_grid(size)
    assert len(grid) == features[0, 0].numel()
    # away from the border
    token = (features.shape[2] // 2) * features.shape[3] + features.shape[3] // 2
    features.flatten(2)[0, :, token].abs().sum().backward()
    seen = picture.grad.abs().sum((0, 1)).nonzero().float().mean(0)
    assert_close(grid[token], seen - (torch.tensor(size) - 1) / 2)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_seeds_are_far_apart(seed, count):
    colors, places = draw(3, 40, 2, seed=seed), draw(40, 2, seed=seed + 1)
    chosen = farthest_first(colors, places, count)
    for b in range(3):  # the plain definition, one image at a time
        median = colors[b].median(dim=0).values
        nearest = [float((c - median).square().sum()) for c in colors[b]]
        for k in range(count):
            best = max(range(40), key=lambda n: nearest[n])
            assert int(chosen[b, k]) == best
            gap = [
                float(
                    (colors[b, n] - colors[b, best]).square().sum()
                    + (places[n] - places[best]).square().sum()
                )
                for n in range(40)
            ]
            nearest = [min(a, g) for a, g in zip(nearest, gap)]


@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_shape_does_not_depend_on_place(down, across, seed):
    readout = ShapeReadout(8)
    weights = torch.zeros(1, 34, 34, 1)
    weights[0, 12:16, 12:17, 0] = torch.rand(4, 5, generator=generator(seed))
    moved = weights.roll((down, across), (1, 2))
    centres, shapes = zip(
        *(
            readout.describe(
                w.flatten(1, 2) / w.sum(),
                2 * torch.cartesian_prod(torch.arange(34.0), torch.arange(34.0)),
            )
            for w in (weights, moved)
        )
    )
    assert_close(
        centres[1] - centres[0], torch.tensor([[[2.0 * down, 2.0 * across]]]), rtol=0, atol=1e-3
    )
    assert_close(shapes[0], shapes[1], rtol=0, atol=1e-4)


def test_a_stamp_moves_by_whole_pixels_exactly():
    decoder, slots = StampDecoder(8, (35, 35), stamp_size=9), draw(1, 1, 8)
    here = decoder(slots, torch.zeros(1, 1, 2))
    there = decoder(slots, torch.tensor([[[3.0, -4.0]]]))
    assert_close(here.roll((3, -4), (-2, -1)), there, rtol=0, atol=1e-6)


def test_gradients_are_right_in_double_precision():
    decoder = StampDecoder(4, (7, 6), stamp_size=3, hidden_dim=5).double()
    readout = ShapeReadout(4, period=9.0, orders=1, hidden_dim=5).double()
    slots = draw(1, 2, 4, dtype=torch.float64).requires_grad_()
    centre = (0.3 * draw(1, 2, 2, dtype=torch.float64)).requires_grad_()
    weights = draw(1, 9, 2, dtype=torch.float64).softmax(1).requires_grad_()
    places = draw(9, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(decoder, (slots, centre))
    assert torch.autograd.gradcheck(lambda s, w: readout(s, w, places), (slots, weights))


def test_slot_attention_inside_is_the_module_itself(model, image):
    assert type(model.slot_attention) is SlotAttention
    tokens = model.encoder(image)
    start = model.seeded_slots(image, tokens, 4)
    slots, attention = model.slot_attention(tokens, slots=start, return_attention=True)
    output = model(image, return_attention=True)
    assert_close(output.attention, attention)
    assert_close(output.masks.sum(1), torch.ones(4, 35, 35))
    assert not torch.equal(output.slots, slots)  # the read-out has added the shape


@pytest.mark.parametrize("K, T", [(1, 1), (2, 5), (9, 2)])
def test_slots_and_iterations_are_free_at_every_call(model, image, K, T):
    output = model(image, num_slots=K, num_iterations=T, return_attention=True)
    assert output.masks.shape == (4, K, 35, 35) and output.attention.shape == (4, T, 324, K)


def test_nothing_is_drawn(model, image):
    before = torch.random.get_rng_state()
    assert_close(model(image).masks, model(image, generator=generator(5)).masks, rtol=0, atol=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_trainable_weight_learns(model, image):
    model = deepcopy(model)
    output = model(image)
    (output.reconstruction - image).square().mean().backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    silent = {name for name, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0}
    # the same number for every slot: a softmax over slots does not see it
    assert silent <= {"slot_attention.norm_slots.bias"}
    assert {name for name, _ in model.named_parameters()} - trainable.keys() == {
        "slot_attention.slots_mu",
        "slot_attention.slots_log_sigma",
    }


def test_an_untrained_model_starts_as_k_means(model):
    module = model.slot_attention
    assert_close(module.project_q.weight, module.project_k.weight)
    tokens = draw(2, 5, 64)
    assert_close(model.seed(tokens), torch.nn.functional.layer_norm(tokens, (64,)))


def test_compile_export_copy(model, image):
    expected = model(image).masks
    assert_close(
        torch.compile(model, fullgraph=True, backend="aot_eager")(image).masks,
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    assert_close(
        torch.export.export(model, (image,)).module()(image).masks, expected, rtol=1e-4, atol=1e-5
    )
    assert_close(deepcopy(model)(image).masks, expected)
    fresh = fast_autoencoder()
    fresh.load_state_dict(model.state_dict())
    assert_close(fresh(image).masks, expected)


def test_bad_input(model, image):
    for call, words in [
        (lambda: model(image[:, :2]), "image: expected shape"),
        (lambda: model(image, num_slots=0), "num_slots"),
        (lambda: model(image, num_iterations=0), "num_iterations"),
        (lambda: model(image, slots=draw(4, 3, 9)), "slots: expected shape"),
        (lambda: model(image / 0), "image: expected finite numbers"),
        (lambda: fast_autoencoder(num_slots=0), "num_slots"),
        (lambda: StampDecoder(8, (35, 35), stamp_size=0), "stamp_size"),
    ]:
        with pytest.raises(InputError, match=words):
            call()


def test_seeds_find_the_pieces():
    scenes = tetrominoes(200, generator=generator(1, "seeds"))
    grid = token_grid((35, 35))
    at = (grid[choose_seeds(to_model(scenes["image"]), grid, 3)] + 17).long().clamp(0, 34)
    hit = scenes["label"][torch.arange(200)[:, None], at[..., 0], at[..., 1]]
    assert (hit.sort(1).values == torch.tensor([1, 2, 3])).all(1).float().mean() > 0.9


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_gaussian_against_pytorch(seed):
    places, pixels = token_grid((12, 10)), token_grid((12, 10), 1)
    weights = draw(2, len(places), 3, seed=seed).softmax(1)
    centre = weights.mT @ places
    away = places - centre[:, :, None]  # [2, 3, N, 2]
    covariance = torch.einsum("bnk,bkni,bknj->bkij", weights, away, away) + 1.5 * torch.eye(2)
    expected = torch.distributions.MultivariateNormal(
        centre[:, :, None], covariance[:, :, None]
    ).log_prob(pixels)
    ours = gaussian_logits(weights, centre, places, pixels, floor=1.5)
    assert_close(ours - ours.mean(), expected - expected.mean(), rtol=1e-3, atol=1e-3)


def test_a_narrow_slot_wins_its_surroundings_and_a_wide_one_the_rest():
    places = token_grid((32, 32))
    narrow = torch.exp(-(places - torch.tensor([6.0, -4.0])).square().sum(-1) / 8)
    weights = torch.stack([narrow, torch.ones(len(places))], dim=1)[None]
    weights = weights / weights.sum(1, keepdim=True)
    wins = (
        gaussian_logits(weights, weights.mT @ places, places, token_grid((32, 32), 1))
        .argmax(1)
        .view(32, 32)
    )
    assert wins[21, 11] == 0 and wins[0, 0] == wins[31, 31] == wins[0, 31] == 1
    assert 20 < (wins == 0).sum() < 300


def test_seeded_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = seeded_autoencoder((64, 64), 6, 2)
    image = to_model(multi_dsprites(2, generator=generator(0, "seeded"))["image"])
    output = model(image)
    assert_close(output.masks.sum(1), torch.ones(2, 64, 64))
    assert_close(
        output.reconstruction, (output.masks[:, :, None] * output.slot_reconstructions).sum(1)
    )
    output.reconstruction.square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in model.parameters()
        if p.requires_grad
    )
    assert model(image, num_slots=9).masks.shape == (2, 9, 64, 64)
    with pytest.raises(InputError, match="image: expected shape"):
        model(image[..., :32])


@given(st.integers(0, 10_000), st.floats(0.3, 1.0))
@settings(max_examples=30, deadline=None)
def test_hue_is_much_the_same_in_the_shade(seed, shade):
    # red light in [0, 1]
    bright = torch.rand(1, 1, 3, generator=generator(seed)) * torch.tensor(
        [0.4, 0.3, 0.3]
    ) + torch.tensor([0.6, 0.0, 0.0])
    grey = torch.full((1, 9, 3), 0.45)
    lit, shaded, ground = hues(2 * torch.cat([bright, shade * bright, grey], dim=1) - 1)[0, :3]
    assert (lit - shaded).norm() < 0.75 * min((lit - ground).norm(), (shaded - ground).norm())
    assert ground.norm() == 0 and lit.norm() < 1


def test_opposite_hues_lie_apart_and_dark_grey_is_not_ground():
    light = torch.tensor(
        [[0.7, 0.3, 0.3], [0.3, 0.65, 0.65], [0.15, 0.15, 0.15], *[[0.5, 0.5, 0.5]] * 7]
    )[None]
    red, cyan, dark, ground = hues(2 * light - 1)[0, :4]
    assert (red - cyan).norm() > 1.5 and (dark - ground).norm() > 0.7 and (dark - red).norm() > 0.7


def test_seeds_stop_when_all_is_found():
    colors, places = torch.zeros(2, 36, 2), token_grid((12, 12)) / 100
    colors.view(2, 6, 6, 2)[0, 1:4, 1:4] = torch.tensor([1.0, 0.0])  # one thing, three tokens wide
    colors.view(2, 6, 6, 2)[1, 2, 2] = torch.tensor([1.0, 0.0])  # one token alone
    seeds = farthest_first(colors, places, 3, (6, 6), enough=0.35)
    # the middle of the thing; nothing for noise
    assert seeds.tolist() == [[14, -1, -1], [-1, -1, -1]]
    assert farthest_first(colors, places, 1).tolist() == [[7], [14]]  # single tokens, however few


def shaded_squares():
    """Grey sloping ground with a soft shadow and three squares, lit from above.

    Light in [-1, 1], and the squares' corners.
    """
    row = torch.linspace(0.35, 0.6, 64)[:, None]
    image = row.expand(3, 64, 64).clone()
    image[:, 28:36, 20:30] *= 0.7  # shadow
    corners = [(8, 8), (22, 44), (44, 14)]
    paints = torch.tensor([[0.7, 0.2, 0.2], [0.2, 0.3, 0.8], [0.7, 0.2, 0.2]])
    for (y, x), paint in zip(corners, paints):
        image[:, y : y + 12, x : x + 12] = (
            paint[:, None, None] * torch.linspace(1.0, 0.45, 12)[:, None]
        )
    return 2 * image[None] - 1, corners


def test_solids_get_one_seed_each_and_spare_slots_paint_nothing():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SolidsAutoEncoder((64, 64), 7)
    image, corners = shaded_squares()
    # the second picture shows nothing at all
    image = torch.cat([image, torch.full_like(image, 0.1)])
    output = model(image, return_attention=True)
    drawn = output.masks.amax(dim=(2, 3)) > 0
    assert drawn.tolist() == [[True] * 4 + [False] * 3, [True] + [False] * 6]
    owners = output.masks[0].argmax(0)
    middles = [int(owners[y + 6, x + 6]) for y, x in corners]
    assert sorted(middles) == [1, 2, 3]  # two of one hue, but apart
    assert all(
        (owners[y + 2 : y + 10, x + 2 : x + 10] == own).float().mean() > 0.9
        for (y, x), own in zip(corners, middles)
    )
    holder = output.attention[0, -1].argmax(1).view(32, 32)
    assert int(holder[16, 12]) == int(holder[30, 30]) == 0  # shadow and light ground are ground
    assert_close(output.masks.sum(1), torch.ones(2, 64, 64))


def test_solids_learn_all_but_what_binds():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SolidsAutoEncoder((32, 31), 4)
    image = torch.nn.functional.interpolate(shaded_squares()[0], (32, 31))
    output = model(image)
    (output.reconstruction - image).square().mean().backward()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    module = "slot_attention."
    assert fixed == {
        "encoder.color.weight",
        *(
            module + f"norm_{what}.{which}"
            for what in ("inputs", "slots")
            for which in ("weight", "bias")
        ),
        "seed.0.weight",
        "seed.0.bias",
        "seed.1.weight",
        "seed.1.bias",
        module + "project_q.weight",
        module + "project_k.weight",
        module + "slots_mu",
        module + "slots_log_sigma",
    }
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for p in model.parameters()
        if p.requires_grad
    )
    for K, T in ((1, 1), (9, 3)):
        assert model(image, num_slots=K, num_iterations=T).masks.shape == (1, K, 32, 31)
    assert_close(
        torch.export.export(model, (image,)).module()(image).masks,
        output.masks,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_hue_encoder_says_where_things_are():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = HueEncoder()
    for height, width in ((64, 64), (35, 34)):
        image = torch.zeros(1, 3, height, width)
        image[:, 0, :, width // 2 + 4 :] = 0.9  # less than half: the rest is ground
        told, grid = encoder.pixels(image)[0], token_grid((height, width))
        size = told[:, :4].norm(dim=1, keepdim=True)
        assert_close(told[:, 4:6] * 40, size * grid)
        assert size[grid[:, 1] < 0].max() == 0 and size[grid[:, 1] > 8].min() > 0.8
