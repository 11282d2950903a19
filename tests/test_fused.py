"The fused kernels are the textbook form in one read: in the interpreter here, compiled where there is a GPU."

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

pytest.importorskip("triton")

from slot_attention_nbdev.ops import triton_pass as fused
from slot_attention_nbdev.nn.attention import attention_scores, slot_softmax, weighted_mean
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.ops.triton_pass import (
    compete_backward_triton,
    compete_triton,
    fused_compete,
    plain_compete,
    plain_compete_backward,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    (1, 1, 1, 1),
    (1, 1, 5, 3),
    (2, 9, 1, 4),
    (2, 3, 9, 8),
    (1, 64, 16, 16),
    (3, 65, 17, 33),
    (1, 130, 7, 64),
    (1, 20, 64, 20),
    (1, 20, 3, 256),
    (1, 17, 33, 129),
]
LIMITS = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 2e-2}


def scene(B, N, K, C, dtype=torch.float32, scale=1.0, seed=0):
    "Tokens in a dtype, queries and bias in float32, on the device."
    draw = lambda *shape: torch.randn(
        *shape, generator=generator(seed, "fused", *shape), dtype=torch.float64
    )
    return (
        draw(B, N, C).to(DEVICE, dtype),
        (scale * draw(B, K, C) * C**-0.5).to(DEVICE, torch.float32),
        (scale * draw(B, K)).to(DEVICE, torch.float32),
    )


def gradients(B, K, C, seed=1):
    draw = lambda *shape: torch.randn(*shape, generator=generator(seed, "gradients", *shape)).to(
        DEVICE
    )
    return draw(B, K, C), draw(B, K)


def doubles(*tensors):
    return [tensor.double() for tensor in tensors]


def near(got, want, limit):
    "Errors below a limit relative to each tensor's largest number."
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert_close(one.double(), other, rtol=0, atol=limit * max(other.abs().max().item(), 1e-3))


