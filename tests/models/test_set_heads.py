"Heads that predict a set from one vector: the inner descent against other derivatives, symmetry."

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.metrics.matching import MATCHINGS
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.framed_sets import SPRITES
from slot_attention_nbdev.models.set_heads import SetEncoder, descend, representation_error, squash
from slot_attention_nbdev.train.recipes import build_model, get_recipe
from slot_attention_nbdev.train.tasks import Objective, draw_noise, evaluate, task_of
from slot_attention_nbdev.viz import find_objects

NAMES = ("properties_mlp", "properties_dspn")


def build(name, num_slots=6, num_iterations=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, (64, 64), num_slots, num_iterations).eval()


@pytest.fixture(scope="module")
def scenes():
    return evaluation_scenes("multi_dsprites_colored_on_grayscale", 3)


@pytest.fixture
def small():
    "An encoder in float64, sets and vectors: [2, 3, 4] and [2, 5]."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SetEncoder(4, 3, 5, hidden_dim=6).double()
    random = generator(0)
    draw = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
    return encoder, draw(2, 3, 4), draw(2, 5)


def slope_by_hand(encoder, elements, vector):
    "The gradient of the representation error of one set, by the chain rule written out."
    first, _, second, _, third = encoder.mlp
    K, hidden, features = len(elements), [], []
    for y in elements:
        x = torch.cat([y[:-1] * y[-1], y[-1:]])
        a = first.weight @ x + first.bias
        b = second.weight @ a.clamp(min=0) + second.bias
        hidden.append((a, b))
        features.append((third.weight @ b.clamp(min=0) + third.bias) / K)
    features = torch.stack(features)  # [K, C]
    place = features.argsort(dim=0, descending=True)
    weight = torch.zeros_like(features).scatter(0, place, encoder.rank_weights)  # of each element
    error = (weight * features).sum(0) - vector
    slopes = []
    for k, (y, (a, b)) in enumerate(zip(elements, hidden)):
        back = third.weight.T @ (error * weight[k] / K)
        back = second.weight.T @ (back * (b > 0))
        back = first.weight.T @ (back * (a > 0))
        slopes.append(torch.cat([back[:-1] * y[-1], (back[:-1] @ y[:-1] + back[-1])[None]]))
    return torch.stack(slopes)


def test_the_inner_descent_by_hand(small):
    encoder, start, vector = small
    found = descend(encoder, vector, start, 4, 0.3)
    with torch.no_grad():
        for b in range(2):
            elements = start[b]
            for t in range(4):
                elements = elements - 0.3 * slope_by_hand(encoder, elements, vector[b])
                assert_close(found[b, t], elements, rtol=1e-9, atol=1e-12)


def test_the_inner_slope_by_finite_differences(small):
    encoder, start, vector = small
    with torch.no_grad():
        step = start - descend(encoder, vector, start, 1, 1.0)[:, 0]
        for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
            moved = torch.zeros_like(start)
            moved[tuple(index)] = 1e-6
            error = lambda sets: representation_error(encoder, sets, vector).sum()
            slope = (error(start + moved) - error(start - moved)) / 2e-6
            assert_close(step[tuple(index)], slope, rtol=1e-6, atol=1e-8)


