"The one-pass form: the plain form's numbers and gradients, an operator, its memory."

import copy

import pytest
import torch
from torch.testing import assert_close

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.nn.attention import slot_softmax, weighted_mean
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.ops.one_pass import (
    one_pass,
    one_pass_backward,
    plain_one_pass,
    plain_one_pass_backward,
)

C, D = 6, 8
SIZES = [(2, 9, 3), (1, 1, 1), (2, 1, 5), (2, 5, 1), (1, 3, 9), (2, 0, 2), (3, 70, 17)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64).to(dtype)


def scene(B, N, K, dtype=torch.float64):
    return draw(B, N, C, dtype=dtype), draw(B, K, C, dtype=dtype), draw(B, K, dtype=dtype)


def pair(scale=1.0, **kwargs):
    "One module in both forms, in float64, with parameters that are neither 0 nor 1."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = SlotAttention(C, D, mlp_hidden_dim=12, **kwargs).double()
    g = generator(0, "weights")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        plain.project_k.weight *= scale
    absorbed = copy.deepcopy(plain)
    absorbed.implementation = "one_pass"
    return plain, absorbed


def everything(module, inputs, slots, T):
    "Slots, attention and all gradients."
    inputs, slots = inputs.clone().requires_grad_(), slots.clone().requires_grad_()
    out, attention = module(inputs, slots=slots, num_iterations=T, return_attention=True)
    weights = {name: w for name, w in module.named_parameters() if not name.startswith("slots_")}
    loss = (out * draw(*out.shape, seed=7)).sum() + attention.square().sum()
    grads = torch.autograd.grad(loss, [inputs, slots, *weights.values()])
    return dict(zip(["slots", "attention", "inputs", "start", *weights], [out, attention, *grads]))


@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("B, N, K", SIZES)
def test_both_forms_are_one_function(B, N, K, T):
    plain, absorbed = pair()
    inputs, slots = draw(B, N, C, seed=1), draw(B, K, D, seed=2)
    want = everything(plain, inputs, slots, T)
    for name, got in everything(absorbed, inputs, slots, T).items():
        assert_close(got, want[name], rtol=1e-8, atol=1e-9, msg=lambda m: f"{name}: {m}")


def test_no_tokens_and_a_large_gradient():
    _, absorbed = pair()
    inputs, slots = draw(2, 0, C), draw(2, 3, D)
    (1e4 * absorbed(inputs, slots=slots)).sum().backward()
    assert absorbed.norm_inputs.weight.grad.isfinite().all()


