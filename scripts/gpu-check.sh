#!/usr/bin/env bash
# Everything that only a GPU can tell, by one command in the repository's root: builds (CUDA 13, no network, no packages installed), checks
# the cuda backend against the reference, runs the tests that have a cuda variant, compute-sanitizer, then the benchmarks; writes
# docs/benchmarks/<date>-<gpu>.json and .md (and to $OUT when it is set) and ends with a table of steps. It ends within its budget (9
# minutes) whatever happens: every step has a limit of its own, and what did not run says why.
#
#   scripts/gpu-check.sh                    on the machine with the GPU
#   scripts/gpu-check.sh --prepare          before, on a Debian 12 machine with apt: collects the libraries that machine may lack in
#                                           build/gpu-sysroot (a few MB), which is to be copied along; used where it exists
#   scripts/gpu-check.sh --emulate          the same steps with the emulator (tests/simt) in the GPU's place, on small shapes
#
# Environment: MAV_CUDA_ARCH (90), MAV_GPU_CHECK_SECONDS (540), MAV_GPU_CHECK_STEPS (names of steps to run, separated by spaces: all).
set -u
cd "$(dirname "$0")/.." || exit 2
root=$PWD
arch=${MAV_CUDA_ARCH:-90}
budget=${MAV_GPU_CHECK_SECONDS:-540}
sysroot=$root/build/gpu-sysroot
lib=usr/lib/x86_64-linux-gnu
build=$root/build/gpu
emulate=false
start=${GPU_CHECK_START:-$(date +%s)}

# ---- --prepare ------------------------------------------------------------------------------------------------------------

# Of Debian 12: headers, libraries and Lua modules of these packages.
packages=(liblua5.4-dev liblua5.4-0 libpcre2-dev libpcre2-8-0 libcjson-dev libcjson1 liblz4-dev liblz4-1 libxxhash-dev libxxhash0 libedit-dev
  libedit2 libbsd0 libmd0 libtinfo6 libcmocka-dev libcmocka0 lua5.4 lua-argparse lua-busted lua-cliargs lua-dkjson lua-filesystem
  lua-inifile lua-luassert lua-mediator lua-penlight lua-say lua-system lua-term pkgconf-bin libpkgconf3)

