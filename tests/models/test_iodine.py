"IODINE: likelihoods, divergences and the refinement network's inputs against plain code."

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.iodine import (
    IODINE,
    IODINEDecoder,
    RefinementNetwork,
    leave_one_out,
    pixel_log_likelihood,
)
from slot_attention_nbdev.models.iodine_small import PlacedDecoder

B, K, D, SIZE, SIGMA = 2, 3, 2, (5, 4), 0.3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def images(n=B, size=SIZE):
    return draw(n, 3, *size).tanh()


def tiny(num_iterations=2, size=SIZE, num_slots=K):
    "A small model in float64 whose parameters are nobody's first values."
    model = IODINE(
        IODINEDecoder(D, size, hidden_dim=4, kernel_size=3),
        RefinementNetwork(D, size, channels=3, strides=(2,), pool=False),
        D,
        num_slots,
        num_iterations,
        SIGMA,
    ).double()
    g = generator(0, "weights")
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=g))
    return model


def density(x, mean):
    return math.exp(-0.5 * ((x - mean) / SIGMA) ** 2) / (SIGMA * math.sqrt(2 * math.pi))


def densities(image, decoded, b, y, x, slots=range(K)):
    "Weight and density of each slot in a pixel, by plain arithmetic."
    logits = [math.exp(decoded[b, k, 3, y, x]) for k in slots]
    colors = [
        math.prod(
            density(float(image[b, c, y, x]), float(decoded[b, k, c, y, x])) for c in range(3)
        )
        for k in slots
    ]
    return [each / sum(logits) for each in logits], colors


# Likelihoods


def test_likelihoods_against_a_loop():
    image, decoded = images(), draw(B, K, 4, *SIZE)
    each, whole = pixel_log_likelihood(image, decoded, SIGMA)
    assert each.shape == (B, K, *SIZE) and whole.shape == (B, *SIZE)
    without = leave_one_out(each, decoded[:, :, 3])
    posterior = each.softmax(dim=1)  # Eq. (6), as `explain` has it
    for b in range(B):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                weights, colors = densities(image, decoded, b, y, x)
                mixed = sum(w * c for w, c in zip(weights, colors))
                assert whole[b, y, x].item() == pytest.approx(math.log(mixed))
                for k in range(K):
                    assert each[b, k, y, x].item() == pytest.approx(math.log(colors[k]))
                    assert posterior[b, k, y, x].item() == pytest.approx(colors[k] / sum(colors))
                    others = [j for j in range(K) if j != k]
                    weights, rest = densities(image, decoded, b, y, x, others)
                    left = sum(w * c for w, c in zip(weights, rest))
                    assert without[b, k, y, x].item() == pytest.approx(math.log(left))


def test_likelihood_against_torch_distributions():
    image, decoded = images(), draw(B, K, 4, *SIZE)
    means, logits = decoded[:, :, :3], decoded[:, :, 3]
    mixture = MixtureSameFamily(
        Categorical(logits=logits.movedim(1, -1)),
        Independent(Normal(means.permute(0, 3, 4, 1, 2), SIGMA), 1),
    )
    found = pixel_log_likelihood(image, decoded, SIGMA)[1]
    assert_close(found, mixture.log_prob(image.movedim(1, -1)))


def test_a_color_far_away_has_a_finite_likelihood_and_gradient():
    image = torch.ones(1, 3, 2, 2)
    decoded = torch.full((1, 2, 4, 2, 2), -60.0, requires_grad=True)
    whole = pixel_log_likelihood(image, decoded, 0.01)[1]
    whole.sum().backward()
    assert whole.isfinite().all() and decoded.grad.isfinite().all()


def test_divergence_against_torch_distributions():
    model, image = tiny(), images()
    mean, log_variance = draw(B, K, D), draw(B, K, D, seed=1)
    noise = -mean / (0.5 * log_variance).exp()  # so that every posterior draws the same sample: 0
    found = model.explain(image, torch.cat([mean, log_variance], -1), noise, last=True)[1]
    nothing = model.explain(image, torch.zeros(B, K, 2 * D).double(), 0 * noise, last=True)[1]
    q = Normal(mean, (0.5 * log_variance).exp())
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), 1.0)).sum((1, 2))
    assert_close(found - nothing, expected)  # nothing said, nothing paid


def test_leaving_out_the_only_slot_changes_nothing():
    each = draw(B, 1, *SIZE)
    assert torch.equal(leave_one_out(each, draw(B, 1, *SIZE, seed=1)), each)


# The bound and its gradients


