"""Tokenized documents packed into rows of one length, cached on disk."""

import json
import os

import numpy as np
from tokenizers import Tokenizer

BOS, EOT_TEXT = "<|begin_of_text|>", "<|end_of_text|>"


def tokenize(docs, tok):
    """(ids, weight of each id as a target) of every document; a document is BOS + text + end_of_text"""
    bos, end = tok.token_to_id(BOS), tok.token_to_id(EOT_TEXT)
    with open(docs, encoding="utf-8") as f:
        while True:
            batch = [json.loads(line)[1] for _, line in zip(range(20000), f)]
            if not batch:
                return
            encoded = tok.encode_batch(["".join(s for s, _ in b) for b in batch], add_special_tokens=False)
            for segs, e in zip(batch, encoded):
                ends = np.cumsum([len(s) for s, _ in segs])
                start = np.array([o[0] for o in e.offsets])
                w = np.array([w for _, w in segs])[
                    np.minimum(np.searchsorted(ends, start, side="right"), len(segs) - 1)
                ]
                yield np.array([bos] + e.ids + [end], np.int16), np.concatenate(([0], w, [1])).astype(np.float16)


def pack(docs, tok, length, rng_seed=0):
    """Best-fit packing: arrays ids, weights, positions and document numbers of shape [rows, length]."""
    rows, open_rows = [], {}
    for ids, w in tokenize(docs, tok):
        n = len(ids)
        if n > length:
            continue
        room = next((r for r in range(n, min(n + 400, length) + 1) if open_rows.get(r)), None)
        if room is None:
            rows.append([])
            room = length
            open_rows.setdefault(room, []).append(len(rows) - 1)
        r = open_rows[room].pop()
        rows[r].append((ids, w))
        if room - n >= 16:
            open_rows.setdefault(room - n, []).append(r)
    out = [np.zeros((len(rows), length), t) for t in (np.int16, np.float16, np.int16, np.int16)]
    out[3][:] = -1
    for i, row in enumerate(rows):
        at = 0
        for d, (ids, w) in enumerate(row):
            s = slice(at, at + len(ids))
            out[0][i, s], out[1][i, s], out[2][i, s], out[3][i, s] = ids, w, np.arange(len(ids)), d
            at += len(ids)
    order = np.random.default_rng(rng_seed).permutation(len(rows))
    return [a[order] for a in out]


def load(docs, tokenizer, length, cache):
    """Packed rows, from the cache file when it is newer than the documents."""
    if not os.path.exists(cache) or os.path.getmtime(cache) < max(os.path.getmtime(docs), os.path.getmtime(tokenizer)):
        np.savez(cache, *pack(docs, Tokenizer.from_file(tokenizer), length))
    z = np.load(cache)
    return [z[k] for k in z.files]
