#!/usr/bin/env bash
# What `make test` runs: code style, layers, the notebooks themselves, their form, then pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" MPLBACKEND=Agg
# One thread a process: two processes that share two cores would otherwise wait for each other.
export OMP_NUM_THREADS=1
workers=$(python -c 'import os
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(min(cores, 8))')

echo "== style"
ruff check .
ruff format --check --quiet .
echo "== layers"
lint-imports --no-logo --no-cache
echo "== notebooks run"
timings=$(mktemp)
trap 'rm -f "$timings"' EXIT
# Several notebooks share a process, and Triton reads this once, when it is first imported. Two that
# define operators of torch.library anew have a process each.
export TRITON_INTERPRET=1
nbdev_test --n_workers "$workers" --skip_file_re '^[_.]|^02_one_pass.ipynb|^03_triton.ipynb' --timing | tee "$timings"
printf '%s\n' nbs/speed/02_one_pass.ipynb nbs/speed/03_triton.ipynb |
    xargs -P "$workers" -I {} nbdev_test --path {} --n_workers 0 --timing | tee -a "$timings"
unset TRITON_INTERPRET
[ "$(grep -c Success "$timings")" = 3 ]
echo "== notebooks' form"
python scripts/check_notebooks.py --timings "$timings"
echo "== reading order"
python scripts/check_reading_order.py
echo "== tests"
# worksteal: each worker begins with a run of neighbours, which share what a file sets up
python -m pytest -q --timeout 400 -n "$workers" --dist worksteal tests
