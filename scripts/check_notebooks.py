#!/usr/bin/env python3
"""Check the form of the notebooks; ruff checks their code.

    python scripts/check_notebooks.py                                # every notebook under nbs/
    python scripts/check_notebooks.py nbs/course/01_attention.ipynb  # some of them
    python scripts/check_notebooks.py --timings FILE    # and what `nbdev_test --timing` printed

The rules stand in CONTRIBUTING.md, "The form of a notebook".
Prints one line per fault, `notebook:cell rule: what`, and exits 1 if there is any.
Needs the standard library alone.
"""

import argparse
import ast
import base64
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from project import NBS, all_notebooks, solutions_of, with_titles

MAX_KB, MAX_IMAGE_KB, MAX_SECONDS = 1000, 300, 20
MIN_SHARPNESS = 1.5  # pixels of a picture for each of the page, in a row
NETWORK = {"requests", "urllib", "urllib3", "http", "socket", "ftplib", "httpx"}
FOLDERS = r"/(home|root|tmp|work|Users|mnt|opt|var|usr|data|content)(/|$)|[A-Z]:\\"
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
DRAWS |= {"rand_like", "randn_like"}
DRAWS_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
GLOBAL_DRAWS = (
    r"(np|numpy)\.random\.(?!default_rng|Generator)"
    r"|random\.(seed|random|randint|choice|shuffle)\b"
)

Fault = tuple[int, str, str]  # cell, rule, what


class Cell:
    "One notebook cell: its source, directives and outputs."

    def __init__(self, index: int, raw: dict):
        self.index = index
        self.is_code = raw["cell_type"] == "code"
        self.outputs = raw.get("outputs", [])
        self.source = "".join(raw["source"])
        self.directives = re.findall(r"^#\|\s*(\S.*)$", self.source, re.M)
        self.exported = any(d.startswith("export") for d in self.directives)

    def tree(self) -> ast.Module:
        "The cell's syntax tree, magics left out."
        return ast.parse(re.sub(r"^[%!].*$", "pass", self.source, flags=re.M))

    def images(self) -> list[bytes]:
        "The images among the outputs."
        found = []
        for output in self.outputs:
            for kind, data in output.get("data", {}).items():
                if kind == "image/svg+xml":
                    found.append("".join(data).encode())
                elif kind.startswith("image/"):
                    found.append(base64.b64decode("".join(data)))
        return found


class Notebook:
    "A notebook: its cells, code and text."

    def __init__(self, path: Path):
        self.path = path
        raw = json.loads(path.read_text(encoding="utf-8"))["cells"]
        self.cells = [Cell(index, cell) for index, cell in enumerate(raw)]
        self.code = [c for c in self.cells if c.is_code]
        self.text = [c for c in self.cells if not c.is_code]

    @property
    def name(self) -> str:
        "Its name below nbs/, such as `course/01_attention.ipynb`."
        return str(self.path.relative_to(NBS)) if self.path.is_relative_to(NBS) else self.path.name


def title(nb: Notebook) -> Iterator[Fault]:
    "A title and a one-line subtitle."
    if not nb.cells or not re.fullmatch(r"# [^\n]+\n\n> [^\n]+\s*", nb.cells[0].source):
        yield 0, "title", "the first cell must be `# Title`, an empty line, `> one-line subtitle`"


def opening(nb: Notebook) -> Iterator[Fault]:
    "What you will learn, prerequisites, time, hardware."
    second = nb.cells[1].source if len(nb.cells) > 1 else ""
    for word in ("You will learn", "Prerequisites:", "Time:", "Hardware:"):
        if f"**{word}" not in second:
            yield 1, "opening", f"the second cell must have **{word}**"


def documented(nb: Notebook) -> Iterator[Fault]:
    "Annotations, docments and docstrings on every exported name."
    for cell in nb.code:
        if cell.exported:
            for node in cell.tree().body:
                for what in undocumented(node, cell.source.split("\n")):
                    yield cell.index, "docments", what


def commented(lines: list[str], line: int) -> bool:
    "Whether a line (from 1) has a comment, or is preceded by one of its own."
    return "#" in lines[line - 1] or (line > 1 and lines[line - 2].strip().startswith("#"))


def undocumented(node: ast.AST, lines: list[str], inside: str = "") -> Iterator[str]:
    "What a definition lacks."
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return
    special = node.name.startswith("__")
    if node.name.startswith("_") and node.name != "__init__":
        return
    name = f"{inside}{node.name}"
    if not special and not ast.get_docstring(node):
        yield f"{name} has no docstring"
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.AnnAssign) and not (
                commented(lines, child.lineno) or "#" in lines[child.end_lineno - 1]
            ):
                yield f"{name}.{ast.unparse(child.target)} has no docment"
            yield from undocumented(child, lines, f"{name}.")
        return
    yield from undocumented_arguments(node, lines, name)
    if special:
        return
    if node.returns is None:
        yield f"{name} has no return annotation"
    elif ast.unparse(node.returns) != "None" and not commented(lines, node.returns.end_lineno):
        yield f"{name}'s return value has no docment"


