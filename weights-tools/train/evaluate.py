#!/usr/bin/env python3
"""Greedy pass rate on the held-out prompts: each completed function runs against its tests in Lua."""

import argparse
import json
import os
import random
import subprocess
import time

import torch

from checkpoint import load
from luagen.documents import item

END_IDS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")


def complete(model, tok, prompt, limit):
    """The prompt continued up to the `end` at the start of a line; also the number of new tokens."""
    ids = tok.encode(prompt).ids
    ends = {tok.token_to_id(t) for t in END_IDS}
    done = lambda out: out[-1] in ends or "\nend" in "\n" + tok.decode(out[-3:]) and "\nend\n" in "\n" + tok.decode(out)
    out = model.generate(ids, limit, done)
    body = "\n" + tok.decode([t for t in out if t not in ends], skip_special_tokens=False)
    cut = body.find("\nend\n")
    return prompt + (body[1 : cut + 5] if cut >= 0 else body[1:]), len(out)


def passes(code, tests, lua, seconds=5):
    """(passed, first line of the error)"""
    try:
        run = subprocess.run([lua, "-"], input=code + "\n" + tests, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, "timeout"
    return run.returncode == 0, run.stderr.split("\n")[0]


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--model", required=True, help="exported model folder")
    ap.add_argument("--prompts", help="heldout.jsonl (default: eval/heldout.jsonl in the model folder)")
    ap.add_argument("--before", type=int, default=0, help="generated functions that precede each prompt")
    ap.add_argument("--limit", type=int, default=160, help="new tokens at most")
    ap.add_argument("--count", type=int, help="only the first so many prompts")
    ap.add_argument("--lua", default="lua5.4")
    ap.add_argument("--show", type=int, default=0, help="failures to print")
    ap.add_argument("--report", help="JSON file for the result")
    a = ap.parse_args()
    torch.set_num_threads(1)
    model, tok = load(a.model)
    with open(a.prompts or os.path.join(a.model, "eval", "heldout.jsonl"), encoding="utf-8") as f:
        cases = [json.loads(line) for line in f][: a.count]
    rng = random.Random(1)
    good, by_family, tokens, start = 0, {}, 0, time.time()
    for case in cases:
        before = "".join(item(rng).text() + "\n" for _ in range(a.before))
        code, n = complete(model, tok, before + case["prompt"], a.limit)
        ok, error = passes(code, case["tests"], a.lua)
        tokens += n
        good += ok
        kind = by_family.setdefault(case["family"].split(".")[0], [0, 0])
        kind[0] += ok
        kind[1] += 1
        if not ok and a.show > 0:
            a.show -= 1
            print(code, error, "\n")
    seconds = time.time() - start
    result = dict(
        passed=good,
        prompts=len(cases),
        percent=round(100 * good / len(cases), 1),
        families=by_family,
        mean_tokens=round(tokens / len(cases), 1),
    )
    print(f"{json.dumps(result)} ({tokens / seconds:.0f} tokens/s)")
    if a.report:
        with open(a.report, "w", encoding="utf-8") as f:
            f.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
