"The same function as the original: outputs, gradients, weights by name, learning rates, padding."

import itertools
import random
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slot_attention_nbdev.nn.attention import attention_scores
from slot_attention_nbdev.core import InputError, generator
from slot_attention_nbdev.nn.decoder import SameConvTranspose2d
from slot_attention_nbdev.nn.encoder import same_pad
from slot_attention_nbdev.models.autoencoder import small_autoencoder
from slot_attention_nbdev.models.original import (
    join_name,
    load_original,
    original_arrays,
    original_autoencoder,
    original_names,
    original_slot_attention,
)

MODULE, IMAGES, GRADIENTS, RATE = 1e-5, 5e-5, 5e-4, 1e-6  # the limits
FILES = ["slot_attention_module_0.npz", "slot_attention_module_1.npz"]


def close(ours, theirs, limit):
    "Largest absolute difference within a limit."
    torch.testing.assert_close(ours.detach(), torch.as_tensor(theirs), atol=limit, rtol=0)


def weights(arrays):
    "The weights among the arrays of a file."
    return {name: x for name, x in arrays.items() if name.startswith("weights/")}


def start(sa, noise):
    "Initial slots from recorded noise."
    return sa.slots_mu + sa.slots_log_sigma.exp() * torch.as_tensor(noise)


def gradients(model):
    "Gradients of all weights by path, in the original's layout."
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter, own in zip(copy.parameters(), model.parameters()):
            parameter.copy_(own.grad)
    return {path: x.detach() for path, x in original_arrays(copy).items()}


def check_gradient(path, ours, theirs, limit):
    "Relative to the largest element; norm_slots/beta has no gradient but rounding dust."
    theirs = torch.as_tensor(theirs)
    scale = 1.0 if path.endswith("norm_slots/beta") else theirs.abs().max()
    assert (ours - theirs).abs().max() <= limit * scale, path


# The module


@pytest.fixture(params=itertools.product(FILES, ["plain", "one_pass"]), ids="-".join)
def module(request, golden):
    file, implementation = request.param
    arrays = golden(file)
    batch, tokens, slots, iterations, dim, hidden = arrays["config"].tolist()
    sa = load_original(
        original_slot_attention(dim, dim, slots, iterations, hidden), weights(arrays)
    )
    sa.implementation = implementation
    return sa, {name: torch.as_tensor(x) for name, x in arrays.items() if x.dtype.kind in "fi"}


@pytest.mark.parametrize("T", [1, 2, 3])
def test_module_outputs(module, T):
    sa, arrays = module
    assert sa.norm_inputs.eps == arrays["layernorm_epsilon"] and sa.eps == arrays["epsilon"]
    slots, attention = sa(
        arrays["inputs"], slots=start(sa, arrays["noise"]), num_iterations=T, return_attention=True
    )
    close(slots, arrays[f"slots_T{T}"], MODULE)
    for t in range(T):
        close(attention[:, t], arrays[f"attn_{t + 1}"], MODULE)


@pytest.mark.parametrize("T", [1, 2, 3])
def test_module_logits(module, T):
    sa, arrays = module
    slots = start(sa, arrays["noise"])
    if T > 1:
        slots = sa(arrays["inputs"], slots=slots, num_iterations=T - 1)
    scores = attention_scores(
        sa.project_k(sa.norm_inputs(arrays["inputs"])), sa.project_q(sa.norm_slots(slots))
    )
    close(scores, arrays[f"attn_logits_{T}"], MODULE)


def test_module_gradients(module):
    sa, arrays = module
    inputs = arrays["inputs"].clone().requires_grad_()
    objective = (sa(inputs, slots=start(sa, arrays["noise"])) * arrays["cotangent"]).sum()
    objective.backward()
    assert objective.item() == pytest.approx(arrays["objective"].item(), rel=1e-5, abs=1e-4)
    check_gradient("inputs", inputs.grad, arrays["grads/inputs"], GRADIENTS)
    paths, ours = original_names(sa), gradients(sa)
    assert len(paths) == 18
    for (kind, number, variable), path in paths.items():
        name = join_name(kind, number, variable)
        theirs = next(
            x
            for key, x in arrays.items()
            if key in (f"grads/{name}", f"grads/slot_attention/{name}")
        )
        check_gradient(path, ours[path], theirs, GRADIENTS)