# Against the textbook


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_textbooks(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    sums, totals = compete_triton(x, q, bias)
    assert sums.dtype == totals.dtype == torch.float32
    # attention_scores divides by sqrt(C)
    wide = x.double()
    queries = q.double() * shape[-1] ** 0.5
    eps = 1e-3
    attn = slot_softmax(attention_scores(wide, queries) + bias.double()[:, None])
    updates = (sums + eps * x.float().sum(1, keepdim=True)) / (totals + shape[1] * eps)[..., None]
    near([totals, updates], [attn.sum(1), weighted_mean(attn, wide, eps)], LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_autograds(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    grads = gradients(shape[0], *shape[2:])
    leaves = [tensor.requires_grad_() for tensor in doubles(x, q, bias)]
    want = torch.autograd.grad(plain_compete(*leaves), leaves, doubles(*grads))
    got = compete_backward_triton(*grads, x, q, bias)
    assert [g.dtype for g in got] == [dtype, torch.float32, torch.float32]
    # dx is rounded to the dtype of x
    near(got, want, max(LIMITS[dtype], {torch.float16: 1e-3}.get(dtype, 0)))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2),
    st.integers(1, 70),
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from(sorted(LIMITS, key=str)),
    st.sampled_from([0.1, 1.0, 30.0]),
)
def test_any_shape(B, N, K, C, dtype, scale):
    x, q, bias = scene(B, N, K, C, dtype, scale)
    largest = max(
        1.0, (q.double() @ x.double().mT + bias.double()[..., None]).abs().max().item() / 10
    )
    near(compete_triton(x, q, bias), plain_compete(*doubles(x, q, bias)), LIMITS[dtype] * largest)
    grads = gradients(B, K, C)
    want = plain_compete_backward(*doubles(*grads), *doubles(x, q, bias))
    for got, wanted in zip(compete_backward_triton(*grads, x, q, bias), want):
        near(
            [got],
            [wanted],
            largest
            * (2e-2 if dtype == torch.bfloat16 else 1e-3 if got.dtype == torch.float16 else 3e-5),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype):
    x, q, bias = scene(2, 40, 5, 8, dtype, scale=1e4)
    sums, totals = compete_triton(x, q, bias)
    assert_close(totals.sum(1), torch.full((2,), 40.0, device=DEVICE))
    near([sums, totals], plain_compete(*doubles(x, q, bias)), 2e-2)
    assert all(
        part.isfinite().all() for part in compete_backward_triton(*gradients(2, 5, 8), x, q, bias)
    )


def test_bfloat16_queries_keep_sixteen_bits():
    x, q, bias = scene(1, 60, 5, 8, torch.bfloat16, scale=10.0)
    near([compete_triton(x, q, bias)[1]], [plain_compete(*doubles(x, q, bias))[1]], 5e-4)
    rounded = plain_compete(x.double(), q.bfloat16().double(), bias.double())[1]
    # what one bfloat16 would do
    assert (rounded - plain_compete(*doubles(x, q, bias))[1]).abs().max() > 5e-3


def test_a_slot_may_be_shut_out():
    x, q, bias = scene(1, 40, 5, 8)
    bias[0, 2] = -torch.inf
    sums, totals = compete_triton(x, q, bias)
    assert totals[0, 2] == 0 and sums[0, 2].eq(0).all()
    assert_close(totals.sum(), torch.tensor(40.0, device=DEVICE))


@pytest.mark.parametrize("which", ["x", "q", "bias"])
def test_nan_stays_in_its_image(which):
    tensors = dict(zip(("x", "q", "bias"), scene(3, 40, 5, 8)))
    clean = compete_triton(**tensors), compete_backward_triton(*gradients(3, 5, 8), **tensors)
    tensors[which].view(3, -1)[1, 3] = torch.nan
    spoilt = compete_triton(**tensors), compete_backward_triton(*gradients(3, 5, 8), **tensors)
    for before, after in zip(clean[0] + clean[1], spoilt[0] + spoilt[1]):
        assert torch.equal(before[::2], after[::2])
    assert all(part[1].isnan().any() for part in spoilt[0] + spoilt[1])


def test_one_vote_a_token_whatever_the_padding():
    for K in (1, 7, 15, 16, 17):
        x, q, bias = scene(1, 100, K, 5, scale=0.01)
        assert_close(compete_triton(x, q, bias)[1].sum().item(), 100.0, rtol=1e-5, atol=0)


# How the work is cut


@pytest.mark.parametrize("programs", [1, 2, 3, 7])
def test_any_number_of_programs(monkeypatch, programs):
    x, q, bias = scene(1, 200, 7, 20)
    grads = gradients(1, 7, 20)
    want = compete_triton(x, q, bias), compete_backward_triton(*grads, x, q, bias)
    monkeypatch.setattr(fused, "PROGRAMS", programs)
    assert fused.launch_plan(x, 7)[0][1] <= programs
    assert_close(
        (compete_triton(x, q, bias), compete_backward_triton(*grads, x, q, bias)),
        want,
        atol=1e-4,
        rtol=1e-5,
    )


def test_the_same_numbers_every_time():
    x, q, bias = scene(2, 100, 7, 20)
    one, other = (
        compete_triton(x, q, bias) + compete_backward_triton(*gradients(2, 7, 20), x, q, bias)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@given(
    st.integers(1, 3000),
    st.integers(1, 10**6),
    st.integers(1, 64),
    st.integers(1, 256),
    st.sampled_from(sorted(LIMITS, key=str)),
)
def test_plan_covers_every_token_once(B, N, K, C, dtype):
    (images, parts), span, chosen = fused.launch_plan(
        torch.empty(B, N, C, dtype=dtype, device="meta"), K
    )
    assert images == B and (parts - 1) * span < N <= parts * span and span % chosen["BLOCK"] == 0
    assert chosen["KP"] >= K and chosen["CP"] >= C
    assert parts <= max(1, -(-fused.PROGRAMS // B))


def test_views_will_do():
    x, q, bias = scene(2, 30, 5, 8)
    want = compete_triton(x, q, bias)
    assert_close(
        compete_triton(x.mT.contiguous().mT, q.mT.contiguous().mT, bias.T.contiguous().T), want
    )
    wide = torch.cat([x, x], dim=2)[:, :, :8]
    assert not wide.is_contiguous()
    assert_close(compete_triton(wide, q, bias), want)


# As an operator


def test_gradcheck():
    x, q, bias = (tensor.requires_grad_() for tensor in doubles(*scene(2, 4, 3, 2)))
    assert torch.autograd.gradcheck(fused_compete, (x, q, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    torch.library.opcheck(
        fused_compete, [tensor.requires_grad_() for tensor in scene(2, 9, 3, 5, dtype)]
    )


@pytest.mark.parametrize("dtype", LIMITS)
def test_autograd_runs_the_kernels(dtype, monkeypatch):
    for name in ("plain_compete", "plain_compete_backward"):
        monkeypatch.setattr(fused, name, None)
    leaves = [tensor.requires_grad_() for tensor in scene(2, 30, 5, 8, dtype)]
    grads = gradients(2, 5, 8)
    got = torch.autograd.grad(fused_compete(*leaves), leaves, grads)
    assert_close(got, compete_backward_triton(*grads, *leaves))


def test_compile_and_export_with_changing_sizes():
    f = lambda x, q, bias: sum(part.sin().sum() for part in fused_compete(x, q, bias))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 30, 5, 8), (3, 17, 4, 8)):
        leaves = [tensor.requires_grad_() for tensor in scene(*shape)]
        assert_close(
            torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(f(*leaves), leaves)
        )

    class Wrapped(torch.nn.Module):
        def forward(self, x, q, bias):
            return fused_compete(x, q, bias)

    batch, tokens, slots = (torch.export.Dim(name) for name in ("batch", "tokens", "slots"))
    sizes = {"x": {0: batch, 1: tokens}, "q": {0: batch, 1: slots}, "bias": {0: batch, 1: slots}}
    program = torch.export.export(Wrapped(), scene(2, 30, 5, 8), dynamic_shapes=sizes).module()
    assert_close(program(*scene(3, 17, 4, 8)), compete_triton(*scene(3, 17, 4, 8)))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 9, 3, 4), torch.float64),
        ((2, 0, 3, 4), torch.float32),
        ((0, 9, 3, 4), torch.float32),
        ((1, 5, 65, 4), torch.float32),
        ((1, 5, 2, 257), torch.float32),
    ],
)
def test_what_kernels_cannot_do_falls_back(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    x.requires_grad_()
    got = fused_compete(x, q.to(x), bias.to(x))
    assert_close(got, plain_compete(x, q.to(x), bias.to(x)))
    assert torch.autograd.grad(got[0].sum(), x)[0].shape == x.shape
    with pytest.raises(InputError, match="use plain_compete"):
        compete_triton(x, q, bias)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(9, 4)}, "x: expected shape"),
        ({"q": torch.zeros(2, 3, 5)}, "q: expected shape [B=2, K, C=4]"),
        ({"q": torch.zeros(1, 3, 4)}, "q: expected shape"),
        ({"q": torch.zeros(2, 0, 4), "bias": torch.zeros(2, 0)}, "K from 1 to 64"),
        ({"bias": torch.zeros(2, 4)}, "bias: expected shape [B=2, K=3]"),
        ({"x": torch.zeros(2, 0, 4)}, "N ≥ 1"),
        ({"x": torch.zeros(2, 9, 4, dtype=torch.int32)}, "float32, bfloat16 or float16"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.zeros(2, 9, 4),
        "q": torch.zeros(2, 3, 4),
        "bias": torch.zeros(2, 3),
    } | change
    with pytest.raises(InputError) as error:
        compete_triton(**{name: tensor.to(DEVICE) for name, tensor in arguments.items()})
    assert message in str(error.value)


