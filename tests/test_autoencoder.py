"Position, padding, encoder, decoder, mixture and autoencoder: shapes, golden numbers, properties, errors, and the ways PyTorch wants to use a module."

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.decoder import (
    BroadcastDecoder,
    CoarseDecoder,
    SameConvTranspose2d,
    mix_slots,
)
from slot_attention_nbdev.nn.encoder import (
    ConvEncoder,
    PatchEncoder,
    SoftPositionEmbed,
    position_grid,
    same_pad,
)
from slot_attention_nbdev.models.autoencoder import (
    SlotAttentionAutoEncoder,
    small_autoencoder,
    paper_autoencoder,
)
from slot_attention_nbdev.nn.slot_attention import SlotAttention

BUILDERS = {"paper": lambda: paper_autoencoder((35, 35), 4), "fast": small_autoencoder}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


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


# Position


def test_position_grid():
    grid = position_grid(4, 7)
    assert grid.shape == (4, 7, 4)
    assert grid[0, 0].tolist() == [0, 0, 1, 1] and grid[-1, -1].tolist() == [1, 1, 0, 0]
    assert_close(grid[..., :2] + grid[..., 2:], torch.ones(4, 7, 2))
    assert_close(grid[:, 3, 0], torch.linspace(0, 1, 4))
    assert position_grid(1, 1).shape == (1, 1, 4)
    assert position_grid(2, 2, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (-1, 2), (2.0, 3), (True, 3)])
def test_position_grid_refuses(size):
    with pytest.raises(InputError, match="height|width"):
        position_grid(*size)


def test_position_is_the_same_for_every_picture():
    embed = SoftPositionEmbed(5)
    added = embed(torch.zeros(3, 5, 4, 6))
    assert_close(added[0], added[2])
    features = torch.randn(3, 5, 4, 6)
    assert_close(embed(features) - features, added)
    assert sorted(embed.state_dict()) == ["project.bias", "project.weight"]


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (5, 8, 8), (2, 5, 8)])
def test_position_refuses(shape):
    with pytest.raises(InputError, match=r"features: expected shape \[B, C=5, H, W\]"):
        SoftPositionEmbed(5)(torch.zeros(shape))


# Padding


def test_padding_is_tensorflows(golden):
    cases = golden("conv_padding.npz")
    for case in cases["case_names"]:
        kind, k, s, _ = str(case).split("_")
        k, s = int(k[1:]), int(s[1:])
        x, kernel, bias, output = (
            torch.from_numpy(cases[f"{case}/{part}"])
            for part in ("input", "kernel", "bias", "output")
        )
        x = x.permute(0, 3, 1, 2)
        output = output.permute(0, 3, 1, 2)
        weight = kernel.permute(3, 2, 0, 1)
        if kind == "conv":
            ours = F.conv2d(same_pad(x, k, s), weight, bias, s)
        else:
            layer = SameConvTranspose2d(weight.shape[0], weight.shape[1], k, s)
            layer.load_state_dict({"weight": weight, "bias": bias})
            ours = layer(x)
        assert_close(ours, output, rtol=0, atol=5e-6, msg=lambda text: f"{case}: {text}")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [3, 4, 5, 6])
def test_transposed_convolution_is_the_transpose(kernel_size, stride):
    layer = SameConvTranspose2d(2, 3, kernel_size, stride).double()
    torch.nn.init.zeros_(layer.bias)
    v = torch.randn(2, 2, 4, 7, dtype=torch.float64)
    u = torch.randn(2, 3, 4 * stride, 7 * stride, dtype=torch.float64)
    assert_close(
        (F.conv2d(same_pad(u, kernel_size, stride), layer.weight, stride=stride) * v).sum(),
        (u * layer(v)).sum(),
    )


def test_transposed_convolution_refuses_holes():
    with pytest.raises(InputError, match="kernel_size: expected an integer ≥ 3, got 2"):
        SameConvTranspose2d(1, 1, kernel_size=2, stride=3)


# Encoder


@pytest.mark.parametrize(
    "encoder, tokens",
    [
        (lambda: ConvEncoder(16, 8), 35 * 30),
        (lambda: ConvEncoder(16, 8, (1, 2, 2, 1)), 9 * 8),
        (lambda: PatchEncoder(16, 8), 18 * 15),
    ],
)
def test_encoder_shapes(encoder, tokens):
    encoder = encoder()
    for batch_size in (0, 1, 3):
        assert encoder(images(batch_size, 35, 30)).shape == (batch_size, tokens, 16)
    assert encoder.output_dim == 16


def test_tokens_stand_row_by_row():
    encoder = PatchEncoder(8, 8, patch_size=1, stride=1)
    one = images(1, 5, 7)
    two = one.clone()
    two[0, 0, 3, 2] += 1
    changed = (encoder(one) - encoder(two)).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [3 * 7 + 2]


def test_no_token_depends_on_its_batch():
    encoder = ConvEncoder(8, 8)
    batch = images(3, 9, 9)
    assert_close(encoder(batch)[1:2], encoder(batch[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 9, 9), (2, 9, 9, 3), (3, 9, 9), (2, 4, 9, 9)])
@pytest.mark.parametrize("encoder", [ConvEncoder, PatchEncoder])
def test_encoder_refuses(encoder, shape):
    with pytest.raises(InputError, match=r"image: expected shape \[B, C=3, H, W\]"):
        encoder(8, 8)(torch.zeros(shape))


# Decoder and mixture


@pytest.mark.parametrize(
    "decoder",
    [BroadcastDecoder(8, (32, 48), (2, 3), 6), CoarseDecoder(8, (35, 21), 6)],
    ids=["broadcast", "fast"],
)
def test_decoder_paints_each_slot_alone(decoder):
    slots = torch.randn(2, 3, 8)
    rgba = decoder(slots)
    assert rgba.shape == (2, 3, 4, *decoder.resolution)
    assert_close(decoder(slots[1:, 2:]), rgba[1:, 2:], rtol=1e-4, atol=1e-5)
    assert decoder(slots[:0]).shape == (0, 3, 4, *decoder.resolution)


def test_mixture():
    rgba = torch.randn(2, 3, 4, 5, 6)
    image, colours, masks = mix_slots(rgba)
    assert_close(masks.sum(1), torch.ones(2, 5, 6))
    assert_close(colours, rgba[:, :, :3])
    assert_close(image, torch.einsum("bkhw,bkchw->bchw", masks, colours))
    assert_close(mix_slots(rgba[:, :1])[0], rgba[:, 0, :3])  # a single slot has every pixel
    shifted = rgba.clone()
    shifted[:, :, 3] += 1000  # the same for all slots: no overflow, no change
    assert_close(mix_slots(shifted)[0], image, rtol=1e-3, atol=1e-3)


def test_decoder_refuses():
    with pytest.raises(InputError, match=r"give \(128, 128\), not \(100, 100\)"):
        BroadcastDecoder(8, (100, 100))
    with pytest.raises(InputError, match=r"slots: expected shape \[B, K, D=8\], got \[2, 3, 9\]"):
        CoarseDecoder(8, (35, 35))(torch.zeros(2, 3, 9))
    with pytest.raises(InputError, match=r"rgba: expected shape \[B, K, C=4, H, W\]"):
        mix_slots(torch.zeros(2, 4, 5, 5))


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
