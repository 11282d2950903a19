#!/usr/bin/env python3
"""What an update, a batch and an evaluation cost a GPU: kernels to launch, and waits for a value.

No GPU is needed: operations are counted on a CPU, as `data_supply.py` counts them.

    export OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
    python benchmarks/launches.py   # prints a table; minutes
    python benchmarks/launches.py --json results/benchmarks/launches.json   # writes the record

"by itself": each operation of the model, of the loss and of their gradients is launched.
"compiled": `torch.compile` merges them. Forward and backward pass are a graph each, and on a CUDA
GPU a graph of static shapes is one launch, after a copy of each of its inputs. "kernels" are those
inside, as Inductor schedules them for a CPU; for a GPU, which it cannot compile for here, it has
the same rules for what is merged.

A value is waited for where it comes from the GPU: `Placed` knows what was read, and what a program
does with its own numbers costs neither launch nor wait.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from data_supply import Counter, as_on_a_gpu, count
from slot_attention_nbdev.core import table
from slot_attention_nbdev.data.sources import Batches, evaluation_scenes, generated_set, hold_out
from slot_attention_nbdev.train.checkpoints import run_facts
from slot_attention_nbdev.train.recipes import get_recipe
from slot_attention_nbdev.train.tasks import task_of, validation_metric
from slot_attention_nbdev.train.trainer import Trainer
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

RECIPES = ["tetrominoes_paper", "multi_dsprites_paper", "clevr6_paper", "clevr10_properties_paper"]
TRACED = dict(
    resolution=16, scenes=64
)  # the sets that are slow to draw, for a batch of their split
SMALL = dict(batch_size=2, scenes=0, warmup_steps=0)  # the count depends on no size


class EveryLaunch(Counter):
    "A counter that leaves compiled code compiled."

    @classmethod
    def ignore_compile_internals(cls):
        return True


class Placed(EveryLaunch):
    "A counter that tells numbers on the CPU from those on a GPU, though all lie on the CPU."

    def __init__(
        self,
        ours: Iterable[torch.Tensor] = (),  # What lies on the CPU from the start
    ):
        super().__init__()
        self.ours = {}  # by address; kept, so that no address is given to another
        for each in ours:
            self.own(each)

    def own(self, x: torch.Tensor) -> torch.Tensor:
        "The tensor, of which is known that it lies on the CPU."
        if x.numel():
            self.ours[x.untyped_storage().data_ptr()] = x
        return x

    def is_ours(self, x: torch.Tensor) -> bool:
        "Whether a tensor lies on the CPU."
        return x.untyped_storage().data_ptr() in self.ours

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if not any(map(self.is_ours, tensors)):
            return super().__torch_dispatch__(func, types, args, kwargs)
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                self.own(x)
        return made

    def read(self, x: torch.Tensor) -> torch.Tensor:
        "In the place of `Tensor.cpu`."
        if self.is_ours(x):
            return x
        self.waits += 1
        with _disable_current_modes():
            return self.own(x.clone())

    @contextmanager
    def counting(self) -> Iterator["Placed"]:
        "Count what is done meanwhile."
        bring, make, share = torch.Tensor.to, torch.tensor, torch.from_numpy

        def to(x, *args, **kwargs):
            found = bring(x, *args, **kwargs)
            target = kwargs.get("device", args[0] if args else None)
            with _disable_current_modes():
                away = isinstance(target, torch.device) and self.is_ours(found)
                return found.clone() if away else found

        def tensor(*args, **kwargs):
            # beside a tensor of the GPU it is counted as a wait; later, beside what was read, not
            if kwargs.get("device") is not None and not self.waits:
                return make(*args, **kwargs)
            with _disable_current_modes():
                return self.own(make(*args, **kwargs))

        def from_numpy(array):
            with _disable_current_modes():
                return self.own(share(array))

        with ExitStack() as stack:
            for where, name, what in (
                (torch.Tensor, "cpu", lambda x: self.read(x)),
                (torch.Tensor, "to", to),
                (torch.Tensor, "is_cpu", property(self.is_ours)),
                (torch, "tensor", tensor),
                (torch, "as_tensor", tensor),
                (torch, "from_numpy", from_numpy),
            ):
                stack.enter_context(mock.patch.object(where, name, what))
            with self:
                yield self


def count_call(call: Callable, ours: Iterable[torch.Tensor] = ()) -> dict[str, int]:
    "Launches and waits of a call; `ours` lies on the CPU before it."
    with Placed(ours).counting() as counter:
        call()
    return {"launches": counter.launches, "waits": counter.waits}


class Scheduled(Exception):
    "All kernels of a graph are known; the compiler of C++ need not run."


def scheduled_kernels(graph: torch.fx.GraphModule, inputs: list) -> int:
    "How many kernels Inductor makes of a graph: merged loops, products, convolutions."
    found, copy = [], torch.fx.Graph()
    copy.output(copy.graph_copy(graph.graph, {}))  # Inductor changes what it is given

    def stop(lowering):
        lowering._update_scheduler()
        nodes = lowering.scheduler.nodes
        found.append(sum(not isinstance(node, NopKernelSchedulerNode) for node in nodes))
        raise Scheduled

    with mock.patch.object(GraphLowering, "compile_to_module", stop):
        try:
            compile_fx_inner(torch.fx.GraphModule(graph, copy), inputs)
        except Exception:
            if not found:
                raise
    return found[0]


class CompiledUpdate:
    "A backend of `torch.compile` that runs a graph as it is and counts it as one launch."

    def __init__(self, counter: EveryLaunch):
        self.counter = counter
        self.kernels = []  # of each graph
        self.known = set()  # addresses that a graph need not copy: weights, and what it has made

    def compile(self, graph, inputs):
        self.kernels.append(scheduled_kernels(graph, inputs))

        def call(*arguments):
            tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
            copied = sum(each.data_ptr() not in self.known for each in tensors)
            with _disable_current_modes():
                made = graph(*arguments)
            self.known |= {each.data_ptr() for each in made if isinstance(each, torch.Tensor)}
            self.counter.launches += 1 + copied
            return made

        return call

    def backend(self):
        return aot_autograd(
            fw_compiler=self.compile, bw_compiler=self.compile, decompositions=select_decomp_table()
        )


def count_update(name: str, compiled: bool) -> dict:
    "Launches and waits of an update; the compiled graphs' own kernels."
    recipe = get_recipe(name, compile="off", **SMALL)
    run = Trainer(recipe)
    scenes = evaluation_scenes(recipe.data, recipe.batch_size)
    counter = Placed()
    graphs = CompiledUpdate(counter)
    if compiled:
        run.objective.compile_parts(backend=graphs.backend())
    run.training_step(scenes)  # compiles; Adam makes its averages
    graphs.known = {weight.data_ptr() for weight in run.model.parameters()}
    counter.launches = 0
    with counter.counting():
        run.training_step(scenes)
    found = {"launches": counter.launches, "waits": counter.waits}
    return found | ({"kernels": sum(graphs.kernels)} if compiled else {})


def count_evaluation(name: str) -> dict[str, dict]:
    "Launches and waits of the two parts of the evaluation that a run makes."
    recipe = get_recipe(name, compile="off", **SMALL)
    run = Trainer(recipe)
    scenes = evaluation_scenes(recipe.data, 4)
    calls = {
        "evaluation": lambda: validation_metric(run.ema, scenes, 0),
        "preview": lambda: task_of(run.ema).preview(run.ema, scenes, 0),
    }
    return {what: count_call(call, scenes.values()) for what, call in calls.items()}


def count_batch(name: str) -> dict:
    "Launches and waits of a batch from the published split, which lies on the GPU."
    first, second = as_on_a_gpu()
    with first, second, tempfile.TemporaryDirectory() as folder:
        size = TRACED if generated_set(name).slow else dict(scenes=640)
        source, n, _ = hold_out(name, 4, cache=folder, progress=False, **size)
        launches, waits, _ = count(Batches(source, 64, n=n))
    return {"launches": launches, "waits": waits}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, help="all of the paper's, if none")
    parser.add_argument("--json", help="file to write the record to")
    options = parser.parse_args()
    record = {}
    for name in options.recipes:
        record[name] = {
            "update": count_update(name, False),
            "batch": count_batch(get_recipe(name).data),
            **count_evaluation(name),
            "update, compiled": count_update(name, True),
        }
        print(name, record[name], flush=True)
    rows = [("recipe", "what", "launches", "waits", "kernels inside")]
    for name, found in record.items():
        rows += [
            (name, what, each["launches"], each["waits"], each.get("kernels", ""))
            for what, each in found.items()
        ]
    print(table(rows))
    if options.json:
        facts = run_facts(torch.device("cpu"))
        kept = {key: facts[key] for key in ("commit", "versions")}
        Path(options.json).write_text(json.dumps(record | kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
