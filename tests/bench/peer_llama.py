#!/usr/bin/env python3
"""Time llama.cpp on one GGUF file, on command.

    peer_llama.py [--mmap] MODEL.gguf

loads the model through llama-cpp-python's low-level API, then reads one JSON object a
line from standard input and answers each with one JSON object a line:

    {"cmd": "info"}                                              about the model and the build
    {"cmd": "decode", "threads": 2, "tokens": 64, "repeats": 3}  one sequence, one token a call
    {"cmd": "rows", "threads": 2, "rows": [1, 2, 4], "repeats": 9}
                                                 one call of n rows with logits for each (verify)
    {"cmd": "prompt", "threads": 2, "tokens": 512, "repeats": 3}  one call, logits for the last
    {"cmd": "quit"}

Only llama_decode up to its finished logits is timed. Input tokens are random, so that
routing is too, and the cache is rewound after each measurement. Every command warms up
first and reports medians.

Weights are read into memory unless --mmap is given: that is llama.cpp's faster way here
(huge pages), though not its default.
"""
import argparse
import json
import os
import statistics
import sys
import time

import gguf
import llama_cpp as ll
import numpy as np

PREFIX = 128     # tokens in the cache before decode and rows are timed
CONTEXT = 2048
WARMUP = 3       # calls before decode is timed
ROWS_TURNS = 3   # how often the row counts are gone through; the first call of each visit is not timed


class Peer:
    """One model and one context of llama.cpp."""

    def __init__(self, path, mmap=False):
        self.path = path
        ll.llama_backend_init()
        self.silent = ll.llama_log_callback(lambda level, text, data: None)
        ll.llama_log_set(self.silent, None)
        params = ll.llama_model_default_params()
        params.load_mode = ll.LLAMA_LOAD_MODE_MMAP if mmap else ll.LLAMA_LOAD_MODE_NONE
        self.model = ll.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = ll.llama_context_default_params()
        params.n_ctx = CONTEXT
        params.n_batch = params.n_ubatch = 512
        params.n_outputs_max_per_seq = 0  # logits for as many rows as asked
        params.n_threads = params.n_threads_batch = 1
        self.ctx = ll.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise SystemExit("llama.cpp cannot make a context")
        self.memory = ll.llama_get_memory(self.ctx)
        self.n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(512, 0, 1)
        self.rng = np.random.default_rng(1)

    def fill(self, n, position, logits):
        """Put n random tokens of sequence 0 into the batch; logits: "all" or "last"."""
        b = self.batch
        b.n_tokens = n
        for i, token in enumerate(self.rng.integers(0, self.n_vocab, n)):
            b.token[i] = int(token)
            b.pos[i] = position + i
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = 0
            b.logits[i] = logits == "all" or i == n - 1

    def call(self, n, position, logits="all"):
        """Seconds of one llama_decode of n rows at a position."""
        self.fill(n, position, logits)
        start = time.perf_counter()
        status = ll.llama_decode(self.ctx, self.batch)
        ll.llama_synchronize(self.ctx)
        ll.llama_get_logits_ith(self.ctx, n - 1)
        seconds = time.perf_counter() - start
        if status != 0:
            raise RuntimeError(f"llama_decode of {n} rows at {position}: status {status}")
        return seconds

    def forget(self, position):
        """Drop the cache from a position on."""
        ll.llama_memory_seq_rm(self.memory, 0, position, -1)

    def start(self, threads):
        """An empty cache, then PREFIX tokens, with a number of threads."""
        ll.llama_set_n_threads(self.ctx, threads, threads)
        ll.llama_memory_clear(self.memory, True)
        self.call(PREFIX, 0, "last")

    # ------------------------------------------------------------ commands

    def decode(self, threads, tokens=64, repeats=3):
        self.start(threads)
        for _ in range(WARMUP):
            self.call(1, PREFIX)
            self.forget(PREFIX)
        rates, steps = [], []
        for _ in range(repeats):
            times = [self.call(1, PREFIX + i) for i in range(tokens)]
            self.forget(PREFIX)
            rates.append(tokens / sum(times))
            steps += times
        return dict(tokens=tokens, repeats=repeats, tokens_per_s=statistics.median(rates),
                    tokens_per_s_range=[min(rates), max(rates)], us_per_step=1e6 * statistics.median(steps))

    def rows(self, threads, rows=(1, 2, 4, 8, 16), repeats=9):
        self.start(threads)
        times = {n: [] for n in rows}
        for _ in range(ROWS_TURNS):  # row counts take turns, so that drift hits all alike
            for n in rows:
                turn = []
                for _ in range(1 + -(-repeats // ROWS_TURNS)):
                    turn.append(self.call(n, PREFIX))
                    self.forget(PREFIX)
                times[n] += turn[1:]
        return dict(rows={str(n): 1e6 * statistics.median(t) for n, t in times.items()}, repeats=repeats)

    def prompt(self, threads, tokens=512, repeats=3):
        ll.llama_set_n_threads(self.ctx, threads, threads)
        rates = []
        for i in range(1 + repeats):
            ll.llama_memory_clear(self.memory, True)
            seconds = self.call(tokens, 0, "last")
            if i:
                rates.append(tokens / seconds)
        return dict(tokens=tokens, repeats=repeats, tokens_per_s=statistics.median(rates),
                    tokens_per_s_range=[min(rates), max(rates)])

    def info(self):
        return dict(path=os.path.basename(self.path), version=ll.__version__,
                    system=ll.llama_print_system_info().decode().strip(), **weight_bytes(self.path))


def weight_bytes(path):
    """Bytes of weights a GGUF holds, and what one decoded token reads of them.

    A token reads one row of the embedding and one routed expert in a MoE layer;
    bytes_per_expert is one expert in every MoE layer.
    """
    reader = gguf.GGUFReader(path)
    experts = int(reader.fields["llama4.expert_count"].contents())
    total = once = routed = 0
    for t in reader.tensors:
        size = int(t.n_bytes)
        total += size
        if t.name == "token_embd.weight":
            once += size // int(t.shape[1])
        elif "_exps." in t.name:
            routed += size
        else:
            once += size
    return dict(bytes_total=total, bytes_per_step=once + routed // experts,
                bytes_per_expert=routed // experts, experts=experts)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", help="a GGUF file")
    ap.add_argument("--mmap", action="store_true", help="map the file, llama.cpp's default")
    args = ap.parse_args()

    answers = os.fdopen(os.dup(1), "w")  # nothing but answers goes to standard output
    os.dup2(2, 1)
    peer = Peer(args.model, args.mmap)
    commands = {"info": peer.info, "decode": peer.decode, "rows": peer.rows, "prompt": peer.prompt}
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("cmd")
        if name == "quit":
            break
        try:
            answer = commands[name](**request)
        except (KeyError, TypeError, RuntimeError) as e:
            answer = {"error": f"{name}: {e!r}"}
        print(json.dumps(answer), file=answers, flush=True)
    ll.llama_batch_free(peer.batch)
    ll.llama_free(peer.ctx)
    ll.llama_model_free(peer.model)


if __name__ == "__main__":
    main()
