"Algorithm 1: against loops; everything a caller may vary; everything PyTorch may do to a module."

import copy
import inspect
import io
import math
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.slot_attention import SlotAttention
from slot_attention_nbdev.nn.variants import Implicit, WeightedSum

B, N, K, D_IN, D = 3, 10, 4, 6, 8


def make(seed=0, **kwargs):
    "A small module in float64 whose parameters are neither 0 nor 1."
    module = SlotAttention(
        D_IN, **{"slot_dim": D, "num_slots": K, "mlp_hidden_dim": 12, **kwargs}
    ).double()
    g = generator(seed, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    return module


@pytest.fixture(params=["plain", "one_pass"])
def implementation(request):
    return request.param


@pytest.fixture
def module(implementation):
    return make(implementation=implementation)


@pytest.fixture
def inputs():
    return torch.randn(B, N, D_IN, generator=generator(1), dtype=torch.float64)


@pytest.fixture
def slots():
    return torch.randn(B, K, D, generator=generator(2), dtype=torch.float64)


@torch.no_grad()
def naive(p, inputs, slots, T):
    "Algorithm 1 for one image, one token and one slot at a time."

    def norm(x, layer):
        return (x - x.mean()) / (
            x.var(unbiased=False) + layer.eps
        ).sqrt() * layer.weight + layer.bias

    def gru(u, h):
        (a, b, c), (d, e, f) = (
            (w @ x + bias).chunk(3)
            for w, x, bias in (
                (p.gru.weight_ih, u, p.gru.bias_ih),
                (p.gru.weight_hh, h, p.gru.bias_hh),
            )
        )
        z = torch.sigmoid(b + e)
        return z * h + (1 - z) * torch.tanh(c + torch.sigmoid(a + d) * f)

    tokens = [norm(x, p.norm_inputs) for x in inputs]
    ks = [p.project_k.weight @ x for x in tokens]
    vs = [p.project_v.weight @ x for x in tokens]
    slots, history = list(slots), []
    for _ in range(T):
        qs = [p.project_q.weight @ norm(s, p.norm_slots) for s in slots]
        attn = []
        for k in ks:
            e = [math.exp(float(k @ q) / math.sqrt(len(q))) for q in qs]
            attn.append([x / sum(e) for x in e])
        for j in range(len(slots)):
            weights = [row[j] + p.eps for row in attn]
            slots[j] = gru(sum(w * v for w, v in zip(weights, vs)) / sum(weights), slots[j])
            slots[j] = slots[j] + p.mlp[2](p.mlp[0](norm(slots[j], p.norm_mlp)).relu())
        history.append(torch.tensor(attn, dtype=torch.float64))
    return torch.stack(slots), torch.stack(history)


@pytest.mark.parametrize("T", [1, 2, 3])
def test_against_loops(module, inputs, slots, T):
    out, attention = module(inputs, slots=slots, num_iterations=T, return_attention=True)
    for b in range(B):
        want, history = naive(module, inputs[b], slots[b], T)
        assert_close(out[b], want)
        assert_close(attention[b], history)


# What a caller may vary


@pytest.mark.parametrize(
    "b, n, k, t",
    [(1, 1, 1, 1), (2, 1, 5, 2), (2, 5, 1, 1), (2, 3, 9, 3), (0, 4, 2, 2), (4, 30, 7, 6)],
)
def test_shapes(module, b, n, k, t):
    out, attention = module(
        torch.zeros(b, n, D_IN).double(), num_slots=k, num_iterations=t, return_attention=True
    )
    assert out.shape == (b, k, D) and attention.shape == (b, t, n, k)
    assert out.isfinite().all()
    assert_close(attention.sum(-1), torch.ones(b, t, n).double())


def test_defaults_are_the_papers():
    module = SlotAttention(5)
    out, attention = module(torch.zeros(2, 9, 5), return_attention=True)
    assert out.shape == (2, 7, 64) and attention.shape == (2, 3, 9, 7)
    assert module.eps == 1e-8 and module.mlp[0].out_features == 128


def test_iterations_can_be_continued(module, inputs, slots):
    halfway = module(inputs, slots=slots, num_iterations=2)
    assert_close(
        module(inputs, slots=halfway, num_iterations=3),
        module(inputs, slots=slots, num_iterations=5),
    )


def test_attention_does_not_change_the_slots(module, inputs, slots):
    assert torch.equal(
        module(inputs, slots=slots), module(inputs, slots=slots, return_attention=True)[0]
    )


def test_arguments_are_not_modified(module, inputs, slots):
    before = inputs.clone(), slots.clone()
    module(inputs, slots=slots)
    assert torch.equal(inputs, before[0]) and torch.equal(slots, before[1])


def test_views_will_do(module, inputs, slots):
    assert_close(
        module(inputs.mT.contiguous().mT, slots=slots.mT.contiguous().mT),
        module(inputs, slots=slots),
    )
    assert module(inputs, slots=slots[:1].expand(B, -1, -1)).shape == (B, K, D)


def test_an_empty_set_does_no_harm(module):
    assert module(torch.zeros(2, 0, D_IN).double()).isfinite().all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x: m(x[0]), "inputs: expected shape"),
        (lambda m, x: m(x[None]), "inputs: expected shape"),
        (lambda m, x: m(x[..., :3]), f"D={D_IN}"),
        (lambda m, x: m(None), "inputs: expected a tensor"),
        (lambda m, x: m(x, num_slots=0), "num_slots: expected an integer ≥ 1, got 0"),
        (lambda m, x: m(x, num_slots=2.0), "num_slots"),
        (lambda m, x: m(x, num_iterations=0), "num_iterations: expected an integer ≥ 1, got 0"),
        (lambda m, x: m(x, num_iterations=True), "num_iterations"),
        (lambda m, x: m(x, slots=x.new_zeros(B, K, D + 1)), "slots: expected shape"),
        (lambda m, x: m(x, slots=x.new_zeros(B + 1, K, D)), f"B={B}"),
        (lambda m, x: m(x, slots=x.new_zeros(K, D)), "slots: expected shape"),
        (lambda m, x: m(x, slots=x.new_zeros(B, 0, D)), "at least one slot"),
        (lambda m, x: m(x, slots=x.new_zeros(B, K, D), num_slots=K + 1), f"K={K + 1}"),
        (lambda m, x: SlotAttention(0), "input_dim"),
        (lambda m, x: SlotAttention(4, slot_dim=0), "slot_dim"),
        (lambda m, x: SlotAttention(4, num_slots=-1), "num_slots"),
        (lambda m, x: SlotAttention(4, num_iterations=0), "num_iterations"),
        (lambda m, x: SlotAttention(4, mlp_hidden_dim=0), "mlp_hidden_dim"),
        (lambda m, x: SlotAttention(4, implementation="one-pass"), "did you mean 'one_pass'?"),
        (lambda m, x: SlotAttention(4, implementation="fast"), "plain, triton"),
        (lambda m, x: SlotAttention(4, implementation=None), "implementation: unknown None"),
    ],
)
def test_bad_arguments(module, inputs, call, message):
    with pytest.raises(InputError) as error:
        call(module, inputs)
    assert message in str(error.value)


