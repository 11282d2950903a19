#!/usr/bin/env bash
# The first minutes on a GPU: is it right, is it fast, does it learn? At most nine of them.
#
#     scripts/first_gpu.sh [FOLDER]             # runs/first_gpu; the same command again goes on
#     scripts/first_gpu.sh --rehearse [FOLDER]  # on a CPU, with tiny sizes: does the script work?
#
# Every part has a limit. One that runs out of time leaves the record of what it has. Started
# again, the script takes up trainings where they stopped, and tests and timings from the start;
# what is done is not done again. FOLDER/records.tgz holds all
# that is worth keeping, and is complete after every part.
# Ends with 0 if everything is done, 3 if something is left, 1 if something failed.
set -uo pipefail
cd "$(dirname "$0")/.."
[ -d .venv ] && export PATH="$PWD/.venv/bin:$PATH"
python=${PYTHON:-python}

if [ "${1:-}" = --rehearse ]; then
    shift
    device=cpu seeds=0 quick=--quick
    settings=(budget=0 steps=2 batch_size=2 eval_images=4 scenes=8) clevr=()
    tetrominoes_budget=() clevr_budget=()
else
    device=cuda seeds="0 1 2" quick=
    settings=(eval_every=500 checkpoint_every=500)
    clevr=(scenes=6000)  # traced on the CPU; all 70,000 would take longer than the lease
    tetrominoes_budget=(--budget 40s) clevr_budget=(--budget 50s)
    if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        echo "first_gpu.sh: PyTorch sees no CUDA card here; --rehearse tries the script without" >&2
        exit 2
    fi
fi
folder=${1:-runs/first_gpu}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
total=${FIRST_GPU_SECONDS:-520}  # of the nine minutes, a few seconds are for the last part's end
export SLOT_ATTENTION_CACHE="$folder/.cache" TORCHINDUCTOR_CACHE_DIR="$folder/.cache/inductor"
failed=0 left=0

keep() {  # what has come so far, in one file
    (cd "$folder" && find . -path ./.cache -prune -o -type f \( -name '*.txt' -o -name '*.json' \
        -o -name '*.png' -o -name '*.safetensors' \) -print | tar czf .records.part -T - \
        && mv .records.part records.tgz)
}

part() {  # NAME, SECONDS at most, COMMAND ...
    local name=$1 limit=$2 rest=$((total - SECONDS)) code
    shift 2
    if [ -e "$folder/$name.done" ]; then
        echo "== $name: was done before"
        return
    fi
    [ "$rest" -lt "$limit" ] && limit=$rest
    if [ "$limit" -lt 5 ]; then
        echo "== $name: no time left"
        left=1
        return
    fi
    echo "== $name: at most $limit s"
    timeout --kill-after=15 "$limit" "$@" 2>&1 | tee -a "$folder/$name.txt"
    code=${PIPESTATUS[0]}
    case $code in
        0) touch "$folder/$name.done" ;;
        124 | 137) echo "== $name: out of time; what it has is kept" && left=1 ;;
        *) echo "== $name: failed ($code)" && failed=1 ;;
    esac
    keep
}

run() {  # NAME, SECONDS at most, RECIPE, SEED, ARGUMENTS ...
    local out="$folder/$1" resume=()
    [ -e "$out/checkpoint.pt" ] && resume=(--resume)
    part "$1" "$2" "$python" -m slot_attention_nbdev.cli train "$3" --seed "$4" --out "$out" \
        --device $device "${settings[@]}" "${@:5}" ${resume[@]+"${resume[@]}"}
}

peers=--peers
if ! "$python" -c 'import slot_attention' 2> /dev/null; then
    echo "the package slot-attention is not installed: ours are timed without a peer"
    peers=
fi
mapfile -t marked < <(grep -rlE '^ *@pytest\.mark\.gpu|pytestmark.*gpu' tests --include='test_*.py')
part tests 70 "$python" -m pytest -q -p no:cacheprovider -m gpu "${marked[@]}"
part bench 130 "$python" -m slot_attention_nbdev.cli bench --device $device $peers $quick \
    --out "$folder/bench"
for seed in $seeds; do
    run "tetrominoes-seed$seed" 80 tetrominoes_short "$seed" ${tetrominoes_budget[@]+"${tetrominoes_budget[@]}"}
done
run clevr6-seed0 160 clevr6_short 0 ${clevr[@]+"${clevr[@]}"} ${clevr_budget[@]+"${clevr_budget[@]}"}

"$python" - "$folder" << 'EOF' | tee "$folder/summary.txt"
import sys
from pathlib import Path

from slot_attention_nbdev.cli import format_metrics
from slot_attention_nbdev.models.weights import load_record

for path in sorted(Path(sys.argv[1]).glob("*/record.json")):
    record = load_record(path)
    print(f"{path.parent.name}: {record['step']} updates in {record['seconds']:.0f} s")
    for goal in (0.95, 0.99):
        end = {"seconds": record["seconds"], **(record.get("final") or {})}
        curve = ((p["seconds"], p.get("fg_ari") or 0) for p in (*record["curve"], end))
        reached = next((f"after {s:.0f} s" for s, score in curve if score >= goal), "never")
        print(f"FG-ARI {goal}: {reached}")
    print(format_metrics(record["final"]) if record.get("final") else "not finished", end="\n\n")
EOF
keep
echo "$SECONDS s; records: $folder/records.tgz"
[ $failed = 1 ] && exit 1
[ $left = 1 ] && exit 3
exit 0
