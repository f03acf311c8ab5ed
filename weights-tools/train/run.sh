#!/bin/sh
# Trains tiny-maverick from nothing: environment, data, tokenizer, training, export, check, evaluation.
# Everything is seeded. Work files go to build/train, the result to models/tiny-maverick.
# Interrupted training resumes from its checkpoint. Settings: STEPS, STEPS2, STEPS3, DOCS, WORKERS, LUA; MODEL, WORK (absolute folders).
set -eu
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${WORK:-$root/build/train}
model=${MODEL:-$root/models/tiny-maverick}
lua=${LUA:-lua5.4}
mkdir -p "$work"

# large blocks stay in the process: returning them to the system costs more than the arithmetic
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
export OMP_NUM_THREADS=1

[ -x "$work/venv/bin/python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q -r "$here/requirements.txt"
python="$work/venv/bin/python"

cd "$here"
train() { # folder of the data, folder of the checkpoint, further options
  data=$1 out=$2
  shift 2
  "$python" train.py --docs "$work/$data/docs.jsonl" --tokenizer "$work/tokenizer/tokenizer.json" --out "$work/$out" \
    --workers "${WORKERS:-2}" --log "$work/train.log" "$@"
}

[ -f "$work/data/docs.jsonl" ] ||
  "$python" gen_functions.py --out "$work/data" --eval "$model/eval" --docs "${DOCS:-250000}" --lua "$lua"
[ -f "$work/tokenizer/tokenizer.json" ] ||
  "$python" train_tokenizer.py --docs "$work/data/docs.jsonl" --out "$work/tokenizer"
train data run --steps "${STEPS:-1500}"

# second stage: a short run with more chats about popular functions
[ -f "$work/data2/docs.jsonl" ] ||
  "$python" gen_functions.py --out "$work/data2" --docs 12000 --popular 0.3 --seed 2 --verify 0
train data2 run2 --start "$work/run/checkpoint.pt" --steps "${STEPS2:-180}" --lr 8e-4 --warmup 10 --decay 0.9 --seed 2

# third stage: longer rows, half of them long files and conversations
[ -f "$work/data3/docs.jsonl" ] ||
  "$python" gen_functions.py --out "$work/data3" --docs 6000 --popular 0.1 --long 0.5 --seed 3 --verify 0
train data3 run3 --start "$work/run2/checkpoint.pt" --length 512 --batch 8 --steps "${STEPS3:-120}" --lr 8e-4 \
  --warmup 10 --decay 0.9 --seed 3

"$python" export.py --checkpoint "$work/run3/checkpoint.pt" --tokenizer "$work/tokenizer" --out "$model"
"$python" check.py --model "$model"
"$python" evaluate.py --model "$model" --lua "$lua" --report "$model/eval/result.json"