def test_only_inputs_go_by_position(module, inputs):
    with pytest.raises(TypeError):
        module(inputs, 4)


# Initial slots


def test_same_seed_same_slots(module, inputs):
    draw = lambda seed: module(inputs, generator=generator(seed))
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_same_noise_in_every_dtype():
    module = make()
    double = module.initial_slots(2, 5, generator(0))
    single = copy.deepcopy(module).float().initial_slots(2, 5, generator(0))
    assert single.dtype == torch.float32
    assert_close(single.double(), double, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["generator", "slots"])
def test_global_random_state_is_left_alone(module, inputs, slots, how):
    state = torch.get_rng_state()
    module(inputs, **{"generator": {"generator": generator(0)}, "slots": {"slots": slots}}[how])
    assert torch.equal(torch.get_rng_state(), state)


def test_global_seed_decides_otherwise(module, inputs):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        one = module(inputs)
        torch.manual_seed(5)
        assert torch.equal(one, module(inputs))


def test_initial_slots_have_the_learned_mean_and_deviation():
    module = SlotAttention(3, slot_dim=4)
    with torch.no_grad():
        module.slots_mu.copy_(torch.tensor([-3.0, 0, 1, 5]))
        module.slots_log_sigma.copy_(torch.tensor([0.1, 1, 2, 3]).log())
        drawn = module.initial_slots(20, 1000, generator(0))
    assert_close(drawn.mean((0, 1)), torch.tensor([-3.0, 0, 1, 5]), atol=0.1, rtol=0)
    assert_close(drawn.std((0, 1)), torch.tensor([0.1, 1, 2, 3]), atol=0.1, rtol=0)


