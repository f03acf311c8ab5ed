#!/usr/bin/env bash
# Installs, builds, and runs every test. test.sh takes under 15 minutes on 2 cores; test.sh --full takes the long variants of tests (MAV_FULL),
# and adds everything under the sanitizers and 60 s of fuzzing per parser.
set -euo pipefail
cd "$(dirname "$0")/.."
full=false
case "${1:-}" in
  "") ;;
  --full) full=true ;;
  *) echo "usage: $0 [--full]" >&2; exit 2 ;;
esac

build() { # preset
  echo "== build $1"
  cmake --preset "$1" >/dev/null
  cmake --build --preset "$1" -- --quiet
}
run() { # preset, ctest arguments
  local preset=$1; shift
  echo "== test $preset $*"
  ctest --test-dir "build/$preset" --output-on-failure -j 2 --timeout 900 "$@"
}

./scripts/install.sh --tests
$full && ./scripts/install.sh --fuzz

build release
if $full; then MAV_FULL=1 run release --timeout 3600; else run release; fi
build asan
if $full; then run asan; else run asan -L sanitize; fi

if $full; then
  build fuzz
  for target in build/fuzz/tests/fuzz/fuzz_*; do
    [ -x "$target" ] && [ -f "$target" ] || continue
    name=$(basename "$target")
    name=${name#fuzz_}
    echo "== fuzz $name, 60 s"
    new=$(mktemp -d)
    dict=()
    [ -f "tests/fuzz/$name.dict" ] && dict=("-dict=tests/fuzz/$name.dict")
    "$target" -max_total_time=60 -print_final_stats=1 -verbosity=0 "${dict[@]}" "$new" "tests/fuzz/corpus/$name"
    rm -rf "$new"
  done
fi
echo "== all tests passed"
