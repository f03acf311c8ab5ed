#!/usr/bin/env bash
# What ptxas says of every kernel: registers, spills, stack and shared memory, by chip. Needs nvcc, no GPU.
#
#   tests/bench/ptxas_report.sh [ARCH...] > docs/benchmarks/<date>-ptxas.md        (default: 90 100)
#
# Exit status 1 when a kernel spills.
set -euo pipefail
cd "$(dirname "$0")/../.."
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
archs=("${@:-90}")
[ $# -gt 0 ] || archs=(90 100)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "# Registers and spills of the CUDA kernels"
echo
echo "    tests/bench/ptxas_report.sh ${archs[*]}"
echo
echo "$("$nvcc" --version | tail -2 | head -1), -O3 -fmad=false. Bytes a thread; dynamic shared memory is not counted."
spills=0
for arch in "${archs[@]}"; do
  echo
  echo "## sm_$arch"
  echo
  echo "| file | kernel | registers | stack | spill stores | spill loads |"
  echo "|---|---|---|---|---|---|"
  for file in kernels/cuda/*.cu; do
    "$nvcc" -std=c++17 -O3 -fmad=false -arch="sm_$arch" -I kernels -Xptxas -v -cubin -o "$work/out.cubin" "$file" 2> "$work/log" ||
      { cat "$work/log" >&2; exit 2; }
    c++filt < "$work/log" | awk -v file="${file##*/}" '
      /Function properties for/ { kernel = $0; sub(/.*Function properties for /, "", kernel); sub(/\(.*/, "", kernel); sub(/^void /, "", kernel) }
      /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
      /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); r = substr($0, RSTART + 5, RLENGTH - 5)
        printf "| %s | `%s` | %s | %s | %s | %s |\n", file, kernel, r, stack, stores, loads }' | tee "$work/rows"
    spills=$((spills + $(awk -F'|' '$6 + $7 > 0' "$work/rows" | wc -l)))
  done
done
echo
echo "Kernels that spill: $spills."
[ "$spills" -eq 0 ]
