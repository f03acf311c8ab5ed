#!/usr/bin/env bash
# Installs what Mav needs on Debian 12, and only what is missing: `install.sh` to build and run, `install.sh --tests` to
# test too, `install.sh --fuzz` for the fuzzers. Uses sudo when not root.
set -euo pipefail

packages=(gcc g++ cmake ninja-build pkg-config lua5.4 liblua5.4-dev libpcre2-dev libcjson-dev liblz4-dev libxxhash-dev libedit-dev lua-argparse)
for option in "$@"; do
  case "$option" in
    --tests) packages+=(libcmocka-dev lua-busted lua-check) ;;
    --fuzz) packages+=(clang libclang-rt-14-dev) ;;
    *) echo "usage: $0 [--tests] [--fuzz]" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing: ${missing[*]}" >&2
sudo=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install.sh: run as root, or install: ${missing[*]}" >&2; exit 1; }
  sudo=sudo
fi
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
