"Slot MLP: what comes out, that order matters, and what it refuses."

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.models.autoencoder import (
    paper_autoencoder,
    reconstruct_best,
    slot_draws,
    small_autoencoder,
)
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.slot_mlp import SlotMLP
from slot_attention_nbdev.nn.decoder import CoarseDecoder, mix_slots
from slot_attention_nbdev.nn.encoder import PatchEncoder
from slot_attention_nbdev.train.recipes import build_model, get_recipe
from slot_attention_nbdev.train.tasks import evaluate


def images(batch_size, height=12, width=9, dtype=torch.float32):
    size = (batch_size, 3, height, width)
    return torch.rand(size, generator=generator(0, "images"), dtype=dtype) * 2 - 1


def tiny(num_slots=3):
    decoder = CoarseDecoder(6, (12, 9), hidden_dim=4)
    return SlotMLP(PatchEncoder(5, 7), decoder, num_slots, hidden_dim=8, pooled=3)


@pytest.mark.parametrize("name", ["slot_mlp", "slot_mlp_small"])
def test_output(name):
    model = create_model(name, (35, 35), 3, 1)
    for batch_size in (0, 1, 2):
        output = model(images(batch_size, 35, 35), return_attention=True)
        assert output.reconstruction.shape == (batch_size, 3, 35, 35)
        assert output.slot_reconstructions.shape == (batch_size, 3, 3, 35, 35)
        assert output.slots.shape == (batch_size, 3, 64)
        assert output.attention is None and output.loss is None
        assert_close(output.masks.sum(1), torch.ones(batch_size, 35, 35))


@pytest.mark.parametrize(
    "name, counterpart", [("slot_mlp", paper_autoencoder), ("slot_mlp_small", small_autoencoder)]
)
def test_encoder_and_decoder_are_those_of_its_counterpart(name, counterpart):
    model, other = create_model(name, (35, 35), 4, 1), counterpart((35, 35), 4)
    for part in ("encoder", "decoder"):
        mine, theirs = (getattr(each, part).state_dict() for each in (model, other))
        assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_slots_are_those_of_plain_code():
    model = tiny().double()
    tokens = model.encoder(images(2, dtype=torch.float64))  # [2, 6 * 5, 5]
    grid = tokens.detach().view(2, 6, 5, 5)
    (first, *_), bias = model.mlp, model.mlp[-1].bias
    for b in range(2):
        read = []
        for c in range(5):
            for i in range(3):
                for j in range(3):
                    columns = slice(5 * j // 3, -(-5 * (j + 1) // 3))
                    read.append(grid[b, 2 * i : 2 * i + 2, columns, c].mean())
        hidden = F.relu(first.weight @ torch.stack(read) + first.bias)
        hidden = F.relu(model.mlp[2].weight @ hidden + model.mlp[2].bias)
        for k in range(3):
            rows = slice(6 * k, 6 * k + 6)
            slot = model.mlp[-1].weight[rows] @ hidden + bias[rows]
            assert_close(model.find_slots(tokens)[b, k], slot)
    output = model(images(2, dtype=torch.float64))
    assert_close(output.slots, model.find_slots(tokens))
    assert_close(output.masks, mix_slots(model.decoder(output.slots))[2])


def test_the_symmetry_test_fails():
    "Proposition 1 holds for Slot Attention and not for Slot MLP: neither half of it."
    model, attentive = tiny().double(), small_autoencoder((12, 9), 3).double()
    g = generator(0, "orders")
    tokens_of, slots_of = torch.randperm(30, generator=g), torch.tensor([1, 2, 0])
    image = images(2, dtype=torch.float64)
    start = attentive.slot_attention.initial_slots(2, generator=generator(0)).detach()
    methods = {
        True: (attentive.encoder(image), lambda x, s: attentive.slot_attention(x, slots=s)),
        False: (model.encoder(image), lambda x, s: model.find_slots(x)),
    }
    for holds, (tokens, find) in methods.items():
        right = find(tokens, start)
        scale = right.abs().max()
        for left, expected in (
            (find(tokens[:, tokens_of], start), right),
            (find(tokens, start[:, slots_of]), right[:, slots_of]),
        ):
            deviation = (left - expected).abs().max() / scale
            assert (deviation < 1e-10) == holds and (deviation > 1e-3) != holds


def test_nothing_is_random():
    model, image = tiny().eval(), images(4)
    state = torch.get_rng_state()
    outputs = [
        model(image),
        model(image, generator=generator(1), num_slots=3, num_iterations=1),
        model.from_noise(image, model.initial_noise(4), num_iterations=1),
        reconstruct_best(model, image, slot_draws(3, 0, "slots", num_slots=3)),
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert model.initial_noise(4, 3, generator(0)).shape == (4, 0)
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other) if a is not None)


def test_parts_of_a_batch_equal_the_whole():
    model, image = tiny().double(), images(5, dtype=torch.float64)
    noise = model.initial_noise(5)
    whole = model.from_noise(image, noise)
    parts = [model.from_noise(image[rows], noise[rows]) for rows in (slice(2), slice(2, 5))]
    for name in ("reconstruction", "masks", "slots"):
        assert_close(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


def test_gradients():
    model = tiny(2).double()
    image = images(1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x).masks.square().sum(), image, fast_mode=True)


def test_every_weight_learns():
    model = tiny()
    model(images(3)).squared_error(images(3)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("K", [1, 2, 4, 0, True + 1])
def test_another_number_of_slots_is_refused(K):
    model = tiny()
    for call in (lambda: model(images(1), num_slots=K), lambda: model.initial_noise(1, K)):
        with pytest.raises(InputError, match="num_slots: expected 3"):
            call()


def test_iterations_are_refused():
    with pytest.raises(InputError, match="num_iterations: expected 1, since.*got 3"):
        tiny()(images(1), num_iterations=3)
    for name in ("slot_mlp", "slot_mlp_small"):
        with pytest.raises(InputError, match="num_iterations: expected 1"):
            create_model(name, (35, 35), 4, 3)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 9, 12), 99 * torch.ones(1, 3, 12, 9)])
def test_bad_images(bad):
    with pytest.raises(InputError, match="image"):
        tiny()(bad)


def test_recipe_and_evaluation():
    recipe = get_recipe("tetrominoes_slot_mlp")
    model = build_model(recipe)
    assert isinstance(model, SlotMLP) and model.num_slots == recipe.num_slots == 4
    g = generator(0)
    scenes = {
        "image": torch.randint(0, 255, (3, 35, 35, 3), generator=g).to(torch.uint8),
        "label": torch.randint(0, 3, (3, 35, 35), generator=g),
    }
    found = evaluate(model, scenes, num_slots=4)
    assert found["n"] == 3 and found == evaluate(model, scenes, batch_size=2)
    with pytest.raises(InputError, match="num_slots"):
        evaluate(model, scenes, num_slots=5)
