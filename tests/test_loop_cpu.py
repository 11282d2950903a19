"The compiled loops against the textbook in float64."
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("numba")

from slot_attention_nbdev import loop_cpu
from slot_attention_nbdev.bench import TextbookSlotAttention
from slot_attention_nbdev.kernel_cpu import BLOCK, add_product, prepare, turn
from slot_attention_nbdev.loop_cpu import PARTS, _Loop, folded_loop, suits
from slot_attention_nbdev.slot_attention import LOOPS, SlotAttention, fold

EPS = (1e-8, 1e-5, 1e-4, 1e-3)  # of the mean, and of three LayerNorms: all different, so that none can stand for another


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    prepare()
    monkeypatch.setattr(loop_cpu, "LEAST", 0)
    monkeypatch.setitem(LOOPS, "cpu", loop_cpu.cpu_loop)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module(K=7, C=64, D=64, H=128, seed=0):
    "A module none of whose parameters is 0 or 1."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = SlotAttention(C, D, K, mlp_hidden_dim=H)
    for place, weight in enumerate(module.parameters()):
        weight.data += 0.2 * draw(*weight.shape, seed=place)
    return module


def scene(B=2, N=50, K=7, C=64, D=64):
    return draw(B, N, C, seed=1), draw(B, K, D, seed=2)


def by_loops(inputs, slots, weights, eps, T):
    return _Loop.apply(inputs, slots, eps, T, *weights)[0]


def everything(function, parts, weights, T=3, eps=EPS, dtype=torch.float32):
    "Slots and the gradients of inputs, first slots and weights."
    leaves = [part.detach().to(dtype, copy=True).requires_grad_() for part in (*parts, *weights)]
    slots = function(leaves[0], leaves[1], leaves[2:], eps, T)
    return slots.detach(), *torch.autograd.grad((slots * draw(*slots.shape, seed=5).to(dtype)).sum(), leaves)


def same(found, wanted, limit=1e-5):
    "Beside the largest number of each array; where that is zero (a shift of all queries does nothing), of all arrays: large terms cancel."
    largest = [theirs.abs().max().item() for theirs in wanted]
    for ours, theirs, size in zip(found, wanted, largest, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= limit * max(1.0, size if size > 1e-9 else max(largest))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([16, 32, 48, 64, 112, 192]), st.integers(0, 70), st.booleans(), st.integers(0, 9))
def test_products_of_every_size_and_layout(R, W, S, turned, seed):
    numbers = np.random.default_rng(seed)
    a = numbers.normal(size=(S, 2 * R)).astype(np.float32)[:, ::2].T if turned else numbers.normal(size=(R, S)).astype(np.float32)
    b, out = numbers.normal(size=(S, W + 16)).astype(np.float32)[:, 3 : W + 3], numbers.normal(size=(R + 2, W + 1)).astype(np.float32)
    wanted = out.astype(np.float64)
    wanted[1:-1, 1:] += a.astype(np.float64) @ b
    add_product(out[1:-1, 1:], a, b)
    assert np.abs(out - wanted).max() < 5e-5  # and nothing around it was touched


def test_turning():
    x, out = draw(64, 48).numpy(), np.zeros((50, 70), np.float32)
    turn(out[1:49, 3:67], x)
    assert (out[1:49, 3:67] == x.T).all() and np.abs(out).sum() == pytest.approx(np.abs(x).sum(), rel=1e-5)


NARROW = """
import llvmlite.binding, numpy as np
ours = llvmlite.binding.get_host_cpu_features()
ours.update((name, False) for name in list(ours) if "avx512" in name)
llvmlite.binding.get_host_cpu_features = lambda: ours
from slot_attention_nbdev.kernel_cpu import LANES, _compile, _softmax, add_product, prepare, turn
assert LANES == 8
prepare()
softmax, numbers = _compile(lambda a: _softmax(a)), np.random.default_rng(0)
for R, W, S in ((1, 16, 1), (7, 48, 33), (14, 32, 64), (29, 112, 5)):
    a, b, out = (numbers.normal(size=size).astype(np.float32) for size in ((R, S), (S, W), (R, W)))
    wanted = out.astype(np.float64) + a.astype(np.float64) @ b
    add_product(out, a, b)
    assert np.abs(out - wanted).max() < 1e-5
    softmax(out)
    assert np.abs(out - np.exp(wanted) / np.exp(wanted).sum(0)).max() < 1e-5
x, turned = numbers.normal(size=(64, 48)).astype(np.float32), np.empty((48, 64), np.float32)
turn(turned, x)
assert (turned == x.T).all()
"""


