#!/usr/bin/env python3
"""Check the form of the notebooks (the lines of CONTRIBUTING.md, "The form of a notebook").

    python scripts/check_notebooks.py                 # every notebook under nbs/
    python scripts/check_notebooks.py nbs/10_*.ipynb  # some of them
    python scripts/check_notebooks.py --timings FILE  # also hold `nbdev_test --timing`'s output to the limit

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

ROOT = Path(__file__).resolve().parent.parent
MAX_CELLS, MAX_EXPORTED_LINES, MAX_KB, MAX_IMAGE_KB, MAX_SECONDS = 60, 150, 300, 100, 20
TEST = re.compile(r"\bassert\b|assert_close|\btest_\w+\(|check_exercise\(|pytest\.raises")
FORBIDDEN_IMPORTS = {"requests", "urllib", "urllib3", "http", "socket", "ftplib", "httpx"}
BAD_COLOUR_MAPS = {
    "jet",
    "rainbow",
    "gist_rainbow",
    "hsv",
    "nipy_spectral",
    "gist_ncar",
    "prism",
    "flag",
    "Set1",
    "RdYlGn",
    "brg",
}
RANDOM = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "rand_like",
    "randn_like",
}
DRAWS_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_"}


class Cell:
    "One notebook cell: its source, directives and outputs."

    def __init__(self, index: int, raw: dict):
        self.index = index
        self.kind = raw["cell_type"]
        self.outputs = raw.get("outputs", [])
        self.source = "".join(raw["source"])
        self.directives = re.findall(r"^#\|\s*(.+)$", self.source, re.M)
        self.exported = any(
            d.split()[0] in ("export", "exporti", "exports") for d in self.directives if d.split()
        )
        self.flags = {d.split()[0] for d in self.directives if d.split()}

    def tree(self) -> ast.Module:
        "The cell's syntax tree, magics left out."
        lines = ["pass" if re.match(r"\s*[%!]", line) else line for line in self.source.split("\n")]
        return ast.parse("\n".join(lines))

    def images(self) -> list[bytes]:
        "The PNG and JPEG images among the outputs."
        data = [o.get("data", {}) for o in self.outputs]
        texts = [d[kind] for d in data for kind in ("image/png", "image/jpeg") if kind in d]
        return [base64.b64decode("".join(t)) for t in texts]


class Notebook:
    "A notebook and the faults found in it."

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.cells = [
            Cell(i, raw)
            for i, raw in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"])
        ]
        self.code = [c for c in self.cells if c.kind == "code"]
        self.text = [c for c in self.cells if c.kind == "markdown"]
        self.kind = (
            "solutions"
            if "solutions" in path.parts
            else "index"
            if self.name == "index"
            else "course"
            if re.match(r"\d\d_", self.name)
            else "page"
        )

    def section(self, title: str) -> list[Cell]:
        "The cells under `## title`, up to the next heading of that level."
        start = next(
            (c.index for c in self.text if re.search(rf"^## {title}\b", c.source, re.M)), None
        )
        if start is None:
            return []
        after = self.cells[start + 1 :]
        end = next(
            (c.index for c in after if c.kind == "markdown" and re.search(r"^## ", c.source, re.M)),
            len(self.cells),
        )
        return self.cells[start:end]


Fault = tuple[int, str, str]  # cell, rule, what


def title(nb: Notebook) -> Iterator[Fault]:
    "1: a title and a one-line subtitle."
    if not nb.cells or not re.fullmatch(r"# [^\n]+\n\n> [^\n]+\s*", nb.cells[0].source):
        yield 0, "title", "the first cell must be `# Title`, an empty line, `> one-line subtitle`"


def opening(nb: Notebook) -> Iterator[Fault]:
    "2: what you will learn, prerequisites, time, hardware."
    second = nb.cells[1].source if len(nb.cells) > 1 else ""
    for word in ("You will learn", "Prerequisites:", "Time:", "Hardware:"):
        if f"**{word}" not in second:
            yield 1, "opening", f"the second cell must have **{word}**"


def star_imports(nb: Notebook) -> Iterator[Fault]:
    "3: no star imports."
    for cell in nb.code:
        for node in ast.walk(cell.tree()):
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                yield cell.index, "star-import", f"from {node.module} import *"


def one_module(nb: Notebook) -> Iterator[Fault]:
    "3: one default_exp at most."
    exports = [c.index for c in nb.cells for d in c.directives if d.startswith("default_exp")]
    if len(exports) > 1:
        yield exports[1], "default-exp", "more than one #| default_exp"


def no_export(nb: Notebook) -> Iterator[Fault]:
    "3: a notebook without a number exports nothing."
    for cell in nb.code:
        if cell.exported:
            yield cell.index, "default-exp", "only numbered notebooks export"


def imports_alone(nb: Notebook) -> Iterator[Fault]:
    "4: imports alone in their cells."
    for cell in nb.code:
        body = cell.tree().body
        imports = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
        if any(imports) and not all(imports):
            yield cell.index, "imports", "imports share a cell with other code"


def documented(nb: Notebook) -> Iterator[Fault]:
    "4: annotations, docments and docstrings on every exported name."
    for cell in nb.code:
        if not cell.exported:
            continue
        lines = cell.source.split("\n")
        for node in cell.tree().body:
            yield from ((cell.index, "docments", what) for what in undocumented(node, lines))


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
            if isinstance(child, ast.AnnAssign) and "#" not in lines[child.end_lineno - 1]:
                yield f"{name}.{ast.unparse(child.target)} has no docment"
            yield from undocumented(child, lines, f"{name}.")
        return
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
    seen = set()
    for argument in arguments:
        if argument.arg in ("self", "cls"):
            continue
        if argument.annotation is None:
            yield f"{name}({argument.arg}) has no annotation"
        if "#" not in lines[argument.lineno - 1] or argument.lineno in seen:
            yield f"{name}({argument.arg}) has no docment of its own"
        seen.add(argument.lineno)
    nothing = node.returns is not None and ast.unparse(node.returns) == "None"
    if special:
        return
    if node.returns is None:
        yield f"{name} has no return annotation"
    elif not nothing and "#" not in lines[node.returns.end_lineno - 1]:
        yield f"{name}'s return value has no docment"


def tested(nb: Notebook) -> Iterator[Fault]:
    "5: a test cell within three cells of every export."
    for at, cell in enumerate(nb.code):
        defines = cell.exported and any(
            not isinstance(n, (ast.Import, ast.ImportFrom)) for n in cell.tree().body
        )
        if defines and not any(
            TEST.search(c.source) and not c.exported for c in nb.code[at + 1 : at + 4]
        ):
            yield cell.index, "test", "no test cell among the next three code cells"


def equations(nb: Notebook) -> Iterator[Fault]:
    "6: every labelled equation has its line of code, and the other way round."
    tags = {n: c.index for c in nb.text for n in re.findall(r"\\tag\{(\d+)\}", c.source)}
    marks = {n: c.index for c in nb.code for n in re.findall(r"# Eq\. \((\d+)\)", c.source)}
    for n in tags.keys() - marks.keys():
        yield tags[n], "equation", f"equation ({n}) is labelled, but no line bears `# Eq. ({n})`"
    for n in marks.keys() - tags.keys():
        yield (
            marks[n],
            "equation",
            rf"a line bears `# Eq. ({n})`, but no equation here is labelled \tag{{{n}}}",
        )


def naive_beside(nb: Notebook) -> Iterator[Fault]:
    "7: the naive loop beside the vectorised form, compared."
    if not any(r"\tag{" in c.source for c in nb.text):
        return
    naive = [name for c in nb.code for name in re.findall(r"^def (\w+_naive)\(", c.source, re.M)]
    if not naive:
        yield 0, "naive", "an equation is implemented, but no function NAME_naive spells it out"
    for name in naive:
        if not any("assert_close" in c.source and f"{name}(" in c.source for c in nb.code):
            yield 0, "naive", f"{name} is never compared with the vectorised form by assert_close"


def shape_comments(nb: Notebook) -> Iterator[Fault]:
    "8: a shape comment on each reshape, einsum and matmul that is exported."
    reshaping = re.compile(r"\.(reshape|view|unflatten|permute)\(|einsum\(|matmul\(|bmm\(| @ ")
    for cell in nb.code:
        lines = cell.source.split("\n")
        for number, line in enumerate(lines):
            near = line + (
                lines[number - 1] if number and lines[number - 1].strip().startswith("#") else ""
            )
            if (
                cell.exported
                and reshaping.search(line.split("#")[0])
                and not re.search(r"#.*\[.*\]", near)
            ):
                yield cell.index, "shape-comment", line.strip()


def seeded(nb: Notebook) -> Iterator[Fault]:
    "9: random numbers come from an explicit generator."
    for cell in nb.code:
        for node in ast.walk(cell.tree()):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = ast.unparse(node.func)
            drawing = (
                name.startswith("torch.") and node.func.attr in RANDOM
            ) or node.func.attr in DRAWS_IN_PLACE
            if drawing and "generator" not in {k.arg for k in node.keywords}:
                yield cell.index, "seed", f"{name}(…) without generator="
            legacy = re.match(
                r"(np|numpy)\.random\.(?!default_rng|Generator)|random\.(seed|random|randint|choice|shuffle)\b",
                name,
            )
            if legacy or (name.endswith("default_rng") and not node.args):
                yield cell.index, "seed", f"{name}(…) draws from global or unseeded state"


def offline(nb: Notebook) -> Iterator[Fault]:
    "9: no network, no absolute path."
    for cell in nb.code:
        for node in ast.walk(cell.tree()):
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_IMPORTS:
                    yield cell.index, "network", f"imports {module}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.match(
                    r"/(home|root|tmp|work|Users|mnt|opt|var|usr|data|content)(/|$)|[A-Z]:\\",
                    node.value,
                ):
                    yield cell.index, "path", f"absolute path {node.value!r}"
        if re.search(r"^\s*[!%]\s*(pip|conda|wget|curl|apt)", cell.source, re.M):
            yield cell.index, "network", "installs or downloads"


def leaves(nb: Notebook) -> Iterator[Fault]:
    """9: `#| slow` and `#| gpu` cells are leaves: no later unflagged cell uses a name that only
    they define.
    """
    defined, flagged = set(), {}
    for cell in nb.code:
        tree = cell.tree()
        used = {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
        }
        stored = {
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        stored |= {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        if cell.flags & {"slow", "gpu"}:
            flagged.update({name: cell.index for name in stored - defined})
            continue
        for name in (used & flagged.keys()) - stored:
            yield (
                cell.index,
                "leaf",
                f"uses {name}, which only the flagged cell {flagged[name]} defines",
            )
        defined |= stored
        flagged = {name: at for name, at in flagged.items() if name not in stored}


def size(nb: Notebook) -> Iterator[Fault]:
    "10: at most 60 cells, 150 exported lines, 300 KB, images of 100 KB."
    if len(nb.cells) > MAX_CELLS:
        yield 0, "size", f"{len(nb.cells)} cells, at most {MAX_CELLS}"
    exported = sum(code_lines(c) for c in nb.code if c.exported)
    if exported > MAX_EXPORTED_LINES:
        yield 0, "size", f"{exported} exported lines, at most {MAX_EXPORTED_LINES}"
    kb = nb.path.stat().st_size / 1000
    if kb > MAX_KB:
        yield 0, "size", f"{kb:.0f} KB, at most {MAX_KB}"
    for cell in nb.code:
        for image in cell.images():
            if len(image) > MAX_IMAGE_KB * 1000:
                yield (
                    cell.index,
                    "size",
                    f"an image of {len(image) / 1000:.0f} KB, at most {MAX_IMAGE_KB}",
                )


def code_lines(cell: Cell) -> int:
    """Lines of code in a cell: statements, without imports, docstrings, signatures, comments and
    blank lines.
    """
    lines = set()
    for node in ast.walk(cell.tree()):
        docstring = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        if (
            not isinstance(node, ast.stmt)
            or docstring
            or isinstance(node, (ast.Import, ast.ImportFrom))
        ):
            continue
        has_body = isinstance(
            node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)
        )
        lines.update([node.lineno] if has_body else range(node.lineno, node.end_lineno + 1))
    return len(lines)


def clean_outputs(nb: Notebook) -> Iterator[Fault]:
    "10: no error and no stderr in the outputs."
    for cell in nb.code:
        for output in cell.outputs:
            if output["output_type"] == "error":
                yield cell.index, "output", f"an error is kept: {output.get('ename')}"
            if output.get("name") == "stderr":
                yield cell.index, "output", "stderr is kept"


def figures(nb: Notebook) -> Iterator[Fault]:
    "11: alt text, axis labels or a caption, colour maps for everyone."
    for cell in nb.code:
        maps = set(re.findall(r"cmap\s*=\s*[\"'](\w+)[\"']", cell.source)) & BAD_COLOUR_MAPS
        if maps:
            yield cell.index, "colour", f"colour map {maps.pop()} misleads the colour-blind"
        if not cell.images():
            continue
        if not any(d.startswith("fig-alt:") for d in cell.directives):
            yield cell.index, "alt-text", "a figure without #| fig-alt"
        if not re.search(r"#\|\s*fig-cap:|xlabel", cell.source):
            yield cell.index, "caption", "a figure with neither axis labels nor #| fig-cap"


def failures(nb: Notebook) -> Iterator[Fault]:
    "13: at least two failures, executed."
    section = nb.section("What can go wrong")
    run = [
        c
        for c in section
        if c.kind == "code"
        and not c.flags & {"slow", "gpu", "notest"}
        and "eval: false" not in c.directives
    ]
    if len(run) < 2:
        yield (
            (section[0].index if section else 0),
            "failures",
            "`## What can go wrong` needs at least two executed failures",
        )


def exercises(nb: Notebook) -> Iterator[Fault]:
    "13: at least three graded exercises, each with an executed solution."
    section = nb.section("Exercises")
    at = section[0].index if section else 0
    labels = {
        m
        for c in section
        if c.kind == "code"
        for m in re.findall(r"check_exercise\(\s*[\"']([\w.]+)[\"']", c.source)
    }
    if len(labels) < 3:
        yield (
            at,
            "exercises",
            f"`## Exercises` needs at least three check_exercise calls, has {len(labels)}",
        )
    if sum("★" in c.source for c in section if c.kind == "markdown") == 0:
        yield at, "exercises", "the exercises are not graded by ★"
    solutions = nb.path.parent / "solutions" / f"{nb.name}_solutions.ipynb"
    if not solutions.exists():
        yield at, "exercises", f"no solutions/{solutions.name}"
        return
    printed = "".join(
        "".join(o.get("text", "")) for c in Notebook(solutions).code for o in c.outputs
    )
    for label in sorted(labels):
        if f"Exercise {label}: solved." not in printed:
            yield (
                at,
                "exercises",
                f"solutions/{solutions.name} does not show exercise {label} solved",
            )


def ending(nb: Notebook) -> Iterator[Fault]:
    "13: summary, the way on, references."
    for heading in ("Summary", "References"):
        if not nb.section(heading):
            yield len(nb.cells) - 1, "ending", f"no `## {heading}`"
    if not any("**Next:**" in c.source or "**Previous:**" in c.source for c in nb.text):
        yield len(nb.cells) - 1, "ending", "no **Next:** / **Previous:**"
    references = "".join(c.source for c in nb.section("References"))
    if references and not re.search(r"arxiv\.org|doi\.org", references):
        yield len(nb.cells) - 1, "ending", "the references have neither DOI nor arXiv number"


def links(nb: Notebook) -> Iterator[Fault]:
    "Links between notebooks lead somewhere."
    for cell in nb.text:
        for target in re.findall(r"\]\(([^)#\s]+\.ipynb)", cell.source):
            if "://" not in target and not (nb.path.parent / target).exists():
                yield cell.index, "link", f"no such notebook: {target}"


EVERYWHERE = [
    title,
    star_imports,
    one_module,
    imports_alone,
    documented,
    seeded,
    offline,
    leaves,
    size,
    clean_outputs,
    figures,
    links,
]
COURSE = [opening, tested, equations, naive_beside, shape_comments, failures, exercises, ending]
PAGE = [opening, no_export, ending]  # without a number: a page of the site beside the course


def check(paths: list[Path]) -> list[str]:
    "All faults of some notebooks, a line each."
    faults, modules = [], {}
    for path in paths:
        nb = Notebook(path)
        for rule in EVERYWHERE + {"course": COURSE, "page": PAGE}.get(nb.kind, []):
            faults += [f"{path.name}:{cell} {name}: {what}" for cell, name, what in rule(nb)]
        for module in (
            d.split()[1] for c in nb.cells for d in c.directives if d.startswith("default_exp ")
        ):
            if module in modules:
                faults.append(f"{path.name}:0 default-exp: {modules[module]} exports {module} too")
            modules[module] = path.name
    return faults


def too_slow(text: str) -> list[str]:
    "Notebooks over the time limit, from the output of `nbdev_test --timing`."
    took = re.findall(r"^(\S+\.ipynb): (\d+) secs", text, re.M)
    return [
        f"{Path(name).name}:0 time: {seconds} s, at most {MAX_SECONDS}"
        for name, seconds in took
        if float(seconds) > MAX_SECONDS
    ]


def time_again(text: str) -> str:
    """The same output, after notebooks over the limit were run once more, by the processor's clock:
    what else the machine does counts for nothing.
    """
    for fault in too_slow(text):
        name = fault.partition(":")[0]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(
            [
                Path(sys.executable).with_name("nbdev_test"),
                "--path",
                next((ROOT / "nbs").rglob(name)),
            ],
            capture_output=True,
        )
        text = re.sub(
            rf"^(\S*{re.escape(name)}): \d+ secs",
            rf"\1: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f} secs",
            text,
            flags=re.M,
        )
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--timings", type=Path, help="output of nbdev_test --timing")
    arguments = parser.parse_args()
    paths = arguments.notebooks or sorted(
        p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts
    )
    faults = check([p.resolve() for p in paths])
    if arguments.timings:
        faults += too_slow(time_again(arguments.timings.read_text()))
    print("\n".join(faults) if faults else f"{len(paths)} notebooks are in form.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
