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


def fill(f, params, doc, name):
    """The function of a family with the given parameter names, comment and name."""

    def sub(s):
        return re.sub(r"\$(\d)", lambda m: params[int(m.group(1)) - 1], s).replace("NAME", name)

    tests = [f"assert({t})" for t in f["tests"]]
    return Item(sub(doc), name, list(params), [sub(b) for b in f["body"]], tests, "classic." + f["names"][0], "")


def make(rng):
    f = FAMILIES[rng.randrange(len(FAMILIES))]
    params, doc, name = rng.choice(f["params"]), rng.choice(f["docs"]), rng.choice(f["names"])
    if rng.random() < 0.1:
        name = rng.choice(["f", "compute", "run"])
    it = fill(f, params, doc, name)
    if any(re.search(rf"\b(?:local|for) [^=]*\b{p}\b", b) for p in params for b in it.body):
        return None
    return it
