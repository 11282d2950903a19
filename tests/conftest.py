"""What the tests share."""

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton: no GPU, so kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
# the first is a part of this repository; the other one holds the files too large for it
GOLDEN = [
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
    """Read a file of the original's numbers, or skip the test:
    `golden('object_discovery.npz')['image']`.
    """

    def read(name: str) -> dict[str, np.ndarray]:
        arrays = read_arrays(name)
        if arrays is None:
            pytest.skip(
                f"{name} is not here; set SLOT_ATTENTION_SHARED to the folder with golden/{name}"
            )
        return arrays

    return read


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "A cache of decoded images that is not the user's own."
    os.environ["SLOT_ATTENTION_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def seed():
    "What a test draws without a generator is the same whatever ran before it."
    torch.manual_seed(0)


# settings that make a run of the recipe "tiny" end within a second or two
TINY = dict(steps=12, batch_size=2, eval_images=4, log_every=4, eval_every=8, checkpoint_every=5)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    "The folder of a finished run, trained once and left as it is."
    from slot_attention_nbdev.train.recipes import get_recipe
    from slot_attention_nbdev.train.trainer import train

    out = tmp_path_factory.mktemp("finished") / "tiny"
    train(get_recipe("tiny", **TINY), out, device="cpu", progress=False)
    return out


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    "The folder of a finished run, a copy for the tests of one file."
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("runs") / "tiny")


def skip_or_fail(reason: str):
    """Skip a test for want of a program.

    Where SLOT_ATTENTION_NO_SKIP is set, as in CI, fail instead.
    """
    (pytest.fail if os.environ.get("SLOT_ATTENTION_NO_SKIP") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The built documentation, made once for all workers, or the one SLOT_ATTENTION_SITE names."
    if os.environ.get("SLOT_ATTENTION_SITE"):
        return Path(os.environ["SLOT_ATTENTION_SITE"])
    if shutil.which("npm") is None and not (ROOT / "build" / "npm").exists():
        skip_or_fail("npm, which fetches KaTeX, is not here")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "site"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            built = subprocess.run(
                [sys.executable, ROOT / "scripts" / "make_docs.py", "--out", folder],
                capture_output=True,
                text=True,
            )
            assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def site_address(site):
    "The address of a server for the built documentation."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    "A real browser that asks nobody for anything on its own."
    path = shutil.which("chromium")
    if path is None:
        skip_or_fail("chromium is not here; on Debian: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = [
        "--no-sandbox",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--no-default-browser-check",
        "--disable-domain-reliability",
        "--disable-client-side-phishing-detection",
    ]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=quiet)
        yield opened
        opened.close()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long or needs a C++ compiler; run with --slow")
    config.addinivalue_line("markers", "gpu: needs CUDA; runs wherever there is a GPU")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA here"))