def bound(model, image, posterior, noise):
    "The negative evidence lower bound, written once more, with PyTorch's distributions."
    q = Normal(posterior[..., :D], posterior[..., D:].exp().sqrt())
    decoded = model.decoder(q.loc + q.scale * noise)
    decoded.retain_grad()
    mixture = MixtureSameFamily(
        Categorical(logits=decoded[:, :, 3].movedim(1, -1)),
        Independent(Normal(decoded[:, :, :3].permute(0, 3, 4, 1, 2), SIGMA), 1),
    )
    kl = kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0)).sum((1, 2))
    return kl - mixture.log_prob(image.movedim(1, -1)).sum((1, 2)), decoded, mixture


def standardized(x, shape):
    "Each slot's numbers with mean 0 and variance 1, by hand."
    flat = x.flatten(2)
    centered = flat - flat.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return (centered / (variance + 1e-5).sqrt()).view_as(x).expand(shape)


@pytest.mark.parametrize("grad", [True, False])
def test_what_the_refinement_network_sees(grad):
    model, image = tiny(), images()
    posterior = draw(B, K, 2 * D).requires_grad_()
    noise = draw(B, K, D, seed=2)
    expected, decoded, mixture = bound(model, image, posterior, noise)
    expected.sum().backward()
    with torch.set_grad_enabled(grad):
        found, loss, (maps, vectors) = model.explain(image, posterior, noise)
    assert maps.requires_grad == vectors.requires_grad == grad
    assert_close(found, decoded, check_stride=False)
    assert_close(loss, expected)
    rows, columns = (torch.linspace(0, 1, n, dtype=torch.float64) for n in SIZE)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    each = mixture.component_distribution.log_prob(image.movedim(1, -1)[..., None, :])
    each = each.movedim(-1, 1)
    logits = decoded[:, :, 3:]
    without = leave_one_out(each, logits[:, :, 0])[:, :, None]
    one, three = (B, K, 1, *SIZE), (B, K, 3, *SIZE)
    seen = [
        image[:, None].expand(three),
        decoded[:, :, :3],
        logits,
        logits.softmax(1),
        (each.exp() / each.exp().sum(1, keepdim=True))[:, :, None],
        standardized(decoded.grad[:, :, :3], three),
        standardized(decoded.grad[:, :, 3:], one),
        standardized(mixture.log_prob(image.movedim(1, -1))[:, None, None], one),
        standardized(without, one),
        torch.stack([y, x, 1 - y, 1 - x]).expand(B, K, -1, -1, -1),
    ]
    assert_close(maps, torch.cat(seen, dim=2), rtol=1e-6, atol=1e-8)
    by = standardized(posterior.grad, (B, K, 2 * D))
    assert_close(vectors, torch.cat([posterior, by], -1), rtol=1e-6, atol=1e-8)