def test_mu_and_sigma_are_shared_and_drawn_as_in_the_original():
    module = SlotAttention(4, slot_dim=4096)
    limit = math.sqrt(6 / 4097)
    for parameter in (module.slots_mu, module.slots_log_sigma):
        assert parameter.shape == (1, 1, 4096)
        assert parameter.abs().max() <= limit
        # of a uniform distribution
        assert_close(parameter.std().item(), limit / math.sqrt(3), atol=0, rtol=0.05)


def test_learned_means_start_their_own_slots():
    module = SlotAttention(4, slot_dim=6, num_slots=3, init="learned")
    assert module.slots_mu.shape == (1, 3, 6) and module.slots_log_sigma.shape == (1, 1, 6)
    noise = module.initial_noise(2, generator=generator(0))
    got = module.slots_from_noise(noise)
    for j in range(3):
        want = module.slots_mu[0, j] + module.slots_log_sigma[0, 0].exp() * noise[:, j]
        assert torch.equal(got[:, j], want)
    assert torch.equal(got, module.initial_slots(2, generator=generator(0)))
    # fewer slots take the first means
    assert torch.equal(module.slots_from_noise(noise[:, :2]), got[:, :2])


def test_more_slots_than_learned_means_have_the_mean_and_deviation_of_all():
    module = SlotAttention(4, slot_dim=2, num_slots=3, init="learned")
    with torch.no_grad():
        module.slots_mu.copy_(torch.tensor([[[0.0, 1.0], [3.0, 1.0], [6.0, 1.0]]]))
        module.slots_log_sigma.copy_(torch.tensor([1.0, 0.5]).log())
        drawn = module.initial_slots(4000, 5, generator(0))
    learned, extra = drawn[:, :3].flatten(0, 1), drawn[:, 3:].flatten(0, 1)
    assert_close(extra.mean(0), torch.tensor([3.0, 1.0]), atol=0.1, rtol=0)
    assert_close(extra.std(0), torch.tensor([7**0.5, 0.5]), atol=0.1, rtol=0)  # 6 + 1, 0 + 1/4
    assert_close(extra.std(0), learned.std(0), atol=0.1, rtol=0)


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_learned_means_learn(K):
    module = SlotAttention(4, slot_dim=6, num_slots=3, init="learned")
    module(torch.randn(2, 7, 4), num_slots=K).square().sum().backward()
    assert module.slots_mu.grad[:, : min(K, 3)].abs().sum((0, 2)).min() > 0
    assert module.slots_log_sigma.grad.abs().sum() > 0
    with pytest.raises(InputError, match="'lerned'; did you mean 'learned'"):
        SlotAttention(4, init="lerned")


def test_projections_have_no_bias(module):
    assert all(
        layer.bias is None for layer in (module.project_q, module.project_k, module.project_v)
    )


# Gradients


