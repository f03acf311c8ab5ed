#!/bin/sh
# Trains the EAGLE-3 head of tiny-maverick from nothing: prompts, the model's own greedy continuations, its features,
# training, export, evaluation. Everything is seeded. Work files go to build/train/eagle3, the result to
# models/tiny-maverick-eagle3. What is there already is kept; interrupted steps go on where they stopped.
# Needs a built mav. Settings: MAV, STEPS, PROMPTS, MORE; MODEL, OUT, WORK (absolute folders).
set -eu
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${WORK:-$root/build/train}/venv
work=${WORK:-$root/build/train}/eagle3
model=${MODEL:-$root/models/tiny-maverick}
out=${OUT:-$root/models/tiny-maverick-eagle3}
mav=${MAV:-$root/build/release/mav}
mkdir -p "$work"

# large blocks stay in the process: returning them to the system costs more than the arithmetic
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
export OMP_NUM_THREADS=1

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -q -r "$here/requirements.txt"
python="$venv/bin/python"

cd "$here"
rollouts() { # name, options of eagle3_prompts.py
  name=$1
  shift
  [ -f "$work/$name.prompts.jsonl" ] || "$python" eagle3_prompts.py --model "$model" --out "$work/$name.prompts.jsonl" "$@"
  "$mav" eagle3_rollout.lua "$model" "$work/$name.prompts.jsonl" "$work/$name.jsonl"
}

rollouts heldout --heldout "$model/eval/heldout.jsonl"
rollouts chat --count 100 --kinds chat asked --popular 0.2 --free 0 --seed 901
rollouts edit --count 100 --kinds edit --free 0 --seed 902
rollouts file --count 60 --kinds file long --free 0 --seed 903
held="$work/heldout.prompts.jsonl $work/chat.prompts.jsonl $work/edit.prompts.jsonl $work/file.prompts.jsonl"

# shellcheck disable=SC2086 # a list of files
rollouts train --count "${PROMPTS:-9000}" --seed 11 --avoid $held
# shellcheck disable=SC2086
rollouts more --count "${MORE:-1500}" --kinds chat asked edit --popular 0.15 --free 0 --seed 13 --avoid $held

"$python" eagle3_features.py --model "$model" --rollouts "$work/train.jsonl" "$work/more.jsonl" --out "$work/features"
"$python" train_eagle3.py --model "$model" --data "$work/features" --out "$work/run" --steps "${STEPS:-1000}" --lr 4e-3 \
  --head-dim 32 --inner 256 --draft-vocab 704
"$python" export_eagle3.py --checkpoint "$work/run/checkpoint.pt" --model "$model" --out "$out"
"$python" evaluate_eagle3.py --head "$out" --model "$model" --golden "$out/golden.safetensors" --report "$out/eval.json" \
  --rollouts "$work/heldout.jsonl" "$work/chat.jsonl" "$work/edit.jsonl" "$work/file.jsonl"
