"Weights by name: the round trip, what is refused, the card, and the hub played by a small server."

import base64
import hashlib
import http.server
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from copy import deepcopy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard, constants

from slot_attention_nbdev import SlotAttentionAutoEncoder
from slot_attention_nbdev.core import FileError, InputError, generator
from slot_attention_nbdev.models.autoencoder import paper_autoencoder
from slot_attention_nbdev.models.base import (
    MODELS,
    create_model,
    family_of,
    load_pretrained,
    model_card,
)
from slot_attention_nbdev.models.framed import framed_autoencoder
from slot_attention_nbdev.models.weights import (
    file_digest,
    load_record,
    load_weights,
    save_record,
    save_weights,
    shipped_weights,
)
from slot_attention_nbdev.train.recipes import load_model

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "properties_framed": (64, 64),
    "set_small": (64, 64),
    "set_paper": (32, 32),
    "properties_clevr": (32, 32),
}


ONE_PASS = ("slot_mlp", "slot_mlp_small", "monet", "monet_small")  # they iterate nothing


def built(key: str) -> torch.nn.Module:
    "A model of a kind, with weights that are nobody's first values."
    size, T = SIZES.get(key, (35, 35)), 1 if key in ONE_PASS else 2
    model = create_model(key, size, num_slots=5, num_iterations=T)
    noise = generator(3, key)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=noise))
    return model


@pytest.mark.parametrize("key", sorted(MODELS))
def test_no_model_looks_at_an_image_to_place_its_slots(key):
    model = built(key).eval()
    image = 2 * torch.rand(2, 3, *model.resolution, generator=generator(3)) - 1
    noise = model.initial_noise(2, generator=generator(4))
    with torch.no_grad():
        drawn, given = model(image, generator=generator(4)), model.from_noise(image, noise)
    assert torch.equal(drawn.slots, given.slots)


@pytest.fixture
def kept(tmp_path):
    "Shipped weights, saved into a folder."
    return SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small").save_pretrained(
        tmp_path / "kept"
    )


@pytest.mark.parametrize("key", MODELS)
def test_every_kind_of_model_comes_back_the_same(key, tmp_path):
    model = built(key)
    again = family_of(model).from_pretrained(model.save_pretrained(tmp_path / key))
    assert type(again) is type(model) and not again.training
    image = torch.rand(2, 3, *model.resolution, generator=generator(1)) * 2 - 1
    for ours, theirs in zip(
        again(image, generator=generator(2)), model.eval()(image, generator=generator(2))
    ):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("key", MODELS)
def test_every_model_keeps_its_config_and_has_something_to_say_on_its_card(key):
    model = built(key)
    size = list(SIZES.get(key, (35, 35)))
    T = 1 if key in ONE_PASS else 2
    assert model.config == {"model": key, "resolution": size, "num_slots": 5, "num_iterations": T}
    assert deepcopy(model).config == model.config
    assert tuple(size) == tuple(model.resolution) and model.num_slots == 5
    assert MODELS[key].about and f"\n{MODELS[key].about}. " in model_card(model, 64 * "0")


def test_a_run_is_loaded_kept_and_told(run, tmp_path):
    model = SlotAttentionAutoEncoder.from_pretrained(run)
    folder = model.save_pretrained(tmp_path / "kept")
    assert load_record(folder / "record.json") == load_record(run / "record.json")
    figure = next(
        each
        for each in ModelCard.load(folder / "README.md").data.eval_results
        if each.metric_type == "mse"
    )
    assert figure.metric_value == round(load_record(run / "record.json")["final"]["mse"], 4)
    # the command's own way, too
    theirs, ours = load_model(run)[0].state_dict(), load_model(folder)[0].state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_best_weights_of_a_run_bring_no_record_of_the_last_ones(run):
    assert (
        SlotAttentionAutoEncoder.from_pretrained(run / "best.safetensors").origin["record"] is None
    )


def test_weights_that_were_trained_further_lose_their_record(tmp_path):
    model = SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small")
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    folder = model.save_pretrained(tmp_path)
    assert (
        not (folder / "record.json").exists()
        and "not on record" in (folder / "README.md").read_text()
    )
    assert "recipe" not in json.loads((folder / "config.json").read_text())


def test_a_record_of_another_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is about a model 'framed'"):
        built("small").save_pretrained(
            tmp_path, shipped_weights()["tetrominoes_small"].with_suffix(".json")
        )


def test_a_run_that_has_not_finished_has_nothing_to_say(tmp_path):
    save_record(tmp_path / "record.json", {"recipe": {"model": "framed"}, "seed": 0, "final": None})
    with pytest.raises(InputError, match="not finished"):
        framed_autoencoder().save_pretrained(tmp_path / "kept", tmp_path)


def test_a_run_is_not_written_over(run):
    with pytest.raises(InputError, match="the folder of a run"):
        framed_autoencoder().save_pretrained(run)


