"""Well-known single functions, read from classics.txt: every name, comment and parameter choice varies."""

import os
import re

from .core import Item


def load(path=os.path.join(os.path.dirname(__file__), "classics.txt")):
    out, cur = [], None
    for line in open(path, encoding="utf-8"):
        line = line.rstrip("\n")
        mark, rest = line[:2], line[2:]
        if line.startswith("# "):
            continue
        if mark == "@ ":
            cur = dict(names=rest.split(" | "), docs=[], params=[], body=[], tests=[])
            out.append(cur)
        elif mark == "- ":
            cur["docs"].append(rest)
        elif mark == "( ":
            cur["params"] = [p.split() for p in rest.split(" ; ")]
        elif mark == "? ":
            cur["tests"] = rest.split(" ;; ")
        elif line:
            cur["body"].append(line)
    return out


FAMILIES = load()


def make(rng):
    i = rng.randrange(len(FAMILIES))
    f = FAMILIES[i]
    params, doc, name = rng.choice(f["params"]), rng.choice(f["docs"]), rng.choice(f["names"])
    if rng.random() < 0.1:
        name = rng.choice(["f", "compute", "run"])
    sub = lambda s: re.sub(r"\$(\d)", lambda m: params[int(m.group(1)) - 1], s).replace("NAME", name)
    if any(re.search(rf"\b(?:local|for) [^=]*\b{p}\b", b) for p in params for b in map(sub, f["body"])):
        return None
    return Item(
        sub(doc),
        name,
        list(params),
        [sub(b) for b in f["body"]],
        [f"assert({t})" for t in f["tests"]],
        "classic." + f["names"][0],
        "",
    )