def undocumented_arguments(node: ast.FunctionDef, lines: list[str], name: str) -> Iterator[str]:
    "Arguments without an annotation or a comment of their own."
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
    seen = set()
    for argument in arguments:
        if argument.arg in ("self", "cls"):
            continue
        if argument.annotation is None:
            yield f"{name}({argument.arg}) has no annotation"
        if argument.lineno in seen or not commented(lines, argument.lineno):
            yield f"{name}({argument.arg}) has no docment of its own"
        seen.add(argument.lineno)


def seeded(nb: Notebook) -> Iterator[Fault]:
    "Random numbers come from an explicit generator."
    for cell in nb.code:
        for node in ast.walk(cell.tree()):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name, attribute = ast.unparse(node.func), node.func.attr
            draws = attribute in DRAWS_IN_PLACE
            draws = draws or (name.startswith("torch.") and attribute in DRAWS)
            if draws and "generator" not in {k.arg for k in node.keywords}:
                yield cell.index, "seed", f"{name}(…) without generator="
            if re.match(GLOBAL_DRAWS, name) or (name.endswith("default_rng") and not node.args):
                yield cell.index, "seed", f"{name}(…) draws from global or unseeded state"


def offline(nb: Notebook) -> Iterator[Fault]:
    "No network, no absolute path."
    for cell in nb.code:
        for node in ast.walk(cell.tree()):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Constant) and re.match(FOLDERS, str(node.value)):
                yield cell.index, "path", f"absolute path {node.value!r}"
            for module in modules:
                if module.split(".")[0] in NETWORK and module != "urllib.parse":
                    yield cell.index, "network", f"imports {module}"
        if re.search(r"^\s*[!%]\s*(pip|conda|wget|curl|apt)", cell.source, re.M):
            yield cell.index, "network", "installs or downloads"


def outputs(nb: Notebook) -> Iterator[Fault]:
    "Outputs are kept, with the figure of each cell that describes one; no error or stderr."
    asking = [c for c in nb.code if re.search(r"^answer = None", c.source, re.M)]
    working = [c for c in nb.code if c not in asking]
    if working and not any(c.outputs for c in working):
        yield 0, "output", "no cell has an output: execute it with scripts/execute_notebooks.py"
    for cell in nb.code:
        described = any(d.startswith("fig-alt:") for d in cell.directives)
        flagged = any(re.match(r"(slow|gpu|notest)\b", d) for d in cell.directives)
        if described and not flagged and not cell.images():
            yield cell.index, "figure", "the figure that its fig-alt describes is not kept"
        for output in cell.outputs:
            if output["output_type"] == "error":
                yield cell.index, "output", f"an error is kept: {output.get('ename')}"
            if output.get("name") == "stderr":
                yield cell.index, "output", "stderr is kept"


def size(nb: Notebook) -> Iterator[Fault]:
    "At most 1 MB, and 300 KB an image."
    kb = nb.path.stat().st_size / 1000
    if kb > MAX_KB:
        yield 0, "size", f"{kb:.0f} KB, at most {MAX_KB}"
    for cell in nb.code:
        for image in cell.images():
            if len(image) > MAX_IMAGE_KB * 1000:
                kb = len(image) / 1000
                yield cell.index, "size", f"an image of {kb:.0f} KB, at most {MAX_IMAGE_KB}"


def figures(nb: Notebook) -> Iterator[Fault]:
    "Alt text, and axis labels or a caption."
    for cell in nb.code:
        if not cell.images():
            continue
        if not any(d.startswith("fig-alt:") for d in cell.directives):
            yield cell.index, "alt-text", "a figure without #| fig-alt"
        if not re.search(r"#\|\s*fig-cap:|xlabel", cell.source):
            yield cell.index, "caption", "a figure with neither axis labels nor #| fig-cap"


def pixels_across(image: bytes) -> int:
    "The width of a PNG or a JPEG."
    if image.startswith(b"\x89PNG"):
        return int.from_bytes(image[16:20], "big")
    return int.from_bytes(re.search(rb"\xff[\xc0-\xc2]\0\x11\x08..(..)", image, re.S)[1], "big")


