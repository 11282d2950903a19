"MONet: its likelihood and divergences against plain code, its masks, its draws, what it refuses."

import math

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence
from torch.func import functional_call
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.autoencoder import reconstruct_best, slot_draws
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.monet import (
    AttentionUNet,
    ComponentDecoder,
    MONet,
    component_encoder,
    divergences,
    mixture_log_likelihood,
)
from slot_attention_nbdev.train.recipes import build_model, get_recipe
from slot_attention_nbdev.train.tasks import evaluate


def images(batch_size, height=7, width=6, dtype=torch.float32):
    size = (batch_size, 3, height, width)
    return torch.rand(size, generator=generator(0, "images"), dtype=dtype) * 2 - 1


def tiny(num_slots=3, patch_size=1, **options):
    resolution = (7, 6)
    attention = AttentionUNet(resolution, (4, 5), mlp_dim=6, patch_size=patch_size)
    encoder = component_encoder(resolution, 4, (4, 5), hidden_dim=6)
    return MONet(attention, encoder, ComponentDecoder(4, resolution, 5), num_slots, 4, **options)


def random_mixture(B=2, K=3, H=4, W=3):
    g, kind = generator(0, "mixture"), torch.float64
    image = torch.rand(B, 3, H, W, generator=g, dtype=kind)
    colors = torch.rand(B, K, 3, H, W, generator=g, dtype=kind)
    log_masks = torch.randn(B, K, H, W, generator=g, dtype=kind).log_softmax(1)
    sigma = torch.rand(K, generator=g, dtype=kind) + 0.1
    return image, colors, log_masks, sigma


@pytest.mark.parametrize("name", ["monet", "monet_small"])
@pytest.mark.parametrize("size", [(35, 35), (40, 33)])
def test_output(name, size):
    model = create_model(name, size, 4, 1)
    for batch_size, K in ((1, 2), (2, None), (2, 5)):
        output = model(images(batch_size, *size), num_slots=K, return_attention=True)
        K = K or 4
        assert output.reconstruction.shape == (batch_size, 3, *size)
        assert output.slot_reconstructions.shape == (batch_size, K, 3, *size)
        assert output.slots.shape == (batch_size, K, 16)
        assert output.loss.shape == (batch_size,) and output.attention is None
        assert_close(output.masks.sum(1), torch.ones(batch_size, *size))
        assert all(part.isfinite().all() for part in output if part is not None)
        mixed = (output.masks[:, :, None] * output.slot_reconstructions).sum(1)
        assert_close(output.reconstruction, mixed)


