"""Fresh weights follow the laws of Keras, as measured on the original."""

import math

import numpy as np
import pytest
import torch
from slot_attention_nbdev.core import generator
from slot_attention_nbdev.models.original import (
    original_arrays,
    original_autoencoder,
    original_slot_attention,
)

BUILDS = 5


@pytest.fixture(scope="module")
def builds():
    models = [original_autoencoder(generator=generator(seed)) for seed in range(BUILDS)]
    return [
        {path: x.detach().double() for path, x in original_arrays(model).items()}
        for model in models
    ]


def law(path, shape):
    "Hard limit and standard deviation of a weight."
    if path.endswith(("bias", "beta")):
        return 0.0, 0.0
    if path.endswith("recurrent_kernel"):
        return 1.0, 1 / math.sqrt(shape[1])
    shape = (1, shape[-1]) if "slots_" in path else shape
    limit = math.sqrt(6 / (math.prod(shape[:-2]) * sum(shape[-2:])))
    return limit, limit / math.sqrt(3)


def test_weights_follow_the_laws(builds):
    "Against the law itself: within the hard limit, mean and spread within five standard errors."
    for path in builds[0]:
        x = torch.stack([build[path] for build in builds])
        if path.endswith("gamma"):
            assert (x == 1).all(), path
            continue
        limit, std = law(path, x.shape[1:])
        error = std / math.sqrt(x.numel())
        assert x.abs().max() <= limit + 1e-7, path
        assert abs(x.mean()) <= 5 * error, path
        assert abs(x.std(correction=0) - std) <= 5 * error, path


def test_same_statistics_as_the_original(builds, golden):
    "Against five builds of the original: mean, spread, smallest and largest value of every weight."
    arrays = golden("initialisers.npz")
    assert sorted(builds[0]) == sorted(arrays["weight_paths"])
    for name, path in zip(arrays["weight_names"], arrays["weight_paths"]):
        ours = torch.stack([build[path] for build in builds])
        theirs = {
            key: arrays[f"{name}/{key}"].astype(np.float64) for key in ("mean", "std", "min", "max")
        }
        limit, std = law(path, ours.shape[1:])
        # of the difference of two means over all builds
        error = 5 * std * math.sqrt(2 / ours.numel())
        low, high = ours.min().item(), ours.max().item()
        if path.endswith(("gamma", "beta", "bias")):
            assert low == theirs["min"].min() and high == theirs["max"].max(), path
            continue
        assert abs(ours.mean().item() - theirs["mean"].mean()) <= error, path
        assert (
            abs(ours.flatten(1).std(dim=1, correction=0).mean().item() - theirs["std"].mean())
            <= error
        ), path
        reach = limit if not path.endswith("recurrent_kernel") else theirs["max"].max()
        # extremes of a sample
        slack = max(10 * reach * 2 / ours.numel(), 0.15 * reach * path.endswith("recurrent_kernel"))
        assert (
            abs(low - theirs["min"].min()) <= slack and abs(high - theirs["max"].max()) <= slack
        ), path


def test_recurrent_kernel_is_orthogonal_as_one_matrix(builds):
    for build in builds:
        kernel = build["slot_attention/gru/recurrent_kernel"]
        torch.testing.assert_close(
            kernel @ kernel.T, torch.eye(64, dtype=torch.float64), atol=1e-5, rtol=0
        )


def test_layer_norm_epsilon_and_seeds():
    model = original_autoencoder((35, 35))
    norms = [layer.eps for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm)]
    assert norms == [1e-3] * 4
    a, b, c = (
        original_slot_attention(generator=generator(seed)).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["slots_mu"], c["slots_mu"]) and not torch.equal(
        a["gru.weight_hh"], c["gru.weight_hh"]
    )
