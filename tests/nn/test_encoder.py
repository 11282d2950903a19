"SAME padding, the position embedding and the encoders: shapes, recorded numbers, wrong input."

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.decoder import SameConvTranspose2d
from slot_attention_nbdev.nn.encoder import (
    ConvEncoder,
    PatchEncoder,
    SoftPositionEmbed,
    position_grid,
    same_pad,
)


def images(batch_size, height=35, width=35, dtype=torch.float32):
    return (
        torch.rand(batch_size, 3, height, width, generator=generator(0, "images"), dtype=dtype) * 2
        - 1
    )


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


def test_position_is_the_same_for_every_image():
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
