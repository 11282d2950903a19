"The project holds together: modules match notebooks, layers, the wheel needs torch alone."

import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import make_readme
import project
import pytest
from project import ROOT, all_notebooks, lessons, reading_order, settings

PACKAGE = "slot_attention_nbdev"


def python_files(folder: Path) -> dict[str, Path]:
    "Generated modules by their relative name."
    return {str(p.relative_to(folder)): p for p in folder.rglob("*.py") if p.name != "_modidx.py"}


def test_modules_are_what_the_notebooks_export(tmp_path):
    for name in ("settings.ini", "setup.py", "README.md", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs",
        tmp_path / "nbs",
        symlinks=True,
        ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"),
    )
    shutil.copytree(
        ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )
    before = tmp_path / "before"
    shutil.copytree(tmp_path / PACKAGE, before)
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_export")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    old, new = python_files(before), python_files(tmp_path / PACKAGE)
    assert old.keys() == new.keys()
    assert [name for name in old if not filecmp.cmp(old[name], new[name], shallow=False)] == []


def test_links_of_the_readme_are_addresses_once_it_is_published(monkeypatch):
    links = lambda: re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", make_readme.readme())
    here = [(kind, target) for kind, target in links() if not re.match(r"\w+:|#", target)]
    assert all((ROOT / target.split("#")[0]).exists() for _, target in here)
    monkeypatch.setattr(project, "published", lambda: True)
    git = project.settings()["git_url"]
    for kind, target in here:
        assert (kind, f"{git}/{'raw' if kind else 'blob'}/main/{target}") in links()
    assert {kind for kind, _ in here} == {"", "!"}
    assert all(re.match("https://|#", target) for _, target in links())
    assert f"git clone {git}\ncd slot_attention_nbdev\nmake demo\n" in make_readme.readme()


def test_readme_is_what_the_index_makes():
    subprocess.run([sys.executable, ROOT / "scripts" / "make_readme.py", "--check"], check=True)


def test_the_citation_names_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {settings()['version']}\n" in citation and "2006.15055" in citation


def test_every_file_on_the_map_of_contributing_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text[text.index("## Where is what?") : text.index("## Layout")]
    named = re.findall(r"`((?:\w+/)?\w+\.(?:py|md))`", table)
    assert len(named) > 15
    assert [n for n in named if not (ROOT / PACKAGE / n).exists() and not (ROOT / n).exists()] == []
    for file, name in re.findall(r"`([\w/]+\.py)` \(`(\w+)`\)", table):
        assert re.search(rf"^(def |class |)\b{name}\b", (ROOT / PACKAGE / file).read_text(), re.M)


@pytest.mark.parametrize("command", ["docs", "prepare", "proc_nbs", "preview", "readme"])
def test_nothing_leads_to_a_command_that_would_install_quarto(command):
    files = [ROOT / "Makefile", ROOT / "README.md", ROOT / ".ci" / "run", *all_notebooks()]
    files += [p for p in (ROOT / "scripts").rglob("*") if p.suffix in (".py", ".sh")]
    files += [ROOT / "CONTRIBUTING.md"]
    said = [line for p in files for line in p.read_text().split("\n") if f"nbdev_{command}" in line]
    assert all("Never run" in line for line in said)


def test_every_lesson_stands_in_the_sidebar_once():
    assert sorted(reading_order()) == sorted(str(p.relative_to(ROOT / "nbs")) for p in lessons())


@pytest.mark.parametrize("layer, allowed", [("ops", {"torch", "triton"}), ("nn", {"torch"})])
def test_modules_that_compute_import_torch_alone(layer, allowed):
    graph = grimp.build_graph(PACKAGE, include_external_packages=True, cache_dir=None)
    inside = graph.find_descendants(f"{PACKAGE}.{layer}")
    imported = {i for module in inside for i in graph.find_modules_directly_imported_by(module)}
    others = {name for name in imported if not name.startswith(PACKAGE)}
    assert inside and others - sys.stdlib_module_names <= allowed


