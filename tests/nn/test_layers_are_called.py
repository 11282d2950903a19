"""Layers are called, never read: what is attached to a layer does what it does on any module.

For each implementation, against an independent textbook in float64.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
)
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from slot_attention_nbdev.core import generator
from slot_attention_nbdev.nn.attention import attention_scores
from slot_attention_nbdev.nn.slot_attention import SlotAttention, _choose_form

B, N, K, C, D, T = 2, 9, 3, 6, 8, 3
PROJECTIONS = ["project_q", "project_k", "project_v"]
NORMS = ["norm_inputs", "norm_slots", "norm_mlp"]
LAYERS = [*PROJECTIONS, *NORMS, "gru", "mlp"]
FORMS = ["plain", "one_pass"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, *shape), dtype=torch.float64)


def make(implementation):
    "A module in float64 whose parameters are neither 0 nor 1."
    module = SlotAttention(C, D, K, T, 12, implementation=implementation).double()
    g = generator(0, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return module


@pytest.fixture(params=FORMS)
def module(request):
    return make(request.param)


@pytest.fixture
def inputs():
    return draw(B, N, C, seed=1)


@pytest.fixture
def slots():
    return draw(B, K, D, seed=2)


def textbook(module, inputs, slots, layers=None):
    "Algorithm 1, written anew; `layers` exchanges what a layer computes."
    names = {name: getattr(module, name) for name in LAYERS} | (layers or {})
    inputs = names["norm_inputs"](inputs)
    k, v = names["project_k"](inputs), names["project_v"](inputs)
    for _ in range(T):
        q = names["project_q"](names["norm_slots"](slots))
        attn = torch.einsum("bnd,bkd->bnk", k, q).div(D**0.5).softmax(2) + module.eps
        updates = torch.einsum("bnk,bnd->bkd", attn / attn.sum(1, keepdim=True), v)
        flat = names["gru"](updates.reshape(-1, D), slots.reshape(-1, D))
        slots = flat.reshape(slots.shape)
        slots = slots + names["mlp"](names["norm_mlp"](slots))
    return slots


def linear(layer, weight=None, bias=None):
    "What a linear layer computes with other weights."
    weight = layer.weight.detach() if weight is None else weight
    return lambda x: F.linear(x, weight, bias)


def plain_form(module):
    return _choose_form(module, False) is module


def test_untouched_modules_take_the_form_they_ask_for(module, inputs, slots):
    assert plain_form(module) == (module.implementation == "plain")
    assert_close(module(inputs, slots=slots), textbook(module, inputs, slots))


# What people do to a linear layer


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_bias(module, inputs, slots, name):
    old = getattr(module, name)
    new = nn.Linear(old.in_features, D).double()
    with torch.no_grad():
        new.bias.copy_(draw(D))
    setattr(module, name, new)
    want = textbook(
        module, inputs, slots, {name: linear(new, new.weight.detach(), new.bias.detach())}
    )
    got = module(inputs, slots=slots)
    assert_close(got, want)
    got.sum().backward()
    assert new.bias.grad.isfinite().all()


class LoRA(nn.Module):
    "A low-rank adapter around a frozen layer (Hu et al. 2021)."

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(draw(rank, base.in_features, seed=5))
        self.up = nn.Parameter(draw(base.out_features, rank, seed=6))

    @property
    def weight(self):  # as adapters do, so that a careless reader finds something
        return self.base.weight

    bias = None
    in_features = property(lambda self: self.base.in_features)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", PROJECTIONS)
def test_an_adapter(module, inputs, slots, name):
    adapter = LoRA(getattr(module, name))
    setattr(module, name, adapter)
    merged = (adapter.base.weight + adapter.up @ adapter.down).detach()
    got = module(inputs, slots=slots)
    assert_close(got, textbook(module, inputs, slots, {name: lambda x: x @ merged.T}))
    got.square().sum().backward()
    assert adapter.down.grad.abs().sum() > 0 and adapter.up.grad.abs().sum() > 0
    assert adapter.base.weight.grad is None


@pytest.mark.parametrize("name", PROJECTIONS)
def test_an_adapter_that_is_a_subclass(module, inputs, slots, name):
    old = getattr(module, name)

    class Scaled(nn.Linear):
        def forward(self, x):
            return 0.5 * super().forward(x)

    new = Scaled(old.in_features, D, bias=False).double()
    setattr(module, name, new)
    want = textbook(module, inputs, slots, {name: linear(new, 0.5 * new.weight.detach())})
    assert_close(module(inputs, slots=slots), want)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_pruning(module, inputs, slots, name):
    layer = getattr(module, name)
    prune.random_unstructured(layer, "weight", 0.5)
    kept = (layer.weight_orig * layer.weight_mask).detach()
    assert (kept == 0).any()
    want = textbook(module, inputs, slots, {name: linear(layer, kept)})
    assert_close(module(inputs, slots=slots), want)
    # after an optimizer's step the pruned weight is made anew by a hook of the layer
    with torch.no_grad():
        layer.weight_orig.mul_(1.5)
    want = textbook(module, inputs, slots, {name: linear(layer, 1.5 * kept)})
    assert_close(module(inputs, slots=slots), want)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weight_norm(module, inputs, slots, name):
    layer = parametrizations.weight_norm(getattr(module, name))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2.0)
    got = module(inputs, slots=slots)
    assert_close(got, textbook(module, inputs, slots, {name: linear(layer)}))
    got.sum().backward()
    assert layer.parametrizations.weight.original0.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", PROJECTIONS)
def test_weight_norm_by_a_hook(module, inputs, slots, name):
    layer = nn.utils.weight_norm(getattr(module, name))
    with torch.no_grad():
        layer.weight_g.mul_(2.0)  # `layer.weight` does not know it before the next call
    weight = layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)
    want = textbook(module, inputs, slots, {name: linear(layer, weight.detach())})
    assert_close(module(inputs, slots=slots), want)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_spectral_norm(module, inputs, slots, name):
    layer = parametrizations.spectral_norm(getattr(module, name))
    module.eval()  # in training each access moves its estimate
    want = textbook(module, inputs, slots, {name: linear(layer)})
    assert_close(module(inputs, slots=slots), want)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_parametrized_for_one_use(module, inputs, slots, name):
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    before = getattr(module, name).weight.detach().clone()
    parametrize.register_parametrization(getattr(module, name), "weight", Halved())
    want = textbook(module, inputs, slots, {name: lambda x: x @ before.T / 2})
    assert_close(module(inputs, slots=slots), want)
    parametrize.remove_parametrizations(getattr(module, name), "weight", leave_parametrized=False)
    assert_close(module(inputs, slots=slots), textbook(module, inputs, slots))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("implementation", FORMS)
def test_dynamic_quantization(inputs, slots, implementation):
    module = make(implementation).float().eval()
    try:
        quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    except RuntimeError as error:
        pytest.skip(f"no engine for quantized layers here: {error}")
    assert type(quantized.project_k) is not nn.Linear
    x, s = inputs.float(), slots.float()
    layers = {name: getattr(quantized, name) for name in PROJECTIONS}
    assert_close(quantized(x, slots=s), textbook(quantized, x, s, layers))
    assert not torch.equal(quantized(x, slots=s), module(x, slots=s))


# What people do to any layer


@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_hook_is_heard_and_obeyed(module, inputs, slots, name):
    heard = []
    layer = getattr(module, name)
    hook = layer.register_forward_hook(lambda layer, args, result: heard.append(1) or 0.5 * result)
    got = module(inputs, slots=slots)
    once = name in ("norm_inputs", "project_k", "project_v")
    assert len(heard) == (1 if once else T)
    hook.remove()
    want = textbook(module, inputs, slots, {name: lambda *args: 0.5 * layer(*args)})
    assert_close(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_a_forward_pre_hook_is_obeyed(module, inputs, slots, name):
    layer = getattr(module, name)
    double = lambda layer, args: (2 * args[0], *args[1:])
    hook = layer.register_forward_pre_hook(double)
    got = module(inputs, slots=slots)
    hook.remove()
    want = textbook(module, inputs, slots, {name: lambda x, *rest: layer(2 * x, *rest)})
    assert_close(got, want)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_backward_hooks_are_heard(module, inputs, slots, name, kind):
    heard = []
    getattr(getattr(module, name), kind)(lambda *_: heard.append(1))
    module(inputs.requires_grad_(), slots=slots.requires_grad_()).sum().backward()
    assert heard


@pytest.mark.parametrize("name", LAYERS)
def test_an_exchanged_forward(module, inputs, slots, name):
    layer = getattr(module, name)
    old = layer.forward
    layer.forward = lambda *args: 0.5 * old(*args)  # as offloading and profilers do
    got = module(inputs, slots=slots)
    del layer.forward
    want = textbook(module, inputs, slots, {name: lambda *args: 0.5 * layer(*args)})
    assert_close(got, want)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm])
def test_a_forward_that_is_exchanged_for_all_layers(module, inputs, slots, kind, monkeypatch):
    old = kind.forward
    seen = set()
    monkeypatch.setattr(kind, "forward", lambda self, x: seen.add(self) or old(self, x))
    module(inputs, slots=slots)
    names = PROJECTIONS if kind is nn.Linear else NORMS
    assert {getattr(module, name) for name in names} <= seen


@pytest.mark.parametrize(
    "register", [register_module_forward_hook, register_module_forward_pre_hook]
)
def test_global_forward_hooks_hear_every_layer(module, inputs, slots, register):
    heard = set()
    hook = register(lambda layer, *_: heard.add(layer) and None)
    try:
        module(inputs, slots=slots)
    finally:
        hook.remove()
    assert {getattr(module, name) for name in LAYERS} <= heard


def test_global_backward_hooks_hear_every_layer(module, inputs, slots):
    heard = set()
    hook = register_module_full_backward_hook(lambda layer, *_: heard.add(layer) and None)
    try:
        module(inputs.requires_grad_(), slots=slots.requires_grad_()).sum().backward()
    finally:
        hook.remove()
    assert {getattr(module, name) for name in LAYERS} <= heard


class Offloaded(nn.Module):
    "A layer whose weights come only for the call."

    def __init__(self, layer):
        super().__init__()
        self.layer = copy.deepcopy(layer).to("meta")
        self.stored = {name: value.detach() for name, value in layer.state_dict().items()}

    def forward(self, *args):
        return torch.func.functional_call(self.layer, self.stored, args)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_come_only_for_the_call(module, inputs, slots, name):
    want = textbook(module, inputs, slots)
    setattr(module, name, Offloaded(getattr(module, name)))
    assert_close(module(inputs, slots=slots), want)


# Other norms


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm((N, C)),
        lambda: nn.LayerNorm(C, elementwise_affine=False),
        lambda: nn.LayerNorm(C, bias=False),
        lambda: nn.LayerNorm(C, eps=0.1),
        lambda: nn.RMSNorm(C),
        lambda: nn.Identity(),
    ],
)
def test_other_norms_of_the_inputs(module, inputs, slots, norm):
    module.norm_inputs = norm().double()
    assert_close(module(inputs, slots=slots), textbook(module, inputs, slots))


@pytest.mark.parametrize("implementation", FORMS)
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_a_norm_over_tokens_and_channels_at_any_size(implementation, batch):
    module = SlotAttention(64, implementation=implementation)
    module.norm_inputs = nn.LayerNorm((2048, 64))
    assert module(torch.zeros(batch, 2048, 64), num_iterations=1).shape == (batch, 7, 64)


# Variants


class TokenSoftmax(SlotAttention):
    def attend(self, tokens, slots):
        k, v = tokens
        attn = attention_scores(k, self.project_q(slots)).softmax(1)
        return attn.mT @ v, attn


class TwiceTheValues(SlotAttention):
    def prepare(self, inputs):
        k, v = super().prepare(inputs)
        return k, 2 * v


class HalfTheUpdates(SlotAttention):
    def attend(self, tokens, slots):
        updates, attn = super().attend(tokens, slots)
        return updates / 2, attn


@pytest.mark.parametrize("kind", [TokenSoftmax, TwiceTheValues, HalfTheUpdates])
def test_variants_keep_their_own_lines(inputs, slots, kind):
    found = []
    module = make("plain")
    for implementation in FORMS:
        variant = kind(C, D, K, T, 12, implementation=implementation).double()
        variant.load_state_dict(module.state_dict())
        found.append(variant(inputs, slots=slots, return_attention=True))
        assert plain_form(variant)
    assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[0][0], module(inputs, slots=slots))


def test_a_method_that_is_exchanged_on_the_instance(module, inputs, slots):
    attend = module.attend
    module.attend = lambda tokens, slots: (attend(tokens, slots)[0] / 2, None)
    variant = HalfTheUpdates(C, D, K, T, 12).double()
    variant.load_state_dict(module.state_dict())
    assert_close(module(inputs, slots=slots), variant(inputs, slots=slots))
