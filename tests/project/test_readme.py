"""README's commands and Python run as they stand, one after the other, in an empty folder.

What takes long gets tiny settings: `shorten` says which. A reader brings one thing of his own, a
folder `photos/`; here its images are noise.
"""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from project import ROOT

from slot_attention_nbdev import models
from slot_attention_nbdev.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    "The fenced blocks of a language, in their order."
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def commands() -> list[list[str]]:
    "The words of every shell command, without comments."
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shorten(words: list[str]) -> list[str]:
    "The same command with settings that end within seconds."
    if "train" in words:
        words = [{"5m": "1s"}.get(word, word) for word in words]
        words = [*words, "steps=2", "batch_size=2", "eval_images=4", "budget=0", "--device", "cpu"]
    if "bench" in words:
        words = [*words, "--quick", "--device", "cpu"]
    if "evaluate" in words:
        words = [*words, "--n", "8"]
    return [{"5000": "10"}.get(word, word) for word in words]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder that is empty but for the reader's own images."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(10):
        pixels = random.integers(0, 256, (60, 90, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.jpg")
    return tmp_path


def test_commands_run_in_their_order(folder, capfd):
    programs = {words[0] for words in commands()}
    assert programs == {"make", "pip", "slot-attention", "torchrun"}
    for words in map(shorten, commands()):
        if words[0] == "slot-attention":
            assert main(words[1:]) == 0, (words, capfd.readouterr().err)
        elif words[0] == "torchrun":
            line = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
            ended = subprocess.run(line, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr
    assert {"first", "photos", "more", "tetrominoes_small-seed0"} <= {
        path.name for path in (folder / "runs").iterdir()
    }
    assert (folder / "found" / "0000_labels.png").is_file()
    assert len(list((folder / "found-in-photos").glob("*_labels.png"))) == 10


def test_make_and_pip_name_what_there_is():
    makefile, setup = ((ROOT / name).read_text() for name in ("Makefile", "setup.py"))
    settings = (ROOT / "settings.ini").read_text()
    for program, *words in commands():
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.M), words
        elif program == "pip":  # test_wheel installs what these lines would
            extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[-1])[1]
            assert words[0] == "install" and (extra is None or extra in setup + settings)


def test_python_runs(folder, monkeypatch, capsys):
    published = []
    monkeypatch.setattr(
        models.base.Pretrained, "push_to_hub", lambda self, to: published.append(to)
    )
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert published == ["OWNER/NAME"] and (folder / "somewhere" / "README.md").is_file()
    for line in capsys.readouterr().out.strip().splitlines():
        assert line in README
