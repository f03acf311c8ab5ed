"""Loops over numbers: source x predicate x mapping x reduction."""

from .core import Item, indent, pick
from .parts import MAPPINGS, PREDICATES, mapping, predicate
from .reductions import describe, evaluate, reduction

LISTS = ["numbers", "list", "values", "items", "nums", "xs", "t", "arr", "data"]
SOURCES = ["list"] * 10 + ["range", "range2", "digits", "divisors", "matrix", "map"]
REDUCE = [
    "sum",
    "sum",
    "sum",
    "product",
    "count",
    "count",
    "max",
    "min",
    "list",
    "list",
    "reversed",
    "average",
    "first",
    "last",
    "any",
    "all",
    "none",
    "index",
    "positions",
    "concat",
    "set",
    "frequency",
    "running",
    "where",
    "without",
    "take",
]
LIST_ONLY = {"index", "positions", "where", "without", "take", "reversed"}
UNORDERED = {"sum", "product", "count", "max", "min", "average", "any", "all", "none"}
NO_MAP = {"count", "any", "all", "none", "index", "positions", "without"}


def source(kind, rng):
    """(noun phrase tail, parameters, loop opening, variable, closing count, values(args) -> list, argument sampler)"""

    def nums():
        return [
            rng.choice([rng.randrange(-12, 40), rng.randrange(-5, 12), rng.randrange(0, 120)])
            for _ in range(rng.choice([0, 3, 5, 7, 9]))
        ]

    if kind == "list":
        p = rng.choice(LISTS)
        where = pick(rng, "in the list", "in the list", "in the array", f"in {p}")
        return "numbers", where, [p], [f"for _, v in ipairs({p}) do"], "v", lambda a: a[0], lambda: [nums()]
    if kind == "map":
        p = rng.choice(["t", "map", "scores", "prices", "tbl"])
        return (
            "values",
            pick(rng, "in the table", f"of the table {p}"),
            [p],
            [f"for _, v in pairs({p}) do"],
            "v",
            lambda a: list(a[0].values()),
            lambda: [{c: n for c, n in zip("abcdefghi", nums())}],
        )
    if kind == "matrix":
        p = rng.choice(["matrix", "grid", "rows", "m"])
        return (
            "numbers",
            pick(rng, "in the matrix", "in the list of lists"),
            [p],
            [f"for _, row in ipairs({p}) do", "for _, v in ipairs(row) do"],
            "v",
            lambda a: [x for r in a[0] for x in r],
            lambda: [[nums() for _ in range(3)]],
        )
    if kind == "range":
        return (
            pick(rng, "numbers", "integers"),
            "from 1 to n",
            ["n"],
            ["for i = 1, n do"],
            "i",
            lambda a: list(range(1, a[0] + 1)),
            lambda: [rng.randrange(0, 30)],
        )
    if kind == "range2":
        a, b = rng.choice([("a", "b"), ("lo", "hi"), ("low", "high"), ("start", "stop")])
        return (
            pick(rng, "numbers", "integers"),
            f"from {a} to {b}",
            [a, b],
            [f"for i = {a}, {b} do"],
            "i",
            lambda x: list(range(x[0], x[1] + 1)),
            lambda: [rng.randrange(-5, 8), rng.randrange(3, 30)],
        )
    if kind == "digits":
        return (
            "digits",
            "of n",
            ["n"],
            ['for c in tostring(n):gmatch("%d") do', "local v = tonumber(c)"],
            "v",
            lambda a: [int(c) for c in str(a[0])],
            lambda: [rng.randrange(0, 99999)],
        )
    return (
        "divisors",
        "of n",
        ["n"],
        ["for i = 1, n do"],
        "i",
        lambda a: [d for d in range(1, a[0] + 1) if a[0] % d == 0],
        lambda: [rng.randrange(1, 61)],
    )


def make(rng, parts=None):
    """One item; `parts` = (source, predicates, mapping, reduction) fixes the combination."""
    src, pk, mk, rk = parts or sample(rng)
    noun, where, params, opening, v, values, sampler = source(src, rng)
    preds, m = sorted((predicate(k, rng) for k in pk), key=lambda p: p.post), mapping(mk, rng)
    extra = {}
    for part in preds + [m]:
        for p, vals in part.params.items():
            if p in params or p in extra:
                return None
            extra[p] = vals
    params = params + list(extra)
    doc, tag = describe(rng, rk, preds, m, noun, where)
    k = 3
    if rk == "take":
        k = rng.choice([2, 3, 4, 5])
        doc, tag = doc.replace("{k}", str(k)), tag.replace("{k}", str(k))
    cond = " and ".join(p.expr(v) for p in preds)
    if src == "divisors":
        cond = f"n % {v} == 0" + (f" and {cond}" if cond else "")
    e = m.expr(v)
    head, inner, tail = reduction(rk, cond, e, v, mk, k)
    if src == "list" and rk in ("index", "positions", "where"):
        opening = [opening[0].replace("for _,", "for i,")]
    depth = 2 if src == "matrix" else 1
    body = list(head)
    lines = []
    if src == "digits":
        lines = [opening[0], "  " + opening[1]] + indent(inner) + ["end"]
    elif depth == 2:
        lines = [opening[0], "  " + opening[1]] + indent(indent(inner)) + ["  end", "end"]
    else:
        lines = [opening[0]] + indent(inner) + ["end"]
    body += lines + list(tail)
    cases = []
    for _ in range(6):
        args = sampler()
        env = {p: rng.choice(vals) for p, vals in extra.items()}
        want = evaluate(rk, values(args), preds, m, env, k)
        cases.append((args + list(env.values()), want))
    key = "+".join(sorted(pk)) or "any"
    name = pick(rng, tag, tag, tag, tag, "f", "compute", "solve", "calc")
    meta = {"cond": preds[0].expr(v), "pred": preds[0], "var": v} if len(preds) == 1 and not preds[0].params else {}
    return Item(doc, name, params, body, cases, f"numbers.{rk}", f"{src}|{key}|{mk}|{rk}", meta)


def sample(rng):
    while True:
        src, rk = rng.choice(SOURCES), rng.choice(REDUCE)
        if (rk in LIST_ONLY and src != "list") or (src == "map" and rk not in UNORDERED):
            continue
        n = rng.choices([0, 1, 2], [2, 8, 2])[0]
        if rk in ("any", "all", "none", "index", "positions", "where", "without", "first") and n == 0:
            n = 1
        pk = rng.sample(PREDICATES, n)
        if src == "divisors" and rk == "all":
            continue
        if rk in ("all", "without") and n > 1:
            pk = pk[:1]
        mk = "id" if rk in NO_MAP or rng.random() < 0.25 else rng.choice(MAPPINGS)
        if rk == "where" and mk == "id" or n == 2 and {"even", "odd"} == set(pk):
            continue
        if not pk and mk == "id" and rk in ("list", "set") and src == "list":
            continue
        return src, pk, mk, rk
