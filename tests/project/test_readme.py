"""README's commands and Python run as they stand, one after the other, in an empty folder.

What takes long gets tiny settings: `shorten` says which. A reader brings one thing of his own, a
folder `photos/`; here its images are noise.
"""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from project import ROOT

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
        words = [*words, "steps=2", "batch_size=2", "eval_images=4", "--device", "cpu"]
    if "evaluate" in words:
        words = [*words, "--n", "8"]
    return words


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
    assert programs == {"cd", "make", "pip", "slot-attention"}
    for words in map(shorten, commands()):
        if words[0] == "slot-attention":
            assert main(words[1:]) == 0, (words, capfd.readouterr().err)
    assert {"first", "photos"} <= {path.name for path in (folder / "runs").iterdir()}
    assert (folder / "photos.pt2").is_file()
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


def test_python_runs(folder, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 2 and all(line in README for line in printed)
