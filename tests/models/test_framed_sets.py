"The small set predictor: its head, its loss, its symmetry."

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.data.sources import evaluation_scenes
from slot_attention_nbdev.data.sprites import to_model
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.framed_sets import SPRITES, SpriteHead
from slot_attention_nbdev.nn.frames import split_frames


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("properties_framed", (64, 64), 6, 3).eval()


@pytest.fixture(scope="module")
def scenes():
    return evaluation_scenes("multi_dsprites_colored_on_grayscale", 4)


def test_a_head_that_says_nothing_predicts_the_frame():
    head = SpriteHead(8, 3)
    for parameter in head.mlp[-1].parameters():
        torch.nn.init.zeros_(parameter)
    pixel = torch.tensor([[24.0, 40.0], [31.5, 28.0], [36.0, 32.0]])  # (x, y)
    slots = torch.zeros(1, 3, 12)
    slots[..., 8:10] = (2 * pixel / 63 - 1).flip(-1)
    found = SPRITES.decode(head(slots, torch.zeros(1, 3, 3)))
    place = torch.stack([found["x"][0], found["y"][0]], dim=-1)
    assert_close(
        place, 64 * pixel / 63, rtol=0, atol=1e-3
    )  # the image's side is 64, the frame's 63
    with pytest.raises(InputError, match="slots: expected shape"):
        head(torch.zeros(1, 3, 8), torch.zeros(1, 3, 3))


def test_the_name_is_read_from_the_shape_alone():
    head, shape = SpriteHead(8, 3), torch.rand(1, 2, 3)
    one, other = (head(torch.randn(1, 2, 12), shape) for _ in range(2))
    assert torch.equal(one[..., 6:9], other[..., 6:9]) and not torch.equal(
        one[..., 2:6], other[..., 2:6]
    )
    moved = head(torch.zeros(1, 2, 12), shape + 1)
    still = head(torch.zeros(1, 2, 12), shape)
    assert not torch.equal(moved[..., 6:9], still[..., 6:9])
    assert torch.equal(moved[..., :6], still[..., :6]) and torch.equal(
        moved[..., 9:], still[..., 9:]
    )


def test_the_shape_is_never_half_precision(model, scenes):
    image = to_model(scenes["image"][:1])
    shapes = []
    hook = model.head.name[0].register_forward_pre_hook(lambda _, args: shapes.append(args[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(image, generator=generator(0), return_attention=True)
    hook.remove()
    frames = split_frames(output.slots)[1]
    assert shapes[0].dtype == torch.float32
    exact = model.slot_attention.attention_shape(output.attention[:, -1], frames)
    assert_close(shapes[0], exact)  # outside autocast


def test_other_order_in_other_order_out(model, scenes):
    image = to_model(scenes["image"])
    slots = model.slot_attention.initial_slots(4, generator=generator(0))
    with torch.no_grad():
        ours, flipped = model(image, slots=slots), model(image, slots=slots.flip(1))
    assert_close(flipped.predictions, ours.predictions.flip(1), rtol=0, atol=1e-4)
    target = SPRITES.encode(scenes, 6)
    assert_close(model.loss(flipped.predictions, target), model.loss(ours.predictions, target))


def test_names_cost_and_do_not_match(model, scenes):
    target = SPRITES.encode(scenes, 6)
    wrong = target[..., [0, 1, 2, 3, 4, 5, 7, 8, 6, 9]]
    real = target[..., -1]
    costs = model.cost(wrong, target).diagonal(dim1=1, dim2=2)
    assert (costs[real > 0] > 1).all() and (costs[real == 0] < 1e-3).all()
    without = model.cost(wrong, target, names=False).diagonal(dim1=1, dim2=2)
    assert_close(without, torch.zeros_like(without), rtol=0, atol=1e-3)


def test_every_weight_learns(model, scenes):
    output = model(to_model(scenes["image"]), generator=generator(1))
    model.zero_grad()
    model.loss(output.predictions, SPRITES.encode(scenes, 6)).backward()
    still = [name for name, weight in model.named_parameters() if not weight.grad.any()]
    assert still == []
