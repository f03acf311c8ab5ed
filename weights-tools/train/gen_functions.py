#!/usr/bin/env python3
"""Generates the training documents, the held-out prompts and the demo prompts of tiny-maverick.

    gen_functions.py --out build/train/data --eval models/tiny-maverick/eval

Everything follows from --seed. --verify runs that many generated functions against their own tests.
"""

import argparse
import json
import os
import random
import subprocess
import sys

from luagen.documents import document, item

DEMO = """-- returns the sum of the squares of the even numbers in the list
local function sum_even_squares(numbers)
---
-- returns the longest of the words starting with a vowel in the sentence, or nil
local function longest_starting_with_vowel(text)
---
-- returns the greatest common divisor of a and b
local function gcd(a, b)
---
-- returns n plus 3 if n is odd, otherwise half of n
local function step(n)
---
-- counts the vowels in the string
local function count_vowels(s)
"""


def held_items(seed, n):
    """Distinct functions of held-out combinations."""
    rng, seen, out = random.Random(f"{seed}-held"), set(), []
    while len(out) < n:
        it = item(rng, held=True, mods=[55, 27, 18, 0])
        if it.combo not in seen:
            seen.add(it.combo)
            out.append(it)
    return out


def verify(items, lua):
    """Runs every function against its own tests in one Lua process; returns the failing ones."""
    src = []
    for i, it in enumerate(items):
        src.append(
            f"do local ok, err = pcall(load([====[\n{it.text()}{it.tests()}]====])) if not ok then print({i}, err) end end"
        )
    run = subprocess.run([lua, "-"], input="\n".join(src), capture_output=True, text=True, timeout=600)
    if run.returncode:
        sys.exit(run.stderr)
    return [(items[int(line.split("\t")[0])], line) for line in run.stdout.splitlines()]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder for docs.jsonl")
    ap.add_argument("--eval", help="folder for heldout.jsonl and prompts.txt")
    ap.add_argument("--docs", type=int, default=200000, help="number of training documents")
    ap.add_argument("--held", type=int, default=200, help="number of held-out prompts")
    ap.add_argument("--popular", type=float, default=0.0, help="share of chats about popular functions")
    ap.add_argument("--long", type=float, default=0.0, help="share of long files and conversations")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--verify", type=int, default=3000, help="functions to run against their own tests (0: none)")
    ap.add_argument("--lua", default="lua5.4", help="Lua interpreter of --verify")
    a = ap.parse_args()
    held = held_items(a.seed, a.held)
    if a.verify:
        rng = random.Random(f"{a.seed}-verify")
        bad = verify(held + [item(rng) for _ in range(a.verify)], a.lua)
        for it, err in bad:
            print(it.text(), err)
        if bad:
            sys.exit(f"{len(bad)} generated functions fail their tests")
        print(f"{a.verify + len(held)} generated functions pass their tests")
    os.makedirs(a.out, exist_ok=True)
    rng = random.Random(a.seed)
    prompts = {it.prompt() for it in held}
    count = {}
    with open(os.path.join(a.out, "docs.jsonl"), "w", encoding="utf-8") as f:
        for _ in range(a.docs):
            kind, segments = document(rng, a.popular, a.long)
            text = "".join(s for s, _ in segments)
            assert not any(p in text for p in prompts) if count.get(kind, 0) < 200 else True
            count[kind] = count.get(kind, 0) + 1
            f.write(json.dumps([kind, segments]) + "\n")
    print("documents:", count)
    if a.eval:
        os.makedirs(a.eval, exist_ok=True)
        with open(os.path.join(a.eval, "heldout.jsonl"), "w", encoding="utf-8") as f:
            for it in held:
                f.write(
                    json.dumps(
                        dict(prompt=it.prompt(), tests=it.tests(), name=it.name, family=it.family, combination=it.combo)
                    )
                    + "\n"
                )
        with open(os.path.join(a.eval, "prompts.txt"), "w", encoding="utf-8") as f:
            f.write(DEMO)


if __name__ == "__main__":
    main()
