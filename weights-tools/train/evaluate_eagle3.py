#!/usr/bin/env python3
"""Mean acceptance length of an EAGLE-3 head: ids per verify step (accepted drafts and one more) of greedy decoding.

The target's continuations are known (eagle3_rollout.lua), so that drafts are right where they equal them. The first new
id comes from the prompt pass and is not counted. --golden writes the reference of one greedy chain of five:
input_ids [n + 1], features [n, 3 D], fused [n, D], draft_ids [5], draft_logits [5, draft vocabulary] and
draft_hidden [5, D], in float32 on the bfloat16 weights.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

from check import SHORT
from checkpoint import load, logits
from eagle3 import load_head
from eagle3_features import feature_layers, features

LONGEST = 7


@torch.no_grad()
def right_drafts(head, target, ids):
    """[LONGEST, len(ids) - 2]: whether step s of the chain that starts at a position gives the id of the rollout."""
    row, n, D = torch.tensor([ids]), len(ids) - 2, head.c.hidden_size
    pos = torch.arange(len(ids))[None]
    x = features(target, row, pos, None)[:, :n, : 3 * D]
    outs = head.chains(x, target.model.embed_tokens(row[:, 1:-1]), head.context(pos[:, :n]), LONGEST)
    right = torch.zeros(LONGEST, n, dtype=torch.bool)
    for s, out in enumerate(outs):
        drafts = head.draft_ids()[head.logits(out[0]).argmax(-1)]
        right[s, : n - s] = (drafts == row[0, 2:])[s:]
    return right


def verify_steps(right, first, k):
    """Steps that a chain of k needs for everything after the first new id, which is at `first`."""
    steps, at, end = 0, first, right.shape[1] + 1  # `at`: the last known id
    while at < end:
        good = right[:k, at - 1].tolist()
        at += 1 + (good + [False]).index(False)
        steps += 1
    return steps


def evaluate(head, target, path):
    """New ids and the verify steps of every chain length over a file of rollouts."""
    ids, steps, outside, allowed = 0, [0] * LONGEST, 0, set(head.draft_ids().tolist())
    with open(path, encoding="utf-8") as f:
        for line in f:
            case = json.loads(line)
            prompt, new = case["ids"], case["new"]
            if len(new) < 2:
                continue
            right = right_drafts(head, target, prompt + new)
            ids += len(new) - 1
            outside += sum(i not in allowed for i in new[1:])
            for k in range(LONGEST):
                steps[k] += verify_steps(right, len(prompt), k + 1)
    return dict(
        new_ids=ids,
        outside_draft_vocabulary=round(outside / ids, 5),
        acceptance_length=[round(ids / s, 3) for s in steps],
    )


@torch.no_grad()
def write_golden(head, target, tok, path):
    ids, D = tok.encode(SHORT).ids, head.c.hidden_size
    n = len(ids)
    ids.append(int(logits(target, ids)[-1].argmax()))
    x = features(target, torch.tensor([ids[:n]]), torch.arange(n)[None], None)[0, :, : 3 * D]
    draft_ids, draft_logits, outs = head.draft(x, ids, target.model.embed_tokens.weight, 5)
    # the chains of training and evaluation give the same numbers
    row = torch.tensor([ids + draft_ids])
    all_x = features(target, row, torch.arange(n + 6)[None], None)[..., : 3 * D]
    chains = head.chains(
        all_x[:, : n + 4], target.model.embed_tokens(row[:, 1:-1]), head.context(torch.arange(n + 4)[None]), 5
    )
    worst = max(float((out[0, n - 1 + s] - outs[s]).abs().max()) for s, out in enumerate(chains))
    if worst > 1e-3:
        raise SystemExit(f"the parallel chains differ from the plain one by {worst:.1e}")
    golden = dict(
        input_ids=torch.tensor(ids),
        features=x.contiguous(),
        fused=head.fc(x),
        draft_ids=torch.tensor(draft_ids),
        draft_logits=draft_logits,
        draft_hidden=outs,
    )
    about = "greedy chain of 5, float32 on the bfloat16 weights; draft_ids are ids of the target; draft_hidden is before the norm"
    layers = json.dumps(feature_layers(target.c.num_hidden_layers))
    save_file(golden, path, metadata={"about": about, "layers": layers})
    print(f"golden: {n} + 1 ids, drafts {tok.decode(draft_ids)!r}, parallel chains differ by {worst:.1e}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--head", required=True, help="exported head")
    ap.add_argument("--model", required=True, help="exported target model")
    ap.add_argument("--rollouts", nargs="*", default=[], help="files NAME.jsonl of eagle3_rollout.lua")
    ap.add_argument("--golden", help="file to write")
    ap.add_argument("--report", help="JSON file for the result")
    a = ap.parse_args()
    torch.set_num_threads(1)
    target, tok = load(a.model)
    head = load_head(a.head)
    sizes = {n: p.numel() for n, p in head.named_parameters()}
    step = sum(sizes.values()) - sizes["fc.weight"]
    report = dict(parameters=sum(sizes.values()), read_per_draft=step)
    print(json.dumps(report))
    for path in a.rollouts:
        name = os.path.basename(path).split(".")[0]
        report[name] = evaluate(head, target, path)
        print(name, json.dumps(report[name]))
    if a.golden:
        write_golden(head, target, tok, a.golden)
    if a.report:
        with open(a.report, "w", encoding="utf-8") as f:
            f.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
