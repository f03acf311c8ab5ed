#!/usr/bin/env python3
"""Trains an EAGLE-3 head with training-time test: every step of a chain reads the outputs of the steps before.

The labels are the target's distributions over the draft vocabulary, mixed with its choices; ids outside of the draft
vocabulary are masked. A step weighs less where its chain has already failed, as an engine would not get there.
Resumes from its checkpoint when there is one.
"""

import argparse
import os
import time

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import load
from eagle3 import Head, HeadConfig
from muon import Muon


def read(folders):
    """Rows of all folders, the features of each, and how often the target wrote each id."""
    rows, stores, counts = [], [], 0
    for folder in folders:
        z = np.load(os.path.join(folder, "rows.npz"))
        parts = [z[k] for k in z.files]
        counts = counts + parts.pop()
        with open(os.path.join(folder, "done"), encoding="utf-8") as f:
            n = int(f.read())
        rows.append([p[:n] for p in parts])
        stores.append(np.load(os.path.join(folder, "features.npy"), mmap_mode="r")[:n])
    where = [(i, j) for i, s in enumerate(stores) for j in range(len(s))]
    return [np.concatenate(p) for p in zip(*rows)], stores, where, counts


def batch_at(data, step, a):
    """The rows of a step: one fixed order, with a new shuffle when all rows were seen."""
    rows, stores, where, _ = data
    epoch, i = divmod(step, len(where) // a.batch)
    order = np.random.default_rng((a.seed, epoch)).permutation(len(where))[i * a.batch : (i + 1) * a.batch]
    x = np.stack([stores[where[k][0]][where[k][1]] for k in order])
    ids, w, pos, doc = (torch.from_numpy(d[order]) for d in rows)
    return ids.long(), w.float(), pos.long(), doc.long(), torch.from_numpy(x).float()


def loss_of(head, target, batch, a):
    """(loss, expected acceptance length) of a batch"""
    ids, w, pos, doc, x = batch
    D, n = head.c.hidden_size, ids.shape[1] - 2
    with torch.no_grad():
        want = target.lm_head(target.model.norm(x[:, 1:-1, 3 * D :]))
        draft_ids, choice = head.draft_ids(), want.argmax(-1)
        w = w[:, 2:] * head.t2d[choice]
        index = head.t2d.cumsum(0)[choice] - 1
        p = want[..., draft_ids].softmax(-1) * a.soft
        p.scatter_add_(-1, index.clamp(0)[..., None], torch.full_like(p[..., :1], 1 - a.soft))
        embedded = target.model.embed_tokens(ids[:, 1:-1])
    ctx = head.context(pos[:, :n], doc[:, :n])
    loss, total, length, alive = 0, 0, 1, torch.ones(w.shape)
    for s, out in enumerate(head.chains(x[:, :n, : 3 * D], embedded, ctx, a.steps_of_chain)):
        same = F.pad(doc[:, :n], (s, 0), value=-1)[:, :n] == doc[:, 2:]
        ws = w * (same & (doc[:, 2:] >= 0))
        logits = head.logits(out)
        each = -(p * F.log_softmax(logits, -1)).sum(-1)
        mix = ws * (a.dead + (1 - a.dead) * alive)
        loss, total = loss + (each * mix).sum(), total + mix.sum()
        alive = alive * (logits.argmax(-1) == index)
        length = length + (alive * (ws == 1)).sum() / (ws == 1).sum()
        alive = F.pad(alive, (1, 0))[:, :n]
    return loss / total, length


def rate(step, a):
    """Multiple of the peak learning rate."""
    return min((step + 1) / a.warmup, 1.0, (a.steps - step) / (a.steps * a.decay))


def save(head, opts, step, path):
    state = dict(config=head.c.dict(), model=head.state_dict(), opts=[o.state_dict() for o in opts], step=step)
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="exported target model")
    ap.add_argument("--data", required=True, nargs="+", help="folders of eagle3_features.py")
    ap.add_argument("--out", required=True, help="folder of the checkpoint")
    ap.add_argument("--steps", type=int, default=1000)
    ap.add_argument("--batch", type=int, default=4, help="rows per step")
    ap.add_argument("--steps-of-chain", type=int, default=5)
    ap.add_argument("--soft", type=float, default=0.5, help="share of the target's distribution in the labels")
    ap.add_argument("--dead", type=float, default=0.2, help="weight of a step whose chain has already failed")
    ap.add_argument("--heads", type=int, default=4)
    ap.add_argument("--kv-heads", type=int, default=2)
    ap.add_argument("--head-dim", type=int, default=64)
    ap.add_argument("--inner", type=int, default=512, help="width of the feed-forward part")
    ap.add_argument("--draft-vocab", type=int, default=640)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--warmup", type=int, default=20)
    ap.add_argument("--decay", type=float, default=0.8)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--every", type=int, default=25, help="steps between log lines")
    ap.add_argument("--save-every", type=int, default=100)
    return ap.parse_args()


def main():
    a = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    os.makedirs(a.out, exist_ok=True)
    target, _ = load(a.model)
    target.requires_grad_(False)
    data = read(a.data)
    c = HeadConfig(
        vocab_size=target.c.vocab_size,
        draft_vocab_size=a.draft_vocab,
        hidden_size=target.c.hidden_size,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.head_dim,
        intermediate_size_mlp=a.inner,
        rms_norm_eps=target.c.rms_norm_eps,
    )
    head, counts = Head(c), data[3]
    head.start_from(target, np.argsort(-counts, kind="stable")[: a.draft_vocab].tolist())
    hidden = [p for n, p in head.named_parameters() if p.dim() > 1 and n != "lm_head.weight"]
    rest = [p for n, p in head.named_parameters() if p.dim() == 1] + [head.lm_head.weight]
    opts = [
        Muon(hidden, a.lr, weight_decay=0.02, dtype=torch.float32),
        torch.optim.AdamW(rest, a.lr, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0),
    ]
    path, first = os.path.join(a.out, "checkpoint.pt"), 0
    if os.path.exists(path):
        ck = torch.load(path, weights_only=True)
        head.load_state_dict(ck["model"])
        for o, s in zip(opts, ck["opts"]):
            o.load_state_dict(s)
        first = ck["step"]
    covered = counts[head.draft_ids().numpy()].sum() / counts.sum()
    print(
        f"{sum(p.numel() for p in head.parameters()):,} parameters, {len(data[2])} rows of {data[0][0].shape[1]}, "
        f"draft vocabulary covers {covered:.3%}, from step {first} of {a.steps}",
        flush=True,
    )
    start, sums = time.time(), torch.zeros(2)
    for step in range(first, a.steps):
        for o in opts:
            for g in o.param_groups:
                g["lr"] = a.lr * rate(step, a)
        loss, length = loss_of(head, target, batch_at(data, step, a), a)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        sums += torch.stack((loss.detach(), length.detach()))
        if (step + 1) % a.every == 0:
            mean, each = sums / a.every, (time.time() - start) / a.every
            print(
                f"step {step + 1} loss {mean[0]:.4f} length {mean[1]:.3f} {each:.2f} s/step ETA {(a.steps - step - 1) * each / 60:.1f} min",
                flush=True,
            )
            start, sums = time.time(), torch.zeros(2)
        if (step + 1) % a.save_every == 0 or step + 1 == a.steps:
            save(head, opts, step + 1, path)


if __name__ == "__main__":
    main()