# In a process of its own


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_only_the_kernel_is_missing():
    code = """
import sys; sys.modules["triton"] = None
import torch
from slot_attention_nbdev.ops.triton_pass import compete_triton, fused_compete, plain_compete, register
x, q, bias = torch.ones(1, 5, 2, requires_grad=True), torch.ones(1, 3, 2), torch.zeros(1, 3)
torch.testing.assert_close(fused_compete(x, q, bias), plain_compete(x, q, bias))
fused_compete(x, q, bias)[0].sum().backward()
assert x.grad.isfinite().all() and not register()
try: compete_triton(x, q, bias)
except Exception as error: print(type(error).__name__, error)
"""
    assert python(code).startswith("InputError x: the kernel expects Triton, CUDA")


def test_a_cpu_without_interpreter_takes_the_plain_form():
    code = """
import torch
from slot_attention_nbdev.ops.triton_pass import fused_compete, plain_compete, interpreted
x, q, bias = torch.ones(1, 5, 2), torch.ones(1, 3, 2), torch.zeros(1, 3)
torch.testing.assert_close(fused_compete(x, q, bias), plain_compete(x, q, bias))
print(interpreted())
"""
    assert python(code, TRITON_INTERPRET="0").strip() == "False"


def test_the_module_takes_the_kernels_and_computes_the_same():
    code = """
import torch
from slot_attention_nbdev.ops import triton_pass as fused
from slot_attention_nbdev.nn.slot_attention import KERNELS, SlotAttention
assert KERNELS["cuda"] is fused.fused_compete
torch.manual_seed(0)
module = SlotAttention(8, 8, 3).double()
def run():
    x = torch.arange(96.0).view(2, 6, 8).double().sin().requires_grad_()
    slots, attention = module(x, slots=torch.arange(48.0).view(2, 3, 8).double().cos(), return_attention=True)
    slots.square().sum().backward()
    return slots.detach(), attention.detach(), x.grad
plainly = run()
assert fused.register("cpu")
for a, b in zip(run(), plainly): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
"""
    python(code)