prepare() { # folder
  ./scripts/install.sh --tests || exit 1
  rm -rf "$1"
  mkdir -p "$1"
  local package path
  for package in "${packages[@]}"; do
    dpkg -L "$package" || { echo "gpu-check.sh: $package is not installed" >&2; exit 1; }
  done | while read -r path; do
    [ -f "$path" ] || continue
    case "$path" in
      *.so.*.* | */lua/5.[123]/* | */liblua5.[123]-*) continue ;; # other names of the same, other versions of Lua
    esac
    case "$path" in
      /usr/include/*.h | /usr/share/lua/5.4/*.lua | /usr/bin/busted | /usr/bin/pkgconf | /usr/bin/lua5.4) ;;
      /usr/"${lib#usr/}"/*.so* | /usr/"${lib#usr/}"/liblua5.4.a | /usr/"${lib#usr/}"/pkgconfig/*.pc) ;;
      /lib/x86_64-linux-gnu/*.so*) ;;
      *) continue ;;
    esac
    cp -L --parents "$path" "$1"
  done
  if [ -d "$1/lib/x86_64-linux-gnu" ]; then cp "$1"/lib/x86_64-linux-gnu/* "$1/$lib" && rm -rf "${1:?}/lib"; fi
  echo "$1: $(du -sh "$1" | cut -f1), $(find "$1" -type f | wc -l) files"
}

for option in "$@"; do
  case "$option" in
    --prepare) prepare "$sysroot"; exit ;;
    --emulate) emulate=true; build=$root/build/gpu-emulated ;;
    *) echo "usage: $0 [--prepare | --emulate]" >&2; exit 2 ;;
  esac
done

logs=$build/check
mav=$build/mav
shape=(--shape maverick --tp 8) tiny=(--shape tiny --tp 8 --context 20)

# ---- steps ----------------------------------------------------------------------------------------------------------------

left() { echo $((start + budget - 15 - $(date +%s))); } # what is kept is for the report

# What became of a step: "ok", "FAILED" or "not run", seconds, what there is to say.
note() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >"$logs/$1.result"; }
skip() { # step, reason
  echo "$1" >>"$logs/order"
  note "$1" "not run" 0 "$2"
}

# Runs a step for at most so many seconds: name, limit, command or function. Its output is in $logs/NAME.log. Status 77: not run, for
# the reason in its last line.
run() {
  local name=$1 limit=$2 began status text said why
  shift 2
  if [ -n "${MAV_GPU_CHECK_STEPS:-}" ] && [[ " $MAV_GPU_CHECK_STEPS " != *" $name "* ]]; then note "$name" "not run" 0 "not asked for"; return 1; fi
  if [ "$(left)" -lt 5 ]; then note "$name" "not run" 0 "no time was left"; return 1; fi
  limit=$((limit * slower))
  [ "$limit" -gt "$(left)" ] && limit=$(left)
  began=$(date +%s)
  if declare -F "$1" >/dev/null; then # functions are bash's: one that takes long uses `timeout` itself
    LIMIT=$limit "$@" >"$logs/$name.log" 2>&1 </dev/null
  else
    timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
  fi
  status=$?
  said=$(grep -v '^[[:space:]]*$' "$logs/$name.log" | tail -n 1 | tr '\t' ' ' | cut -c1-160)
  case $status in
    0) text=ok ;;
    77) text="not run" ;;
    124 | 137) text=FAILED said="over its limit of $limit s; last: $said" ;;
    *)
      text=FAILED
      why=$(grep -m 1 -E '^mav|error|FAIL|differ|: line |not found' "$logs/$name.log" | tr '\t' ' ' | cut -c1-160)
      said="status $status: ${why:-$said}"
      ;;
  esac
  note "$name" "$text" $(($(date +%s) - began)) "$said"
  echo "$(date +%T) $name: $text ($(($(date +%s) - began)) s)" >&2
  [ "$text" = ok ]
}
step() {
  echo "$1" >>"$logs/order"
  run "$@"
}
beside() { # several at once, until `wait`
  echo "$1" >>"$logs/order"
  run "$@" &
}

# ---- the machine and the build ------------------------------------------------------------------------------------------------

machine() {
  uname -srm
  echo "$(nproc) processors"
  if $emulate; then
    echo "the emulator in the GPU's place"
    return 0
  fi
  nvcc --version | tail -n 2
  timeout "$LIMIT" nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv,noheader
}

# What the build finds in the sysroot: pkg-config's files with the folder's present place in them.
more=()
use_sysroot() {
  [ -d "$sysroot/usr" ] || return 0
  $emulate && [ -z "${MAV_GPU_CHECK_SYSROOT:-}" ] && return 0
  mkdir -p "$build/pkgconfig"
  chmod +x "$sysroot"/usr/bin/*
  local f flags
  for f in "$sysroot/$lib"/pkgconfig/*.pc; do
    sed -E "s#(^[a-z_]*=|-L|-I)/usr#\1$sysroot/usr#g" "$f" >"$build/pkgconfig/$(basename "$f")"
  done
  export PKG_CONFIG_PATH=$build/pkgconfig
  export PATH=$PATH:$sysroot/usr/bin
  export LUA_PATH="$sysroot/usr/share/lua/5.4/?.lua;$sysroot/usr/share/lua/5.4/?/init.lua;;"
  export LUA_CPATH="$sysroot/$lib/lua/5.4/?.so;;"
  flags="-Wl,-rpath-link,$sysroot/$lib -Wl,-rpath,$sysroot/$lib -Wl,--disable-new-dtags"
  more=(-DCMAKE_EXE_LINKER_FLAGS="$flags" -DCMAKE_SHARED_LINKER_FLAGS="$flags" -DCMAKE_MODULE_LINKER_FLAGS="$flags")
  if ! command -v pkg-config >/dev/null; then
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$sysroot/$lib" "$sysroot/usr/bin/pkgconf" >"$build/pkg-config"
    chmod +x "$build/pkg-config"
    more+=(-DPKG_CONFIG_EXECUTABLE="$build/pkg-config")
  fi
}

# The library for products of many rows: where the loader finds it, or with the toolkit or a Python package.
find_cublaslt() {
  local name=libcublasLt.so.13 at
  if $emulate; then echo "$library"; return 0; fi
  at=$(ldconfig -p 2>/dev/null | sed -n "s#.*$name.*=> ##p" | head -n 1)
  [ -n "$at" ] || at=$(find /usr/local /opt /usr/lib -name "$name" 2>/dev/null | head -n 1)
  [ -n "$at" ] && echo "$at"
}

# Libraries that neither the machine nor the sysroot has.
libraries() {
  local pkg=pkg-config name missing=() at
  [ -x "$build/pkg-config" ] && pkg=$build/pkg-config
  command -v "$pkg" >/dev/null || { echo "pkg-config is missing; run scripts/gpu-check.sh --prepare elsewhere and bring build/gpu-sysroot"; return 1; }
  for name in lua5.4 libpcre2-8 libcjson liblz4 libxxhash libedit cmocka; do
    if at=$("$pkg" --variable=includedir "$name" 2>/dev/null); then echo "$name: $at"; else missing+=("$name"); fi
  done
  if at=$(command -v busted); then echo "busted: $at"; else missing+=(busted); fi
  if at=$(find_cublaslt); then echo "cuBLASLt: $at"; else missing+=(cuBLASLt); fi
  echo "missing: ${missing[*]:-nothing}"
  case " ${missing[*]} " in *" lua5.4 "* | *" lib"*) return 1 ;; esac
  return 0 # only tests need the others
}

configure() {
  local generator=() tests=ON cuda=ON
  command -v ninja >/dev/null && generator=(-G Ninja)
  grep -q '^cmocka:' "$logs/libraries.log" && grep -q '^busted:' "$logs/libraries.log" || tests=OFF
  if $emulate; then cuda=OFF; fi
  timeout "${LIMIT:?}" cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DMAV_TESTS=$tests -DMAV_WERROR=OFF \
    -DMAV_CUDA=$cuda -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DCMAKE_CUDA_FLAGS=-lineinfo "${more[@]}"
}

build() { timeout -k 5 "$LIMIT" cmake --build "$build" -j "$(nproc)"; }

# The compiler warns of registers that went to memory.
spills() {
  if grep -i 'spill' "$logs/build.log"; then return 1; fi
  echo "none reported by the compiler"
}

device() {
  timeout -k 5 "$LIMIT" "$mav" -e 'local mav = require "mav"; local rt = assert(mav.runtime { device = "cuda" });
    print(("%s %s, %.1f GB/s read"):format(rt.device, rt.isa, rt:bandwidth { bytes = '"$bandwidth_bytes"', repeats = 5 }))'
}

# ---- right ----------------------------------------------------------------------------------------------------------------------

checkops=$build/tests/checkops

# Plain decoding, and with drafts: the same text, on one device.
same_text() { # name, more options of `mav generate`
  local at=$logs/text.$1 prompt='-- returns the sum of the list t' options=(--device cuda --max-tokens "$tokens" --seed 1 "${@:2}")
  timeout "$LIMIT" "$mav" generate "${options[@]}" --prompt "$prompt" >"$at.plain" || return
  timeout "$LIMIT" "$mav" generate "${options[@]}" --draft ngram --k 3 --prompt "$prompt" >"$at.ngram" || return
  timeout "$LIMIT" "$mav" generate "${options[@]}" --draft self=2 --k 4 --prompt "$prompt" >"$at.self" || return
  timeout "$LIMIT" "$mav" generate "${options[@]}" --draft self=2 --tree 3,2,1 --prompt "$prompt" >"$at.tree" || return
  local kind
  for kind in ngram self tree; do
    cmp "$at.plain" "$at.$kind" || return 1
  done
  echo "$(wc -c <"$at.plain") bytes of text, the same with three drafters"
}
greedy() { same_text greedy; }
sampled() { same_text sampled --temperature 0.8 --top-p 0.95; }

# Specs on the device of MAV_TEST_DEVICE (tests/oracle/golden.lua).
specs() {
  command -v busted >/dev/null || { echo "busted is missing"; return 77; }
  MAV_TEST_DEVICE=cuda MAV=$mav timeout -k 5 "$LIMIT" "$mav" "$(command -v busted)" --output=plainTerminal "$@"
}

sanitizer() { # tool, op, ...
  local tool=$1 op
  shift
  if $emulate; then echo "the emulator has checks of its own"; return 77; fi
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer here"; return 77; }
  [ -x "$checkops" ] || { echo "checkops was not built"; return 77; }
  for op in "$@"; do
    timeout -k 5 "$((LIMIT / $# > 10 ? LIMIT / $# : 10))" compute-sanitizer --tool "$tool" --error-exitcode 9 "$checkops" --device cuda --op "$op" \
      --cases 2 || {
      local status=$?
      grep -qiE 'device not supported|unable to|error 999|not permitted' "$logs/$tool.log" && { echo "this machine does not allow it"; return 77; }
      echo "$tool: $op: status $status"
      return $status
    }
  done
  echo "nothing found in $*"
}
memcheck() { sanitizer memcheck norm_qkv attention ffn_up ffn_down lm_head topk top_p_mask cast; }
racecheck() { sanitizer racecheck norm_qkv attention ffn_up ffn_down softmax top_p_mask; }

# ---- fast -----------------------------------------------------------------------------------------------------------------------

bench() { timeout -k 5 "$LIMIT" "$mav" bench --device cuda "$@"; }
model() {
  if $emulate; then echo "a prompt takes the emulator minutes"; return 77; fi
  bench --model models/tiny-maverick --save "$logs/model.json" --seconds "$seconds"
}
ops_bench() {
  [ -x "$checkops" ] || { echo "checkops was not built"; return 77; }
  if $emulate; then echo "times of the emulator say nothing"; return 77; fi
  timeout -k 5 "$LIMIT" "$checkops" --device cuda --bench
}

# What the processor counts in the kernels of one short run.
counters() {
  if $emulate; then echo "there is nothing to count"; return 77; fi
  command -v ncu >/dev/null || { echo "there is no ncu here"; return 77; }
  local metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread,sm__warps_active.avg.pct_of_peak_sustained_active
  timeout -k 5 "$LIMIT" ncu --metrics $metrics --clock-control none --launch-skip 400 --launch-count 60 \
    env MAV_CUDA_OFF=graphs "$mav" bench --device cuda "${shape[@]}" --layers 4 --experts 8 --rows 1 --context 64 --seconds 0.01 || {
    grep -qiE 'ERR_NVGPUCTRPERM|LibraryNotLoaded|permission' "$logs/counters.log" && { echo "this machine does not allow counters"; return 77; }
    return 1
  }
}

peer() {
  if $emulate; then echo "the peer needs a GPU"; return 77; fi
  python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || { echo "there is no torch with CUDA here"; return 77; }
  timeout -k 5 "$LIMIT" python3 tests/bench/layer_torch.py --out "$logs/peer.json"
}

work() {
  step machine 30 machine
  use_sysroot
  step libraries 20 libraries || return
  if ! $emulate; then MAV_CUBLASLT=${MAV_CUBLASLT:-$(find_cublaslt)} && export MAV_CUBLASLT; fi
  step configure 60 configure || return
  step build 240 build || return
  step spills 10 spills
  step device 60 device || return

  if [ -x "$checkops" ]; then
    beside checkops 150 "$checkops" --device cuda --cases "$cases"
    beside checkops_many 100 "$checkops" --device cuda --cases "$many_cases" --rows 100
  else
    skip checkops "cmocka or busted is missing: tests were not built"
  fi
  beside greedy 100 greedy
  beside sampled 100 sampled
  local name
  for name in graph rows spec device; do # on every device that there is
    [ -x "$build/tests/test_$name" ] && beside "c_$name" 60 "$build/tests/test_$name"
  done
  for name in "${specs[@]}"; do beside "${name##*/}" 150 specs "tests/${name}_spec.lua"; done
  wait
  step shape_maverick 90 bench "${shape[@]}" "${rows[@]}" --profile --save "$logs/maverick.json"
  beside memcheck 60 memcheck
  beside racecheck 60 racecheck
  wait
  step ablate 120 bench "${shape[@]}" "${small[@]}" --rows 1,4 --seconds "$seconds" --ablate --save "$logs/ablate.json"
  step prompt 45 bench "${shape[@]}" "${small[@]}" "${many[@]}" --save "$logs/prompt.json"
  step prompt_own 45 env MAV_CUDA_OFF=blas "$mav" bench --device cuda "${shape[@]}" "${small[@]}" "${many[@]}" --save "$logs/prompt_own.json"
  step peer 120 peer
  step shape_scout 60 bench "${scout[@]}" "${rows[@]}" --save "$logs/scout.json"
  step model 60 model
  step ops 60 ops_bench
  step counters 60 counters
}

