"The autoencoder: shapes, properties, errors, and the ways PyTorch wants to use a module."

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.decoder import BroadcastDecoder
from slot_attention_nbdev.nn.encoder import ConvEncoder
from slot_attention_nbdev.models.base import create_model
from slot_attention_nbdev.models.autoencoder import (
    AutoEncoderOutput,
    SlotAttentionAutoEncoder,
    paper_autoencoder,
    reconstruct_best,
    slot_counts,
    slot_draws,
    small_autoencoder,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention

BUILDERS = {"paper": lambda: paper_autoencoder((35, 35), 4), "small": small_autoencoder}


@pytest.fixture(params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


def tiny():
    encoder = ConvEncoder(output_dim=8, hidden_dim=6, strides=(1, 2))
    decoder = BroadcastDecoder(10, (8, 12), (4, 6), hidden_dim=6, strides=(2, 1))
    return SlotAttentionAutoEncoder(
        encoder, SlotAttention(8, 10, num_slots=3, mlp_hidden_dim=12), decoder
    )


def images(batch_size, height=35, width=35, dtype=torch.float32):
    return (
        torch.rand(batch_size, 3, height, width, generator=generator(0, "images"), dtype=dtype) * 2
        - 1
    )


# Autoencoder


def test_output(model):
    for batch_size in (0, 1, 2):
        output = model(images(batch_size), return_attention=True)
        assert output.reconstruction.shape == (batch_size, 3, 35, 35)
        assert output.slot_reconstructions.shape == (batch_size, 4, 3, 35, 35)
        assert output.masks.shape == (batch_size, 4, 35, 35)
        assert output.slots.shape == (batch_size, 4, 64)
        assert output.attention.shape[:2] == (batch_size, 3) and output.attention.shape[-1] == 4
        assert_close(output.masks.sum(1), torch.ones(batch_size, 35, 35))
    assert output.reconstruction.isfinite().all()
    assert model(images(1)).attention is None


@pytest.mark.parametrize("init", ["gaussian", "learned"])
def test_the_best_of_several_draws_wins_in_each_image(init):
    model = tiny()
    model.slot_attention = SlotAttention(8, 10, num_slots=3, mlp_hidden_dim=12, init=init)
    with torch.no_grad():
        model.slot_attention.slots_log_sigma.fill_(1.0)  # draws that differ
    batch = images(5, 8, 12)
    draws = slot_draws(4, 0, "slots", num_slots=4)
    best = reconstruct_best(model, batch, draws, return_attention=True)
    draws = [generator(0, "slots", *words) for words in ((), (1,), (2,), (3,))]
    each = [model(batch, generator=g, num_slots=4, return_attention=True) for g in draws]
    winners = []
    for b in range(5):
        errors = [((one.reconstruction[b] - batch[b]) ** 2).mean().item() for one in each]
        winners.append(errors.index(min(errors)))
        for name in best._fields[:5]:  # no model here has a loss of its own
            got, want = getattr(best, name)[b], getattr(each[winners[-1]], name)[b]
            assert torch.equal(got, want), name
    assert len(set(winners)) > 1
    one = reconstruct_best(model, batch, slot_draws(1, 0, "slots"))
    assert torch.equal(one.masks, model(batch, generator=generator(0, "slots")).masks)
    for bad in (0, -1, 2.0, None):
        with pytest.raises(InputError, match="n_init"):
            slot_draws(bad, 0, "slots")


@pytest.mark.parametrize("init", ["gaussian", "learned"])
def test_of_several_numbers_of_slots_the_best_wins_in_each_image(init):
    model = tiny()
    model.slot_attention = SlotAttention(8, 10, num_slots=3, mlp_hidden_dim=12, init=init)
    with torch.no_grad():
        model.slot_attention.slots_log_sigma.fill_(1.0)  # draws that differ
    batch, counts = images(8, 8, 12), (2, 5, 3)
    draws = slot_draws(2, 0, "slots", num_slots=counts)
    best = reconstruct_best(model, batch, draws, return_attention=True)
    assert best.masks.shape[1] == best.slots.shape[1] == best.attention.shape[-1] == 5
    # one by one, each K with generators of its own
    tried = []
    for K in counts:
        for words in ((), (1,)):
            random = generator(0, "slots", *words)
            tried.append(model(batch, num_slots=K, generator=random, return_attention=True))
    winners = []
    for b in range(8):
        errors = [((one.reconstruction[b] - batch[b]) ** 2).mean().item() for one in tried]
        winner = tried[errors.index(min(errors))]
        K = winner.masks.shape[1]
        winners.append(K)
        assert torch.equal(best.reconstruction[b], winner.reconstruction[b])
        for name in ("slot_reconstructions", "masks", "slots"):
            assert torch.equal(getattr(best, name)[b, :K], getattr(winner, name)[b]), name
            assert not getattr(best, name)[b, K:].any(), name
        assert torch.equal(best.attention[b, ..., :K], winner.attention[b])
        assert not best.attention[b, ..., K:].any()
    assert len(set(winners)) > 1
    assert best.count_slots().tolist() == winners
    assert_close(best.masks.sum(1), torch.ones(8, 8, 12))


@pytest.mark.parametrize("K", [2, 3, 6])
def test_one_of_one_number_of_slots_is_that_number(K):
    model, batch = tiny(), images(3, 8, 12)
    one, same, alone = (
        reconstruct_best(model, batch, slot_draws(3, 0, "slots", num_slots=num_slots))
        for num_slots in (K, [K], range(K, K + 1))
    )
    for a, b, c in zip(one, same, alone):
        assert a is b is c is None or torch.equal(a, b) and torch.equal(a, c)
    own = reconstruct_best(model, batch, slot_draws(1, 0, "slots"))
    assert own.masks.shape[1] == 3  # the model's own


def test_from_batch_to_batch_each_number_of_slots_goes_on_as_if_alone():
    model = tiny()
    with torch.no_grad():
        model.slot_attention.slots_log_sigma.fill_(1.0)  # draws that differ
    batches, counts = images(8, 8, 12).split(4), (2, 4)
    draws = slot_draws(2, 0, "slots", num_slots=counts)
    together = [reconstruct_best(model, batch, draws) for batch in batches]
    alone = {K: slot_draws(2, 0, "slots", num_slots=K) for K in counts}
    for batch, best in zip(batches, together):
        each = [reconstruct_best(model, batch, alone[K]) for K in counts]
        few = torch.stack([one.squared_error(batch) for one in each]).argmin(0)
        assert best.count_slots().tolist() == [counts[i] for i in few]
        for b, i in enumerate(few):
            assert torch.equal(best.masks[b, : counts[i]], each[i].masks[b])
    chosen = torch.cat([best.count_slots() for best in together])
    assert len(chosen.unique()) == 2


def test_gradients_pass_through_the_best_and_are_not_needed():
    model, batch = tiny(), images(4, 8, 12)
    best = reconstruct_best(model, batch, slot_draws(1, 0, "slots", num_slots=[2, 4]))
    F.mse_loss(best.reconstruction, batch).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            again = reconstruct_best(model, batch, slot_draws(1, 0, "slots", num_slots=[2, 4]))
        assert not any(part.requires_grad for part in again if part is not None)
        assert torch.equal(again.masks, best.masks)


def test_the_best_of_hand_made_outputs():
    image = torch.zeros(3, 3, 2, 2)

    def output(errors, K):
        drawn = torch.tensor(errors).sqrt().view(3, 1, 1, 1).expand(3, 3, 2, 2)
        ones = torch.full((3, K, 3, 2, 2), float(K))
        return AutoEncoderOutput(drawn, ones, ones[:, :, 0], ones[..., 0, 0])

    def choose(*outputs):  # the "model" says what it is given for a source of numbers
        draws = [(None, each) for each in outputs]
        return reconstruct_best(lambda image, generator, num_slots: generator, image, draws)

    best = choose(output([4.0, 1, 1], 3), output([1.0, 4, 1], 2), output([9.0, 9, 0], 1))
    assert best.count_slots().tolist() == [2, 3, 1]
    assert best.squared_error(image).tolist() == [1, 1, 0]
    assert best.reconstruction.square().mean((1, 2, 3)).tolist() == [1, 1, 0]
    assert best.masks[..., 0, 0].tolist() == [[2, 2, 0], [3, 3, 3], [1, 0, 0]]
    assert best.attention is None
    # of equal ones the first
    equal = choose(output([1.0, 1, 1], 2), output([1.0, 1, 1], 3))
    assert equal.count_slots().tolist() == [2, 2, 2]


def test_numbers_of_slots_to_try():
    assert slot_counts(None) == [None] and slot_counts(4) == [4]
    assert slot_counts(range(2, 5)) == [2, 3, 4] and slot_counts((5, 2, 5)) == [5, 2]
    bad = (0, -1, 2.0, True, "3", "", [], (), range(3, 3), [3, 0], [2, "a"], [None], {2, 3})
    for num_slots in bad:
        with pytest.raises(InputError, match="num_slots: expected"):
            slot_counts(num_slots)
        with pytest.raises(InputError, match="num_slots: expected"):
            slot_draws(1, 0, "slots", num_slots=num_slots)


def test_slots_are_added_and_left_out():
    model = tiny()
    output = model(images(2, 8, 12), return_attention=True)
    assert output.resize_slots(3) is output  # nothing is copied
    more = output.resize_slots(5)
    assert more.masks.shape[1] == more.slots.shape[1] == more.attention.shape[-1] == 5
    assert more.slot_reconstructions.shape == (2, 5, 3, 8, 12)
    assert not more.masks[:, 3:].any() and more.count_slots().tolist() == [3, 3]
    assert all(map(torch.equal, more.resize_slots(3)[:5], output[:5]))
    assert torch.equal(output.resize_slots(2).masks, output.masks[:, :2])


def test_keywords(model):
    batch = images(2)
    assert model(batch, num_slots=6).masks.shape[1] == 6
    assert model(batch, num_slots=1).masks.shape[1] == 1
    assert model(batch, num_iterations=1, return_attention=True).attention.shape[1] == 1
    start = torch.randn(2, 5, 64)
    one, two = model(batch, slots=start), model(batch, slots=start[:, [4, 2, 0, 1, 3]])
    assert_close(two.masks, one.masks[:, [4, 2, 0, 1, 3]], rtol=1e-3, atol=1e-4)
    assert_close(two.reconstruction, one.reconstruction, rtol=1e-3, atol=1e-4)
    assert_close(
        model(batch, generator=generator(3)).masks,
        model(batch, generator=generator(3)).masks,
        rtol=0,
        atol=0,
    )


def test_every_weight_learns(model):
    F.mse_loss(model(images(2)).reconstruction, images(2)).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_empty_batch_has_a_backward(model):
    model(images(0)).reconstruction.sum().backward()


def test_paper_sizes():
    assert sum(p.numel() for p in paper_autoencoder().parameters()) == 890_308
    large = paper_autoencoder((96, 128))
    assert large.resolution == (96, 128) and large.decoder.broadcast == (6, 8)
    assert (
        large.encoder.output_dim == 64 and paper_autoencoder((64, 64), 6).encoder.output_dim == 32
    )
    assert paper_autoencoder((64, 64), 6)(images(1, 64, 64)).masks.shape == (1, 6, 64, 64)
    with pytest.raises(InputError, match="resolution"):
        paper_autoencoder((100, 100))
    with pytest.raises(InputError, match="num_slots"):
        paper_autoencoder((35, 35), num_slots=0)


@pytest.mark.parametrize(
    "image, message",
    [
        (
            torch.zeros(1, 1, 8, 12),
            r"image: expected shape \[B, C=3, H=8, W=12\], got \[1, 1, 8, 12\]",
        ),
        (torch.zeros(1, 4, 8, 12), "image: expected shape"),
        (torch.zeros(1, 3, 12, 8), "image: expected shape"),
        (torch.zeros(1, 8, 12, 3), "image: expected shape"),
        (torch.zeros(3, 8, 12), "image: expected shape"),
        (
            torch.zeros(1, 3, 8, 12, dtype=torch.uint8),
            r"image: expected floats in \[-1, 1\], got torch.uint8",
        ),
        (None, "image: expected a tensor"),
    ],
)
def test_autoencoder_refuses(image, message):
    with pytest.raises(InputError, match=message):
        tiny()(image)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_slots": 0},
        {"num_iterations": 0},
        {"slots": torch.zeros(1, 3, 9)},
        {"slots": torch.zeros(1, 3, 10), "num_slots": 2},
    ],
)
def test_autoencoder_refuses_keywords(keywords):
    with pytest.raises(InputError):
        tiny()(images(1, 8, 12), **keywords)


