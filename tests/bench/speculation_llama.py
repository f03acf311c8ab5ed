#!/usr/bin/env python3
"""Measure prompt lookup decoding: Mav beside llama.cpp, on a repetitive text, in one interleaved run.

Both continue the same repetitive prompt greedily with the same random weights, without drafts
and with up to K drafts a step from the text itself (llama-cpp-python's LlamaPromptLookupDecoding,
Mav's `--draft ngram`). A repetition penalty below 1 favours tokens that occurred, so that the random
model repeats itself, too. The texts of the engines differ (llama.cpp looks back 64 tokens), so each
has its acceptance length beside its speed-up over its own plain decoding in the same round.

    tests/bench/setup_peer.sh && cmake --preset release && cmake --build --preset release
    tests/bench/speculation_llama.py --json result.json
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(os.path.dirname(os.path.dirname(HERE)), "build")
PENALTY = 0.1
PAIRS = {"bf16": "bf16", "q8_0": "fp8"}  # llama.cpp's weights: Mav's


def repetitive(vocab, seed=5, block=48, times=4):
    """A block of tokens, said again and again, the last time up to its middle."""
    rng = random.Random(seed)
    ids = [rng.randrange(vocab) for _ in range(block)]
    return ids * times + ids[: block // 2]


class Llama:
    """llama.cpp through llama-cpp-python's own loop and its own drafter."""

    def __init__(self, path, threads):
        import llama_cpp
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        self.lookup = LlamaPromptLookupDecoding
        self.steps = 0
        self.model = llama_cpp.Llama(model_path=path, n_ctx=1024, n_threads=threads, n_threads_batch=threads,
                                     draft_model=self.lookup(), verbose=False)
        evaluate = self.model.eval

        def counted(tokens):
            self.steps += 1
            evaluate(tokens)

        self.model.eval = counted

    def run(self, ids, tokens, k):
        self.model.reset()
        self.model.draft_model = self.lookup(max_ngram_size=4, num_pred_tokens=k) if k else None
        out, first, self.steps = [], None, 0
        for token in self.model.generate(ids, top_k=1, temp=0.0, repeat_penalty=PENALTY):
            out.append(token)
            first = first or time.perf_counter()
            if len(out) == tokens:
                break
        self.acceptance = tokens / self.steps
        return (tokens - 1) / (time.perf_counter() - first), out


class Mav:
    def __init__(self, binary, model, dtype, threads):
        self.command = [binary, "generate", "--model", model, "--dtype", dtype, "--threads", str(threads), "--json", "--ignore-eos",
                        "--repetition-penalty", str(PENALTY)]

    def run(self, ids, tokens, k):
        draft = ["--draft", "ngram", "--k", str(k)] if k else []
        text = ",".join(map(str, ids))
        done = subprocess.run([*self.command, "--ids", text, "--max-tokens", str(tokens), *draft], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        self.acceptance = answer["stats"].get("acceptance_length", 1.0)
        return answer["stats"]["tokens_per_s"], answer["ids"]


def measure(args, weights, threads):
    """Rows: engine, k, tokens/s, speed-up over plain, each a median of the rounds with its range."""
    folder = os.path.join(BUILD, "bench")
    engines = {
        "llama.cpp": Llama(os.path.join(folder, f"{args.model}-{weights}.gguf"), threads),
        "Mav": Mav(args.mav, os.path.join(folder, f"{args.model}-hf"), PAIRS[weights], threads),
    }
    ids = repetitive(args.vocab)
    rates, acceptance = {}, {}
    for turn in range(args.rounds + 1):  # the first round warms up
        for name in sorted(engines, reverse=bool(turn % 2)):
            for k in (0, *args.k):
                rate, _ = engines[name].run(ids, args.tokens, k)
                if turn:
                    rates.setdefault((name, k), []).append(rate)
                acceptance[name, k] = engines[name].acceptance
    rows = []
    for (name, k), values in rates.items():
        gains = [v / p for v, p in zip(values, rates[name, 0])]
        rows.append(dict(weights=weights, threads=threads, engine=name, k=k, tokens_per_s=statistics.median(values),
                         tokens_per_s_range=[min(values), max(values)], speedup=statistics.median(gains), speedup_range=[min(gains), max(gains)],
                         acceptance_length=acceptance[name, k]))
    return rows


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="mid", help="a model of gen_model.py (default mid)")
    ap.add_argument("--vocab", type=int, default=32768, help="its vocabulary")
    ap.add_argument("--mav", default=os.path.join(BUILD, "release", "mav"))
    ap.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    ap.add_argument("--k", type=int, nargs="+", default=[2, 4, 8], help="most drafts a step")
    ap.add_argument("--tokens", type=int, default=96)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--json", help="write all figures to this file")
    args = ap.parse_args()
    result = []
    print(f"{'weights':8} {'threads':>7} {'engine':10} {'k':>2} {'tokens/s':>9} {'speed-up':>9}  range        acceptance length", flush=True)
    for weights in PAIRS:
        for threads in args.threads:
            for row in sorted(measure(args, weights, threads), key=lambda r: (r["engine"], r["k"])):
                low, high = row["speedup_range"]
                print(f"{weights:8} {threads:7} {row['engine']:10} {row['k']:2} {row['tokens_per_s']:9.1f} {row['speedup']:9.2f}  "
                      f"{low:.2f}-{high:.2f}    {row['acceptance_length']:.2f}", flush=True)
                result.append(row)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
