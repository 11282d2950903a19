"The two equations: against loops, in every shape and dtype, and their gradients."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from slot_attention_nbdev.nn.attention import attention_scores, slot_softmax, weighted_mean
from slot_attention_nbdev.core import generator

sizes = st.tuples(*(st.integers(1, high) for high in (9, 6, 8)))
quick = settings(deadline=None, max_examples=30)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


@quick
@given(sizes, st.integers(0, 99))
def test_against_loops(size, seed):
    N, K, D = size
    k = draw(N, D, seed=seed)
    q = draw(K, D, seed=seed + 100)
    v = draw(N, D, seed=seed + 200)
    attn = slot_softmax(attention_scores(k, q))
    updates = weighted_mean(attn, v, eps=1e-3)
    for i in range(N):
        M = [float(k[i] @ q[j]) / math.sqrt(D) for j in range(K)]
        for j in range(K):
            assert math.isclose(attn[i, j], math.exp(M[j]) / sum(map(math.exp, M)), rel_tol=1e-9)
    for j in range(K):
        weights = [float(attn[i, j]) + 1e-3 for i in range(N)]
        assert_close(updates[j], sum(w * v[i] for i, w in enumerate(weights)) / sum(weights))


@quick
@given(st.lists(st.integers(0, 3), max_size=3), sizes)
def test_any_leading_dimensions(lead, size):
    N, K, D = size
    attn = slot_softmax(attention_scores(draw(*lead, N, D), draw(*lead, K, D)))
    assert attn.shape == (*lead, N, K)
    assert_close(attn.sum(-1), torch.ones(*lead, N, dtype=torch.float64))
    assert weighted_mean(attn, draw(*lead, N, D)).shape == (*lead, K, D)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    attn = slot_softmax(attention_scores(draw(2, 5, 4).to(dtype), draw(2, 3, 4).to(dtype)))
    assert attn.dtype == dtype
    assert_close(
        attn.sum(-1).double(), torch.ones(2, 5).double(), atol=torch.finfo(dtype).eps * 4, rtol=0
    )
    assert weighted_mean(attn, draw(2, 5, 4).to(dtype)).dtype == dtype


def test_mean_of_a_constant_is_the_constant():
    attn = slot_softmax(draw(3, 50, 4))
    assert_close(
        weighted_mean(attn, torch.full((3, 50, 2), 7.0).double()),
        torch.full((3, 4, 2), 7.0).double(),
    )


def test_a_slot_without_votes_sees_the_mean_of_everything():
    lost = slot_softmax(torch.tensor([[0.0, -1e4]]).expand(6, 2))
    values = torch.arange(6.0)[:, None]
    assert lost[:, 1].eq(0).all()
    assert_close(weighted_mean(lost, values), torch.full((2, 1), 2.5))
    assert weighted_mean(lost, values, eps=0.0)[1].isnan()


def test_large_scores_stay_finite():
    assert slot_softmax(torch.tensor([[1e30, -1e30], [-1e30, -1e30]])).isfinite().all()


def test_gradients():
    k, q, v = (draw(2, n, 3).requires_grad_() for n in (4, 2, 4))
    assert torch.autograd.gradcheck(
        lambda k, q, v: weighted_mean(slot_softmax(attention_scores(k, q)), v), (k, q, v)
    )
