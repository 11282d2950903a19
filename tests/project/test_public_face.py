"What a user imports: four names, none before it is asked for, and PyTorch alone for the module."

import subprocess
import sys
from pathlib import Path

import pytest

import slot_attention_nbdev
from slot_attention_nbdev.models.autoencoder import SlotAttentionAutoEncoder
from slot_attention_nbdev.models.base import load_pretrained
from slot_attention_nbdev.models.set_predictor import SetPredictor
from slot_attention_nbdev.nn.slot_attention import SlotAttention

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "SetPredictor": SetPredictor,
    "SlotAttention": SlotAttention,
    "SlotAttentionAutoEncoder": SlotAttentionAutoEncoder,
    "load_pretrained": load_pretrained,
}
# what stands beside torch in setup.py's extras, by the names they are imported by
OTHERS = [
    "accelerate",
    "crc32c",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "PIL",
    "psutil",
    "safetensors",
    "scipy",
    "tensorboard",
    "tqdm",
    "triton",
    "fastcore",
    "nbdev",
    "IPython",
    "ipywidgets",
    "anywidget",
    "sklearn",
    "pyoidn",
]


def python(code: str) -> str:
    "What a fresh interpreter prints."
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_the_modules_own():
    assert sorted(slot_attention_nbdev.__all__) == sorted(NAMES)
    for name, own in NAMES.items():
        assert getattr(slot_attention_nbdev, name) is own
        assert name in dir(slot_attention_nbdev)
    with pytest.raises(AttributeError, match="no attribute 'SlotAttentoin'"):
        slot_attention_nbdev.SlotAttentoin  # noqa: B018


def test_importing_the_package_imports_no_torch_and_sets_nothing():
    code = """
import os, sys, warnings, signal
before = dict(os.environ), list(sys.path), list(warnings.filters), signal.getsignal(signal.SIGINT)
modules = set(sys.modules)
import slot_attention_nbdev
after = dict(os.environ), list(sys.path), list(warnings.filters), signal.getsignal(signal.SIGINT)
assert after == before
print(sorted(set(sys.modules) - modules))
"""
    assert python(code) == "['slot_attention_nbdev']\n"


def test_importing_the_package_takes_next_to_no_time_after_torch():
    code = """
import time
import torch
start = time.process_time()
import slot_attention_nbdev
print(time.process_time() - start)
"""
    assert float(python(code)) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_needs_torch_alone(name):
    code = f"""
import sys, warnings
warnings.simplefilter("ignore")  # torch says that NumPy is not there
sys.modules.update(dict.fromkeys({OTHERS!r}))
from slot_attention_nbdev import {name}
print({name}.__name__)
"""
    assert python(code) == f"{name}\n"
