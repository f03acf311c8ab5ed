"""Functions of one or two numbers: conditions, conditional values, chains and arithmetic."""

from .core import Item, pick
from .parts import MAPPINGS, PREDICATES, mapping, predicate

VARS = ["n", "x", "a", "num", "value", "v"]
SCALAR_MAPS = [m for m in MAPPINGS if m not in ("id",)]
PLAIN = [p for p in PREDICATES]


def _setup(rng, preds, maps):
    v = rng.choice(VARS)
    extra = {}
    for part in preds + maps:
        for p, vals in part.params.items():
            if p in extra or p == v:
                return None
            extra[p] = vals
    return v, extra


def _cases(rng, extra, fn):
    out = []
    for x in [0, 1, 7, 10, -3, rng.randrange(50), rng.randrange(100), rng.randrange(-20, 20)]:
        env = {p: rng.choice(vals) for p, vals in extra.items()}
        out.append(([x] + list(env.values()), fn(x, env)))
    return out


def condition(rng):
    """returns true if n is even and greater than 3"""
    pk = rng.sample(PLAIN, rng.choice([1, 2, 2]))
    op = pick(rng, "and", "or")
    ps = [predicate(k, rng) for k in pk]
    s = _setup(rng, ps, [])
    if s is None:
        return None
    v, extra = s
    negate = len(pk) == 1 and rng.random() < 0.3 and not ps[0].said.startswith(("is not", "is at"))
    said = (" %s " % op).join(p.said for p in ps)
    if negate and said.startswith("ends"):
        return None
    if negate:
        said = said.replace("is ", "is not ", 1)
        expr = f"not ({ps[0].expr(v)})"
        fn = lambda x, e: not ps[0].fn(x, e)
    else:
        wrap = lambda q: f"({q})" if op == "or" and " and " in q else q
        expr = f" {op} ".join(wrap(p.expr(v)) for p in ps) if len(ps) > 1 else ps[0].expr(v).strip()
        fn = lambda x, e: (all if op == "and" else any)(p.fn(x, e) for p in ps)
    doc = pick(rng, "returns true if", "checks whether", "returns whether") + f" {v} {said}"
    name = (
        pick(rng, "is_", "check_", "is_") + f"_{op}_".join(p.tag for p in ps)
        if rng.random() < 0.8
        else pick(rng, "check", "test", "f")
    )
    if negate:
        name = name.replace("is_", "is_not_", 1)
    return Item(
        doc,
        name,
        [v] + list(extra),
        ["return " + expr],
        _cases(rng, extra, fn),
        "scalar.condition",
        f"cond|{'+'.join(sorted(pk))}|{'not' if negate else op if len(pk) > 1 else ''}",
    )


def conditional(rng):
    """returns the square of n if n is even, otherwise n plus 3"""
    pk, m1, m2 = rng.choice(PLAIN), rng.choice(SCALAR_MAPS + ["id"] * 3), rng.choice(SCALAR_MAPS + ["id"] * 3)
    if m1 == m2:
        return None
    p, a, b = predicate(pk, rng), mapping(m1, rng), mapping(m2, rng)
    s = _setup(rng, [p], [a, b])
    if s is None:
        return None
    v, extra = s
    one = lambda m: m.one.format(v=v)
    doc = pick(
        rng,
        f"returns {one(a)} if {v} {p.said}, otherwise {one(b)}",
        f"returns {one(a)} if {v} {p.said}, and {one(b)} otherwise",
        f"if {v} {p.said} returns {one(a)}, else {one(b)}",
    )
    body = [
        f"if {p.expr(v).strip('()') if pk == 'outside' else p.expr(v)} then",
        f"  return {a.expr(v)}",
        "end",
        f"return {b.expr(v)}",
    ]
    name = pick(
        rng,
        "choose",
        "transform",
        "adjust",
        "f",
        "step",
        "compute",
        f"{a.tag}_if_{p.tag}" if a.tag else f"keep_if_{p.tag}",
    )
    fn = lambda x, e: a.fn(x, e) if p.fn(x, e) else b.fn(x, e)
    return Item(doc, name, [v] + list(extra), body, _cases(rng, extra, fn), "scalar.conditional", f"if|{pk}|{m1}|{m2}")


