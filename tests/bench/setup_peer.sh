#!/bin/sh
# Build the peer Mav is measured against: llama.cpp, as bundled by llama-cpp-python,
# compiled from its source distribution for this machine (native flags, OpenMP).
# Safe to run again: what is already there is kept. Takes 5 to 10 minutes the first time.
set -eu

usage() {
    cat <<'HELP'
usage: tests/bench/setup_peer.sh [VENV]

Makes a Python virtual environment (default build/bench/venv) that holds
  gguf, numpy       write the benchmark models
  llama-cpp-python  llama.cpp, built from source with -DGGML_NATIVE=ON -DGGML_OPENMP=ON

environment:
  PEER_VERSION  llama-cpp-python version (default 0.3.36)
  PEER_JOBS     parallel compile jobs (default: number of cores)
  PYTHON        interpreter for the environment (default python3)

needs: a C/C++ compiler, cmake 3.21, python3 with venv, PyPI.
HELP
}

case "${1:-}" in
-h | --help) usage; exit 0 ;;
-*) usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "$0")/../.." && pwd -P) # -P: ninja loops on a symlinked path
venv=${1:-$root/build/bench/venv}
version=${PEER_VERSION:-0.3.36}
jobs=${PEER_JOBS:-$(nproc)}

mkdir -p "$venv"
venv=$(cd "$venv" && pwd -P)
[ -x "$venv/bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"
pip() { nice -n 10 "$venv/bin/pip" --disable-pip-version-check --quiet "$@"; }

# What was built, with which flags; compared as a whole to decide whether to build again.
flags="-DGGML_NATIVE=ON -DGGML_OPENMP=ON"
stamp="llama-cpp-python $version $flags $(uname -m) $(sed -n 's/^flags.*: //p' /proc/cpuinfo | head -n 1 | cksum)"
if [ "$(cat "$venv/peer.stamp" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c 'import gguf, numpy, llama_cpp' 2>/dev/null; then
    echo "peer is ready: $venv"
    exit 0
fi

rm -f "$venv/peer.stamp"
pip install gguf numpy
tmp=$(mktemp -d "$venv/build.XXXXXX") # a real path, on the same disk
trap 'rm -rf "$tmp"' EXIT INT TERM
echo "building llama-cpp-python $version with $jobs jobs ..."
(
    export TMPDIR="$tmp" CMAKE_ARGS="$flags" CMAKE_BUILD_PARALLEL_LEVEL="$jobs"
    pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "llama-cpp-python==$version"
)
# Its few pure-Python requirements, from wheels.
pip install "llama-cpp-python==$version"
printf '%s\n' "$stamp" >"$venv/peer.stamp"
"$venv/bin/python" -c 'import llama_cpp; print("peer is ready: llama-cpp-python", llama_cpp.__version__)'
