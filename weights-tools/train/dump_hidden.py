#!/usr/bin/env python3
"""Dumps hidden states of a low, a middle and a high layer for training an EAGLE-3 head.

For each document: input_ids.N [tokens] and hidden.N [tokens, 3 * hidden size] in bfloat16, the residual-stream
outputs of layers 1, n/2 - 1 and n - 4 (counted from 0), joined from low to high.
"""

import argparse
import json

import torch
from safetensors.torch import save_file

from checkpoint import load, logits


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="exported model folder")
    ap.add_argument("--docs", required=True, help="docs.jsonl of gen_functions.py")
    ap.add_argument("--out", required=True, help="safetensors file to write")
    ap.add_argument("--count", type=int, default=2000, help="documents")
    ap.add_argument("--skip", type=int, default=0, help="documents to pass over first")
    a = ap.parse_args()
    torch.set_num_threads(1)
    model, tok = load(a.model)
    end = tok.token_to_id("<|end_of_text|>")
    n = model.c.num_hidden_layers
    layers, tensors = (1, n // 2 - 1, n - 4), {}
    with open(a.docs, encoding="utf-8") as f:
        for i, line in enumerate(f):
            if i < a.skip:
                continue
            if i == a.skip + a.count:
                break
            ids, hidden = tok.encode("".join(s for s, _ in json.loads(line)[1])).ids + [end], []
            logits(model, ids, hidden)
            tensors[f"input_ids.{i - a.skip}"] = torch.tensor(ids, dtype=torch.int32)
            tensors[f"hidden.{i - a.skip}"] = torch.cat([hidden[l][0] for l in layers], -1).bfloat16()
    save_file(tensors, a.out, metadata={"layers": json.dumps(layers), "documents": str(len(tensors) // 2)})
    print(
        f"{len(tensors) // 2} documents, {sum(len(v) for k, v in tensors.items() if k.startswith('input')):,} tokens, layers {layers}"
    )


if __name__ == "__main__":
    main()