def test_module_in_float64(module):
    "What is left in float64 is the rounding of the reference numbers."
    sa, arrays = module
    sa = sa.double()
    slots = sa(arrays["inputs"].double(), slots=start(sa, arrays["noise"].double()))
    close(slots.float(), arrays["slots"], MODULE)


# The autoencoder


@pytest.fixture(scope="module")
def autoencoder():
    return original_autoencoder((128, 128), num_slots=4)


def run(model, arrays, **keywords):
    image = torch.as_tensor(arrays["image"]).permute(0, 3, 1, 2)
    return image, model(image, slots=start(model.slot_attention, arrays["noise"]), **keywords)


def test_autoencoder_outputs_and_gradients(autoencoder, golden):
    arrays = golden("object_discovery.npz")
    model, kept = load_original(autoencoder, arrays), {}
    keep = lambda name: (
        lambda layer, args, result: kept.update(
            {name: result.detach(), name + "_in": args[0].detach()}
        )
    )
    hooks = [
        layer.register_forward_hook(keep(name))
        for name, layer in {
            "encoder_pos": model.encoder.position,
            "inputs": model.encoder,
            "decoder_pos": model.decoder.position,
            **{
                f"decoder_{i}": layer
                for i, layer in enumerate([*model.decoder.convs, model.decoder.to_rgba])
            },
        }.items()
    ]
    image, output = run(model, arrays, return_attention=True)
    for hook in hooks:
        hook.remove()

    last = lambda x: x.movedim(-3, -1)  # channels last
    close(last(output.reconstruction), arrays["recon_combined"], IMAGES)
    close(output.slots, arrays["slots"], IMAGES)
    sub = torch.as_tensor(arrays["sub_index"])
    rows_columns = lambda x: x[:, :, sub][:, :, :, sub]
    recons, masks = last(output.slot_reconstructions), output.masks[..., None]
    close(rows_columns(recons), arrays["recons_sub"], IMAGES)
    close(rows_columns(masks), arrays["masks_sub"], IMAGES)
    close(recons, arrays["recons_f16"].astype(np.float32), 4e-3)
    close(masks, arrays["masks_f16"].astype(np.float32), 5e-4)
    close(output.attention[:, -1, ::37], arrays["attn_3_sub"], IMAGES)
    close(output.attention[:, -1], arrays["attn_3_f16"].astype(np.float32), 5e-4)

    close(last(kept["encoder_pos_in"])[:, ::9, ::9], arrays["mid/encoder_cnn_sub"], IMAGES)
    close(last(kept["encoder_pos"])[:, ::9, ::9], arrays["mid/encoder_pos_sub"], IMAGES)
    close(kept["inputs"][:, ::61], arrays["mid/slot_attention_inputs_sub"], IMAGES)
    # ours embeds the places once for all slots
    close(
        last(kept["decoder_pos"]) + output.slots.flatten(0, 1)[:, None, None],
        arrays["mid/decoder_pos"],
        IMAGES,
    )
    for i, step in enumerate((2, 4, 9, 17)):
        close(
            last(kept[f"decoder_{i + 1}_in"])[:, ::step, ::step],
            arrays[f"mid/decoder_cnn_{i}_sub"],
            IMAGES,
        )

    loss = F.mse_loss(output.reconstruction, image)
    assert loss.item() == pytest.approx(arrays["loss"].item(), abs=IMAGES)
    model.zero_grad()
    loss.backward()
    ours = gradients(model)
    assert sorted(ours) == sorted(arrays["weight_paths"])
    for path, name in zip(arrays["weight_paths"], arrays["weight_names"]):
        flat = ours[path].flatten()
        check_gradient(
            path, flat if len(flat) <= 4096 else flat[::97], arrays[f"grad_sub/{name}"], GRADIENTS
        )
        if not path.endswith("norm_slots/beta"):
            assert ours[path].double().norm().item() == pytest.approx(
                float(arrays[f"grad_norm/{name}"]), rel=GRADIENTS
            ), path


def test_autoencoder_batch_of_two(autoencoder, golden):
    "Two images and seven slots: a mixed-up slot and batch axis would show."
    arrays = golden("object_discovery_b2.npz")
    load_original(autoencoder, golden("object_discovery.npz"))
    with torch.no_grad():
        image, output = run(autoencoder, arrays)
    close(output.slots, arrays["slots"], IMAGES)
    close(output.reconstruction.permute(0, 2, 3, 1), arrays["recon_combined"], IMAGES)
    sub = torch.as_tensor(arrays["sub_index"])
    close(
        output.slot_reconstructions.permute(0, 1, 3, 4, 2)[:, :, sub][:, :, :, sub],
        arrays["recons_sub"],
        IMAGES,
    )
    close(output.masks[..., None][:, :, sub][:, :, :, sub], arrays["masks_sub"], IMAGES)
    assert F.mse_loss(output.reconstruction, image).item() == pytest.approx(
        arrays["loss"].item(), abs=IMAGES
    )