def test_without_attention_the_same():
    plain, absorbed = pair()
    inputs, slots = draw(2, 9, C), draw(2, 3, D)
    for module in (plain, absorbed):
        module(inputs, slots=slots).square().sum().backward()
    for (name, w), other in zip(plain.named_parameters(), absorbed.parameters()):
        if not name.startswith("slots_"):
            assert_close(w.grad, other.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand(sign):
    plain, absorbed = pair(scale=sign * 1e4)
    inputs, slots = draw(2, 9, C, seed=1), draw(2, 3, D, seed=2)
    k = plain.prepare(inputs)[0]
    logits = k @ plain.project_q(plain.norm_slots(slots)).mT * D**-0.5
    assert logits.abs().max() > 1e4
    want = everything(plain, inputs, slots, 1)
    for name, got in everything(absorbed, inputs, slots, 1).items():
        # relative to the largest: at such logits gradients are differences of huge numbers
        largest = max(want[name].abs().max().item(), 1e-6)
        assert got.isfinite().all()
        assert_close(got, want[name], rtol=0, atol=1e-7 * largest, msg=lambda m: f"{name}: {m}")


# The operator


@pytest.mark.parametrize("eps", [1e-8, 0.1])
@pytest.mark.parametrize("B, N, K", SIZES)
def test_the_operator_is_the_textbooks(B, N, K, eps):
    x, q, bias = scene(B, N, K)
    weighted_sum, attn_sum = one_pass(x, q, bias, eps)
    attn = slot_softmax(x @ q.mT + bias[:, None])
    assert_close(attn_sum, (attn + eps).sum(1))
    if N > 0:
        assert_close(weighted_sum / attn_sum[..., None], weighted_mean(attn, x, eps))


@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_gradients_and_their_gradients(eps):
    leaves = [part.requires_grad_() for part in scene(2, 4, 3)]
    f = lambda *leaves: one_pass(*leaves, eps)
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("B, N, K", SIZES)
def test_backward_is_autograds(B, N, K):
    leaves = [part.requires_grad_() for part in scene(B, N, K)]
    grads = draw(B, K, C, seed=3), draw(B, K, seed=4)
    want = torch.autograd.grad(plain_one_pass(*leaves, 0.1), leaves, grads)
    with torch.no_grad():
        assert_close(plain_one_pass_backward(*grads, *leaves, 0.1), want)
        assert_close(one_pass_backward(*grads, *leaves, 0.1), want)
    assert_close(torch.autograd.grad(one_pass(*leaves, 0.1), leaves, grads), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(dtype):
    leaves = [part.requires_grad_() for part in scene(2, 9, 3, dtype)]
    torch.library.opcheck(one_pass, (*leaves, 0.1))
    wide = torch.promote_types(dtype, torch.float32)
    grads = draw(2, 3, C, dtype=wide), draw(2, 3, dtype=wide)
    torch.library.opcheck(one_pass_backward, (*grads, *(leaf.detach() for leaf in leaves), 0.1))


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_is_summed_in_single(dtype, limit):
    x, q, bias = scene(2, 3000, 3, dtype)
    weighted_sum, attn_sum = one_pass(x, q, bias)
    assert weighted_sum.dtype == attn_sum.dtype == torch.float32
    want = plain_one_pass(x.double(), q.double(), bias.double())
    assert_close(attn_sum.double(), want[1], rtol=limit, atol=0)
    assert_close(attn_sum.sum(1), torch.full((2,), 3000.0), rtol=1e-5, atol=0)


def test_the_operator_stays_whole_in_a_compiled_graph():
    graphs = []

    def look(graph, example_inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    absorbed = pair()[1]
    torch.compile(absorbed, fullgraph=True, backend=look)(draw(2, 9, C), slots=draw(2, 3, D))
    torch.compiler.reset()
    assert len(graphs) == 1
    calls = [node for node in graphs[0].graph.nodes if "one_pass" in str(node.target)]
    assert len(calls) == absorbed.num_iterations


def test_exported_programs_need_nothing_of_ours():
    absorbed = pair()[1]
    inputs, slots = draw(2, 9, C), draw(2, 3, D)
    program = torch.export.export(absorbed, (inputs,), {"slots": slots})
    assert not any("one_pass" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(inputs, slots=slots), absorbed(inputs, slots=slots))


# What is kept


def kept_bytes(module, inputs, slots):
    "Bytes that autograd keeps for the gradients, without the parameters; each storage once."
    own = {parameter.data_ptr() for parameter in module.parameters()}
    storages = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(inputs, slots=slots)
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("T", [1, 3, 6])
def test_memory_that_is_kept(T):
    "The inputs and the standardized tokens, once, and nothing else that grows with N and C or K."
    B, K = 2, 7
    absorbed = SlotAttention(64, 64, K, T, implementation="one_pass")
    slots = torch.zeros(B, K, 64)
    sizes = []
    for N in (1000, 2000):
        inputs = torch.zeros(B, N, 64, requires_grad=True)
        sizes.append(kept_bytes(absorbed, inputs, slots))
    # two arrays [B, N, C], and mean and deviation of each token, in four bytes
    assert sizes[1] - sizes[0] == B * 1000 * (2 * 64 + 2) * 4
