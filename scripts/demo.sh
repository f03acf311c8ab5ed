#!/usr/bin/env bash
# Installs, builds, and lets the embedded model write Lua: text streams to the terminal, then tokens/s/user, the same with drafts of
# an EAGLE-3 head, and the share of the machine's memory bandwidth.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/install.sh
cmake --preset release -DMAV_TESTS=OFF >/dev/null
cmake --build --preset release -- --quiet

prompt='-- returns the sum of the squares of the even numbers in the list
local function sum_even_squares(list)
'
echo "\$ build/release/mav generate --model models/tiny-maverick --prompt '...' --max-tokens 96" >&2
printf '%s' "$prompt"
build/release/mav generate --model models/tiny-maverick --prompt "$prompt" --max-tokens 96
echo "\$ build/release/mav generate --model models/tiny-maverick --draft eagle3=models/tiny-maverick-eagle3 --k 4 --check --prompt '...'" >&2
build/release/mav generate --model models/tiny-maverick --draft eagle3=models/tiny-maverick-eagle3 --k 4 --check --prompt "$prompt" \
  --max-tokens 96 >/dev/null
echo "\$ build/release/mav bench --model models/tiny-maverick --dtype fp8" >&2
build/release/mav bench --model models/tiny-maverick --dtype fp8
