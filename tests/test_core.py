"""The base of everything: devices, cores."""

import math
import os

import pytest
import torch

from slot_attention_nbdev import core
from slot_attention_nbdev.core import InputError, count_cores, resolve_device


def test_devices():
    assert resolve_device("cpu:0") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cpu:1", "cuda:99", "meta", "xpu", "gpu", "", "cuda:-1", "cpu:x", None, 7.5):
        with pytest.raises(InputError, match="device: "):
            resolve_device(name)


def test_cores(monkeypatch):
    assert 1 <= count_cores() <= os.cpu_count()
    monkeypatch.setattr(core, "_cgroup_cores", lambda: 0.5)
    assert count_cores() == 1
    monkeypatch.setattr(core, "_cgroup_cores", lambda: math.inf)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert count_cores() == 3
    monkeypatch.setattr(core, "_cgroup_cores", lambda: 1.5)
    assert count_cores() == 2
