#!/usr/bin/env python3
"""Trains tiny-maverick on packed documents; resumes from its checkpoint when there is one.

Data parallel over --workers processes of one thread each: on shared cores this beats threads that wait
for each other. The learning rate warms up, stays flat and falls linearly to zero over the last --decay of the steps.
"""

import argparse
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from data import load
from model import Config, Model
from muon import Muon


def optimizers(model, a):
    """AdamW for embeddings, norms, router and head; the hidden matrices by --optimizer."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.dim() > 1 and "embed" not in n and "lm_head" not in n and "router" not in n]
    ids = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in ids]
    adam = dict(lr=a.lr, betas=(0.9, 0.98), eps=1e-9)
    if a.optimizer == "muon":
        return [Muon(hidden, a.lr, weight_decay=a.weight_decay), torch.optim.AdamW(rest, weight_decay=0.0, **adam)]
    return [
        torch.optim.AdamW(
            [dict(params=hidden, weight_decay=a.weight_decay), dict(params=rest, weight_decay=0.0)], **adam
        )
    ]


def rate(step, a):
    """Multiple of the peak learning rate."""
    fall = a.steps * a.decay
    return min((step + 1) / a.warmup, 1.0, max((a.steps - step) / fall, 0.0))


def batch_at(data, step, a, rank):
    """A worker's rows of a step: one fixed order, with a new shuffle when all rows were seen."""
    n = len(data[0]) // a.batch
    epoch, i = divmod(step, n)
    order = np.random.default_rng((a.seed, epoch)).permutation(len(data[0]))[i * a.batch : (i + 1) * a.batch][
        rank :: a.workers
    ]
    ids, w, pos, doc = (torch.from_numpy(d[order]) for d in data)
    return ids.long(), w.float(), pos.long(), doc.long()


def loss_of(model, batch, a):
    ids, w, pos, doc = batch
    ctx = model.context(pos, doc)
    with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
        logits = model(ids, ctx)
    w = w[:, 1:] * (doc[:, 1:] == doc[:, :-1]) * (doc[:, 1:] >= 0)
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(w)
    moes = [l.feed_forward for l in model.model.layers if hasattr(l.feed_forward, "router")]
    full = w == 1
    return (
        (ce * w).sum() / w.sum(),
        sum(m.aux for m in moes) / len(moes),
        (ce * full).sum().detach() / full.sum(),
        torch.stack([m.load for m in moes]).min(),
    )


def share(model, stats, workers):
    """Averages the gradients and the logged numbers over the workers."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads] + [stats])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat.split([g.numel() for g in grads] + [len(stats)])
    for g, new in zip(grads, parts):
        g.copy_(new.view_as(g))
    return parts[-1].tolist()


def save(model, opts, step, path):
    torch.save(
        dict(config=model.c.dict(), model=model.state_dict(), opts=[o.state_dict() for o in opts], step=step),
        path + ".new",
    )
    os.replace(path + ".new", path)


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--docs", required=True, help="docs.jsonl of gen_functions.py")
    ap.add_argument("--tokenizer", required=True, help="tokenizer.json")
    ap.add_argument("--out", required=True, help="folder of the checkpoint")
    ap.add_argument("--log", help="file that progress lines are appended to")
    ap.add_argument("--start", help="checkpoint whose weights a second stage begins with")
    ap.add_argument("--steps", type=int, default=1500)
    ap.add_argument("--batch", type=int, default=16, help="rows per step, over all workers")
    ap.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    ap.add_argument("--length", type=int, default=256, help="tokens per row")
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--warmup", type=int, default=100)
    ap.add_argument("--decay", type=float, default=0.25)
    ap.add_argument("--weight-decay", type=float, default=0.05)
    ap.add_argument("--aux", type=float, default=0.01, help="weight of the router balancing loss")
    ap.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    ap.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast the matrix products")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--every", type=int, default=50, help="steps between log lines")
    ap.add_argument("--save-every", type=int, default=200)
    ap.add_argument("--stop-at", type=int, help="leave after this step without changing the schedule")
    ap.add_argument("--seconds", type=float, help="leave after this time (for measuring)")
    return ap.parse_args()


def worker(rank, a, cache):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{cache}.rendezvous", rank=rank, world_size=a.workers)
    torch.manual_seed(a.seed)
    data = load(a.docs, a.tokenizer, a.length, cache)
    model = Model(Config())
    opts = optimizers(model, a)
    path, first = os.path.join(a.out, "checkpoint.pt"), 0
    if os.path.exists(path):
        ck = torch.load(path, weights_only=True)
        model.load_state_dict(ck["model"])
        for o, s in zip(opts, ck["opts"]):
            o.load_state_dict(s)
        first = ck["step"]
    elif a.start:
        model.load_state_dict(torch.load(a.start, weights_only=True)["model"])

    def log(text):
        if rank:
            return
        print(text, flush=True)
        if a.log:
            with open(a.log, "a", encoding="utf-8") as f:
                f.write(text + "\n")

    log(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data[0])} rows of {a.length}, {(data[3] >= 0).mean():.1%} filled, from step {first} of {a.steps}"
    )
    t0, tokens, start = time.time(), 0, time.time()
    for step in range(first, a.stop_at or a.steps):
        for o in opts:
            for g in o.param_groups:
                g["lr"] = a.lr * rate(step, a)
        loss, aux, body, low = loss_of(model, batch_at(data, step, a, rank), a)
        (loss + a.aux * aux).backward()
        loss, aux, body, low = share(model, torch.stack((loss.detach(), aux.detach(), body, low)), a.workers)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        tokens += a.batch * a.length
        if (step + 1) % a.every == 0:
            speed = tokens / (time.time() - t0)
            left = (a.steps - step - 1) * a.batch * a.length / speed
            log(
                f"step {step + 1} loss {loss:.4f} body {body:.4f} aux {aux:.3f} least {low:.3f} norm {norm:.2f} lr {a.lr * rate(step, a):.2e} {speed:.0f} tokens/s ETA {left / 60:.1f} min {time.strftime('%H:%M:%S')}"
            )
            t0, tokens = time.time(), 0
        if (step + 1) % a.save_every == 0 and rank == 0:
            save(model, opts, step + 1, path)
        if a.seconds and time.time() - start > a.seconds:
            return
    if rank == 0:
        save(model, opts, a.stop_at or a.steps, path)


def main():
    a = arguments()
    os.makedirs(a.out, exist_ok=True)
    cache = os.path.join(os.path.abspath(a.out), f"packed-{a.length}.npz")
    load(a.docs, a.tokenizer, a.length, cache)
    if os.path.exists(cache + ".rendezvous"):
        os.remove(cache + ".rendezvous")
    mp.spawn(worker, (a, cache), a.workers)


if __name__ == "__main__":
    main()