def test_the_core_does_not_load_the_kernels_without_a_card():
    code = """
import sys
from slot_attention_nbdev.nn.slot_attention import SlotAttention
import torch
SlotAttention(4, 4)
assert torch.cuda.is_available() or "slot_attention_nbdev.ops.triton_pass" not in sys.modules
"""
    python(code)


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from slot_attention_nbdev import {module} as module, fused
dtype, N, K, C = torch.{dtype}, 4096, {K}, {C}
pointer = "*" + {{torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}}[dtype]
ones = {ones}
for name, extra in {kernels}.items():
    kernel = getattr(module, name)
    chosen = fused.launch_plan(torch.empty(64, N, C, dtype=dtype, device="meta"), K)[2] | extra | {{one: 1 for one in ones if one in kernel.arg_names}}
    options = {{key: chosen.pop(key) for key in ("num_warps", "num_stages")}}
    kinds = {{n: "constexpr" if n in chosen else ((pointer if n in ("x_ptr", "dx_ptr") else "*fp32") if n.endswith("_ptr") else "fp32" if n.startswith("eps") else "i32") for n in kernel.arg_names}}
    made = triton.compile(triton.compiler.ASTSource(kernel, kinds, chosen), target=GPUTarget("cuda", {capability}, 32), options=options)
    print(name, made.metadata.shared)
"""


def compiled_sizes(tmp_path, capability, dtype, K, C, kernels, module="fused", ones=()):
    """Bytes of fast memory each kernel takes, as Triton compiles it for a card that need not be
    there.
    """
    code = COMPILE.format(
        capability=capability, dtype=dtype, K=K, C=C, kernels=kernels, module=module, ones=ones
    )
    lines = python(code, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).split("\n")
    return {line.split()[0]: int(line.split()[1]) for line in lines if line}


KERNELS = {"_compete_kernel": {}, "_backward_kernel": {"WITH_DX": True}}
LOOP_KERNELS = {
    "_loop_kernel": {"RESIDENT": False, "DP": 64, "HP": 128, "num_warps": 8},
    "_tokens_kernel": {},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_compile_for_a_hopper_card(tmp_path, dtype):
    sizes = compiled_sizes(tmp_path, 90, dtype, 7, 64, KERNELS)
    # two programs and more fit a processor
    assert sizes.keys() == KERNELS.keys() and max(sizes.values()) < 100_000


def test_the_loop_compiles_for_a_hopper_card(tmp_path):
    sizes = compiled_sizes(tmp_path, 90, "bfloat16", 7, 64, LOOP_KERNELS, "fused_loop")
    assert sizes.keys() == LOOP_KERNELS.keys() and max(sizes.values()) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("module, kernels", [("fused", KERNELS), ("fused_loop", LOOP_KERNELS)])
def test_sizes_of_one_are_constants_to_the_compiler(tmp_path, module, kernels):
    compiled_sizes(
        tmp_path, 90, "float32", 1, 1, kernels, module, ones=("B", "N", "K", "C", "D", "H", "T")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [{"RESIDENT": True, "BLOCK": 64}, {"DP": 128, "HP": 256}, {"KP": 32, "DP": 128, "HP": 128}],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_loop_of_every_size_compiles(tmp_path, dtype, extra):
    kernels = {"_loop_kernel": LOOP_KERNELS["_loop_kernel"] | extra}
    assert (
        max(
            compiled_sizes(
                tmp_path, 90, dtype, 7, 128 if "DP" in extra else 64, kernels, "fused_loop"
            ).values()
        )
        <= 232_448
    )


@pytest.mark.slow
@pytest.mark.parametrize("capability, memory", [(90, 232_448), (80, 166_912)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("K, C", [(7, 128), (7, 256), (32, 128), (64, 64), (64, 128), (64, 256)])
def test_kernels_of_every_size_compile(tmp_path, capability, memory, dtype, K, C):
    assert max(compiled_sizes(tmp_path, capability, dtype, K, C, KERNELS).values()) <= memory


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    "shape", [(8, 1225, 4, 64), (4, 16384, 7, 64), (2, 1024, 64, 256), (2, 1000, 33, 100)]
)
def test_large_images_on_the_gpu(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    near(compete_triton(x, q, bias), plain_compete(*doubles(x, q, bias)), LIMITS[dtype])
    grads = gradients(shape[0], *shape[2:])
    want = plain_compete_backward(*doubles(*grads), *doubles(x, q, bias))
    for got, wanted in zip(compete_backward_triton(*grads, x, q, bias), want):
        near([got], [wanted], max(LIMITS[dtype], 1e-3 if got.dtype == torch.float16 else 2e-5))


@pytest.mark.gpu
def test_kernels_in_a_cuda_graph():
    x, q, bias = scene(8, 1024, 7, 64, torch.bfloat16)
    want = compete_triton(x, q, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = compete_triton(x, q, bias)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want))
