#!/usr/bin/env python3
"""Write worksheets for a class: every solutions notebook with its solutions taken out.

    python scripts/blank_solutions.py                 # into _teaching/; what `make teaching` runs
    python scripts/blank_solutions.py --out FOLDER

A worksheet has the exercises' words from the notebook that sets them, the set-up and the checks
from the solutions, and `answer = None` where the solution was. It runs as it is and says of each
exercise that it is not answered yet. Needs the standard library alone.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from project import ROOT, all_solutions, exercises_of

LABEL = re.compile(r"\*\*Exercise (\d+)\s*★")


def source(cell: dict) -> str:
    "A cell's text."
    return "".join(cell["source"])


def used(node: ast.AST) -> set[str]:
    "The names that a piece of code reads."
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def made(node: ast.AST) -> set[str]:
    "The names that a statement defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return {
        n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }


def check_call(node: ast.AST) -> ast.Call | None:
    "The call of check_exercise that a statement is, if it is one."
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        call
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "check_exercise"
        else None
    )


def blank(code: str) -> str:
    "A cell that solves and checks, without what only the solution needs."
    tree, lines = ast.parse(code), code.split("\n")
    at = next(i for i, node in enumerate(tree.body) if check_call(node))
    call = check_call(tree.body[at])
    answer, test = ast.unparse(call.args[1]), ast.unparse(call.args[2])
    needed, kept = {test}, []
    for node in reversed(tree.body[:at]):
        names = made(node)
        if names & needed and answer not in names:
            kept.insert(0, node)
            needed |= used(node) - names
    text = ["answer = None  # your answer"]
    for node in kept:
        first = min([node.lineno, *[d.lineno for d in getattr(node, "decorator_list", [])]])
        text += ["", "", *lines[first - 1 : node.end_lineno]]
    gone = {answer, *(name for node in tree.body[:at] if node not in kept for name in made(node))}
    after = "\n".join(
        ast.get_source_segment(code, node) for node in tree.body[at + 1 :] if not used(node) & gone
    )
    label = ast.unparse(call.args[0]).replace("'", '"')
    text += ["", "", f"check_exercise({label}, answer, {test})", *([after] if after else [])]
    return "\n".join(text)


def questions(notebook: Path) -> dict[str, str]:
    "The words of each exercise, by its label."
    found = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        label = LABEL.search(source(cell))
        if cell["cell_type"] == "markdown" and label:
            found[label[1]] = source(cell)[label.start() :]
    return found


def text_cell(name: str, text: str) -> dict:
    "A cell of text."
    return {"cell_type": "markdown", "metadata": {}, "id": name, "source": text}


def worksheet(solutions: Path) -> dict:
    "A solutions notebook without its solutions."
    notebook = json.loads(solutions.read_text(encoding="utf-8"))
    lesson = exercises_of(solutions)
    words = questions(lesson)
    started, lost = False, set()
    first = source(json.loads(lesson.read_text(encoding="utf-8"))["cells"][0])
    title = first.split("\n")[0].removeprefix("# ")
    how = "> Set `answer` in each cell and run it; the check says when you are done"
    cells = [text_cell("worksheet", f"# Worksheet: {title}\n\n{how}")]
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            started = started or "★" in text
            continue
        cell = {**cell, "outputs": [], "execution_count": None}
        tree = ast.parse(re.sub(r"^[%!].*$", "pass", text, flags=re.M))  # IPython's own commands
        if any(check_call(node) for node in tree.body):
            label = ast.literal_eval(
                next(check_call(n) for n in tree.body if check_call(n)).args[0]
            )
            lost |= {name for node in tree.body for name in made(node)}
            cells.append(text_cell(f"question-{label}", words[label]))
            cells.append({**cell, "source": blank(text)})
        elif not started or not (used(tree) & lost):
            cells.append({**cell, "source": text})
    return {**notebook, "cells": cells}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_teaching")
    out = parser.parse_args().out
    paths = all_solutions()
    for path in paths:
        target = out / path.parent.name / path.name.replace("_solutions", "_worksheet")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps(worksheet(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(f"{len(paths)} worksheets in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