# Weights by name


def renamed(model, offset=0, scope="", suffix="", prefix="", step=1):
    "A model's weights under the variable names Keras gives when other layers were built before."
    own, arrays = original_arrays(model), {}
    for (kind, number, variable), path in original_names(model).items():
        number = number * step + offset if kind not in ("", "q", "k", "v") else number
        arrays[prefix + scope + join_name(kind, number, variable) + suffix] = (
            own[path].detach().clone()
        )
    return arrays


def checkpoint(model, front="network/layer_with_weights-0/", back="/.ATTRIBUTES/VARIABLE_VALUE"):
    "A model's weights under checkpoint paths."
    return {
        front + path + back: x.detach().numpy().copy() for path, x in original_arrays(model).items()
    }


NAMINGS = {
    "plain": renamed,
    "tensor names": lambda m: renamed(m, suffix=":0"),
    "weights/": lambda m: renamed(m, prefix="weights/"),
    "offset": lambda m: renamed(m, offset=7),
    "offset past ten": lambda m: renamed(m, offset=8, scope="slot_attention_3/", suffix=":0"),
    "gaps": lambda m: renamed(m, offset=1, step=3),
    "scopes": lambda m: renamed(m, scope="model/slot_attention_auto_encoder_1/slot_attention_1/"),
    "checkpoint": checkpoint,
    "checkpoint without layer": lambda m: checkpoint(m, front="network/"),
    "bare paths": lambda m: checkpoint(m, front="", back=""),
    "attached tensors": original_arrays,
    "lists": lambda m: {path: x.tolist() for path, x in original_arrays(m).items()},
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(
    "build",
    [
        lambda seed: original_slot_attention(48, 32, mlp_hidden_dim=40, generator=generator(seed)),
        lambda seed: original_autoencoder((36, 35), num_slots=3, generator=generator(seed)),
    ],
)
def test_every_naming_loads_shuffled(build, naming):
    source, target = build(0), build(1)
    with torch.no_grad():
        for i, parameter in enumerate(source.parameters()):
            parameter.add_(0.1 + i)  # no two weights alike, no zeros that could hide a mix-up
    items = list(NAMINGS[naming](source).items())
    random.Random(0).shuffle(items)
    assert load_original(target, dict(items)) is target
    for (name, a), b in zip(source.named_parameters(), target.parameters()):
        assert torch.equal(a, b), name


def test_golden_names_and_paths(golden):
    """Names, tensor names and paths of the original's own file, shuffled and offset, give the same
    model.
    """
    arrays = golden("object_discovery.npz")
    by_path = {
        path: arrays[f"weights/{name}"]
        for name, path in zip(arrays["weight_names"], arrays["weight_paths"])
    }
    by_name = {f"{name}:0": arrays[f"weights/{name}"] for name in arrays["weight_names"]}
    expected = original_arrays(load_original(original_autoencoder(), by_path))
    for path, array in by_path.items():
        assert np.array_equal(expected[path].detach(), array), path
    for given in (arrays, weights(arrays), dict(reversed(by_name.items()))):
        ours = original_arrays(load_original(original_autoencoder(), given))
        assert all(torch.equal(ours[path], expected[path]) for path in expected)


def test_entries_of_training_are_ignored():
    source = original_slot_attention(generator=generator(0))
    target = original_slot_attention()
    arrays = checkpoint(source)
    for extra in (
        "save_counter/.ATTRIBUTES/VARIABLE_VALUE",
        "global_step/.ATTRIBUTES/VARIABLE_VALUE",
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE",
        "optimizer/_variables/1/.ATTRIBUTES/VARIABLE_VALUE",
        "network/layer_with_weights-0/gru/bias/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE",
        "Adam/dense/kernel/m:0",
    ):
        arrays[extra] = np.array("anything")
    load_original(target, arrays)
    assert torch.equal(target.gru.bias_hh, source.gru.bias_hh)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda a: a.pop("dense/kernel"),
            ["missing mlp/layer_with_weights-0/kernel", "dense/kernel", "[64, 128]"],
        ),
        (
            lambda a: [a.pop(f"dense/{v}") for v in ("kernel", "bias")],
            ["missing", "dense/kernel", "dense/bias"],
        ),
        (lambda a: a.pop("slots_mu"), ["missing slots_mu", "[1, 1, 64]"]),
        (lambda a: a.update(slot_mu=a.pop("slots_mu")), ["missing slots_mu", "unknown 'slot_mu'"]),
        (lambda a: a.update({"dense_9/kernel": a["dense/kernel"]}), ["unknown 'dense_9/kernel'"]),
        (lambda a: a.update({"conv2d/kernel": a["dense/kernel"]}), ["unknown 'conv2d/kernel'"]),
        (
            lambda a: a.update({"weights/slots_mu": a["slots_mu"]}),
            ["'slots_mu' is slots_mu a second time"],
        ),
        (
            lambda a: a.update({"dense/kernel": a["dense/kernel"].T}),
            ["'dense/kernel'", "expected shape [64, 128], got [128, 64]"],
        ),
        (
            lambda a: a.update({"gru_cell/bias": a["gru_cell/bias"].flatten()}),
            ["'gru_cell/bias'", "expected shape [2, 192], got [384]"],
        ),
        (lambda a: a.update({"q/kernel": np.array(["x"])}), ["'q/kernel'", "expected numbers"]),
        (lambda a: a.update({"q/kernel": None}), ["'q/kernel'", "expected numbers"]),
        (lambda a: a.update({"q/kernel": a["q/kernel"] * float("nan")}), ["'q/kernel'", "finite"]),
        (lambda a: a.clear(), ["missing slots_mu", "and 10 more"]),
    ],
)
def test_bad_arrays_are_named_and_change_nothing(spoil, words):
    source = original_slot_attention(generator=generator(0))
    target = original_slot_attention(generator=generator(1))
    before, arrays = deepcopy(target.state_dict()), renamed(source)
    spoil(arrays)
    with pytest.raises(InputError) as error:
        load_original(target, arrays)
    assert all(word in str(error.value) for word in words), error.value
    assert all(torch.equal(x, before[name]) for name, x in target.state_dict().items())