# ---- the report -------------------------------------------------------------------------------------------------------------------

quoted() { printf '"%s"' "$(printf '%s' "$1" | sed 's/[\\"]/\\&/g' | tr -d '\000-\037')"; }
object() { if [ -s "$logs/$1.json" ]; then tr -d '\n' <"$logs/$1.json"; else printf null; fi; }

table() {
  local name text seconds said
  printf '%-18s %-8s %5s  %s\n' step result s ""
  while read -r name; do
    IFS=$'\t' read -r _ text seconds said <"$logs/$name.result" || text=FAILED seconds=0 said="was cut off"
    printf '%-18s %-8s %5s  %s\n' "$name" "$text" "$seconds" "$said"
  done <"$logs/order"
}

report() {
  local gpu day name text seconds said comma="" to
  gpu=$(if $emulate; then echo emulated; else nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1; fi)
  gpu=$(echo "${gpu:-none}" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-' | sed 's/^nvidia-//')
  day=$(date -u +%F)
  to=$root/docs/benchmarks
  $emulate && to=$logs
  mkdir -p "$to"
  to=$to/$day-$gpu
  {
    printf '{"date":"%s","gpu":"%s","commit":%s,"machine":%s,"steps":[' "$day" "$gpu" \
      "$(quoted "$(git rev-parse --short HEAD 2>/dev/null)")" "$(quoted "$(tr '\n' ';' <"$logs/machine.log" 2>/dev/null)")"
    while read -r name; do
      text=FAILED seconds=0 said="was cut off"
      [ -f "$logs/$name.result" ] && IFS=$'\t' read -r _ text seconds said <"$logs/$name.result"
      printf '%s{"step":"%s","result":"%s","s":%s,"said":%s}' "$comma" "$name" "$text" "$seconds" "$(quoted "$said")"
      comma=,
    done <"$logs/order"
    printf '],"maverick":%s,"scout":%s,"ablate":%s,"prompt":%s,"prompt_own":%s,"peer":%s,"model":%s}\n' "$(object maverick)" "$(object scout)" "$(object ablate)" \
      "$(object prompt)" "$(object prompt_own)" "$(object peer)" "$(object model)"
  } >"$to.json"
  {
    printf '# %s, %s\n\n`scripts/gpu-check.sh`' "$gpu" "$day"
    $emulate && printf ' `--emulate`'
    printf ', commit %s.\n\n```\n' "$(git rev-parse --short HEAD 2>/dev/null)"
    table
    printf '```\n'
    for name in machine device shape_maverick ablate prompt prompt_own shape_scout peer model ops; do
      [ -s "$logs/$name.log" ] && grep -q $'\tok\t' "$logs/$name.result" && printf '\n## %s\n\n```\n%s\n```\n' "$name" "$(cat "$logs/$name.log")"
    done
  } >"$to.md"
  if [ -n "${OUT:-}" ]; then
    cp "$to.json" "$to.md" "$OUT" 2>/dev/null
    (cd "$logs" && tar czf "$OUT/logs.tar.gz" ./*.log ./*.result order) 2>/dev/null
  fi
  echo "$to.md" >"$logs/report"
}

slower=1 cases=25 many_cases=5 tokens=64 seconds=0.5 bandwidth_bytes=$((1 << 30))
specs=(oracle/parity oracle/rows oracle/tiny oracle/eagle3 oracle/fp8 scripts/speculation_greedy scripts/speculation_sampling)
rows=() many=(--rows "64,96,128,256,512" --seconds 0.2) small=(--experts 16) scout=(--shape scout --tp 8)
if $emulate; then
  library=$build/tests/simt/libmav_simt.so
  export MAV_CUDA_LIBRARY=$library
  slower=6 cases=1 many_cases=1 tokens=6 seconds=0.01 bandwidth_bytes=$((1 << 20))
  shape=("${tiny[@]}" --layers 2 --experts 2 --vocab 512) rows=(--rows "1,2" --seconds 0.01) many=(--rows "70" --seconds 0.01) small=()
  scout=("${shape[@]}")
else
  command -v nvcc >/dev/null || export PATH=$PATH:/usr/local/cuda/bin
fi

# The work runs in a process of its own with a limit, so that there is a report whatever happens.
if [ -n "${GPU_CHECK_START:-}" ]; then
  work
  exit 0
fi
rm -rf "$logs"
mkdir -p "$logs"
: >"$logs/order"
GPU_CHECK_START=$start timeout -k 5 $((budget - 10)) "$0" "$@"
report
table
echo
echo "$(($(date +%s) - start)) s; $(cat "$logs/report")"
! cut -f2 "$logs"/*.result | grep -q FAILED