def test_gradients_reach_every_parameter(module, inputs):
    module(inputs, generator=generator(0)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_one_iteration_is_enough_for_mu_and_sigma(module, inputs):
    module(inputs, num_iterations=1).sum().backward()
    assert module.slots_mu.grad.abs().sum() > 0 and module.slots_log_sigma.grad.abs().sum() > 0


def test_gradcheck(implementation):
    module = make(slot_dim=3, mlp_hidden_dim=4, implementation=implementation)
    x = torch.randn(1, 4, D_IN, generator=generator(3), dtype=torch.float64, requires_grad=True)
    s = torch.randn(1, 2, 3, generator=generator(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s: module(x, slots=s, num_iterations=2), (x, s))
    weights = [module.slots_mu, module.slots_log_sigma]
    assert torch.autograd.gradcheck(
        lambda *_: module(x.detach(), num_slots=2, generator=generator(5)), weights
    )


# What PyTorch may do to a module


def test_deepcopy_and_state_dict(module, implementation, inputs, slots):
    want = module(inputs, slots=slots)
    clone = copy.deepcopy(module)
    assert torch.equal(clone(inputs, slots=slots), want)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = make(seed=9, implementation=implementation)
    assert not torch.equal(other(inputs, slots=slots), want)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(inputs, slots=slots), want)
    with torch.no_grad():
        clone.slots_mu.zero_()
    assert module.slots_mu.abs().sum() > 0


def test_names_in_the_state_dict_do_not_change(implementation):
    # checkpoints depend on them
    assert sorted(SlotAttention(4, implementation=implementation).state_dict()) == sorted(
        [
            "slots_mu",
            "slots_log_sigma",
            "norm_inputs.weight",
            "norm_inputs.bias",
            "norm_slots.weight",
            "norm_slots.bias",
            "norm_mlp.weight",
            "norm_mlp.bias",
            "project_q.weight",
            "project_k.weight",
            "project_v.weight",
            "gru.weight_ih",
            "gru.weight_hh",
            "gru.bias_ih",
            "gru.bias_hh",
            "mlp.0.weight",
            "mlp.0.bias",
            "mlp.2.weight",
            "mlp.2.bias",
        ]
    )


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.2), (torch.float16, 0.02)]
)
def test_dtypes_agree(module, inputs, slots, dtype, tolerance):
    narrow = copy.deepcopy(module).to(dtype)
    out = narrow(inputs.to(dtype), slots=slots.to(dtype))
    assert out.dtype == dtype and narrow(inputs.to(dtype)).dtype == dtype
    out.float().sum().backward()
    assert all(w.grad.isfinite().all() for w in narrow.parameters() if w.grad is not None)
    assert_close(out.double(), module(inputs, slots=slots), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("half_inputs", [False, True])
def test_autocast(module, inputs, slots, half_inputs):
    want, module = module(inputs, slots=slots), module.float()
    x = inputs.bfloat16() if half_inputs else inputs.float()
    with torch.autocast("cpu", torch.bfloat16):
        out, attention = module(x, slots=slots.float(), return_attention=True)
        drawn = module(x, generator=generator(0))
    assert_close(out.double(), want, atol=0.3, rtol=0.1)
    assert_close(attention.float().sum(-1), torch.ones(B, 3, N), atol=0.02, rtol=0)
    drawn.float().square().sum().backward()
    assert all(
        w.grad.dtype == torch.float32 and w.grad.isfinite().all() for w in module.parameters()
    )


@pytest.mark.parametrize("implementation", ["plain", "one_pass"])
def test_autocast_rounds_tokens_and_no_slots(implementation):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = SlotAttention(64, implementation=implementation)
    random = generator(0, "autocast")
    x = torch.randn(4, 1024, 64, generator=random)
    start = module.initial_slots(4, generator=random).detach()
    reference = copy.deepcopy(module).double()(x.double(), slots=start.double())
    error = lambda slots: ((slots.double() - reference).norm() / reference.norm()).item()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x, slots=start)
        # the same with every product rounded
        rounded, tokens = start, module.prepare(x)
        for _ in range(3):
            updates, _ = module.attend(tokens, module.norm_slots(rounded))
            rounded = module.update(updates, rounded)
    assert found.dtype == torch.float32
    assert error(found) < 4e-4 < 2e-3 < error(rounded)
    assert error(module(x, slots=start)) < 1e-6


