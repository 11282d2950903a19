"All iterations in one launch, and the tokens' gradient by ticket, are the textbook module."
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

pytest.importorskip("triton")

from slot_attention_nbdev import fused, fused_loop
from slot_attention_nbdev.attention import attention_scores, slot_softmax, weighted_mean
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.fused_loop import fold, fused_slot_attention, fused_tickets, fused_token_gradient
from slot_attention_nbdev.slot_attention import SlotAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def shaken(C=6, D=8, H=10, seed=0, **settings):
    "A module none of whose parameters is 0 or 1, in float64."
    module = SlotAttention(C, D, mlp_hidden_dim=H, **settings).double()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator(seed, name), dtype=torch.float64)
            weight.copy_(0.5 * noise / D**0.5 + (1 if "norm" in name and name.endswith("weight") else 0))
    return module.to(DEVICE)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "loop", *shape), dtype=torch.float64).to(DEVICE)


def textbook(module, inputs, slots, T):
    "Algorithm 1 with keys, values and the functions of 10_attention."
    x = module.norm_inputs(inputs)
    k, v = module.project_k(x), module.project_v(x)
    for _ in range(T):
        attn = slot_softmax(attention_scores(k, module.project_q(module.norm_slots(slots))))
        updates = weighted_mean(attn, v, module.eps)
        slots = module.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        slots = slots + module.mlp(module.norm_mlp(slots))
    return slots


def learned(module):
    return [weight for name, weight in module.named_parameters() if not name.startswith("slots_")]


def single(module):
    return copy.deepcopy(module).float()


SIZES = [(1, 1, 1), (2, 9, 3), (1, 3, 9), (2, 70, 17), (1, 1100, 4)]


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float16, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("B, N, K", SIZES)
def test_one_launch_is_the_textbooks(B, N, K, dtype, limit, monkeypatch):
    monkeypatch.setattr(fused_loop, "plain_loop", None)  # the kernel it is
    module, inputs, slots = shaken(eps=1e-3), draw(B, N, 6).to(dtype), draw(B, K, 8)
    with torch.no_grad():
        got = fused_slot_attention(single(module), inputs, slots.float(), 3)
        want = textbook(module, inputs.double(), slots, 3)
    assert_close(got.double(), want, rtol=0, atol=limit * max(1, want.abs().max().item()))


@pytest.mark.parametrize("C, D, H", [(1, 1, 1), (16, 16, 16), (17, 33, 65), (64, 64, 128)])
def test_any_width(C, D, H):
    module, inputs, slots = shaken(C, D, H, eps=1e-3), draw(2, 20, C), draw(2, 3, D)
    want = textbook(module, inputs, slots, 2)
    with torch.no_grad():
        got = fused_slot_attention(single(module), inputs.float(), slots.float(), 2)
    assert_close(got.double(), want, rtol=0, atol=2e-5 * max(1, want.abs().max().item()))


def test_wide_slots_go_the_plain_way():
    module, inputs, slots = shaken(20, 160, 30), draw(1, 9, 20), draw(1, 3, 160)
    with torch.no_grad():
        got = fused_slot_attention(single(module), inputs.float(), slots.float())
    assert_close(got.double(), textbook(module, inputs, slots, 3), rtol=0, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 18), st.integers(1, 4))
def test_gradients_by_ticket_are_the_textbooks(B, N, K, T):
    module, inputs, slots = shaken(eps=1e-3), draw(B, N, 6), draw(B, K, 8)
    one = single(module)
    doubles = [inputs.requires_grad_(), slots.requires_grad_()]
    singles = [part.detach().float().requires_grad_() for part in doubles]
    want = torch.autograd.grad(textbook(module, *doubles, T).sin().sum(), doubles + learned(module))
    got = torch.autograd.grad(fused_slot_attention(one, *singles, T).sin().sum(), singles + learned(one))
    for wanted, gotten in zip(want, got):
        assert_close(gotten.double(), wanted, rtol=0, atol=3e-5 * max(1, wanted.abs().max().item()))


def test_gradients_in_bfloat16():
    module, inputs, slots = shaken(eps=1e-3), draw(2, 60, 6).bfloat16(), draw(2, 4, 8)
    want = torch.autograd.grad(textbook(module, inputs.double(), slots, 3).sin().sum(), learned(module))
    one = single(module)
    got = torch.autograd.grad(fused_slot_attention(one, inputs, slots.float(), 3).sin().sum(), learned(one))
    for wanted, gotten in zip(want, got):
        assert (gotten.double() - wanted).norm() < 2e-2 * wanted.norm() + 1e-3


def test_gradcheck():
    module, inputs, slots = shaken(3, 4, 5), draw(1, 4, 3).requires_grad_(), draw(1, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: fused_slot_attention(module, x, s, 2), (inputs, slots))


def test_tokens_are_read_once_for_their_gradient(monkeypatch):
    calls = []
    original = fused_loop._tokens_kernel
    class Spy:
        def __getitem__(self, grid):
            calls.append(grid)
            return original[grid]
    monkeypatch.setattr(fused_loop, "_tokens_kernel", Spy())
    x = draw(2, 9, 6).float().requires_grad_()
    fused_slot_attention(single(shaken()), x, draw(2, 3, 8).float(), 5).sum().backward()
    assert len(calls) == 1 and x.grad.abs().sum() > 0


