"The compiled loops against the textbook in float64."
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("numba")

from slot_attention_nbdev import fused_cpu, norm_cpu
from slot_attention_nbdev.bench import TextbookSlotAttention
from slot_attention_nbdev.fused_cpu import BLOCK, SPAN, _Loop, suits
from slot_attention_nbdev.slot_attention import LAYER_NORM, ONE_PASS, SlotAttention, _OnePass, one_pass


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(fused_cpu, "LEAST", 0)
    monkeypatch.setitem(ONE_PASS, "cpu", _Loop.apply)
    monkeypatch.setitem(LAYER_NORM, "cpu", norm_cpu.layer_norm)


def scene(B, N, K, C, scale=1.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    return draw(B, N, C), scale * draw(B, K, C) / C**0.5, scale * draw(B, K)


def everything(function, parts, dtype, seed=1):
    "Sums, masses and the three gradients of a mixed loss."
    parts = [part.to(dtype).requires_grad_() for part in parts]
    sums, mass, tokens = function(*parts, 1e-8)
    random = torch.Generator().manual_seed(seed)
    weight = lambda like: torch.randn(like.shape, generator=random).to(dtype)
    loss = (sums * weight(sums)).sum() + (mass * weight(mass)).sum() + (tokens * weight(tokens)).sum()
    return sums.detach(), mass.detach(), *torch.autograd.grad(loss, parts)


def same(found, wanted, limit=1e-5):
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() <= limit * max(1.0, theirs.abs().max().item())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(BLOCK, 70), st.sampled_from([(1, 5), (4, 5), (7, 64)]), st.sampled_from([1.0, 30.0]), st.integers(0, 9))
def test_odd_sizes_equal_the_plain_form_in_float64(B, N, sizes, scale, seed):
    parts = scene(B, N, *sizes, scale, seed)
    assert suits(*parts, K=sizes[0])
    same(everything(_Loop.apply, parts, torch.float32), everything(_OnePass.apply, parts, torch.float64), 1e-5 * scale)


@pytest.mark.parametrize("B, N", [(1, SPAN), (1, SPAN + 3), (2, 2 * SPAN + BLOCK + 1)])
def test_images_of_several_parts(B, N):
    parts = scene(B, N, 4, 5)
    same(everything(_Loop.apply, parts, torch.float32), everything(_OnePass.apply, parts, torch.float64), 2e-5)


def test_extreme_logits_choose_one_slot():
    x, q, bias = scene(2, 40, 4, 5)
    sums, mass, _ = _Loop.apply(x, 1e4 * q, 1e4 * bias, 0.0)
    wanted = _OnePass.apply(x.double(), 1e4 * q.double(), 1e4 * bias.double(), 0.0)
    assert_close((sums.double(), mass.double()), wanted[:2], atol=1e-4, rtol=1e-4)
    assert_close(mass.sum(1), torch.full((2,), 40.0))


def test_nan_stays_in_its_image():
    parts = [part.requires_grad_() for part in scene(3, 40, 4, 5)]
    with torch.no_grad():
        parts[0][1, 7, 2] = torch.nan
    sums, mass, _ = _Loop.apply(*parts, 1e-8)
    assert mass.isnan().any(1).tolist() == [False, True, False]
    grads = torch.autograd.grad(sums.square().sum() + mass.square().sum(), parts)
    for grad in grads:
        assert grad.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_infinite_tokens_give_nan_as_softmax_does():
    x, q, bias = scene(1, 40, 4, 5)
    x[0, 3, 1] = torch.inf
    assert _Loop.apply(x, q, bias, 1e-8)[1].isnan().all() and _OnePass.apply(x, q, bias, 1e-8)[1].isnan().any()


def test_the_same_numbers_on_any_number_of_threads():
    parts, before, found = scene(3, SPAN + 40, 4, 5), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(everything(_Loop.apply, parts, torch.float32)[:3])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def module(K=7, C=64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = SlotAttention(C, C, K)
        torch.nn.init.normal_(module.norm_inputs.weight), torch.nn.init.normal_(module.norm_inputs.bias)
    return module


def run(module, x, start, dtype=torch.float32):
    module.to(dtype), module.zero_grad()
    x = x.detach().to(dtype, copy=True).requires_grad_()
    slots = module(x, slots=start.to(dtype))
    slots.square().sum().backward()
    return slots.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)


def test_the_module_equals_the_textbook_and_itself_without_loops(monkeypatch):
    ours, x, start = module(), scene(2, 50, 1, 64)[0], scene(2, 7, 1, 64, seed=3)[0]
    quick = run(ours, x, start)
    monkeypatch.delitem(ONE_PASS, "cpu"), monkeypatch.delitem(LAYER_NORM, "cpu")
    plain = run(ours, x, start)
    same(quick, plain, 2e-5)
    textbook = module()
    textbook.__class__ = TextbookSlotAttention
    same(quick[:2], run(textbook, x, start, torch.float64)[:2], 2e-5)


def test_attention_returned_beside_the_loops_has_its_gradient():
    ours, x, start = module(), scene(2, 50, 1, 64)[0].requires_grad_(), scene(2, 7, 1, 64, seed=3)[0]

    def grad(module, x, start):
        slots, attention = module(x, slots=start, return_attention=True)
        return torch.autograd.grad(slots.square().sum() + attention.square().sum(), x)[0]

    found = grad(ours, x, start)
    assert_close(found.double(), grad(ours.double(), x.double(), start.double()), atol=2e-5, rtol=2e-5)