# What PyTorch does with modules


def test_copies_agree(model):
    batch, twin = images(2), copy.deepcopy(model)
    other = type(model)(
        *(copy.deepcopy(part) for part in (model.encoder, model.slot_attention, model.decoder))
    )
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict())
    for same in (twin, other):
        assert_close(
            same(batch, generator=generator(0)).reconstruction,
            model(batch, generator=generator(0)).reconstruction,
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize("builder", BUILDERS)
def test_compiles_whole(builder):
    model, batch = BUILDERS[builder](), images(2)
    start = torch.randn(2, 4, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours = compiled(batch, slots=start, return_attention=True)
    truth = model(batch, slots=start, return_attention=True)
    for one, two in zip(ours, truth):
        assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_exports(model):
    batch, start = images(2), torch.randn(2, 4, 64)
    sizes = {"image": {0: (B := torch.export.Dim("batch", min=1, max=64))}, "slots": {0: B}}
    program = torch.export.export(
        model, (batch,), {"slots": start}, dynamic_shapes=sizes, strict=False
    )
    batch, start = images(3), torch.randn(3, 4, 64)
    assert_close(
        program.module()(batch, slots=start).masks,
        model(batch, slots=start).masks,
        rtol=1e-4,
        atol=1e-5,
    )


def test_float64():
    model = tiny().double()
    output = model(images(2, 8, 12, torch.float64))
    assert output.reconstruction.dtype == torch.float64


def test_gradients_are_right():
    model, start = tiny().double(), torch.randn(1, 3, 10, dtype=torch.float64)
    image = images(1, 8, 12, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda image, slots: model(image, slots=slots, num_iterations=1).reconstruction.mean(),
        (image, start.requires_grad_()),
    )


def test_autocast(model):
    batch, start = images(2), torch.randn(2, 4, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch, slots=start)
        F.mse_loss(output.reconstruction.float(), batch).backward()
    assert_close(output.masks.float(), model(batch, slots=start).masks, rtol=0, atol=0.05)


def test_feature_maps_are_channels_last(model):
    layouts = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            layer.register_forward_hook(
                lambda layer, inputs, output: layouts.append(
                    inputs[0].is_contiguous(memory_format=torch.channels_last)
                )
            )
    model(images(2))
    assert layouts and all(layouts)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace():
    model = paper_autoencoder((35, 35), num_slots=3).eval()
    slots = torch.randn(2, 3, 64, generator=generator(0))

    class Reconstruction(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image, slots):
            return self.model(image, slots=slots).reconstruction

    image = 2 * torch.rand(2, 3, 35, 35, generator=generator(1)) - 1
    with torch.no_grad():
        traced = torch.jit.trace(Reconstruction(), (image, slots))
        torch.testing.assert_close(
            traced(image[:1], slots[:1]), model(image[:1], slots=slots[:1])[0]
        )


def test_ranges_of_images(model):
    image = torch.rand(2, 3, 35, 35)
    model(2 * image - 1)
    for odd in (255 * image, 4 * image - 2, (2 * image - 1) * 1.02, image - 1.5):
        with pytest.raises(InputError, match=r"floats in \[-1, 1\], got .* for bytes use"):
            model(odd)
    model(torch.full_like(image, 0.5))  # nothing can be told from one color
    with pytest.warns(UserWarning, match=r"looks like \[0, 1\]"):
        model(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(image)  # said once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["plain", "one_pass"])
@pytest.mark.parametrize(
    "name",
    [
        "paper",
        "small",
        "paper_mlp",
        "framed",
        "shaped",
        "shaded",
        "set_paper",
        "set_small",
        "properties_clevr",
        "properties_framed",
    ],
)
def test_models_in_half_precision(name, implementation, dtype):
    model = create_model(name, (32, 32), 3, 3).eval()
    model.slot_attention.implementation = implementation
    image = 2 * torch.rand(1, 3, 32, 32, generator=generator(1)) - 1
    slots = model.slot_attention.initial_slots(1, generator=generator(2))
    with torch.no_grad():
        expected = model(image, slots=slots)[0]
        found = copy.deepcopy(model).to(dtype)(image.to(dtype), slots=slots.to(dtype))[0]
    assert found.dtype == dtype
    assert_close(found.float(), expected, atol=1e-2, rtol=0)


def test_transforms_and_tracing_of_a_whole_model():
    model = tiny().eval().requires_grad_(False)
    image = 1.9 * torch.rand(2, 3, 8, 12) - 0.95
    slots = torch.randn(2, 3, 10)
    direction = torch.randn_like(image)

    def run(x):
        return model(x, slots=slots).reconstruction

    _, slope = torch.func.jvp(run, (image,), (direction,))
    step = 1e-3
    change = run(image + step * direction) - run(image - step * direction)
    assert_close(slope, change / 2 / step, atol=1e-3, rtol=1e-2)
    each = torch.func.vmap(lambda x, s: model(x[None], slots=s[None]).reconstruction[0])
    assert_close(each(image, slots), run(image), atol=1e-5, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: run(x), (image,), check_trace=False)
    assert_close(traced(-image), run(-image))