def test_the_gradient_by_the_posterior_against_finite_differences():
    model, image, noise = tiny(), images(1), draw(1, K, D, seed=2)
    posterior, h = draw(1, K, 2 * D), 1e-5
    raw = torch.zeros_like(posterior)
    for k in range(K):
        for d in range(2 * D):
            step = torch.zeros_like(posterior)
            step[0, k, d] = h
            up, down = (bound(model, image, posterior + s, noise)[0].item() for s in (step, -step))
            raw[0, k, d] = (up - down) / (2 * h)
    seen = model.explain(image, posterior, noise)[2][1][..., 2 * D :]
    assert_close(seen, standardized(raw, raw.shape), rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_through_what_is_normalized():
    model, image = tiny(), images()
    posterior = draw(B, K, 2 * D).requires_grad_()
    maps, vectors = model.explain(image, posterior, draw(B, K, D, seed=2))[2]
    for part in (maps[:, :, 9:], vectors[..., 2 * D :]):
        found = torch.autograd.grad(part.sum(), posterior, retain_graph=True, allow_unused=True)
        assert found[0] is None or not found[0].any()
    assert torch.autograd.grad(maps[:, :, 3:9].square().sum(), posterior)[0].any()


def test_inner_gradients_leave_parameters_alone():
    model = tiny()
    with torch.no_grad():
        model(images())
    model.explain(images(), draw(B, K, 2 * D), draw(B, K, D))
    assert all(weight.grad is None for weight in model.parameters())


# The small decoder


def test_a_slot_that_moves_moves_what_it_draws():
    decoder = PlacedDecoder(5, (12, 14), 8, cell=2).double()
    latents = draw(1, 2, 5)
    step = torch.zeros(5, dtype=torch.float64)
    step[0] = 2 * 2 / 5  # one of six cells; half of the number is the place in [-1, 1]
    found, moved = decoder(latents), decoder(latents + step)
    assert_close(moved[..., 2:, :], found[..., :-2, :])
    assert not torch.allclose(moved, found)


def test_the_pixels_of_a_cell_begin_alike():
    drawn = PlacedDecoder(5, (8, 12), 8, cell=4)(draw(1, 2, 5).float())
    cells = drawn.unflatten(-1, (3, 4)).unflatten(-3, (2, 4))  # [1, 2, 4, 2, 4, 3, 4]
    first = cells[..., :1, :, :1]
    assert_close(cells, first.expand_as(cells))
    assert first.flatten().unique().numel() > 8  # and no two cells


# The whole model


def test_one_slot_is_a_plain_vae():
    "With K = 1 the mixture is a Gaussian: the loss is a squared error and a divergence."
    model, image = tiny(num_iterations=1, num_slots=1), images()
    noise = model.initial_noise(B, generator=generator(1))
    output = model.from_noise(image, noise)
    start = model.initial.expand(B, 1, -1)
    posterior = start + model.refine(*model.explain(image, start, noise[:, 0])[2], None)[0]
    mean, log_variance = posterior[:, 0].split(D, dim=-1)
    z = mean + log_variance.mul(0.5).exp() * noise[:, 1, 0]
    drawn = model.decoder(z[:, None])[:, 0, :3]
    pixels = 3 * math.prod(SIZE)
    error = (drawn - image).square().sum((1, 2, 3)) / (2 * SIGMA**2)
    constant = pixels * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
    assert_close(output.loss * math.prod(SIZE), error + constant + kl)
    assert_close(output.reconstruction, drawn)
    assert_close(output.masks, torch.ones(B, 1, *SIZE, dtype=torch.float64))
    assert_close(output.slots[:, 0], mean)


def test_the_loss_against_a_loop():
    model, image = tiny(num_iterations=3), images()
    noise = model.initial_noise(B, generator=generator(1))
    posterior, state, losses = model.initial.expand(B, K, -1), None, []
    for t in range(4):
        losses.append(bound(model, image, posterior, noise[:, t])[0])
        if t < 3:
            change, state = model.refine(*model.explain(image, posterior, noise[:, t])[2], state)
            posterior = posterior + change
    expected = (losses[1] / 3 + 2 * losses[2] / 3 + losses[3]) / 2 / math.prod(SIZE)
    assert_close(model.from_noise(image, noise).loss, expected)


@pytest.mark.parametrize("part", ["decoder", "placed", "refine"])
def test_gradcheck_of_the_networks(part):
    model = tiny(size=(3, 4))
    model.placed = PlacedDecoder(D + 2, (3, 4), 4, cell=2).double()
    module = getattr(model, part)
    names = [name for name, _ in module.named_parameters()]
    latents = {"decoder": [draw(1, 2, D)], "placed": [draw(1, 2, D + 2)]}
    given = latents.get(part, [draw(1, 2, 19, 3, 4), draw(1, 2, 4 * D)])
    given = [x.requires_grad_() for x in given]

    def run(*values):
        inputs = [*values[: len(given)], *([None] if part == "refine" else [])]
        found = torch.func.functional_call(
            module, dict(zip(names, values[len(given) :])), tuple(inputs)
        )
        return found[0] if part == "refine" else found

    assert torch.autograd.gradcheck(run, (*given, *module.parameters()), fast_mode=True)


def test_gradcheck_of_the_loss(monkeypatch):
    # what is normalized has no gradient on purpose; as a constant, all else can be checked
    monkeypatch.setattr(F, "layer_norm", lambda x, shape: torch.zeros_like(x))
    model, image = tiny(size=(3, 4), num_slots=2), images(1, (3, 4))
    noise = model.initial_noise(1, generator=generator(1))
    names = [name for name, _ in model.named_parameters()]

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.from_noise(image, noise).loss

    def run(*weights):
        named = {f"model.{name}": weight for name, weight in zip(names, weights)}
        return torch.func.functional_call(Loss(), named, ())

    assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)


def test_every_weight_gets_a_gradient():
    model = tiny()
    model(images(), generator=generator(1)).loss.mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any(), name


