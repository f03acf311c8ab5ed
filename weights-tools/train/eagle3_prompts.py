#!/usr/bin/env python3
"""Writes prompts for the training and for the evaluation of an EAGLE-3 head, one JSON object a line: kind, ids.

A prompt is a document of the training grammar, cut where the model would go on: before a function body or an answer.
A share (--free) is cut anywhere. With --heldout the prompts are those of that file.
"""

import argparse
import json
import os
import random

from tokenizers import Tokenizer

from luagen.documents import document


def cut(rng, kind, segments, free):
    """The text of a document before one of its parts that the model learnt to write."""
    text = "".join(s for s, _ in segments)
    if rng.random() < free:
        return "free", text[: rng.randrange(len(text) // 4, len(text))]
    starts = [i for i, (s, w) in enumerate(segments) if w >= 0.5 and s.strip() and i > 0]
    return kind, "".join(s for s, _ in segments[: rng.choice(starts)])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="exported model folder")
    ap.add_argument("--out", required=True, help="file to write")
    ap.add_argument("--heldout", help="heldout.jsonl, whose prompts are used")
    ap.add_argument("--avoid", nargs="*", default=[], help="files of prompts that must not occur")
    ap.add_argument("--count", type=int, default=20000, help="prompts to write")
    ap.add_argument("--kinds", nargs="*", help="only these kinds (single, file, chat, edit, asked, long, free)")
    ap.add_argument("--popular", type=float, default=0.06, help="share of chats about popular functions")
    ap.add_argument("--long", type=float, default=0.06, help="share of long files and conversations")
    ap.add_argument("--free", type=float, default=0.1, help="share of prompts cut anywhere")
    ap.add_argument("--most", type=int, default=260, help="tokens at most")
    ap.add_argument("--seed", type=int, default=11)
    a = ap.parse_args()
    tok, rng = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json")), random.Random(a.seed)
    seen, counts = set(), {}
    for path in a.avoid:
        with open(path, encoding="utf-8") as f:
            seen |= {tuple(json.loads(line)["ids"]) for line in f}
    with open(a.out, "w", encoding="utf-8") as out:

        def write(kind, text):
            ids = tok.encode(text).ids
            if len(ids) > a.most or tuple(ids) in seen or a.kinds and kind not in a.kinds:
                return
            seen.add(tuple(ids))
            counts[kind] = counts.get(kind, 0) + 1
            out.write(json.dumps(dict(kind=kind, ids=ids)) + "\n")

        if a.heldout:
            with open(a.heldout, encoding="utf-8") as f:
                for line in f:
                    write("heldout", json.loads(line)["prompt"])
            return print("prompts:", counts)
        goal = len(seen) + a.count
        while len(seen) < goal:
            write(*cut(rng, *document(rng, a.popular, a.long), a.free))
    print("prompts:", counts)


if __name__ == "__main__":
    main()
