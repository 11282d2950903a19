"The set predictor: the original's predictions and gradients, sizes, symmetry."

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.objects import CLEVR
from slot_attention_nbdev.metrics.matching import huber_cost, hungarian, set_loss
from slot_attention_nbdev.models.original import (
    load_original,
    original_arrays,
    original_layers,
    original_set_predictor,
)
from slot_attention_nbdev.models.set_predictor import paper_set_predictor, small_set_predictor

# The original's set predictor


def gradients(model):
    """The gradient of each weight by its path, in the original's layout: it travels through the
    same change as the weights.
    """
    carrier = original_set_predictor()
    with torch.no_grad():
        for ours, weight in zip(carrier.parameters(), model.parameters(), strict=True):
            ours.copy_(weight.grad)
    return {path: x.detach() for path, x in original_arrays(carrier).items()}


def test_predictions_loss_and_gradients_of_the_original(golden):
    arrays = golden("set_prediction.npz")
    model = load_original(original_set_predictor(), arrays)
    sa, noise = model.slot_attention, torch.as_tensor(arrays["noise"])
    slots = sa.slots_mu + sa.slots_log_sigma.exp() * noise
    output = model(
        torch.as_tensor(arrays["image"]).permute(0, 3, 1, 2), slots=slots, return_attention=True
    )
    target = torch.as_tensor(arrays["target"])
    close = lambda ours, name, atol: assert_close(
        ours.detach(), torch.as_tensor(arrays[name]), rtol=0, atol=atol
    )
    close(output.predictions, "predictions", 1e-5)
    close(output.slots, "slots", 2e-5)
    close(output.attention[:, -1, ::7], "attn_3_sub", 1e-5)
    cost = huber_cost(output.predictions, target)
    close(cost, "pairwise_cost", 1e-5)
    unique = torch.as_tensor(arrays["indices_unique"]).bool()
    assert torch.equal(hungarian(cost)[unique], torch.as_tensor(arrays["indices"]).long()[unique])
    loss = set_loss(output.predictions, target)
    assert loss.item() == pytest.approx(float(arrays["loss"]), abs=1e-5)
    loss.backward()
    ours = gradients(model)
    names = dict(zip(arrays["weight_paths"], arrays["weight_names"]))
    assert sorted(ours) == sorted(names)
    for path, name in names.items():
        flat, theirs = ours[path].flatten(), torch.as_tensor(arrays[f"grad_sub/{name}"])
        flat_sub = flat if len(flat) <= 4096 else flat[::97]
        if path.endswith("norm_slots/beta"):  # mathematically zero: rounding dust
            assert flat.abs().max() < 1e-5
            continue
        assert (flat_sub - theirs).abs().max() <= 5e-4 * theirs.abs().max(), path
        assert flat.double().norm().item() == pytest.approx(
            float(arrays[f"grad_norm/{name}"]), rel=5e-4
        ), path


def test_loading_names_what_is_missing():
    model = original_set_predictor((32, 32), num_slots=3)
    arrays = {path: x.detach().numpy().copy() for path, x in original_arrays(model).items()}
    arrays.pop("mlp_classifier/layer_with_weights-1/bias")
    with pytest.raises(
        InputError,
        match=r"weights of SetPredictor: missing mlp_classifier/layer_with_weights-1/bias "
        r"\(dense_6/bias, shape \[19\]\)",
    ):
        load_original(model, arrays)


# The model


def test_sizes():
    paper = paper_set_predictor()
    assert paper(torch.zeros(1, 3, 128, 128), generator=generator(0)).predictions.shape == (
        1,
        10,
        19,
    )
    assert sum(p.numel() for p in paper.parameters()) == 380_755
    small = small_set_predictor((128, 128), num_slots=10, schema=CLEVR)
    output = small(
        torch.zeros(2, 3, 128, 128), num_slots=4, generator=generator(0), return_attention=True
    )
    assert output.predictions.shape == (2, 4, 19) and output.attention.shape == (2, 3, 256, 4)


def test_order_of_slots_in_is_order_of_objects_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_set_predictor()
    image = torch.rand(2, 3, 64, 64, generator=generator(1)) * 2 - 1
    slots = model.slot_attention.initial_slots(2, generator=generator(2))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(
        model(image, slots=slots[:, order]).predictions,
        model(image, slots=slots).predictions[:, order],
        rtol=1e-5,
        atol=1e-6,
    )


# Bad input

BAD = [
    (
        "image size",
        lambda: small_set_predictor()(torch.zeros(1, 3, 35, 35)),
        "image: expected shape [B, C=3, H=64, W=64]",
    ),
    (
        "bytes",
        lambda: small_set_predictor()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)),
        "image: expected floats in [-1, 1]",
    ),
    (
        "NaN image",
        lambda: small_set_predictor()(torch.full((1, 3, 64, 64), float("nan"))),
        "image: expected finite numbers",
    ),
    (
        "small model has no original",
        lambda: original_layers(small_set_predictor()),
        "build it with original_set_predictor",
    ),
]


@pytest.mark.parametrize("call, words", [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