def test_published_sizes():
    model = create_model("monet", (64, 64), 5, 1)
    assert len(model.attention.down) == len(model.attention.up) == 5
    assert [part.out_features for part in model.attention.mlp[::2]] == [128, 128, 4 * 4 * 64]
    convs = [part for part in model.encoder if isinstance(part, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [32, 32, 64, 64]
    assert {(conv.kernel_size, conv.stride) for conv in convs} == {((3, 3), (2, 2))}
    assert [part.out_channels for part in model.decoder.convs] == [32] * 4
    assert model.decoder.to_rgba.kernel_size == (1, 1)
    assert model.latent_dim == 16 and (model.beta, model.gamma) == (0.5, 0.5)
    assert model.sigma == (2 * 0.09, 2 * 0.11)  # pixels from -1 to 1, not from 0


def test_likelihood_is_that_of_plain_loops():
    image, colors, log_masks, sigma = random_mixture()
    B, K, _, H, W = colors.shape
    for b in range(B):
        total = 0.0
        for y in range(H):
            for x in range(W):
                density = 0.0
                for k in range(K):
                    part = log_masks[b, k, y, x].exp().item()
                    for c in range(3):
                        d = ((image[b, c, y, x] - colors[b, k, c, y, x]) / sigma[k]).item()
                        part *= math.exp(-d * d / 2) / (sigma[k].item() * math.sqrt(2 * math.pi))
                    density += part
                total += math.log(density)
        assert mixture_log_likelihood(image, colors, log_masks, sigma)[b].item() == (
            pytest.approx(total, rel=1e-12)
        )


def test_likelihood_of_one_component_is_a_gaussian():
    image, colors, log_masks, sigma = random_mixture(K=1)
    expected = Normal(colors[:, 0], sigma[0]).log_prob(image).sum((1, 2, 3))
    found = mixture_log_likelihood(image, colors, torch.zeros_like(log_masks), sigma)
    assert_close(found, expected)


def test_likelihood_of_far_components_is_finite():
    image, colors, log_masks, sigma = random_mixture()
    found = mixture_log_likelihood(image, colors + 500, log_masks - 1e4, sigma)
    assert found.isfinite().all()


def test_divergences_are_those_of_distributions():
    g = generator(0)
    mean, log_std = torch.randn(2, 2, 3, 5, generator=g, dtype=torch.float64)
    masks, logits = torch.randn(2, 2, 3, 4, 6, generator=g, dtype=torch.float64)
    masks = masks.log_softmax(1)
    of_latents, of_masks = divergences(mean, log_std, masks, logits)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum((1, 2))
    assert_close(of_latents, expected)
    q, p = (Categorical(logits=each.movedim(1, -1)) for each in (masks, logits))
    assert_close(of_masks, kl_divergence(q, p).sum((1, 2)))
    assert (of_masks > 0).all() and (of_latents > 0).all()
    zero = torch.zeros_like(mean)
    for each in divergences(zero, zero, masks, masks + 3):  # equal, but for a constant
        assert_close(each, torch.zeros_like(each), rtol=0, atol=1e-12)


def test_loss_is_the_sum_of_its_terms():
    model = tiny(beta=0.3, gamma=0.7).double()
    image = images(2, dtype=torch.float64)
    noise = model.initial_noise(2)
    output = model.from_noise(image, noise)
    # plain code: masks from the attention, one component after the other
    scope, log_masks, described, drawn = torch.ones(2, 1, 7, 6).double(), [], [], []
    for k in range(3):
        share = model.attention(torch.cat([image, scope.log()], 1)).sigmoid() if k < 2 else 1.0
        log_masks.append((scope * share).log())
        scope = scope * (1 - share)
        half = model.encoder(torch.cat([image, log_masks[k]], 1)).split(4, dim=1)
        described.append(half)
        drawn.append(model.decoder((half[0] + half[1].exp() * noise[:, k])[:, None])[:, 0])
    log_masks, drawn = torch.stack(log_masks, 1)[:, :, 0], torch.stack(drawn, 1)
    assert_close(output.masks, log_masks.exp())
    assert_close(output.slots, torch.stack([mean for mean, _ in described], 1))
    densities = [
        log_masks[:, k] + Normal(drawn[:, k, :3], 0.18 if k == 0 else 0.22).log_prob(image).sum(1)
        for k in range(3)
    ]
    loss = -torch.stack(densities).exp().sum(0).log().sum((1, 2))
    for mean, log_std in described:
        loss = loss + 0.3 * kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(1)
    q, p = (Categorical(logits=x.movedim(1, -1)) for x in (log_masks, drawn[:, :, 3]))
    loss = (loss + 0.7 * kl_divergence(q, p).sum((1, 2))) / (3 * 7 * 6)
    assert_close(output.loss, loss)


def test_one_component_that_takes_everything_is_a_plain_vae():
    model = tiny(num_slots=2, sigma=(0.3, 0.22)).double()
    with torch.no_grad():
        model.attention.to_logit.weight.zero_()
        model.attention.to_logit.bias.fill_(200.0)
    image = images(3, dtype=torch.float64)
    noise = model.initial_noise(3)
    mean, log_std = model.encoder(torch.cat([image, torch.zeros(3, 1, 7, 6)], 1)).chunk(2, 1)
    nothing = torch.full((3, 1, 7, 6), -10.0)
    rest = model.encoder(torch.cat([image, nothing], 1)).chunk(2, 1)
    drawn = model.decoder((mean + log_std.exp() * noise[:, 0])[:, None])[:, 0, :3]
    elbo = Normal(drawn, 0.3).log_prob(image).sum((1, 2, 3))
    standard = Normal(torch.zeros(4).double(), 1.0)
    for m, s in ((mean, log_std), rest):  # the second component is described, too
        elbo = elbo - kl_divergence(Normal(m, s.exp()), standard).sum(1)
    model.beta, model.gamma = 1.0, 0.0
    output = model.from_noise(image, noise)
    assert_close(output.loss, -elbo / image[0].numel())
    assert_close(output.reconstruction, drawn)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients(patch_size):
    model = tiny(patch_size=patch_size).double()
    noise = model.initial_noise(1)
    image = (0.9 * images(1, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: model.from_noise(x, noise).loss, image, fast_mode=True
    )
    image = image.detach()
    for name in ("attention.down.0.0.weight", "encoder.0.bias", "decoder.to_rgba.weight"):

        def loss(value, name=name):
            return functional_call(model, {name: value}, image, {"noise": noise}).loss

        assert torch.autograd.gradcheck(loss, model.get_parameter(name), fast_mode=True), name


def test_every_weight_learns():
    model = tiny()
    model(images(3)).loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    learned = [name for name, each in model.named_parameters() if each.grad.any()]
    assert {name.split(".")[0] for name in learned} == {"attention", "encoder", "decoder"}


def test_noise_and_generator_are_the_same_draw():
    model, image = tiny(), images(3)
    for K in (2, 3, 5):
        one = model(image, num_slots=K, generator=generator(7))
        noise = model.initial_noise(3, K, generator(7))
        assert noise.shape == (3, K, 4)
        for other in (model.from_noise(image, noise), model(image, noise=noise)):
            assert all(torch.equal(a, b) for a, b in zip(one, other) if a is not None)
    other = model(image, generator=generator(8))
    assert torch.equal(other.masks, model(image, generator=generator(7)).masks)
    assert not torch.equal(other.loss, model(image, generator=generator(7)).loss)


def test_parts_of_a_batch_equal_the_whole():
    model, image = tiny().double(), images(5, dtype=torch.float64)
    noise = model.initial_noise(5)
    whole = model.from_noise(image, noise)
    parts = [model.from_noise(image[rows], noise[rows]) for rows in (slice(2), slice(2, 5))]
    for name in ("reconstruction", "slot_reconstructions", "masks", "slots", "loss"):
        assert_close(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


def test_more_slots_divide_what_was_left():
    model = tiny().double()
    image = images(2, dtype=torch.float64)
    few, many = model(image, num_slots=3).masks, model(image, num_slots=6).masks
    assert_close(many[:, :2], few[:, :2])
    assert_close(many[:, 2:].sum(1), few[:, 2])


def test_best_of_several_draws():
    model, image = tiny().eval(), images(4)
    best = reconstruct_best(model, image, slot_draws(3, 0, "slots", num_slots=[2, 4]))
    assert best.masks.shape[1] == 4 and best.loss.shape == (4,)
    assert_close(best.masks.sum(1), torch.ones(4, 7, 6))


@pytest.mark.parametrize("K", [1, 0, -1, 2.0, True])
def test_fewer_than_two_slots_are_refused(K):
    model = tiny()
    for call in (
        lambda: model(images(1), num_slots=K),
        lambda: model.initial_noise(1, K),
        lambda: tiny(K),
    ):
        with pytest.raises(InputError, match="num_slots"):
            call()
    with pytest.raises(InputError, match="num_slots"):
        model.from_noise(images(2), torch.zeros(2, 1, 4))


def test_bad_input():
    model = tiny()
    for bad in (torch.zeros(1, 3, 6, 7), 127 * torch.ones(1, 3, 7, 6), images(1).round().int()):
        with pytest.raises(InputError, match="image"):
            model(bad)
    for name in ("monet", "monet_small"):
        with pytest.raises(InputError, match=r"len\(image\): expected an integer ≥ 1, got 0"):
            create_model(name, (35, 35), 4, 1)(images(0, 35, 35))
    with pytest.raises(InputError, match="noise"):
        model.from_noise(images(2), torch.zeros(1, 3, 4))
    with pytest.raises(InputError, match="num_iterations: expected 1, since.*got 2"):
        model(images(1), num_iterations=2)
    for name in ("monet", "monet_small"):
        with pytest.raises(InputError, match="num_iterations: expected 1"):
            create_model(name, (35, 35), 4, 3)
        with pytest.raises(InputError, match="resolution"):
            create_model(name, (8, 35), 4, 1)


def test_recipe_and_evaluation():
    recipe = get_recipe("tetrominoes_monet")
    model = build_model(recipe)
    assert isinstance(model, MONet) and model.num_slots == recipe.num_slots == 4
    g = generator(0)
    scenes = {
        "image": torch.randint(0, 255, (3, 35, 35, 3), generator=g).to(torch.uint8),
        "label": torch.randint(0, 3, (3, 35, 35), generator=g),
    }
    found = evaluate(model, scenes, num_slots=5)
    assert found["n"] == 3
    assert found == pytest.approx(evaluate(model, scenes, num_slots=5, batch_size=2), rel=1e-4)