def test_inference_mode_and_no_grad(module, inputs, slots):
    with torch.inference_mode():
        assert_close(module(inputs, slots=slots), module(inputs, slots=slots))
    with torch.no_grad():
        assert not module(inputs, slots=slots).requires_grad


def test_functional_call(module, inputs, slots):
    weights = {name: w * 1.1 for name, w in module.named_parameters()}
    out = torch.func.functional_call(module, weights, (inputs,), {"slots": slots})
    assert not torch.allclose(out, module(inputs, slots=slots))


def test_inside_a_sequential(inputs):
    model = nn.Sequential(nn.Linear(D_IN, 5), SlotAttention(5, slot_dim=D), nn.Linear(D, 1))
    assert model(inputs.float()).shape == (B, 7, 1)


@pytest.fixture
def compiling():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compile_whole_graph(inputs, slots, compiling, implementation):
    module = make(num_iterations=2, implementation=implementation)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert_close(compiled(inputs, slots=slots), module(inputs, slots=slots))
    # another batch
    assert_close(compiled(inputs[:2], slots=slots[:2]), module(inputs[:2], slots=slots[:2]))


def test_compile_and_draw(inputs, compiling, implementation):
    module = make(num_iterations=1, implementation=implementation)
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    assert compiled(inputs).shape == (B, K, D)  # drawn inside the graph
    assert compiled(inputs[:2], num_slots=7).shape == (2, 7, D)


def test_compile_with_gradients(inputs, slots, compiling, implementation):
    module = make(num_iterations=1, implementation=implementation)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(inputs, slots=slots).square().sum().backward()
    grads = [w.grad.clone() for w in module.parameters() if w.grad is not None]
    module.zero_grad()
    module(inputs, slots=slots).square().sum().backward()
    assert_close(grads, [w.grad for w in module.parameters() if w.grad is not None])


def test_compile_breaks_the_graph_for_a_generator_only(inputs, compiling):
    module = make(num_iterations=1)
    compiled = torch.compile(module, backend="eager")
    assert_close(compiled(inputs, generator=generator(0)), module(inputs, generator=generator(0)))


def test_compiled_errors_are_ours(module, inputs, compiling):
    with pytest.raises(InputError, match="D=6"):
        torch.compile(module, backend="eager")(inputs[..., :2])


@pytest.mark.slow
def test_compile_with_inductor(inputs, slots, compiling, implementation):
    module = make(num_iterations=2, implementation=implementation)
    compiled = torch.compile(module, fullgraph=True)
    assert_close(compiled(inputs, slots=slots), module(inputs, slots=slots))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(module, inputs, slots, strict):
    batch, tokens, count = (torch.export.Dim(name) for name in ("batch", "tokens", "count"))
    shapes = {"inputs": {0: batch, 1: tokens}, "slots": {0: batch, 1: count}}
    program = torch.export.export(
        module, (inputs,), {"slots": slots}, dynamic_shapes=shapes, strict=strict
    )
    x = torch.randn(5, 17, D_IN, generator=generator(6)).double()
    s = torch.randn(5, 9, D, generator=generator(7)).double()
    assert_close(program.module()(x, slots=s), module(x, slots=s))


def test_export_that_draws(module, inputs):
    program = torch.export.export(
        module, (inputs,), dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}}
    )
    x = torch.randn(5, N, D_IN, generator=generator(6)).double()
    drawn = program.module()
    assert drawn(x).shape == (5, K, D)
    assert not torch.equal(drawn(x), drawn(x))


