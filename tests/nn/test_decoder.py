"The transposed convolution, the decoders and the alpha mixture."

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError
from slot_attention_nbdev.nn.decoder import (
    BroadcastDecoder,
    CoarseDecoder,
    SameConvTranspose2d,
    mix_slots,
)
from slot_attention_nbdev.nn.encoder import same_pad


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


@pytest.mark.parametrize(
    "decoder",
    [BroadcastDecoder(8, (32, 48), (2, 3), 6), CoarseDecoder(8, (35, 21), 6)],
    ids=["broadcast", "fast"],
)
def test_decoder_decodes_each_slot_alone(decoder):
    slots = torch.randn(2, 3, 8)
    rgba = decoder(slots)
    assert rgba.shape == (2, 3, 4, *decoder.resolution)
    assert_close(decoder(slots[1:, 2:]), rgba[1:, 2:], rtol=1e-4, atol=1e-5)
    assert decoder(slots[:0]).shape == (0, 3, 4, *decoder.resolution)


def test_mixture():
    rgba = torch.randn(2, 3, 4, 5, 6)
    image, colors, masks = mix_slots(rgba)
    assert_close(masks.sum(1), torch.ones(2, 5, 6))
    assert_close(colors, rgba[:, :, :3])
    assert_close(image, torch.einsum("bkhw,bkchw->bchw", masks, colors))
    assert_close(mix_slots(rgba[:, :1])[0], rgba[:, 0, :3])  # a single slot has every pixel
    shifted = rgba.clone()
    shifted[:, :, 3] += 1000  # the same for all slots: no overflow, no change
    assert_close(mix_slots(shifted)[0], image, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 2), (3,)])
@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_cheaper_first_layer_is_the_plain_one(kernel_size, strides):
    size = (9 * strides[0], 7 * strides[0])
    for stride in strides[1:]:
        size = (size[0] * stride, size[1] * stride)
    decoder = BroadcastDecoder(8, size, (9, 7), 6, strides, kernel_size).double()
    vectors = torch.randn(4, 8, dtype=torch.float64)
    grid = vectors[:, :, None, None].expand(-1, -1, 9, 7)
    assert_close(decoder.first_layer(vectors), decoder.convs[0](decoder.position(grid)))


def test_decoder_refuses():
    with pytest.raises(InputError, match=r"give \(128, 128\), not \(100, 100\)"):
        BroadcastDecoder(8, (100, 100))
    with pytest.raises(InputError, match=r"slots: expected shape \[B, K, D=8\], got \[2, 3, 9\]"):
        CoarseDecoder(8, (35, 35))(torch.zeros(2, 3, 9))
    with pytest.raises(InputError, match=r"rgba: expected shape \[B, K, C=4, H, W\]"):
        mix_slots(torch.zeros(2, 4, 5, 5))
