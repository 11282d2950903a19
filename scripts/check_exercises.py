#!/usr/bin/env python3
"""Hold every exercise to its check: it refuses what is not solved and accepts the solution.

    python scripts/check_exercises.py                      # every notebook
    python scripts/check_exercises.py nbs/course/01_attention.ipynb

Runs the solutions and keeps their answers; then runs what the notebook's checks need of it, and
gives each of them what an unsolved notebook holds (nothing, a function that returns nothing, one
that returns what it was given), which must be refused, and the solution's answer, which must be
accepted.
"""

import argparse
import ast
import contextlib
import io
import json
import linecache
import os
import re
import symtable
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from project import lessons, solutions_of

UNSOLVED = {
    "None": None,
    "any object": object(),
    "a function that returns nothing": lambda *_, **__: None,
    "a function that returns what it was given": lambda *given, **_: given[0] if given else None,
}


def code_cells(notebook: Path) -> dict[int, str]:
    """The source of a notebook's code cells that run anywhere, by their place.

    Without IPython's own commands.
    """
    cells = enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    sources = {
        index: "".join(cell["source"]) for index, cell in cells if cell["cell_type"] == "code"
    }
    return {
        index: re.sub(r"^[%!].*$", "pass", source, flags=re.M)
        for index, source in sources.items()
        if not re.search(r"^#\|\s*(slow|gpu|notest)\b", source, re.M)
    }


def names_in(source: str) -> tuple[set[str], set[str]]:
    "Names of the notebook that a cell uses, and those that it makes or changes."
    used, made = set(), set()
    tables = [symtable.symtable(source, "cell", "exec")]
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() != "module" and not symbol.is_global():
                continue  # a function's own name
            if symbol.is_referenced():
                used.add(symbol.get_name())
            if symbol.is_assigned() or symbol.is_imported():
                made.add(symbol.get_name())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            # x[0] = 1 changes x
            made |= {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)} & used
    return used, made


def replaced_by(source: str) -> set[str]:
    "Names that a cell gives a new value, whatever they were."
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            parts = [part for target in node.targets for part in ast.walk(target)]
            names = [part for part in parts if isinstance(part, ast.Name)]
            found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return found


def is_exported(source: str) -> bool:
    "Whether a cell is part of a module."
    return bool(re.search(r"^#\|\s*export", source, re.M))


def needed_by_checks(cells: dict[int, str]) -> dict[int, str]:
    "The cells that check an exercise, and those that they stand on."
    kept, wanted = {}, {"check_exercise"}
    for index, source in reversed(cells.items()):
        used, made = names_in(source)
        if "check_exercise(" in source or made & wanted:
            kept[index] = source
            wanted -= replaced_by(source)
            # what a module defines needs no other cell
            wanted |= {"check_exercise"} | (set() if is_exported(source) else used)
    return dict(reversed(kept.items()))


def run(notebook: Path, check, whole: bool = True) -> None:
    """Execute a notebook's cells, or those that its checks need, in its own folder, with `check` in
    the place of `check_exercise`.
    """
    from IPython.display import display

    from slot_attention_nbdev import core

    before = core.check_exercise
    core.check_exercise = check
    names = {"__name__": "__main__", "display": display}
    exported = re.search(r"#\|\s*default_exp\s+([\w.]+)", notebook.read_text(encoding="utf-8"))
    module = None
    if exported:
        exec(f"import slot_attention_nbdev.{exported[1]}")
        module = sys.modules[f"slot_attention_nbdev.{exported[1]}"]
    cells = code_cells(notebook)
    home = Path.cwd()
    os.chdir(notebook.parent)
    try:
        for index, source in (cells if whole else needed_by_checks(cells)).items():
            # the solutions have imported these very objects: a second copy would be another class
            if is_exported(source):
                names.update(
                    {
                        name: getattr(module, name)
                        for name in names_in(source)[1]
                        if hasattr(module, name)
                    }
                )
                continue
            # a notebook that defines or imports it writes over ours
            names["check_exercise"] = check
            where = f"{notebook.name}:{index}"
            # Triton reads the source of its kernels
            linecache.cache[where] = len(source), None, source.splitlines(keepends=True), where
            exec(compile(source, where, "exec"), names)
            if "plt" in names:
                names["plt"].close("all")
    finally:
        core.check_exercise = before
        os.chdir(home)


def refused(test, answer) -> bool:
    "Whether a check raises anything at all."
    try:
        test(answer)
    except Exception:
        return True
    return False


def faults_of(notebook: Path) -> list[str]:
    "What is wrong with the exercises of one notebook."
    answers, seen, faults = {}, [], []

    def keep(label, answer, test):
        test(answer)
        answers[label] = answer

    def hold(label, answer, test):
        # not an exercise, but the notebook that shows how checking works
        if answer is not None or label == "0":
            return answer is None or test(answer)
        seen.append(label)
        faults.extend(
            f"{notebook.name}: exercise {label} accepts {what}"
            for what, unsolved in UNSOLVED.items()
            if not refused(test, unsolved)
        )
        if label not in answers:
            faults.append(f"{notebook.name}: exercise {label} has no solution")
            return None
        try:
            test(answers[label])
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[:300]}"
            faults.append(f"{notebook.name}: exercise {label} refuses its solution: {why}")

    with contextlib.redirect_stdout(io.StringIO()):
        run(solutions_of(notebook), keep)
        run(notebook, hold, whole=False)
    unasked = sorted(answers.keys() - set(seen))
    return faults + [f"{notebook.name}: a solution to {n}, which it does not ask" for n in unasked]


def with_exercises() -> list[Path]:
    "The notebooks that ask anything."
    return [p for p in lessons() if "answer = None" in p.read_text(encoding="utf-8")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    paths = [p.resolve() for p in parser.parse_args().notebooks] or with_exercises()
    faults = []
    for path in paths:
        found = faults_of(path)
        faults += found
        print("\n".join(found) if found else f"{path.name}: every check holds", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    # one process runs all notebooks, and Triton asks once, when the first of them imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.exit(main())