def test_on_a_core_with_narrow_registers(tmp_path):
    setting = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", NARROW], check=True, timeout=120, env=os.environ | setting)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(BLOCK, 70), st.sampled_from([1, 2, 7, 12, 40]), st.sampled_from([(16, 16, 16), (48, 32, 16), (64, 64, 128)]), st.integers(1, 4), st.integers(0, 9))
def test_odd_sizes_equal_the_plain_form_in_float64(B, N, K, widths, T, seed):
    C, D, H = widths
    parts, weights = scene(B, N, K, C, D), [w.detach() for w in fold(module(K, C, D, H, seed))]
    same(everything(by_loops, parts, weights, T), everything(folded_loop, parts, weights, T, dtype=torch.float64), 1e-5 * T)


@pytest.mark.parametrize("B, N", [(PARTS + 3, BLOCK), (1, 2500), (3 * PARTS, 2 * BLOCK + 1)])
def test_more_images_than_parts_and_long_images(B, N):
    parts, weights = scene(B, N, 4, 16, 16), [w.detach() for w in fold(module(4, 16, 16, 16))]
    same(everything(by_loops, parts, weights), everything(folded_loop, parts, weights, dtype=torch.float64), 2e-5)


def test_extreme_logits_choose_one_slot():
    inputs, slots = scene()
    weights = [w.detach() for w in fold(module())]
    hard = [1e4 * w for w in weights[:3]] + weights[3:]
    found, wanted = by_loops(inputs, slots, hard, EPS, 1), folded_loop(inputs.double(), slots.double(), [w.double() for w in hard], EPS, 1)
    assert found.isfinite().all()
    assert_close(found.double(), wanted, atol=1e-3, rtol=1e-3)


def test_a_slot_without_any_attention_has_a_mean_of_zero():
    inputs, slots = scene(1, 40, 2, 16, 16)
    weights = [w.detach() for w in fold(module(2, 16, 16, 16))]
    weights[0], weights[1] = torch.zeros_like(weights[0]), torch.zeros_like(weights[1])
    weights[2] = 1e5 * torch.eye(17)[0]  # the logit of every token is the slot's first number
    eps = (0.0, *EPS[1:])
    assert_close(by_loops(inputs, slots, weights, eps, 1), folded_loop(inputs, slots, weights, eps, 1))


def test_nan_stays_in_its_image():
    inputs, slots = scene(3, 40)
    inputs[1, 7, 2] = torch.nan
    inputs.requires_grad_(), slots.requires_grad_()
    found = by_loops(inputs, slots, fold(module()), EPS, 2)
    assert found.isnan().flatten(1).any(1).tolist() == [False, True, False]
    for grad in torch.autograd.grad(found.square().sum(), (inputs, slots)):
        assert grad.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_infinite_tokens_give_nan_as_softmax_does():
    inputs, slots = scene(1, 40)
    inputs[0, 3, 1] = torch.inf
    weights = fold(module())
    assert by_loops(inputs, slots, weights, EPS, 1).isnan().all() and folded_loop(inputs, slots, weights, EPS, 1).isnan().all()


def test_the_same_numbers_on_any_number_of_threads():
    parts, weights, before, found = scene(11, BLOCK + 5, 4, 16, 16), [w.detach() for w in fold(module(4, 16, 16, 16))], torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(everything(by_loops, parts, weights))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def run(module, x, start, dtype=torch.float32):
    module.to(dtype), module.zero_grad()
    x = x.detach().to(dtype, copy=True).requires_grad_()
    slots = module(x, slots=start.to(dtype))
    slots.square().sum().backward()
    grads = [weight.grad.clone() for weight in module.parameters() if weight.grad is not None]
    return slots.detach(), x.grad, *grads


def test_the_module_equals_the_textbook_and_itself_without_loops(monkeypatch):
    ours, (x, start) = module(), scene()
    textbook = module()
    textbook.__class__ = TextbookSlotAttention
    wanted = run(textbook, x, start, torch.float64)
    same(run(ours, x, start), wanted, 2e-5)
    monkeypatch.delitem(LOOPS, "cpu")
    same(run(ours, x, start), wanted, 2e-5)


def test_mu_and_sigma_get_their_gradients_through_the_loops():
    ours, (x, _) = module(), scene()
    ours(x, generator=torch.Generator().manual_seed(0)).square().sum().backward()
    assert ours.slots_mu.grad.abs().min() > 0 and ours.slots_log_sigma.grad.abs().min() > 0