def test_needs_torch_alone():
    code = (
        "import sys, torch; before = set(sys.modules);"
        "import slot_attention_nbdev.nn.slot_attention;"
        "ours = {'slot_attention_nbdev', 'torch'};"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - ours;"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gradients_of_each_sample_by_torch_func(implementation):
    module = SlotAttention(8, 8, 3, mlp_hidden_dim=16, implementation=implementation).double()
    x = torch.randn(4, 9, 8, dtype=torch.float64)
    slots = torch.randn(4, 3, 8, dtype=torch.float64)
    weights = {name: w.detach() for name, w in module.named_parameters()}
    loss = lambda weights, x, slots: (
        torch.func.functional_call(module, weights, (x[None],), {"slots": slots[None]})
        .square()
        .sum()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's GRU cell is batched slowly
        each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, x, slots)
    module(x, slots=slots).square().sum().backward()
    for name in ("gru.weight_ih", "project_k.weight", "norm_inputs.bias", "project_v.weight"):
        assert each[name].shape[0] == 4
        assert_close(each[name].sum(0), module.get_parameter(name).grad)


def test_double_backward(module, inputs, slots):
    inputs = inputs.requires_grad_()
    gradient = torch.autograd.grad(module(inputs, slots=slots).sum(), inputs, create_graph=True)[0]
    penalty = gradient.square().sum()
    penalty.backward()
    got = [w.grad.clone() for w in module.parameters() if w.grad is not None]
    step = 1e-6
    with torch.no_grad():
        direction = torch.randn(module.project_k.weight.shape, generator=generator(8)).double()
    sizes = []
    for sign in (1, -1):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            moved.project_k.weight.add_(sign * step * direction)
        gradient = torch.autograd.grad(moved(inputs, slots=slots).sum(), inputs)[0]
        sizes.append(gradient.square().sum())
    slope = (sizes[0] - sizes[1]) / (2 * step)
    assert_close((module.project_k.weight.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)
    assert all(part.isfinite().all() for part in got)


@pytest.mark.parametrize("which", ["inputs", "slots"])
def test_forward_mode(module, inputs, slots, which):
    call = {"inputs": lambda x: module(x, slots=slots), "slots": lambda s: module(inputs, slots=s)}[
        which
    ]
    at = {"inputs": inputs, "slots": slots}[which]
    tangent = torch.randn(at.shape, generator=generator(9)).double()
    value, got = torch.func.jvp(call, (at,), (tangent,))
    step = 1e-6
    slope = (call(at + step * tangent) - call(at - step * tangent)) / (2 * step)
    assert_close(value, call(at))
    assert_close(got, slope, rtol=1e-5, atol=1e-6)
    with torch.autograd.forward_ad.dual_level():
        dual = call(torch.autograd.forward_ad.make_dual(at, tangent))
        assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, got)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_hessian(inputs):
    found = []
    for implementation in ("plain", "one_pass"):
        module = make(implementation=implementation, slot_dim=3, mlp_hidden_dim=4)
        module.load_state_dict(found[0][0].state_dict() if found else module.state_dict())
        call = lambda s: module(inputs[:1], slots=s, num_iterations=2).square().sum()
        start = torch.randn(1, 2, 3, generator=generator(4), dtype=torch.float64)
        found.append((module, torch.func.hessian(call)(start)))
    assert_close(found[0][1], found[1][1])


class Wrapped(nn.Module):
    "A module that takes its initial slots by position."

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, inputs, slots):
        return self.module(inputs, slots=slots)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace_and_save(module, inputs, slots):
    traced = torch.jit.trace(Wrapped(module), (inputs, slots))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    # another batch, other numbers of tokens and slots; the scale was traced in single precision
    x, s = torch.cat([inputs, inputs], 1)[:2], torch.cat([slots, slots + 1], 1)[:2]
    assert_close(loaded(x, s), module(x, slots=s), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_tensorboards_graph(module, inputs, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(module, inputs)
    assert any(file.stat().st_size > 1000 for file in tmp_path.iterdir())


def test_batched_backward(module, inputs, slots):
    inputs = inputs.requires_grad_()
    out = module(inputs, slots=slots)
    directions = torch.randn(2, *out.shape, generator=generator(5), dtype=torch.float64)
    keep = {"retain_graph": True}
    each = [torch.autograd.grad(out, inputs, direction, **keep)[0] for direction in directions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # slower than it could be
        batched = torch.autograd.grad(out, inputs, directions, is_grads_batched=True, **keep)[0]
    assert_close(batched, torch.stack(each))


def test_the_algorithm_is_read_in_two_minutes():
    lines = inspect.getsource(SlotAttention).splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    numbered = "\n".join(lines[lines.index("    def prepare(") :])
    for number in (1, 3, 4, 7, 8, 11):
        assert len(re.findall(rf"# line {number}$", numbered, re.M)) >= 1, number


@pytest.mark.parametrize("implementation", ["plain", "one_pass", "triton", "implicit"])
def test_padding_is_left_out(implementation):
    kind = Implicit if implementation == "implicit" else SlotAttention
    module = kind(6, 8, num_slots=3, mlp_hidden_dim=16)
    module.implementation = "plain" if implementation == "implicit" else implementation
    inputs = torch.randn(4, 10, 6, generator=generator(1))
    slots = torch.randn(4, 3, 8, generator=generator(2))
    mask = torch.rand(4, 10, generator=generator(3)) < 0.5
    mask[0] = True
    mask[3] = False
    padded = inputs.masked_fill(~mask[..., None], math.nan).requires_grad_()
    found, attention = module(padded, slots=slots, mask=mask, return_attention=True)
    found.square().sum().backward()
    for i in range(4):
        few = inputs[i : i + 1, mask[i]].requires_grad_()
        alone, seen = module(few, slots=slots[i : i + 1], return_attention=True)
        alone.square().sum().backward()
        torch.testing.assert_close(found[i], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention[i][:, mask[i]], seen[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(padded.grad[i][mask[i]], few.grad[0], atol=1e-4, rtol=1e-4)
    assert (attention.sum(-1)[:, 0][~mask] == 0).all()
    assert (padded.grad[~mask] == 0).all()
    half = copy.deepcopy(module).bfloat16()(padded.bfloat16(), slots=slots.bfloat16(), mask=mask)
    torch.testing.assert_close(half.float(), found, atol=0.1, rtol=0.1)


def test_masks_that_are_none():
    module = SlotAttention(6, 8)
    inputs = torch.randn(2, 5, 6)
    for mask in (torch.ones(2, 5), torch.ones(2, 5).long(), torch.ones(2, 4).bool(), [True]):
        with pytest.raises(InputError, match="mask: expected"):
            module(inputs, mask=mask)
    with pytest.raises(InputError, match="WeightedSum attends in its own way"):
        WeightedSum(6, 8)(inputs, mask=torch.ones(2, 5).bool())


def test_device_and_dtype():
    for dtype in (torch.float64, torch.bfloat16):
        module = SlotAttention(6, 8, dtype=dtype)
        assert {weight.dtype for weight in module.parameters()} == {dtype}
        assert module(torch.randn(2, 5, 6, dtype=dtype)).dtype == dtype
    assert SlotAttention(6, 8, device="meta").slots_mu.is_meta
    for odd in (torch.int64, torch.complex64, torch.bool, "float32"):
        with pytest.raises(InputError, match="dtype: expected floating-point"):
            SlotAttention(6, 8, dtype=odd)
    module = SlotAttention(6, 8)
    for odd in (torch.int64, torch.uint8, torch.bool, torch.complex64):
        with pytest.raises(InputError, match="inputs: expected floating-point"):
            module(torch.ones(2, 5, 6, dtype=odd))
        with pytest.raises(InputError, match="slots: expected floating-point"):
            module(torch.ones(2, 5, 6), slots=torch.ones(2, 3, 8, dtype=odd))