def test_a_model_put_together_by_hand_is_refused(tmp_path):
    paper = paper_autoencoder((35, 35), 4)
    mixed = SlotAttentionAutoEncoder(
        framed_autoencoder().encoder, paper.slot_attention, paper.decoder
    )
    for model in (paper, mixed):
        with pytest.raises(InputError, match="built by hand.*create_model"):
            model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_is_refused(kept):
    file, noise = kept / "model.safetensors", generator(0, "bytes")
    whole = file.read_bytes()
    for at in torch.randint(len(whole), (20,), generator=noise).tolist():
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(FileError, match="altered"):
            SlotAttentionAutoEncoder.from_pretrained(kept)
    file.write_bytes(whole)
    assert SlotAttentionAutoEncoder.from_pretrained(kept, sha256=hashlib.sha256(whole).hexdigest())


def test_a_consistent_forgery_is_refused_by_the_sum_one_brings(kept):
    file = kept / "model.safetensors"
    honest = file_digest(file)
    tensors, info = load_weights(file)
    save_weights(file, {name: x + 1 for name, x in tensors.items()}, info)
    with pytest.raises(FileError, match="config.json said"):
        SlotAttentionAutoEncoder.from_pretrained(kept)
    config = json.loads((kept / "config.json").read_text())
    save_record(kept / "config.json", config | {"sha256": file_digest(file)})
    with pytest.raises(FileError, match="you said"):
        SlotAttentionAutoEncoder.from_pretrained(kept, sha256=honest)


def test_shipped_weights_are_checked_against_their_record(monkeypatch, tmp_path):
    for path in shipped_weights().values():
        record = load_record(path.with_suffix(".json"))
        assert record["sha256"] == file_digest(path)
        model = load_pretrained(path.stem)
        assert path.with_suffix(".md").read_text() == model_card(model, record["sha256"], record)
        shutil.copy(path, tmp_path)
        save_record(tmp_path / f"{path.stem}.json", record | {"sha256": "0" * 64})
        with pytest.raises(FileError, match=f"{path.stem}.json said 000"):
            SlotAttentionAutoEncoder.from_pretrained(tmp_path / path.name)