def test_the_outer_gradient_goes_through_all_steps(small):
    encoder, start, vector = small
    inputs = (vector.clone().requires_grad_(), start.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda z, y: descend(encoder, z, y, 3, 0.2), inputs)
    # a weight of the encoder, by finite differences
    weight = encoder.mlp[2].weight
    total = lambda: descend(encoder, vector, start, 3, 0.2).square().sum()
    (slope,) = torch.autograd.grad(total(), weight)
    before = weight.detach().clone()
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.copy_(before)
            weight[1, 2] += sign * 1e-6
            values.append(total())
        weight.copy_(before)
    assert_close(slope[1, 2], (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-8)
    assert slope.any()


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_it_descends_whether_gradients_are_recorded_or_not(small, context):
    encoder, start, vector = small
    expected = descend(encoder, vector, start, 3, 0.2).detach()
    with context():
        found = descend(encoder, vector, start, 3, 0.2)
    assert torch.equal(found.detach(), expected) and not torch.equal(expected[:, 0], start)


def test_a_small_step_lowers_the_error(small):
    encoder, start, vector = small
    with torch.no_grad():
        steps = descend(encoder, vector, start, 20, 0.02)
        errors = [representation_error(encoder, each, vector) for each in steps.unbind(1)]
    assert (torch.stack(errors).diff(dim=0) <= 0).all()


def test_other_order_in_other_order_out(small):
    encoder, start, vector = small
    order = [2, 0, 1]
    assert_close(encoder(start[:, order]), encoder(start))
    steps = descend(encoder, vector, start, 5, 0.3)
    assert_close(descend(encoder, vector, start[:, order], 5, 0.3), steps[:, :, order])


def test_what_is_not_there_does_not_matter(small):
    encoder, start, _ = small
    start[:, 1, -1] = 0
    other = start.clone()
    other[:, 1, :-1] += 5
    assert_close(encoder(other), encoder(start))
    assert not torch.equal(encoder(start), encoder(start + 0.1))


def test_dspn_has_no_order_of_its_own_and_the_mlp_has(scenes):
    image, target = to_model(scenes["image"]), SPRITES.encode(scenes, 6)
    dspn, mlp, order = build("properties_dspn"), build("properties_mlp"), [3, 0, 5, 1, 4, 2]
    with torch.no_grad():
        ours, plain = dspn(image), mlp(image)
        dspn.start.copy_(dspn.start[order].clone())
        moved = dspn(image)
        assert_close(moved.predictions, ours.predictions[:, order])
        assert_close(dspn.output_loss(moved, target), dspn.output_loss(ours, target))
        # the MLP's object 4 is the fifth piece of its last layer, whatever is in the image
        mlp.mlp[-1].weight[40:50] += 1
        changed = (mlp(image).predictions != plain.predictions).any(-1).any(0)
    assert changed.tolist() == [False] * 4 + [True, False]


def test_squash_reads_every_schema():
    raw = torch.randn(2, 3, SPRITES.width, generator=generator(0))
    found = squash(raw, SPRITES)
    names = SPRITES.slices["shape"]
    assert_close(found[..., names].sum(-1), torch.ones(2, 3))
    assert_close(found[..., :6], 1 / (1 + (-raw[..., :6]).exp()))
    assert_close(found[..., -1], 1 / (1 + (-raw[..., -1]).exp()))
    with pytest.raises(InputError, match="raw: expected vectors of 10 numbers, as sprites has"):
        squash(raw[..., 1:], SPRITES)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_learns(name, scenes):
    model = build(name)
    model.zero_grad()
    Objective(model)(scenes, draw_noise(model, 3, 0, 0)).backward()
    still = [key for key, weight in model.named_parameters() if not weight.grad.any()]
    assert still == []


def test_the_loss_is_the_mean_over_the_steps_and_the_term_of_the_truth(scenes):
    model, target = build("properties_dspn"), SPRITES.encode(scenes, 6)
    with torch.no_grad():
        output = model(to_model(scenes["image"]))
        sets = [model.loss(output.steps[:, t], target) for t in range(3)]
        known = (model.set_encoder(target) - output.vector).square().sum(1).mean() / 2
        found = task_of(model).loss(model, output, None, scenes)
    assert_close(found, sum(sets) / 3 + 0.1 * known)
    assert_close(output.steps[:, -1], output.predictions)


@pytest.mark.parametrize("name", NAMES)
def test_all_that_training_and_evaluation_ask(name, scenes):
    model, task = build(name), task_of(build(name))
    assert model.initial_noise(2).shape == (2, 0)
    metrics = evaluate(model, scenes, batch_size=2)
    assert {"ap_inf", "ap_1", "x", "shape"} <= metrics.keys()
    assert metrics == pytest.approx(evaluate(model, scenes, batch_size=3), nan_ok=True)
    controls = task.controls(model, build(name), scenes)
    assert controls == {"untrained": {"ap_inf": metrics["ap_inf"]}}  # no attention, no rules
    numbers, sheet = task.preview(model, scenes, shown=2)
    assert numbers == {} and sheet.shape == (3, 2 * 66, 66)
    assert torch.equal(sheet[:, 1:65, 1:65], scenes["image"][0].permute(2, 0, 1))
    objects, positions = find_objects(model, to_model(scenes["image"]), threshold=0.0)
    assert [len(each) for each in objects] == [6, 6, 6] and positions[0].shape == (6, 2)
    assert task.figure(model, scenes).axes


@pytest.mark.parametrize("name", NAMES)
def test_what_they_refuse(name, scenes):
    model, image = build(name), to_model(scenes["image"])
    with pytest.raises(InputError, match="num_slots: expected 6, since .* so many slots, got 7"):
        model(image, num_slots=7)
    with pytest.raises(InputError, match="num_slots: expected 6, since .* so many slots, got 7"):
        model.initial_noise(2, 7)
    with pytest.raises(InputError, match="num_iterations"):
        model(image, num_iterations=0)
    for K in (0, -1):
        with pytest.raises(InputError, match="num_slots"):
            type(model)(num_slots=K)
    with pytest.raises(InputError, match="image"):
        model(image[..., 1:])
    other = evaluation_scenes("tetrominoes", 2)
    with pytest.raises(InputError, match="sprites objects have 'scale'"):
        task_of(model).check(model, other)


def test_bad_settings_of_the_descent(small):
    encoder, start, vector = small
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="learning_rate"):
            descend(encoder, vector, start, 3, rate)
    with pytest.raises(InputError, match="num_steps"):
        descend(encoder, vector, start, 0, 0.1)
    with pytest.raises(InputError, match="elements: expected shape"):
        encoder(start[:, :2])


@pytest.mark.parametrize("matching", MATCHINGS)
def test_a_recipe_chooses_the_matching(matching, scenes):
    recipe = get_recipe("sprites_mlp", matching=matching)
    model, target = build_model(recipe), SPRITES.encode(scenes, 6)
    output = model(to_model(scenes["image"]))
    # by hand: matched by costs without names, paid with them
    table = model.cost(output.predictions, target, names=False).detach()
    paid = model.cost(output.predictions, target)
    pairs = MATCHINGS[matching](table)
    by_hand = []
    for b in range(3):
        if pairs.is_floating_point():
            by_hand.append((pairs[b] * paid[b]).sum())
        else:
            by_hand.append(sum(paid[b, i, j] for i, j in pairs[b].T.tolist()))
    assert_close(task_of(model).loss(model, output, None, scenes), sum(by_hand) / 3)


def test_matchings_that_are_refused():
    with pytest.raises(InputError, match="matching: unknown 'greddy'; did you mean 'greedy'"):
        get_recipe("sprites_dspn", matching="greddy")
    with pytest.raises(InputError, match="matching: expected 'hungarian' for model"):
        build_model(get_recipe("tiny", matching="greedy"))