def test_inputs_without_a_gradient_change_no_other_gradient():
    ours, (x, start) = module(), scene()
    wanted = run(ours, x, start)
    ours.zero_grad()
    ours(x, slots=start).square().sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(wanted[2:], (w for w in ours.parameters() if w.grad is not None)))
    with torch.no_grad():
        assert torch.equal(ours(x, slots=start), wanted[0])


def test_attention_returned_has_its_gradient():
    ours, (x, start) = module(), scene()

    def grad(module, x, start):
        slots, attention = module(x.requires_grad_(), slots=start, return_attention=True)
        return torch.autograd.grad(slots.square().sum() + attention.square().sum(), x)[0]

    found = grad(ours, x, start)
    assert_close(found.double(), grad(ours.double(), x.detach().double(), start.double()), atol=1e-4, rtol=1e-4)


def test_a_gradient_of_the_gradient():
    parts, weights = scene(1, 40, 3, 16, 16), [w.detach() for w in fold(module(3, 16, 16, 16))]

    def twice(function, dtype):
        leaves = [part.to(dtype, copy=True).requires_grad_() for part in (*parts, *weights)]
        grads = torch.autograd.grad(function(leaves[0], leaves[1], leaves[2:], EPS, 2).pow(3).sum(), leaves, create_graph=True)
        return *map(torch.Tensor.detach, grads), *torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves)

    same(twice(by_loops, torch.float32), twice(folded_loop, torch.float64), 1e-4)


def test_gradients_that_others_hold_are_left_alone():
    ours, (x, start) = module(), scene()
    slots, held = ours(x.requires_grad_(), slots=start), torch.ones(2, 7, 64)
    torch.autograd.grad(slots, x, held)
    assert held.eq(1).all()


CHANGES = {
    "double": lambda m, x, s: (m.double(), x.double(), s.double()),
    "bfloat16": lambda m, x, s: (m.bfloat16(), x.bfloat16(), s.bfloat16()),
    "short": lambda m, x, s: (m, x[:, : BLOCK - 1], s),
    "empty": lambda m, x, s: (m, x[:0], s[:0]),
    "odd inputs": lambda m, x, s: (module(C=40), x[..., :40], s),
    "odd slots": lambda m, x, s: (module(D=24), x, s[..., :24]),
    "odd hidden": lambda m, x, s: (module(H=20), x, s),
    "other activation": lambda m, x, s: (m.mlp.__setitem__(1, nn.GELU()) or m, x, s),
    "other norm": lambda m, x, s: (setattr(m, "norm_slots", nn.Identity()) or m, x, s),
    "norm without bias": lambda m, x, s: (setattr(m, "norm_mlp", nn.LayerNorm(64, bias=False)) or m, x, s),
    "biased projection": lambda m, x, s: (setattr(m, "project_q", nn.Linear(64, 64)) or m, x, s),
    "GRU without bias": lambda m, x, s: (setattr(m, "gru", nn.GRUCell(64, 64, bias=False)) or m, x, s),
    "weight norm": lambda m, x, s: (torch.nn.utils.parametrizations.weight_norm(m.project_k) and m, x, s),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_suit_takes_the_plain_way(monkeypatch, change):
    ours, x, start = CHANGES[change](module(), *scene())
    assert not suits(ours, x, start)
    found = ours(x, slots=start)
    monkeypatch.delitem(LOOPS, "cpu")
    assert torch.equal(found, ours(x, slots=start))


def test_strides_are_no_hindrance():
    ours, (x, start) = module(), scene()
    assert_close(ours(x.mT.contiguous().mT, slots=start.transpose(0, 1).contiguous().transpose(0, 1)), ours(x, slots=start))


def test_a_hook_is_heard():
    ours, (x, start), heard = module(), scene(), []
    assert suits(ours, x, start)
    handles = [ours.gru.register_forward_hook(lambda *_: heard.append(1)), ours.mlp.register_full_backward_hook(lambda *_: heard.append(2))]
    ours(x, slots=start).sum().backward()
    assert sorted(heard) == [1, 1, 1, 2, 2, 2]
    handles[0].remove()
    assert not suits(ours, x, start)
    handles[1].remove()
    assert suits(ours, x, start)


def test_small_inputs_do_not_compile(monkeypatch):
    monkeypatch.setattr(loop_cpu, "LEAST", 2**18)
    assert not suits(module(), *scene()) and suits(module(), *scene(B=4, N=1024))


def test_autocast_takes_the_plain_way():
    ours, (x, start) = module(), scene()
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(ours, x, start)


def test_compilers_counters_and_transformations_see_the_plain_form():
    ours, (x, start) = module(), scene()
    wanted = ours(x, slots=start)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert_close(compiled(x, slots=start), wanted, atol=2e-5, rtol=1e-4)
    with FlopCounterMode(display=False) as counter:
        ours(x, slots=start)
    assert counter.get_total_flops() >= 3 * 2 * 2 * 2 * 50 * 7 * 64
    exported = torch.export.export(ours, (x,), {"slots": start}).module()
    assert_close(exported(x, slots=start), wanted, atol=2e-5, rtol=1e-4)
    loss = lambda x: ours(x, slots=start).square().sum()
    leaf = x.clone().requires_grad_()
    assert_close(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0], atol=1e-3, rtol=1e-3)


