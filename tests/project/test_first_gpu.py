"""The script for the first minutes on a GPU: rehearsed on a CPU, so that no minute is lost."""

import json
import os
import subprocess
import sys
import tarfile

from project import ROOT

from slot_attention_nbdev.core import count_cores

PARTS = ["tests", "bench", "tetrominoes-seed0", "clevr6-seed0"]


def rehearse(folder, **environment):
    "Run the script on a CPU; what it said, and the names of the files that it keeps."
    threads = {"OMP_NUM_THREADS": "1"} if count_cores() < 3 else {}
    ended = subprocess.run(
        ["bash", ROOT / "scripts" / "first_gpu.sh", "--rehearse", folder],
        env={**os.environ, "PYTHON": sys.executable, **threads, **environment},
        capture_output=True,
        text=True,
    )
    with tarfile.open(folder / "records.tgz") as kept:
        return ended, {name.removeprefix("./") for name in kept.getnames()}


def test_the_rehearsal(tmp_path):
    ended, kept = rehearse(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = {f"{part}/{name}" for part in PARTS[2:] for name in ("record.json", "model.safetensors")}
    assert runs | {"bench/bench.json", "tests.txt", "summary.txt"} <= kept
    assert not any(name.startswith(".cache") for name in kept)
    for part, recipe in zip(PARTS[2:], ("tetrominoes_short", "clevr6_short")):
        record = json.loads((tmp_path / part / "record.json").read_text())
        assert record["finished"] and record["recipe"]["name"] == recipe
        assert f"{part}: 2 updates" in ended.stdout
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["finished"]

    again, _ = rehearse(tmp_path)
    assert again.returncode == 0 and again.stdout.count("was done before") == len(PARTS)


FAKE = """#!/usr/bin/env bash
# stands for Python: its tests fail, its benchmark takes too long, its trainings would be quick
case "$*" in
*"-m pytest"*) exit 5 ;;
*"cli bench"*) mkdir -p "${@: -1}" && echo '{"steps": []}' > "${@: -1}/bench.json" && sleep 60 ;;
esac
"""


def test_time_runs_out(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    folder = tmp_path / "out"
    ended, kept = rehearse(folder, PYTHON=str(fake), FIRST_GPU_SECONDS="6")
    assert ended.returncode == 1 and "tests: failed (5)" in ended.stdout
    assert "bench: out of time" in ended.stdout and "bench/bench.json" in kept
    assert ended.stdout.count("no time left") == 2
    # started again, with more time: all but the bench is done, and the tests still fail
    fake.write_text(FAKE.replace("exit 5", "exit 0"))
    ended, _ = rehearse(folder, PYTHON=str(fake), FIRST_GPU_SECONDS="7")
    assert ended.returncode == 3 and (folder / "tests.done").exists()
    fake.write_text(FAKE.replace("exit 5", "exit 0").replace("sleep 60", "true"))
    ended, _ = rehearse(folder, PYTHON=str(fake))
    assert ended.returncode == 0 and ended.stdout.count("was done before") == 1


def test_without_a_card_it_says_so(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    ended = subprocess.run(
        ["bash", ROOT / "scripts" / "first_gpu.sh", tmp_path / "out"],
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and "no CUDA card here" in ended.stderr
    assert not (tmp_path / "out").exists()