def test_parts_of_a_batch_are_the_whole():
    model, image = tiny(), images(4)
    noise = model.initial_noise(4, generator=generator(1))
    whole = model.from_noise(image, noise)
    parts = [model.from_noise(image[rows], noise[rows]) for rows in (slice(0, 1), slice(1, 4))]
    for i in (0, 1, 2, 3, 5):
        assert_close(torch.cat([part[i] for part in parts]), whole[i], check_stride=False)
    whole.loss.mean().backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    for part in parts:
        (part.loss.sum() / 4).backward()
    for weight, grad in zip(model.parameters(), expected):
        assert_close(weight.grad, grad)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_generator_and_its_noise_give_the_same_in_every_mode(mode):
    model, image = tiny(), images()
    noise = model.initial_noise(B, 5, generator(3))
    assert noise.shape == (B, 3, 5, D)
    expected = model.from_noise(image, noise)
    with mode():
        output = model(image, num_slots=5, generator=generator(3), return_attention=True)
        assert output.loss.requires_grad == (mode is torch.enable_grad)
        for found, other in zip(output[:4], expected):
            assert_close(found, other, check_stride=False)
        inner = model(image.clone(), num_slots=5, generator=generator(3))  # made in this mode
        assert_close(inner.loss, expected.loss)
    assert_close(output.loss, expected.loss)
    assert output.attention.shape == (B, 2, math.prod(SIZE), 5)
    last = output.attention[:, -1].mT.unflatten(-1, SIZE)
    assert_close(last, output.masks, check_stride=False)


def test_frozen_weights_and_an_open_graph():
    model = tiny().requires_grad_(False)
    free = tiny()
    for each in (model, free):
        each.found = each(images(), generator=generator(1))
    assert_close(model.found.loss, free.found.loss)


def test_fewer_and_more_iterations():
    model, image = tiny(num_iterations=2), images()
    noise = model.initial_noise(B, generator=generator(1))
    other = tiny(num_iterations=1)
    assert_close(
        model.from_noise(image, noise, num_iterations=1).loss,
        other.from_noise(image, noise[:, :2]).loss,
    )
    longer = tiny(num_iterations=5)
    again = torch.cat([noise, noise], dim=1)  # three draws for six times
    assert_close(
        model.from_noise(image, noise, num_iterations=5).loss, longer.from_noise(image, again).loss
    )


def test_slots_have_no_order():
    model, image = tiny(), images()
    noise = model.initial_noise(B, generator=generator(1))
    order = torch.tensor([2, 0, 1])
    one, other = model.from_noise(image, noise), model.from_noise(image, noise[:, :, order])
    assert_close(other.masks, one.masks[:, order])
    assert_close(other.slots, one.slots[:, order])
    assert_close(other.loss, one.loss)


@pytest.mark.parametrize("size", [(35, 35), (20, 33)])
@pytest.mark.parametrize("name", ["iodine", "iodine_small"])
def test_registered_sizes(name, size):
    model = create_model(name, size, 3, 1)
    image = 2 * torch.rand(1, 3, *size, generator=generator(1)) - 1
    output = model(image, generator=generator(2))
    assert output.slot_reconstructions.shape == (1, 3, 3, *size)
    assert output.masks.shape == (1, 3, *size)
    assert_close(output.masks.sum(1), torch.ones(1, *size))
    assert output.loss.shape == (1,)


def test_one_step_of_adam_after_another_lowers_the_loss():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IODINE(
            IODINEDecoder(4, (8, 8), 16, kernel_size=1),
            RefinementNetwork(4, (8, 8), 8, (4,), pool=False),
            latent_dim=4,
            num_slots=2,
            num_iterations=2,
        )
    image = -torch.ones(4, 3, 8, 8)
    image[:, 0, 2:5, 2:5] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g, losses = generator(1), []
    for _ in range(60):
        loss = model(image, generator=g).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny(num_slots=0), "num_slots: expected an integer ≥ 1, got 0"),
        (lambda: tiny(num_iterations=0), "num_iterations: expected an integer ≥ 1, got 0"),
        (lambda: tiny()(images(), num_slots=0), "num_slots: expected an integer ≥ 1, got 0"),
        (lambda: tiny()(images(), num_iterations=0), "num_iterations: expected an integer ≥ 1"),
        (lambda: tiny()(images(0)), r"len\(image\): expected an integer ≥ 1, got 0"),
        (lambda: tiny()(images() + 3), r"image: expected floats in \[-1, 1\]"),
        (lambda: tiny()(images(size=(4, 4))), "image: expected shape"),
        (lambda: tiny().from_noise(images(), draw(B, 3, K, D + 1)), "noise: expected shape"),
        (lambda: IODINEDecoder(0, SIZE), "latent_dim: expected an integer ≥ 1, got 0"),
        (lambda: PlacedDecoder(4, SIZE, cell=0), "cell: expected an integer ≥ 1, got 0"),
        (lambda: PlacedDecoder(2, SIZE), "latent_dim: expected an integer ≥ 3, got 2"),
        (lambda: IODINEDecoder(4, (0, 3)), "resolution: expected an integer ≥ 1, got 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()