def sharp(nb: Notebook) -> Iterator[Fault]:
    "Every picture of pixels says how wide it is shown, and has pixels enough for that."
    for cell in nb.code:
        for output in cell.outputs:
            for kind in {"image/png", "image/jpeg"} & output.get("data", {}).keys():
                width = output.get("metadata", {}).get(kind, {}).get("width")
                pixels = pixels_across(base64.b64decode("".join(output["data"][kind])))
                if width is None:
                    yield cell.index, "sharp", "execute it with scripts/execute_notebooks.py"
                elif pixels < MIN_SHARPNESS * width:
                    yield cell.index, "sharp", f"{pixels} pixels, shown {width} wide"


def exercises(nb: Notebook) -> Iterator[Fault]:
    "Graded exercises numbered from 1, each with a check and an executed solution."
    asked = [(n, c.index) for c in nb.text for n in re.findall(r"\*\*Exercise (\d+) ★", c.source)]
    calls = [c for c in nb.code if "answer = None" in c.source]
    checked = {n for c in calls for n in re.findall(r'check_exercise\(\s*"([^"]+)"', c.source)}
    if "course" in nb.path.parts and len(asked) < 3:
        yield 0, "exercises", f"at least three graded exercises, has {len(asked)}"
    if [n for n, _ in asked] != [str(n) for n in range(1, len(asked) + 1)]:
        yield 0, "exercises", f"numbered {', '.join(n for n, _ in asked)}"
    for label in sorted(checked - {n for n, _ in asked}):
        yield 0, "exercises", f"checks {label}, and no text has **Exercise {label} ★"
    solutions, printed = solutions_of(nb.path), ""
    if asked and solutions.exists():
        kept = [output for c in Notebook(solutions).code for output in c.outputs]
        printed = "".join("".join(output.get("text", "")) for output in kept)
    for label, at in asked:
        if label not in checked:
            yield at, "exercises", f"exercise {label} has no check_exercise"
        if f"Exercise {label}: solved." not in printed:
            yield at, "exercises", f"{solutions.name} does not show exercise {label} solved"


def links(nb: Notebook) -> Iterator[Fault]:
    "Links to other files of the project lead somewhere; those to notebooks bear their titles."
    for cell in nb.text:
        for link in re.findall(r"\[\w+\]\([^)]+\)", cell.source):
            if with_titles(link, nb.path) != link:
                yield cell.index, "link", f"a file's name in place of its title: {link}"
        for target in re.findall(r"\]\(([^)#\s]+)", cell.source):
            if not re.match(r"\w+:", target) and not (nb.path.parent / target).exists():
                yield cell.index, "link", f"no such file: {target}"


EVERYWHERE = [title, documented, seeded, offline, outputs, size, figures, sharp, links]


def check(paths: list[Path]) -> list[str]:
    "All faults of some notebooks, a line each."
    faults = []
    for path in paths:
        nb = Notebook(path)
        rules = [*EVERYWHERE]
        if "solutions" not in path.parts and path.stem != "index":
            rules += [opening, exercises]
        for rule in rules:
            faults += [f"{nb.name}:{cell} {name}: {what}" for cell, name, what in rule(nb)]
    return faults


def seconds_allowed(name: str) -> int:
    "The time limit of a notebook; in the course it is twice what it states, if that is less."
    path = NBS / "course" / Path(name).name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    stated = re.search(r"(\d+) seconds to run", text)
    return min(MAX_SECONDS, 2 * int(stated[1])) if stated else MAX_SECONDS


def too_slow(text: str) -> list[str]:
    "Notebooks over their time limits, from the output of `nbdev_test --timing`."
    took = re.findall(r"^(\S+\.ipynb): (\d+) secs", text, re.M)
    return [name for name, seconds in took if int(seconds) > seconds_allowed(name)]


def processor_seconds(name: str) -> float:
    "What a notebook takes by the processor's clock: other programs count for nothing."
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    path = next(p for p in all_notebooks() if p.name == Path(name).name)
    nbdev_test = Path(sys.executable).with_name("nbdev_test")
    subprocess.run([nbdev_test, "--path", path], capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--timings", type=Path, help="output of nbdev_test --timing")
    arguments = parser.parse_args()
    paths = [p.resolve() for p in arguments.notebooks] or all_notebooks()
    faults = check(paths)
    if arguments.timings:
        slow = {n: processor_seconds(n) for n in too_slow(arguments.timings.read_text())}
        slow = {n: s for n, s in slow.items() if s > seconds_allowed(n)}
        faults += [f"{n}:0 time: {s:.0f} s, at most {seconds_allowed(n)}" for n, s in slow.items()]
    print("\n".join(faults) if faults else f"{len(paths)} notebooks are in form.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