def python_of(path: Path) -> str:
    "The code of a Python file or of a notebook's code cells."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


BANNED = {
    "an OpenMP runtime by its private names": r"GOMP",
    "C by hand": r"\bctypes\b",
    "another compiler": r"\bnumba\b",
    "a mark on tensors": r"\bmade_here\b",
    "the package's own parts by a string": r"import_module\(|resolve_name\(",
    "an object that changes its class": r"\.__class__ =[^=]",
}


@pytest.mark.parametrize("what", BANNED)
def test_what_is_banned_everywhere(what):
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *all_notebooks()]
    found = [p for p in files if re.search(BANNED[what], python_of(p))]
    assert [str(p.relative_to(ROOT)) for p in found] == []


@pytest.mark.parametrize(
    ("folder", "columns"),
    {"course": 88, "solutions/speed": 88, "library": 100, "relatives": 100}.items(),
)
def test_code_is_no_wider_than_its_page(folder, columns):
    for width in (columns, columns + 1):
        ruff = [Path(sys.executable).with_name("ruff"), "check", "--select", "E501", "-"]
        said = subprocess.run(
            [*ruff, "--stdin-filename", ROOT / "nbs" / folder / "planted.py"],
            input=f"x = '{'a ' * 20}".ljust(width - 1, "b") + "'\n",
            capture_output=True,
            text=True,
        )
        assert ("E501" in said.stdout) == (width > columns), said.stdout


def at_import(tree: ast.Module):
    "The parts of a module that run when it is imported: all but the bodies of functions."
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_importing_the_package_leaves_the_environment_alone():
    changes = re.compile(r"os\.environ(\[|\.(setdefault|update|pop))|os\.putenv")
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = at_import(ast.parse(path.read_text()))
        run = [ast.unparse(node) for node in parts if isinstance(node, ast.Call | ast.Subscript)]
        assert not any(map(changes.match, run)), path.name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The built wheel, unpacked."
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=shutil.ignore_patterns(
            ".venv", ".git", "runs", "nbs", "build", "_docs", "*.egg-info", "__pycache__"
        ),
    )
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        copy,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


ALLOW_TORCH_ONLY = """
import sys, importlib.abc, warnings
refused = '''numpy scipy matplotlib PIL tqdm tensorboard safetensors fastcore nbdev IPython
ipywidgets sklearn pandas accelerate huggingface_hub psutil'''.split()
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(name + " is not there")
sys.meta_path.insert(0, Refuse())
warnings.simplefilter("ignore")
"""


def run(site: Path, code: str) -> str:
    "Run code with the unpacked wheel first on the path, away from the project."
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_torch_alone(wheel):
    code = ALLOW_TORCH_ONLY + (
        "import torch, slot_attention_nbdev.nn.slot_attention as m\n"
        "assert 'site' in m.__file__, m.__file__\n"
        "print(m.SlotAttention(32)(torch.zeros(2, 49, 32)).shape)"
    )
    assert "[2, 7, 64]" in run(wheel, code)


def test_the_core_imports_fast(wheel):
    code = (
        "import torch, time; t = time.process_time()\n"
        "import slot_attention_nbdev.nn.slot_attention; print(time.process_time() - t)"
    )
    assert min(float(run(wheel, code)) for _ in range(3)) < 0.2


def test_the_wheel_carries_weights_and_command_but_no_tests(wheel):
    assert list((wheel / PACKAGE / "weights").glob("*.safetensors"))
    for record in ("tetrominoes_small/seed0.json", "what_goes_wrong/plain-0.json"):
        assert (wheel / PACKAGE / "results" / record).exists(), record
    assert "slot-attention" in next(wheel.glob("*.dist-info/entry_points.txt")).read_text()
    assert not (wheel / "tests").exists() and not (wheel / "scripts").exists()
    metadata = next(wheel.glob("*.dist-info/METADATA")).read_text().splitlines()
    requires = [line for line in metadata if line.startswith("Requires-Dist")]
    assert [line for line in requires if "extra ==" not in line] == ["Requires-Dist: torch>=2.4"]
