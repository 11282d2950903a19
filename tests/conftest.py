"""What the tests share."""
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: no GPU, so kernels are interpreted

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = [  # the first is a part of this repository; the others hold the files too large for it
    ROOT / "tests" / "assets" / "golden",
    Path(os.environ.get("SLOT_ATTENTION_SHARED", ROOT.parent / "shared")) / "golden",
]


@cache
def read_arrays(name: str) -> dict[str, np.ndarray] | None:
    "All arrays of a file of the original's numbers; None if there is no such file."
    path = next((folder / name for folder in GOLDEN if (folder / name).exists()), None)
    return path and dict(np.load(path))


@pytest.fixture
def golden():
    "Read a file of the original's numbers, or skip the test: `golden('object_discovery.npz')['image']`."

    def read(name: str) -> dict[str, np.ndarray]:
        arrays = read_arrays(name)
        if arrays is None:
            pytest.skip(f"{name} is not here; set SLOT_ATTENTION_SHARED to the folder that has golden/{name}")
        return arrays

    return read


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long or needs a C++ compiler; run with --slow")
    config.addinivalue_line("markers", "gpu: needs CUDA; runs wherever there is a GPU")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA here"))