def test_frozen_tokens_want_no_notes(monkeypatch):
    monkeypatch.setattr(fused_loop, "_tokens_kernel", None)
    module = single(shaken())
    module.norm_inputs.requires_grad_(False)
    fused_slot_attention(module, draw(2, 9, 6).float(), draw(2, 3, 8).float(), 3).sum().backward()
    assert module.gru.weight_hh.grad.abs().sum() > 0


def test_a_spoilt_image_spoils_no_other():
    module, inputs, slots = single(shaken()), draw(3, 20, 6).float(), draw(3, 4, 8).float()
    with torch.no_grad():
        clean = fused_slot_attention(module, inputs, slots)
        inputs[1, 4, 2] = torch.nan
        spoilt = fused_slot_attention(module, inputs, slots)
    assert torch.equal(clean[::2], spoilt[::2]) and spoilt[1].isnan().all()


def test_autocast_hands_on_half_tokens():
    module, inputs, slots = single(shaken(eps=1e-3)), draw(2, 30, 6).float(), draw(2, 4, 8).float()
    want = fused_slot_attention(module, inputs, slots)
    with torch.autocast(DEVICE, torch.bfloat16):
        got = fused_slot_attention(module, inputs, slots)
    assert got.dtype == torch.float32
    assert_close(got, want, atol=2e-2, rtol=2e-2)
    got.sum().backward()


def test_dtype_of_the_slots_comes_back():
    module = copy.deepcopy(shaken()).bfloat16()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert fused_slot_attention(module, draw(1, 9, 6).bfloat16(), draw(1, 3, 8).bfloat16()).dtype == torch.bfloat16


def test_the_operators_are_well_registered():
    x, q, bias = draw(2, 9, 6).float().requires_grad_(), draw(2, 3, 6).float().requires_grad_(), draw(2, 3).float().requires_grad_()
    torch.library.opcheck(fused_tickets, (x, 3, 2))
    torch.library.opcheck(fused_token_gradient, (x.detach(), draw(2, 2, 3 * 14).float()))
    torch.library.opcheck(fused_loop.compete_with_ticket, (x.detach(), q, bias, torch.zeros(2, 3 * 14, device=DEVICE, requires_grad=True)), test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))
    module = single(shaken())
    torch.library.opcheck(fused_loop.fused_loop, (x.detach(), draw(2, 3, 8).float(), [w.detach() for w in fold(module)], [1e-8, 1e-5, 1e-5, 1e-5], 2))


def test_compile_and_export():
    module = single(shaken())
    compiled = torch.compile(fused_slot_attention, fullgraph=True, backend="aot_eager")
    for T, K in ((2, 3), (3, 5)):
        x, slots = draw(2, 9, 6).float().requires_grad_(), draw(2, K, 8).float()
        got, want = compiled(module, x, slots, T), fused_slot_attention(module, x, slots, T)
        assert_close(got, want)
        assert_close(torch.autograd.grad(got.sin().sum(), x), torch.autograd.grad(want.sin().sum(), x))

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, inputs, slots):
            return fused_slot_attention(self.module, inputs, slots)

    batch, tokens, count = (torch.export.Dim(name) for name in ("batch", "tokens", "count"))
    shapes = {"inputs": {0: batch, 1: tokens}, "slots": {0: batch, 1: count}}
    with torch.no_grad():
        program = torch.export.export(Wrapped(), (draw(2, 9, 6).float(), draw(2, 3, 8).float()), dynamic_shapes=shapes).module()
        inputs, slots = draw(3, 12, 6).float(), draw(3, 4, 8).float()
        assert_close(program(inputs, slots), fused_slot_attention(module, inputs, slots))


@pytest.mark.parametrize(
    "inputs, slots, T, message",
    [((2, 9), (2, 3, 8), 3, "inputs: expected shape"), ((2, 9, 5), (2, 3, 8), 3, "C=6"), ((2, 9, 6), (3, 3, 8), 3, "slots: expected shape [B=2"), ((2, 9, 6), (2, 3, 8), 0, "num_iterations: expected an integer ≥ 1")],
)
def test_bad_arguments(inputs, slots, T, message):
    with pytest.raises(InputError) as error:
        fused_slot_attention(shaken(), draw(*inputs), draw(*slots), T)
    assert message in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("B, N, K", [(64, 1024, 7), (8, 16384, 7), (32, 1225, 4)])
def test_papers_sizes_on_the_gpu(B, N, K, dtype, limit):
    module, inputs, slots = shaken(64, 64, 128), draw(B, N, 64).to(dtype), draw(B, K, 64)
    with torch.no_grad():
        want = textbook(module, inputs.double(), slots, 3)
        got = fused_slot_attention(single(module), inputs, slots.float(), 3)
    assert_close(got.double(), want, rtol=0, atol=limit * max(1, want.abs().max().item()))
    one, x = single(module), inputs.clone().requires_grad_()
    fused_slot_attention(one, x, slots.float(), 3).sin().sum().backward()
    textbook(module, wide := inputs.double().requires_grad_(), slots, 3).sin().sum().backward()
    assert (x.grad.double() - wide.grad).norm() <= max(2e-2 * (dtype != torch.float32), 1e-4) * wide.grad.norm()