FORKED = """
import os, torch
from slot_attention_nbdev import loop_cpu
from slot_attention_nbdev.slot_attention import SlotAttention
loop_cpu.LEAST = 0
torch.set_num_threads(2)
module, x, slots = SlotAttention(16, 16, 4, mlp_hidden_dim=16), torch.randn(4, 40, 16), torch.randn(4, 4, 16)
assert loop_cpu.suits(module, x, slots)
run = lambda: module(x, slots=slots)
first = run()
child = os.fork()
if child == 0:
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(run(), first) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=120)


PLAIN = """
import torch
from slot_attention_nbdev.slot_attention import LOOPS, SlotAttention, fold
SlotAttention(64)(torch.ones(16, 1024, 64))
from slot_attention_nbdev.loop_cpu import _Loop, folded_loop  # by hand: Python and NumPy
assert not LOOPS
module, x, slots = SlotAttention(16, 16, 3, mlp_hidden_dim=32), torch.randn(2, 40, 16).requires_grad_(), torch.randn(2, 3, 16)
loops, plain = _Loop.apply(x, slots, [1e-8, 1e-5, 1e-5, 1e-5], 2, *fold(module))[0], folded_loop(x, slots, fold(module), [1e-8, 1e-5, 1e-5, 1e-5], 2)
torch.testing.assert_close(loops, plain, atol=1e-5, rtol=1e-4)
torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x)[0] for each in (loops, plain)), atol=1e-4, rtol=1e-3)
"""


@pytest.mark.parametrize("how", ["broken", "switched off"])
def test_without_numba_the_module_works_and_the_loops_are_python(tmp_path, how):
    if how == "broken":
        (tmp_path / "numba.py").write_text("raise ImportError('broken')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    setting = {"NUMBA_DISABLE_JIT": "1"} if how == "switched off" else {}
    subprocess.run([sys.executable, "-c", PLAIN], check=True, timeout=120, env=os.environ | {"PYTHONPATH": path} | setting)


@pytest.mark.parametrize("least", [0, 2**18])
def test_checkpointing_reads_what_is_kept_once(monkeypatch, least):
    monkeypatch.setattr(loop_cpu, "LEAST", least)
    ours, (x, start) = module(), scene()
    call = lambda x: ours(x, slots=start).square().sum()
    kept = torch.autograd.grad(torch.utils.checkpoint.checkpoint(call, x.requires_grad_(), use_reentrant=False), x)[0]
    assert torch.equal(kept, torch.autograd.grad(call(x), x)[0])


def test_an_error_on_another_thread_is_raised():
    def fail(first, last):
        raise ValueError("from a loop")

    with pytest.raises(ValueError, match="from a loop"):
        loop_cpu.share(fail, 8)


def test_several_python_threads_at_once():
    parts, weights, found, threads = scene(4, 100, 4, 16, 16), [w.detach() for w in fold(module(4, 16, 16, 16))], [], torch.get_num_threads()
    wanted = everything(by_loops, parts, weights)
    torch.set_num_threads(2)
    try:
        callers = [threading.Thread(target=lambda: found.append(everything(by_loops, parts, weights))) for _ in range(3)]
        [caller.start() for caller in callers], [caller.join() for caller in callers]
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 3 and all(torch.equal(a, b) for each in found for a, b in zip(each, wanted))


def test_threads_that_cannot_be_had_or_fed_mean_the_plain_way(monkeypatch):
    assert suits(module(), *scene())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert not suits(module(), *scene(B=2)) and suits(module(), *scene(B=3))
    monkeypatch.setattr(loop_cpu, "_on_threads", None)
    assert not suits(module(), *scene(B=3))
