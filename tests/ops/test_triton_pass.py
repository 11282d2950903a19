"Triton's kernels compute the textbook form in one read: interpreted here, compiled on a GPU."

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

pytest.importorskip("triton")

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.attention import attention_scores, slot_softmax, weighted_mean
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.ops import triton_pass
from slot_attention_nbdev.ops.one_pass import plain_one_pass, plain_one_pass_backward
from slot_attention_nbdev.ops.triton_pass import one_pass_backward_triton, one_pass_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 1, 1), (2, 3, 9, 8), (2, 33, 17, 33), (1, 70, 7, 64), (1, 20, 32, 64)]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


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


def near(got, want, limit, smallest=1e-3):
    "Errors below a limit relative to each tensor's largest number."
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        largest = max(other.abs().max().item(), smallest)
        assert_close(one.double(), other, rtol=0, atol=limit * largest)


# Against the textbook


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_textbooks(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    eps = 1e-3
    weighted_sum, attn_sum = one_pass_triton(x, q, bias, eps)
    assert weighted_sum.dtype == attn_sum.dtype == torch.float32
    # attention_scores divides by sqrt(C)
    wide = x.double()
    queries = q.double() * shape[-1] ** 0.5
    attn = slot_softmax(attention_scores(wide, queries) + bias.double()[:, None])
    updates = weighted_sum / attn_sum[..., None]
    want = attn.sum(1) + shape[1] * eps, weighted_mean(attn, wide, eps)
    near([attn_sum, updates], want, LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_autograds(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    grads = gradients(shape[0], *shape[2:])
    leaves = [tensor.requires_grad_() for tensor in doubles(x, q, bias)]
    eps = 0.1
    want = torch.autograd.grad(plain_one_pass(*leaves, eps), leaves, doubles(*grads))
    got = one_pass_backward_triton(*grads, x, q, bias, eps)
    assert [g.dtype for g in got] == [dtype, torch.float32, torch.float32]
    near(got, want, LIMITS[dtype])
    frozen = one_pass_backward_triton(*grads, x, q, bias, eps, for_tokens=False)
    assert frozen[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(frozen[1:], got[1:]))


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
    near(one_pass_triton(x, q, bias), plain_one_pass(*doubles(x, q, bias)), LIMITS[dtype] * largest)
    grads = gradients(B, K, C)
    want = plain_one_pass_backward(*doubles(*grads), *doubles(x, q, bias))
    # with few tokens the slots' parts of a token's gradient may cancel; their rounding does not
    parts = grads[0].double().abs().amax(1).max().item() / K
    # nor does that of what the weights' gradients are, from which their mean is subtracted
    weights = (grads[0] @ x.float().mT + grads[1][..., None]).abs().max().item()
    rounding = 2 * torch.finfo(torch.float32).eps * weights
    for got, wanted in zip(one_pass_backward_triton(*grads, x, q, bias), want):
        half = torch.finfo(got.dtype).bits == 16
        limit = largest * (2e-2 if dtype == torch.bfloat16 else 3e-5)
        smallest = parts if got.ndim == 3 and half else max(1e-3, rounding / limit)
        near([got], [wanted], limit, smallest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(dtype):
    x, q, bias = scene(2, 40, 5, 8, dtype, scale=1e4)
    weighted_sum, attn_sum = one_pass_triton(x, q, bias)
    assert_close(attn_sum.sum(1), torch.full((2,), 40.0, device=DEVICE))
    near([weighted_sum, attn_sum], plain_one_pass(*doubles(x, q, bias)), 2e-2)
    assert all(
        part.isfinite().all() for part in one_pass_backward_triton(*gradients(2, 5, 8), x, q, bias)
    )


def test_bfloat16_queries_keep_sixteen_bits():
    x, q, bias = scene(1, 60, 5, 8, torch.bfloat16, scale=10.0)
    near([one_pass_triton(x, q, bias)[1]], [plain_one_pass(*doubles(x, q, bias))[1]], 5e-4)
    rounded = plain_one_pass(x.double(), q.bfloat16().double(), bias.double())[1]
    # what one bfloat16 would do
    assert (rounded - plain_one_pass(*doubles(x, q, bias))[1]).abs().max() > 5e-3


def test_queries_in_bfloat16_are_multiplied_once():
    x, q, bias = scene(1, 60, 5, 8, torch.bfloat16)
    want = one_pass_triton(x, q.bfloat16().float(), bias)
    assert_close(one_pass_triton(x, q.bfloat16(), bias), want)


def test_a_slot_may_be_shut_out():
    x, q, bias = scene(1, 40, 5, 8)
    bias[0, 2] = -torch.inf
    weighted_sum, attn_sum = one_pass_triton(x, q, bias, eps=0.0)
    assert attn_sum[0, 2] == 0 and weighted_sum[0, 2].eq(0).all()
    assert_close(attn_sum.sum(), torch.tensor(40.0, device=DEVICE))


@pytest.mark.parametrize("which", ["tokens", "queries", "bias"])
def test_nan_stays_in_its_image(which):
    tensors = dict(zip(("tokens", "queries", "bias"), scene(3, 40, 5, 8)))
    clean = one_pass_triton(**tensors), one_pass_backward_triton(*gradients(3, 5, 8), **tensors)
    tensors[which].view(3, -1)[1, 3] = torch.nan
    spoilt = one_pass_triton(**tensors), one_pass_backward_triton(*gradients(3, 5, 8), **tensors)
    for before, after in zip(clean[0] + clean[1], spoilt[0] + spoilt[1]):
        assert torch.equal(before[::2], after[::2])
    assert all(part[1].isnan().any() for part in spoilt[0] + spoilt[1])


def test_one_vote_a_token_whatever_the_padding():
    for K in (1, 7, 15, 16, 17):
        x, q, bias = scene(1, 100, K, 5, scale=0.01)
        assert_close(one_pass_triton(x, q, bias)[1].sum().item(), 100.0, rtol=1e-5, atol=0)


# How the work is cut


def test_any_number_of_programs(monkeypatch):
    x, q, bias = scene(1, 200, 7, 20)
    grads = gradients(1, 7, 20)
    want = one_pass_triton(x, q, bias), one_pass_backward_triton(*grads, x, q, bias)
    for programs in (1, 3):
        monkeypatch.setattr(triton_pass, "PROGRAMS", programs)
        monkeypatch.setattr(triton_pass, "_processors", lambda device: 1)
        assert triton_pass.launch_plan(x, 7, 1)[0][1] <= programs
        assert_close(
            (one_pass_triton(x, q, bias), one_pass_backward_triton(*grads, x, q, bias)),
            want,
            atol=1e-4,
            rtol=1e-5,
        )


def test_the_same_numbers_every_time():
    x, q, bias = scene(2, 100, 7, 20)
    one, other = (
        one_pass_triton(x, q, bias) + one_pass_backward_triton(*gradients(2, 7, 20), x, q, bias)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@given(
    st.integers(1, 3000),
    st.integers(1, 10**6),
    st.integers(1, 32),
    st.integers(1, 64),
    st.integers(1, 200),
    st.sampled_from(sorted(LIMITS, key=str)),
)
def test_plan_covers_every_token_once(B, N, K, C, processors, dtype):
    tokens = torch.empty(B, N, C, dtype=dtype, device="meta")
    (images, parts), span, chosen = triton_pass.launch_plan(tokens, K, processors)
    assert images == B and (parts - 1) * span < N <= parts * span and span % chosen["BLOCK"] == 0
    assert chosen["KP"] >= K and chosen["CP"] >= C
    assert parts == 1 or B * parts <= triton_pass.PROGRAMS * processors


def test_views_will_do():
    x, q, bias = scene(2, 30, 5, 8)
    want = one_pass_triton(x, q, bias)
    assert_close(
        one_pass_triton(x.mT.contiguous().mT, q.mT.contiguous().mT, bias.T.contiguous().T), want
    )
    wide = torch.cat([x, x], dim=2)[:, :, :8]
    assert not wide.is_contiguous()
    assert_close(one_pass_triton(wide, q, bias), want)


# What the device allows

GPUS = {  # capability: bytes of fast memory of a processor
    (7, 5): 65_536,
    (8, 0): 167_936,
    (8, 6): 102_400,
    (8, 9): 102_400,
    (9, 0): 233_472,
    (12, 0): 102_400,
}


@pytest.mark.parametrize("capability", GPUS)
def test_the_device_is_asked(monkeypatch, capability):
    properties = SimpleNamespace(
        major=capability[0], shared_memory_per_multiprocessor=GPUS[capability]
    )
    monkeypatch.setattr(triton_pass, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    cuda = torch.device("cuda", 0)
    asked = lambda K, D, dtype=torch.float32: triton_pass.is_supported(cuda, dtype, K, D)
    assert asked(7, 64) == asked(32, 64, torch.bfloat16) == (capability >= (8, 0))
    # what would spill on every GPU, and other numbers
    assert not asked(7, 65) and not asked(7, 65, torch.bfloat16) and not asked(33, 16)
    assert not asked(0, 64) and not asked(7, 0)
    assert not asked(7, 64, torch.float64) and not asked(7, 64, torch.float16)
    assert not triton_pass.is_supported(torch.device("cpu"), torch.float32, 7, 64)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # an AMD GPU says that it is CUDA
    assert not asked(7, 64)


def test_too_little_memory_is_refused(monkeypatch):
    properties = SimpleNamespace(major=8, shared_memory_per_multiprocessor=65_536)
    monkeypatch.setattr(triton_pass, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert not triton_pass.is_supported(torch.device("cuda"), torch.float32, 7, 64)


# As an operator


@pytest.mark.parametrize("dtype", LIMITS)
def test_opcheck(dtype):
    x, q, bias = (tensor.requires_grad_() for tensor in scene(2, 9, 3, 5, dtype))
    torch.library.opcheck(one_pass_triton, (x, q, bias))
    grads = gradients(2, 3, 5)
    for for_tokens in (True, False):
        arguments = (*grads, x.detach(), q.detach(), bias.detach(), 1e-8, for_tokens)
        torch.library.opcheck(one_pass_backward_triton, arguments)


@pytest.mark.parametrize("dtype", LIMITS)
def test_autograd_runs_the_kernels(dtype, monkeypatch):
    for name in ("plain_one_pass", "plain_one_pass_backward"):
        monkeypatch.setattr(triton_pass, name, None)
    leaves = [tensor.requires_grad_() for tensor in scene(2, 30, 5, 8, dtype)]
    grads = gradients(2, 5, 8)
    got = torch.autograd.grad(one_pass_triton(*leaves), leaves, grads)
    assert_close(got, one_pass_backward_triton(*grads, *leaves))
    # tokens of a frozen encoder
    frozen = leaves[0].detach(), *leaves[1:]
    assert_close(torch.autograd.grad(one_pass_triton(*frozen), leaves[1:], grads), got[1:])


def test_gradients_of_gradients():
    leaves = [tensor.requires_grad_() for tensor in scene(1, 9, 3, 4)]
    found = []
    for form in (one_pass_triton, plain_one_pass):
        loss = sum(part.sin().sum() for part in form(*leaves))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(part.square().sum() for part in first), leaves))
    assert_close(*found, atol=1e-4, rtol=1e-4)


def test_compile_and_export_with_changing_sizes():
    f = lambda x, q, bias: sum(part.sin().sum() for part in one_pass_triton(x, q, bias))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 30, 5, 8), (3, 17, 4, 8)):
        leaves = [tensor.requires_grad_() for tensor in scene(*shape)]
        assert_close(
            torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(f(*leaves), leaves)
        )

    class Wrapped(torch.nn.Module):
        def forward(self, x, q, bias):
            return one_pass_triton(x, q, bias)

    batch, tokens, slots = (torch.export.Dim(name) for name in ("batch", "tokens", "slots"))
    sizes = {"x": {0: batch, 1: tokens}, "q": {0: batch, 1: slots}, "bias": {0: batch, 1: slots}}
    program = torch.export.export(Wrapped(), scene(2, 30, 5, 8), dynamic_shapes=sizes).module()
    assert_close(program(*scene(3, 17, 4, 8)), one_pass_triton(*scene(3, 17, 4, 8)))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 9, 3, 4), torch.float64),
        ((2, 9, 3, 4), torch.float16),
        ((2, 0, 3, 4), torch.float32),
        ((0, 9, 3, 4), torch.float32),
        ((1, 5, 33, 4), torch.float32),
        ((1, 5, 2, 65), torch.float32),
        ((1, 5, 0, 4), torch.float32),
    ],
)
def test_what_kernels_cannot_do_falls_back(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    x.requires_grad_()
    got = one_pass_triton(x, q.to(x), bias.to(x))
    assert_close(got, plain_one_pass(x, q.to(x), bias.to(x)))
    assert torch.autograd.grad(got[0].sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": torch.zeros(9, 4)}, "tokens: expected shape"),
        ({"queries": torch.zeros(2, 3, 5)}, "queries: expected shape [B=2, K, C=4]"),
        ({"queries": torch.zeros(1, 3, 4)}, "queries: expected shape"),
        ({"bias": torch.zeros(2, 4)}, "bias: expected shape [B=2, K=3]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "tokens": torch.zeros(2, 9, 4),
        "queries": torch.zeros(2, 3, 4),
        "bias": torch.zeros(2, 3),
    } | change
    with pytest.raises(InputError) as error:
        one_pass_triton(**{name: tensor.to(DEVICE) for name, tensor in arguments.items()})
    assert message in str(error.value)


# In a process of its own


def python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_only_the_kernel_is_missing():
    code = """
import sys; sys.modules["triton"] = None
import torch
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.ops.triton_pass import one_pass_triton
x, q, bias = torch.ones(1, 5, 2), torch.ones(1, 3, 2), torch.zeros(1, 3)
assert SlotAttention(2, implementation="one_pass")(x).isfinite().all()
assert one_pass_triton(x, q, bias)[1].sum() > 4.9  # the plain form
try: SlotAttention(2, implementation="triton")
except Exception as error: print(type(error).__name__, error)
"""
    assert python(code).startswith('InputError implementation: "triton" needs the package triton')


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_triton_is_refused():
    code = """
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.ops.triton_pass import interpreted
try: SlotAttention(2, implementation="triton")
except Exception as error: print(type(error).__name__, error)
print(interpreted())
"""
    first, last = python(code, TRITON_INTERPRET="0").splitlines()
    assert first.startswith(
        'InputError implementation: "triton" needs a GPU, and there is none; use'
    )
    assert last == "False"


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_module_computes_the_same_with_the_kernels(dtype, limit):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SlotAttention(8, 8, 3).to(DEVICE, dtype)
    x = torch.randn(2, 6, 8, generator=generator(0, "x")).to(DEVICE, dtype).requires_grad_()
    slots = torch.randn(2, 3, 8, generator=generator(0, "slots")).to(DEVICE, dtype)
    found = []
    for module.implementation in ("plain", "triton"):
        out, attention = module(x, slots=slots, return_attention=True)
        found.append((out, attention, *torch.autograd.grad(out.square().sum(), x)))
    for ours, want in zip(*found):
        assert_close(ours, want, rtol=limit, atol=limit)


def test_one_graph_of_the_module_under_autocast():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SlotAttention(8, 8, 3, implementation="triton").to(DEVICE)
    x, slots = torch.ones(2, 6, 8, device=DEVICE), torch.randn(2, 3, 8, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        want = module(x, slots=slots)
        got = torch.compile(module, fullgraph=True, backend="aot_eager")(x, slots=slots)
    assert want.dtype == torch.float32
    assert_close(got, want)


LOOK = """
import json
from types import SimpleNamespace
import torch, triton
from torch._functorch.aot_autograd import aot_export_joint_simple
from triton.backends.compiler import GPUTarget
from slot_attention_nbdev.ops import triton_pass
target = GPUTarget("cuda", 90, 32)
triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))
triton_pass.is_supported = lambda *asked: True
arguments = torch.empty(2, 99, 64, dtype=torch.bfloat16), torch.empty(2, 7, 64), torch.empty(2, 7)
for tensor in arguments: tensor.requires_grad_()
call = lambda *tensors: triton_pass.one_pass_triton(*tensors)
graph = aot_export_joint_simple(call, arguments, trace_joint=True).graph
print(json.dumps([str(node.target) for node in graph.nodes]))
"""


def test_the_compiler_sees_the_launches():
    seen = json.loads(python(LOOK, TRITON_INTERPRET="0"))
    assert sum("triton_kernel_wrapper" in name for name in seen) == 2  # forward and backward
    assert not any("slot_attention" in name for name in seen)


def test_nobody_loads_the_kernels_without_asking():
    code = """
import os, sys
before = dict(os.environ)
import torch
from slot_attention_nbdev.nn.slot_attention import SlotAttention
SlotAttention(4, 4, implementation="one_pass")(torch.zeros(1, 3, 4))
assert "slot_attention_nbdev.ops.triton_pass" not in sys.modules
assert os.environ == before
"""
    python(code)


# Compiled for GPUs that need not be there

COMPILE = """
import json, os, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from slot_attention_nbdev.ops import triton_pass
kinds = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}

def compiled(name, capability, dtype, K, C, for_tokens=True):
    kernel = getattr(triton_pass, name)
    tokens = torch.empty(64, 4096, C, dtype=dtype, device="meta")
    chosen = triton_pass.launch_plan(tokens, K, 132)[2] | {"FOR_TOKENS": for_tokens}
    chosen |= {size: 1 for size, value in (("K", K), ("C", C)) if value == 1}
    options = {key: chosen.pop(key) for key in ("num_warps", "num_stages")}
    chosen = {key: value for key, value in chosen.items() if key in kernel.arg_names}
    def kind(argument):
        if argument in chosen: return "constexpr"
        if not argument.endswith("_ptr"): return "i32"
        return kinds[dtype] if argument in ("x_ptr", "dx_ptr") else "*fp32"
    signature = {argument: kind(argument) for argument in kernel.arg_names}
    # what the launcher finds out: addresses and sizes that are multiples of 16
    even = {"N": 4096, "SPAN": 4096, "K": K, "C": C}
    hints = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(kernel.arg_names)
        if argument not in chosen and even.get(argument, 0) % 16 == 0
    }
    source = triton.compiler.ASTSource(kernel, signature, chosen, hints)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    target = re.search(r"[.]target (sm_[0-9a-z]+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", "-arch=" + target, file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True).stderr
    spilled = sum(int(size) for size in re.findall("([0-9]+) bytes spill", said))
    registers = re.search("Used ([0-9]+) registers", said)[1]
    wide = "ld.global.v4" in ptx or "cp.async" in ptx
    return made.metadata.shared, spilled, int(registers), wide

for capability, dtype, K, C in json.loads(sys.argv[1]):
    for name in ("_one_pass_kernel", "_backward_kernel"):
        found = compiled(name, capability, getattr(torch, dtype), K, C)
        print(json.dumps([name, capability, dtype, K, C, *found]))
"""


def check_compiled(tmp_path, cases):
    "No spill, no more fast memory than `is_supported` asks for, loads of many bytes at once."
    environment = dict(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    lines = python(COMPILE, json.dumps(cases), **environment).splitlines()
    assert len(lines) == 2 * len(cases)
    for line in lines:
        *what, K, C, shared, spilled, registers, wide = json.loads(line)
        assert shared <= triton_pass.SHARED_MEMORY, line
        assert spilled == 0, line
        # two programs fit a processor and its 65,536 registers: 128 threads each
        assert 2 * 128 * registers <= 65_536, line
        assert wide or C % 16, line


CAPABILITIES = (80, 86, 89, 90, 120)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("dtype, K, C", [("bfloat16", 7, 64), ("float32", 32, 64)])
def test_kernels_compile_without_spills(tmp_path, dtype, K, C):
    check_compiled(tmp_path, [(capability, dtype, K, C) for capability in CAPABILITIES])


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_of_every_size_compile(tmp_path, capability):
    sizes = [("float32", K, C) for K in (16, 32) for C in (1, 16, 32, 64)]
    sizes += [("bfloat16", K, C) for K in (16, 32) for C in (16, 32, 64)]
    sizes += [("float32", 1, 1), ("float32", 17, 50), ("bfloat16", 17, 50)]
    check_compiled(tmp_path, [(capability, *size) for size in sizes])


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    "shape", [(8, 1225, 4, 64), (4, 16384, 7, 64), (2, 1024, 32, 64), (2, 1000, 17, 33)]
)
def test_large_images_on_the_gpu(shape, dtype):
    x, q, bias = scene(*shape, dtype)
    near(one_pass_triton(x, q, bias), plain_one_pass(*doubles(x, q, bias)), LIMITS[dtype])
    grads = gradients(shape[0], *shape[2:])
    want = plain_one_pass_backward(*doubles(*grads), *doubles(x, q, bias))
    for got, wanted in zip(one_pass_backward_triton(*grads, x, q, bias), want):
        near([got], [wanted], max(LIMITS[dtype], 2e-5))


@pytest.mark.gpu
def test_kernels_in_a_cuda_graph():
    x, q, bias = scene(8, 1024, 7, 64, torch.bfloat16)
    want = one_pass_triton(x, q, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = one_pass_triton(x, q, bias)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want))
