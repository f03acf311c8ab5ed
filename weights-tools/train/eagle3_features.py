#!/usr/bin/env python3
"""Packs rollouts into rows and stores what an EAGLE-3 head reads of the target model.

OUT/rows.npz: ids, weights, positions and document numbers [rows, length], and how often the model wrote each id.
OUT/features.npy: float16 [rows, length, 4 * hidden size], the residual-stream outputs of layers 1, n/2 - 1, n - 4 and of
the last one. A weight belongs to an id as a draft: 1 where the model wrote it, except its first one, --prompt elsewhere.
Features that are there already are kept.
"""

import argparse
import json
import os

import numpy as np
import torch
from numpy.lib.format import open_memmap

from checkpoint import load


def feature_layers(n):
    """Layers whose outputs the head reads, counted from 0, from low to high."""
    return 1, n // 2 - 1, n - 4


def pack(docs, length, prompt_weight, seed=0):
    """First-fit packing of (prompt ids, new ids) pairs."""
    rows, open_rows = [], []
    for prompt, new in docs:
        n = len(prompt) + len(new)
        if n > length:
            continue
        row = next((r for r in open_rows if r[0] >= n), None)
        if row is None:
            row = [length, []]
            rows.append(row)
            open_rows = open_rows[-63:] + [row]
        row[0] -= n
        row[1].append((prompt, new))
    out = [np.zeros((len(rows), length), t) for t in (np.int16, np.float16, np.int16, np.int16)]
    out[3][:] = -1
    for i, (_, row) in enumerate(rows):
        at = 0
        for d, (prompt, new) in enumerate(row):
            n, p = len(prompt) + len(new), len(prompt)
            s = slice(at, at + n)
            out[0][i, s], out[2][i, s], out[3][i, s] = prompt + new, np.arange(n), d
            out[1][i, s] = np.where(np.arange(n) > p, 1, prompt_weight)
            at += n
    order = np.random.default_rng(seed).permutation(len(rows))
    return [a[order] for a in out]


@torch.no_grad()
def features(model, ids, pos, doc):
    """[rows, length, 4 * hidden size]"""
    hidden, n = [], model.c.num_hidden_layers
    model(ids, model.context(pos, doc), hidden=hidden)
    return torch.cat([hidden[i] for i in (*feature_layers(n), n - 1)], -1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="exported model folder")
    ap.add_argument("--rollouts", required=True, nargs="+", help="files of eagle3_rollout.lua")
    ap.add_argument("--out", required=True, help="folder to write")
    ap.add_argument("--length", type=int, default=384, help="tokens per row")
    ap.add_argument("--prompt", type=float, default=0.1, help="weight of ids that the model did not write")
    a = ap.parse_args()
    torch.set_num_threads(1)
    model, _ = load(a.model)
    os.makedirs(a.out, exist_ok=True)
    rows_path, path, done_path = (os.path.join(a.out, f) for f in ("rows.npz", "features.npy", "done"))
    if not os.path.exists(rows_path):
        docs = []
        for name in a.rollouts:
            with open(name, encoding="utf-8") as f:
                docs += [(d["ids"], d["new"]) for d in map(json.loads, f)]
        counts = np.bincount(np.concatenate([new for _, new in docs]), minlength=model.c.vocab_size)
        np.savez(rows_path, *pack(docs, a.length, a.prompt), counts)
        print(f"{len(docs)} rollouts, {counts.sum():,} new tokens")
    z = np.load(rows_path)
    ids, _, pos, doc, _ = [torch.from_numpy(z[k]).long() if z[k].dtype == np.int16 else z[k] for k in z.files]
    shape, first = (*ids.shape, 4 * model.c.hidden_size), 0
    if os.path.exists(done_path):
        with open(done_path, encoding="utf-8") as f:
            first = int(f.read())
    store = open_memmap(path, "r+" if first else "w+", np.float16, None if first else shape)
    for i in range(first, len(ids), 8):
        s = slice(i, i + 8)
        store[s] = features(model, ids[s], pos[s], doc[s]).half().numpy()
        if i % 128 == 0 or i + 8 >= len(ids):
            store.flush()
            with open(done_path, "w", encoding="utf-8") as f:
                f.write(str(min(i + 8, len(ids))))
    print(f"{len(ids)} rows of {ids.shape[1]}, {(doc >= 0).float().mean():.1%} filled")


if __name__ == "__main__":
    main()