def test_layer_norm_and_the_gradient_of_its_gradient():
    x = scene(2, 40, 1, 64)[0].requires_grad_()
    double = x.detach().double().requires_grad_()

    def twice(norm, x):
        grad, = torch.autograd.grad(norm(x, (64,)).pow(3).sum(), x, create_graph=True)
        return norm(x, (64,)).detach(), grad.detach(), *torch.autograd.grad(grad.square().sum(), x)

    same(twice(norm_cpu.layer_norm, x), twice(torch.nn.functional.layer_norm, double), 2e-5)


def test_a_gradient_of_the_gradient_takes_the_plain_way():
    parts = [part.requires_grad_() for part in scene(1, 20, 4, 5)]
    grad, = torch.autograd.grad(_Loop.apply(*parts, 1e-8)[0].square().sum(), parts[0], create_graph=True)
    plain, = torch.autograd.grad(_OnePass.apply(*parts, 1e-8)[0].square().sum(), parts[0], create_graph=True)
    assert_close(torch.autograd.grad(grad.sum(), parts), torch.autograd.grad(plain.sum(), parts), atol=1e-4, rtol=1e-4)


def test_gradients_that_others_hold_are_left_alone():
    x, q, bias = (part.requires_grad_() for part in scene(2, 40, 4, 5))
    tokens, given = _Loop.apply(x, q, bias, 1e-8)[2], torch.ones(2, 40, 5)
    torch.autograd.grad(tokens, x, given)
    assert given.eq(1).all()


@pytest.mark.parametrize("change", ["double", "bfloat16", "strides", "short", "wide", "many"])
def test_what_does_not_suit_takes_the_plain_way(change):
    B, N, K, C = 2, 40, 4, 5
    N, K, C = {"short": (BLOCK - 1, K, C), "wide": (N, K, 257), "many": (N, 17, C)}.get(change, (N, K, C))
    x, q, bias = scene(B, N, K, C)
    if change in ("double", "bfloat16"):
        x, q, bias = (part.to(getattr(torch, change)) for part in (x, q, bias))
    if change == "strides":
        x = x.mT.contiguous().mT
    assert all(torch.equal(a, b) for a, b in zip(_Loop.apply(x, q, bias, 1e-8), _OnePass.apply(x, q, bias, 1e-8)))


def test_small_inputs_do_not_compile(monkeypatch):
    monkeypatch.setattr(fused_cpu, "LEAST", 2**20)
    x, q, bias = scene(2, 40, 4, 5)
    assert not suits(x, q, bias, K=4)
    assert torch.equal(one_pass(x, q, bias)[0], _OnePass.apply(x, q, bias, 1e-8)[0])


def test_compilers_and_counters_see_the_plain_form():
    ours, x, start = module(), scene(2, 50, 1, 64)[0], scene(2, 7, 1, 64, seed=3)[0]
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert_close(compiled(x, slots=start), ours(x, slots=start), atol=2e-5, rtol=1e-4)
    with FlopCounterMode(display=False) as counter:
        ours(x, slots=start)
    assert counter.get_total_flops() >= 3 * 2 * 2 * 2 * 50 * 7 * 64
    exported = torch.export.export(ours, (x,), {"slots": start}).module()
    assert_close(exported(x, slots=start), ours(x, slots=start), atol=2e-5, rtol=1e-4)


FORKED = """
import os, torch
from slot_attention_nbdev import fused_cpu
fused_cpu.LEAST = 0
torch.set_num_threads(2)
x, q, bias = torch.ones(4, 40, 5), torch.ones(4, 4, 5), torch.ones(4, 4)
run = lambda: fused_cpu._Loop.apply(x, q, bias, 0.0)[1]
first = run()
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(fused_cpu._Loop.apply(x, q, bias, 0.0)[1], first) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=120)


def test_without_numba_the_module_works(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('broken')")
    code = "import torch; from slot_attention_nbdev.slot_attention import *; from slot_attention_nbdev import slot_attention as s; " \
        "SlotAttention(64)(torch.ones(16, 1024, 64)); assert not s.ONE_PASS and not s.LAYER_NORM"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.parametrize("least", [0, 2**20])
def test_checkpointing_reads_what_is_kept_once(monkeypatch, least):
    monkeypatch.setattr(fused_cpu, "LEAST", least)
    ours, x, start = module(), scene(2, 50, 1, 64)[0].requires_grad_(), scene(2, 7, 1, 64, seed=3)[0]
    call = lambda x: ours(x, slots=start).square().sum()
    kept = torch.autograd.grad(torch.utils.checkpoint.checkpoint(call, x, use_reentrant=False), x)[0]
    assert torch.equal(kept, torch.autograd.grad(call(x), x)[0])


def test_an_error_on_another_thread_is_raised():
    def fail(first, last):
        raise ValueError("from a loop")

    with pytest.raises(ValueError, match="from a loop"):
        fused_cpu.share(fail, 8)


def test_several_python_threads_at_once():
    parts, found, threads = scene(4, 100, 4, 5), [], torch.get_num_threads()
    wanted = everything(_Loop.apply, parts, torch.float32)
    torch.set_num_threads(2)
    try:
        callers = [threading.Thread(target=lambda: found.append(everything(_Loop.apply, parts, torch.float32))) for _ in range(3)]
        [caller.start() for caller in callers], [caller.join() for caller in callers]
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 3 and all(torch.equal(a, b) for each in found for a, b in zip(each, wanted))


def test_without_openmp_several_threads_take_the_plain_way(monkeypatch):
    monkeypatch.setattr(fused_cpu, "_on_threads", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not suits(*scene(2, 40, 4, 5), K=4)