def chain(rng):
    """returns the square of n plus 3: one mapping, or two after another through a local"""
    if rng.random() < 0.4:
        m = rng.choice(SCALAR_MAPS)
        a = mapping(m, rng)
        s = _setup(rng, [], [a])
        if s is None:
            return None
        v, extra = s
        name = pick(rng, a.tag, a.tag, "f", "apply", "convert")
        return Item(
            f"returns {a.one.format(v=v)}",
            name,
            [v] + list(extra),
            [f"return {a.expr(v)}"],
            _cases(rng, extra, a.fn),
            "scalar.map",
            f"map|{m}",
        )
    m1, m2 = rng.sample(SCALAR_MAPS, 2)
    a, b = mapping(m1, rng), mapping(m2, rng)
    s = _setup(rng, [], [a, b])
    if s is None or s[0] in ("x", "y"):
        return None
    v, extra = s
    doc = pick(
        rng,
        f"takes {a.one.format(v=v)}, then returns {b.one.format(v='it')}",
        f"computes {a.one.format(v=v)} and returns {b.one.format(v='that')}",
    )
    body = [f"local y = {a.expr(v)}", f"return {b.expr('y')}"]
    name = pick(rng, f"{a.tag}_then_{b.tag}", "chain", "transform", "f")
    return Item(
        doc,
        name,
        [v] + list(extra),
        body,
        _cases(rng, extra, lambda x, e: b.fn(a.fn(x, e), e)),
        "scalar.chain",
        f"chain|{m1}|{m2}",
    )


def pair(rng):
    """functions of two numbers: choose by a comparison"""
    a, b = rng.choice([("a", "b"), ("x", "y"), ("m", "n"), ("left", "right")])
    cmp, op, f = rng.choice(
        [
            ("greater than", ">", lambda x, y: x > y),
            ("less than", "<", lambda x, y: x < y),
            ("equal to", "==", lambda x, y: x == y),
            ("at least", ">=", lambda x, y: x >= y),
            ("at most", "<=", lambda x, y: x <= y),
        ]
    )
    vals = {
        "sum": ("the sum of {a} and {b}", "{a} + {b}", lambda x, y: x + y),
        "diff": ("{a} minus {b}", "{a} - {b}", lambda x, y: x - y),
        "rdiff": ("{b} minus {a}", "{b} - {a}", lambda x, y: y - x),
        "prod": ("the product of {a} and {b}", "{a} * {b}", lambda x, y: x * y),
        "a": ("{a}", "{a}", lambda x, y: x),
        "b": ("{b}", "{b}", lambda x, y: y),
        "zero": ("0", "0", lambda x, y: 0),
        "avg": ("the average of {a} and {b}", "({a} + {b}) / 2", lambda x, y: (x + y) / 2),
        "sq": ("the sum of the squares of {a} and {b}", "{a} * {a} + {b} * {b}", lambda x, y: x * x + y * y),
        "twice": ("twice {a}", "{a} * 2", lambda x, y: x * 2),
        "nil": ("nil", "nil", lambda x, y: None),
        "absd": ("the absolute difference of {a} and {b}", "math.abs({a} - {b})", lambda x, y: abs(x - y)),
    }
    k1, k2 = rng.sample(sorted(vals), 2)
    F = lambda s: s.format(a=a, b=b)
    cases = [([x, y], None) for x, y in [(1, 2), (5, 3), (4, 4), (-2, 7), (rng.randrange(30), rng.randrange(30))]]
    if rng.random() < 0.25 and k1 not in ("a", "b", "zero", "nil"):
        return Item(
            f"returns {F(vals[k1][0])}",
            pick(rng, k1 + "_of", "combine", "f", "compute"),
            [a, b],
            [f"return {F(vals[k1][1])}"],
            [(c, vals[k1][2](*c)) for c, _ in cases],
            "scalar.pair",
            f"pair|{k1}",
        )
    doc = f"returns {F(vals[k1][0])} if {a} is {cmp} {b}, otherwise {F(vals[k2][0])}"
    body = [f"if {a} {op} {b} then", f"  return {F(vals[k1][1])}", "end", f"return {F(vals[k2][1])}"]
    return Item(
        doc,
        pick(rng, "combine", "select", "choose", "f", "compare", "pick"),
        [a, b],
        body,
        [(c, vals[k1][2](*c) if f(*c) else vals[k2][2](*c)) for c, _ in cases],
        "scalar.pair",
        f"pair|{op}|{k1}|{k2}",
    )


def make(rng):
    return rng.choice([condition, condition, conditional, conditional, chain, pair])(rng)