def test_wrong_models_and_arguments():
    sa = original_slot_attention()
    with pytest.raises(InputError, match="expected a mapping"):
        load_original(sa, [1, 2])
    with pytest.raises(InputError, match="missing encoder_cnn"):
        load_original(original_autoencoder((35, 35)), renamed(sa))
    with pytest.raises(InputError, match="unknown 'conv2d/kernel'"):
        load_original(sa, renamed(original_autoencoder((35, 35))))
    with pytest.raises(InputError, match="got Linear"):
        load_original(torch.nn.Linear(2, 2), {})
    with pytest.raises(InputError, match="no such encoder"):
        load_original(small_autoencoder(), {})


# Learning rates and padding


@pytest.mark.parametrize("task", ["object_discovery", "set_prediction"])
def test_learning_rates(golden, task):
    learning_rate = pytest.importorskip("slot_attention_nbdev.train.trainer").learning_rate
    arrays = golden("learning_rate.npz")
    read = lambda name: arrays[f"{task}/{name}"].item()
    base = read("base_learning_rate")
    warmup = read("warmup_steps")
    rate = read("decay_rate")
    steps = read("decay_steps")
    for step, theirs in zip(arrays[f"{task}/steps"].tolist(), arrays[f"{task}/lr"].tolist()):
        assert learning_rate(step, base, int(warmup), rate, int(steps)) == pytest.approx(
            theirs, rel=RATE
        ), step
    assert arrays[f"{task}/lr"][0] == 0


def test_padding(golden):
    arrays = golden("conv_padding.npz")
    for case in arrays["case_names"]:
        x, kernel, bias, theirs = (
            torch.as_tensor(arrays[f"{case}/{name}"])
            for name in ("input", "kernel", "bias", "output")
        )
        kind, size, stride = case.split("_")[:3]
        size = int(size[1:])
        stride = int(stride[1:])
        x = x.permute(0, 3, 1, 2)
        kernel = kernel.permute(3, 2, 0, 1)
        if kind == "conv":
            ours = F.conv2d(same_pad(x, size, stride), kernel, bias, stride)
        else:
            layer = SameConvTranspose2d(*kernel.shape[:2], size, stride)
            layer.load_state_dict({"weight": kernel, "bias": bias})
            ours = layer(x)
        close(ours.permute(0, 2, 3, 1), theirs, MODULE)