class Payload:
    "Shows itself if anything unpickles it."

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.pt", "pytorch_model.bin", "checkpoint.pt", "config.json"]
)
def test_nothing_is_unpickled(name, kept, monkeypatch):
    for target in ("pickle.load", "pickle.loads", "torch.load"):
        monkeypatch.setattr(target, lambda *_, **__: pytest.fail("something was unpickled"))
    SlotAttentionAutoEncoder.from_pretrained(kept)
    (kept / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(FileError):
        SlotAttentionAutoEncoder.from_pretrained(
            kept if name in ("model.safetensors", "config.json") else kept / name
        )


BAD = {
    "a model that is not ours": {"model": "os.system"},
    "an enormous image": {"resolution": [10**9, 10**9]},
    "as many slots as there are atoms": {"num_slots": 10**80},
    "three iterations in words": {"num_iterations": "three"},
    "other sizes than the weights'": {"model": "paper"},
    "a resolution of one number": {"resolution": [35]},
}


@pytest.mark.parametrize("name", BAD)
def test_a_description_that_lies_is_refused(name, kept):
    tensors, info = load_weights(kept / "model.safetensors")
    save_weights(kept / "model.safetensors", tensors, info | BAD[name])
    (kept / "config.json").unlink()
    with pytest.raises(FileError, match="does not fit"):
        SlotAttentionAutoEncoder.from_pretrained(kept)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(
        safetensors.torch.save(framed_autoencoder().state_dict())
    )
    with pytest.raises(FileError, match="not written by this library"):
        SlotAttentionAutoEncoder.from_pretrained(tmp_path)


def test_loading_changes_nobody_s_random_numbers():
    torch.default_generator.manual_seed(5)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(5)
    SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small")
    assert torch.equal(torch.rand(3), expected)


class Hub(http.server.BaseHTTPRequestHandler):
    "The part of the hub's protocol that a push and a pull need."

    files: dict[str, dict[str, bytes]] = {}
    asked: list[str] = []

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.split("?")[0].strip("/").split("/")
        self.asked.append(f"POST {self.path}")
        address = f"http://{self.headers['Host']}"
        if parts[1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if parts[1:3] == ["repos", "create"]:
            name = "/".join(
                filter(None, (json.loads(sent).get("organization"), json.loads(sent)["name"]))
            )
            self.files.setdefault(name, {})
            return self.answer({"url": f"{address}/{name}", "id": name, "name": name})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            return self.answer(
                {
                    "files": [
                        {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for each in json.loads(sent)["files"]
                    ]
                }
            )
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(
            {
                "success": True,
                "commitUrl": f"{address}/{name}/commit/{'a' * 40}",
                "commitOid": "a" * 40,
            }
        )

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        self.asked.append(f"{self.command} {self.path}")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.files:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = self.files[name]
        if parts[0] == "api" and "tree" in parts:
            return self.answer(
                [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for path, content in files.items()
                ]
            )
        if parts[0] == "api":
            return self.answer(
                {
                    "id": name,
                    "sha": "a" * 40,
                    "siblings": [{"rfilename": path} for path in files],
                    "private": False,
                    "tags": [],
                }
            )
        content = files["/".join(parts[4:])]
        return self.answer(
            content, X_Repo_Commit="a" * 40, ETag=f'"{hashlib.sha1(content).hexdigest()}"'
        )

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub on this machine, and an empty cache."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.files, Hub.asked = {}, []
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield Hub
    server.shutdown()
    server.server_close()


def test_push_and_pull_over_the_wire(hub, monkeypatch):
    model = SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small")
    assert (
        model.push_to_hub("somebody/slots", token="hf_test")
        == f"{constants.ENDPOINT}/somebody/slots"
    )
    assert set(hub.files["somebody/slots"]) >= {
        "model.safetensors",
        "config.json",
        "README.md",
        "record.json",
    }
    assert b'from_pretrained("somebody/slots"' in hub.files["somebody/slots"]["README.md"]
    hub.files["somebody/slots"]["pytorch_model.bin"] = pickle.dumps(Payload())
    again = SlotAttentionAutoEncoder.from_pretrained("somebody/slots")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    assert again.origin["record"] == model.origin["record"] and not any(
        "pytorch_model.bin" in line for line in hub.asked
    )
    with pytest.raises(FileError, match="you said"):
        SlotAttentionAutoEncoder.from_pretrained("somebody/slots", sha256="0" * 64)
    # nobody answers there, and the cache suffices
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert (
        SlotAttentionAutoEncoder.from_pretrained("somebody/slots").origin["sha256"]
        == again.origin["sha256"]
    )


def test_a_tampered_download_is_refused(hub):
    SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small").push_to_hub(
        "somebody/slots", token="hf_test"
    )
    content = hub.files["somebody/slots"]["model.safetensors"]
    hub.files["somebody/slots"]["model.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(FileError, match="altered.*config.json said"):
        SlotAttentionAutoEncoder.from_pretrained("somebody/slots")


def test_what_was_looked_for_and_where_is_said(hub, monkeypatch, tmp_path):
    with pytest.raises(FileError, match="knows no such model") as error:
        SlotAttentionAutoEncoder.from_pretrained("nobody/nothing")
    for words in (
        "nobody/nothing",
        str(tmp_path),
        "tetrominoes_small",
        str(tmp_path / "cache"),
        constants.ENDPOINT,
    ):
        assert words in str(error.value)
    hub.files["some/pickles"] = {"pytorch_model.bin": b""}
    with pytest.raises(FileError, match="some/pickles"):
        SlotAttentionAutoEncoder.from_pretrained("some/pickles")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileError, match="http://127.0.0.1:9 cannot be reached"):
        SlotAttentionAutoEncoder.from_pretrained("nobody/nothing")
    with pytest.raises(FileError, match="not published: http://127.0.0.1:9 cannot be reached"):
        built("framed").push_to_hub("nobody/nothing", token="hf_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileError, match="HF_HUB_OFFLINE is set"):
        SlotAttentionAutoEncoder.from_pretrained("nobody/nothing")


@pytest.mark.parametrize(
    "name", ["tetrominos_fast", "a/b/c", "https://example.invalid/model", "", "no_such.safetensors"]
)
def test_a_name_that_means_nothing_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, FileError)):
        SlotAttentionAutoEncoder.from_pretrained(name)


def test_shipped_weights_need_neither_network_nor_hub():
    code = """
import sys, socket
sys.modules["huggingface_hub"] = None
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = refuse
from slot_attention_nbdev import SlotAttentionAutoEncoder
print(type(SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small")).__name__)
try: SlotAttentionAutoEncoder.from_pretrained("a/b")
except ImportError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SlotAttentionAutoEncoder\n") and "huggingface_hub" in done.stdout


def snippet(card: str) -> str:
    "The Python that a card tells its reader to run."
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    return code


@pytest.mark.parametrize("path", shipped_weights().values(), ids=shipped_weights())
def test_the_lines_on_a_shipped_card_run(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(snippet(path.with_suffix(".md").read_text()), scope)
    assert scope["model"].origin["sha256"] == file_digest(path)


@pytest.mark.parametrize("key", MODELS)
def test_the_lines_on_the_card_of_every_kind_of_model_run(key, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = built(key).save_pretrained("mine", name="mine")
    scope = {}
    exec(snippet((folder / "README.md").read_text()), scope)
    assert scope["model"].config["model"] == key


def test_the_lines_on_a_published_card_run(hub):
    SlotAttentionAutoEncoder.from_pretrained("tetrominoes_small").push_to_hub(
        "somebody/slots", token="hf_test"
    )
    scope = {}
    exec(snippet(hub.files["somebody/slots"]["README.md"].decode()), scope)
    assert scope["model"].origin["name"] == "somebody/slots"


def test_the_package_knows_each_of_its_models():
    "Whoever names one on the command line has imported no module by hand."
    program = """
import importlib, pkgutil
from slot_attention_nbdev import models
from slot_attention_nbdev.models.base import MODELS
known = set(MODELS)
for module in pkgutil.iter_modules(models.__path__):
    importlib.import_module(f"{models.__name__}.{module.name}")
print(sorted(set(MODELS) - known))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
