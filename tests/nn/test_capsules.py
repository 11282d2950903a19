"Capsules: routing against a loop; the symmetry test fails on them, and not on Slot Attention."

import pytest
import torch
from torch import nn

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.capsules import Capsules, squash
from slot_attention_nbdev.nn.slot_attention import SlotAttention

B, N, K, D, WIDTH = 2, 7, 4, 5, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def capsules(**options):
    module = Capsules(N, WIDTH, K, D, **options).double()
    with torch.no_grad():
        module.weight.copy_(draw(*module.weight.shape))
    return module


def slot_attention():
    module = SlotAttention(WIDTH, D, K, mlp_hidden_dim=8).double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) * 0.4)
    return module


def symmetry(run) -> list[float]:
    "Relative deviation from Proposition 1: only tokens shuffled, only what slots start with."
    x, start = draw(B, N, WIDTH), draw(B, K, D, seed=1)
    order_i = torch.randperm(N, generator=generator(2))
    order_s = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        plain = run(x, start)
        by_tokens = run(x[:, order_i], start) - plain
        by_slots = run(x, start[:, order_s]) - plain[:, order_s]
    return [(each.abs().max() / plain.abs().max()).item() for each in (by_tokens, by_slots)]


def routed(module):
    return lambda x, start: module(x, priors=start[:, None, :, 0])


def test_slot_attention_is_symmetric_and_capsules_are_not():
    module = slot_attention()
    assert max(symmetry(lambda x, start: module(x, slots=start))) < 1e-12
    assert min(symmetry(routed(capsules()))) > 1e-2


def test_it_is_the_matrices_that_break_it():
    "Equal matrices for all tokens: tokens may be shuffled. Equal ones for all pairs: both may be."
    module = capsules()
    with torch.no_grad():
        module.weight.copy_(module.weight[:1].expand_as(module.weight))
    by_tokens, by_slots = symmetry(routed(module))
    assert by_tokens < 1e-12 and by_slots > 1e-2
    with torch.no_grad():
        module.weight.copy_(module.weight[:, :1].expand_as(module.weight))
    assert max(symmetry(routed(module))) < 1e-12


@pytest.mark.parametrize("T", [1, 2, 4])
def test_routing_against_plain_numbers(T):
    module, x, priors = capsules(num_iterations=T), draw(1, N, WIDTH), draw(1, N, K)
    u = [[module.weight[i, j] @ x[0, i] for j in range(K)] for i in range(N)]
    b = priors[0].clone()
    for _ in range(T):
        c = b.exp() / b.exp().sum(1, keepdim=True)
        z = []
        for j in range(K):
            s = sum(c[i, j] * u[i][j] for i in range(N))
            z.append(s.norm() ** 2 / (1 + s.norm() ** 2) * s / s.norm())
        b = b + torch.stack([torch.stack([u[i][j] @ z[j] for j in range(K)]) for i in range(N)])
    found, coupling = module(x, priors=priors, return_attention=True)
    torch.testing.assert_close(found[0], torch.stack(z))
    torch.testing.assert_close(coupling[0, -1], c)
    torch.testing.assert_close(coupling.sum(-1), torch.ones(1, T, N).double())


def test_squash_keeps_direction_and_shortens():
    v = draw(50, 4) * 10
    short = squash(v)
    assert (short.norm(dim=-1) < 1).all()
    torch.testing.assert_close(torch.cosine_similarity(short, v), torch.ones(50).double())
    torch.testing.assert_close(squash(torch.tensor([1.0, 0.0])), torch.tensor([0.5, 0.0]))


def test_gradients_are_right_and_finite():
    module = capsules()
    x = draw(1, N, WIDTH).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x), x)
    zero = torch.zeros(1, N, WIDTH, dtype=torch.float64, requires_grad=True)
    module(zero).sum().backward()  # every sum is zero, and has no direction
    assert zero.grad.isfinite().all() and module.weight.grad.isfinite().all()


def test_number_of_tokens_and_of_capsules_is_fixed():
    module = capsules()
    with pytest.raises(InputError, match="inputs"):
        module(draw(B, N + 1, WIDTH))
    with pytest.raises(InputError, match="priors"):
        module(draw(B, N, WIDTH), priors=draw(B, N, K + 1))
    with pytest.raises(InputError, match="num_iterations"):
        Capsules(N, WIDTH, K, D, num_iterations=0)
    for sizes in ((0, 3, 2), (4, 3, 0), (4, 0, 2)):
        with pytest.raises(InputError):
            Capsules(*sizes)
    assert isinstance(module, nn.Module) and module.weight.numel() == N * K * D * WIDTH
