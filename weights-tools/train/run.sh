#!/bin/sh
# Trains tiny-maverick from nothing: environment, data, tokenizer, training, export, check, evaluation.
# Everything is seeded. Work files go to build/train, the result to models/tiny-maverick.
# Interrupted training resumes from its checkpoint. Settings: STEPS, DOCS, WORKERS, LUA, MODEL, WORK.
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
docs=$work/data/docs.jsonl
[ -f "$docs" ] || "$python" gen_functions.py --out "$work/data" --eval "$model/eval" --docs "${DOCS:-250000}" --lua "$lua"
[ -f "$work/tokenizer/tokenizer.json" ] || "$python" train_tokenizer.py --docs "$docs" --out "$work/tokenizer"
"$python" train.py --docs "$docs" --tokenizer "$work/tokenizer/tokenizer.json" --out "$work/run" \
  --steps "${STEPS:-1000}" --workers "${WORKERS:-2}" --log "$work/train.log"
"$python" export.py --checkpoint "$work/run/checkpoint.pt" --tokenizer "$work/tokenizer" --out "$model"
"$python" check.py --model "$model"
"$python" evaluate.py --model "$model" --lua "$lua" --report "$model/eval/result.json"
