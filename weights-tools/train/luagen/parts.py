"""Predicates and mappings on numbers."""

from .core import Part, pick

SMALL = [2, 3, 4, 5, 6, 7, 8, 9, 10]
LIMITS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 50, 100]
PREDICATES = [
    "even",
    "odd",
    "positive",
    "negative",
    "nonzero",
    "gt",
    "lt",
    "ge",
    "le",
    "div",
    "ndiv",
    "between",
    "outside",
    "ends",
    "ne",
    "gtp",
    "ltp",
    "divp",
]
MAPPINGS = [
    "id",
    "square",
    "cube",
    "double",
    "triple",
    "half",
    "neg",
    "abs",
    "add",
    "sub",
    "mul",
    "mod",
    "floordiv",
    "lastdigit",
    "dist",
    "addp",
    "mulp",
    "inc",
    "rem",
]
WEIGHT = {"id": 5}


def predicate(key, rng):
    """Instantiates a predicate with fresh constants and phrasing."""
    k = rng.choice(LIMITS)
    m = rng.choice(SMALL)
    simple = {
        "even": ("even", "{} % 2 == 0", lambda v, e: v % 2 == 0),
        "odd": ("odd", "{} % 2 ~= 0", lambda v, e: v % 2 != 0),
        "positive": ("positive", "{} > 0", lambda v, e: v > 0),
        "negative": ("negative", "{} < 0", lambda v, e: v < 0),
        "nonzero": ("nonzero", "{} ~= 0", lambda v, e: v != 0),
    }
    if key in simple:
        word, ex, fn = simple[key]
        said = "not zero" if key == "nonzero" else word
        return Part(key, word, ex.format, fn, word, said="is " + said)
    if key in ("gt", "gtp"):
        p, par = _limit(key, k, rng, ["limit", "threshold", "bound", "low"])
        ph = pick(rng, "greater than", "above", "larger than")
        return Part(
            key,
            f"{ph} {p}",
            lambda v: f"{v} > {p}",
            lambda v, e: v > e.get(p, k),
            pick(rng, f"above_{p}", f"over_{p}", "large"),
            True,
            par,
            f"is {ph} {p}",
        )
    if key in ("lt", "ltp"):
        p, par = _limit(key, k, rng, ["limit", "threshold", "bound", "high"])
        ph = pick(rng, "less than", "below", "smaller than")
        return Part(
            key,
            f"{ph} {p}",
            lambda v: f"{v} < {p}",
            lambda v, e: v < e.get(p, k),
            pick(rng, f"below_{p}", f"under_{p}", "small"),
            True,
            par,
            f"is {ph} {p}",
        )
    if key == "ge":
        return Part(
            key,
            f"of at least {k}",
            lambda v: f"{v} >= {k}",
            lambda v, e: v >= k,
            f"at_least_{k}",
            True,
            said=f"is at least {k}",
        )
    if key == "le":
        return Part(
            key,
            f"of at most {k}",
            lambda v: f"{v} <= {k}",
            lambda v, e: v <= k,
            f"at_most_{k}",
            True,
            said=f"is at most {k}",
        )
    if key in ("div", "divp"):
        p, par = (str(m), {}) if key == "div" else _param(rng, ["k", "divisor", "m", "step"], SMALL)
        ph = pick(rng, "divisible by", "that are multiples of") if key == "div" else "divisible by"
        said = f"is divisible by {p}" if ph[0] == "d" else f"is a multiple of {p}"
        return Part(
            key,
            f"{ph} {p}",
            lambda v: f"{v} % {p} == 0",
            lambda v, e: v % e.get(p, m) == 0,
            pick(rng, f"divisible_by_{p}", f"multiples_of_{p}", "multiples"),
            True,
            par,
            said,
        )
    if key == "ndiv":
        return Part(
            key,
            f"not divisible by {m}",
            lambda v: f"{v} % {m} ~= 0",
            lambda v, e: v % m != 0,
            f"not_divisible_by_{m}",
            True,
            said=f"is not divisible by {m}",
        )
    if key in ("between", "outside"):
        lo = rng.choice([x for x in LIMITS if x < 50])
        hi = rng.choice([x for x in LIMITS if x > lo])
        if key == "between":
            return Part(
                key,
                f"between {lo} and {hi}",
                lambda v: f"{v} >= {lo} and {v} <= {hi}",
                lambda v, e: lo <= v <= hi,
                pick(rng, "between", "in_range", f"from_{lo}_to_{hi}"),
                True,
                said=f"is between {lo} and {hi}",
            )
        return Part(
            key,
            f"outside {lo} to {hi}",
            lambda v: f"({v} < {lo} or {v} > {hi})",
            lambda v, e: v < lo or v > hi,
            pick(rng, "outside", "out_of_range"),
            True,
            said=f"is outside {lo} to {hi}",
        )
    if key == "ends":
        d = rng.randrange(10)
        return Part(
            key,
            f"ending in {d}",
            lambda v: f"{v} % 10 == {d}",
            lambda v, e: v % 10 == d,
            f"ending_in_{d}",
            True,
            said=f"ends in {d}",
        )
    if key == "ne":
        return Part(
            key, f"other than {k}", lambda v: f"{v} ~= {k}", lambda v, e: v != k, f"not_{k}", True, said=f"is not {k}"
        )
    raise KeyError(key)


def _param(rng, names, values):
    p = rng.choice(names)
    return p, {p: values}


def _limit(key, k, rng, names):
    return _param(rng, names, LIMITS) if key.endswith("p") else (str(k), {})


def mapping(key, rng):
    """Instantiates a mapping; `post` ones read "the even numbers each increased by 3"."""
    k, m = rng.choice(SMALL + [1, 12, 20, 100]), rng.choice(SMALL)
    of = {
        "square": ("squares", "{0} * {0}", lambda v, e: v * v, "squared", "the square of {v}"),
        "cube": ("cubes", "{0} * {0} * {0}", lambda v, e: v**3, "cubed", "the cube of {v}"),
        "double": ("doubles", "{0} * 2", lambda v, e: v * 2, "doubled", pick(rng, "twice {v}", "the double of {v}")),
        "triple": ("triples", "{0} * 3", lambda v, e: v * 3, "tripled", "three times {v}"),
        "half": ("halves", "{0} / 2", lambda v, e: v / 2, "halved", "half of {v}"),
        "neg": ("negations", "-{0}", lambda v, e: -v, "negated", "the negation of {v}"),
        "abs": (
            "absolute values",
            "math.abs({0})",
            lambda v, e: abs(v),
            "made non-negative",
            "the absolute value of {v}",
        ),
        "lastdigit": ("last digits", "{0} % 10", lambda v, e: v % 10, "cut to the last digit", "the last digit of {v}"),
        "inc": ("successors", "{0} + 1", lambda v, e: v + 1, "incremented", "the successor of {v}"),
    }
    if key == "id":
        return Part(key, "", lambda v: v, lambda v, e: v, "", one="{v}")
    if key in of:
        noun, ex, fn, part, one = of[key]
        return Part(
            key, noun, ex.format, fn, noun.replace(" ", "_").replace("absolute_values", "abs"), said=part, one=one
        )
    if key in ("add", "addp"):
        p, par = (str(k), {}) if key == "add" else _param(rng, ["offset", "delta", "amount"], SMALL)
        return Part(
            key,
            f"each increased by {p}",
            lambda v: f"{v} + {p}",
            lambda v, e: v + e.get(p, k),
            pick(rng, "increased", f"plus_{p}"),
            True,
            par,
            f"increased by {p}",
            f"{{v}} plus {p}",
        )
    if key == "sub":
        return Part(
            key,
            f"each decreased by {k}",
            lambda v: f"{v} - {k}",
            lambda v, e: v - k,
            pick(rng, "decreased", f"minus_{k}"),
            True,
            said=f"decreased by {k}",
            one=f"{{v}} minus {k}",
        )
    if key in ("mul", "mulp"):
        q = rng.choice([4, 5, 6, 7, 8, 9, 10, 12, 20, 100])
        p, par = (str(q), {}) if key == "mul" else _param(rng, ["factor", "scale"], SMALL)
        return Part(
            key,
            f"each multiplied by {p}",
            lambda v: f"{v} * {p}",
            lambda v, e: v * e.get(p, q),
            pick(rng, "scaled", f"times_{p}"),
            True,
            par,
            f"multiplied by {p}",
            f"{{v}} times {p}",
        )
    if key in ("mod", "rem"):
        if key == "rem":
            return Part(
                key,
                f"remainders modulo {m}",
                lambda v: f"{v} % {m}",
                lambda v, e: v % m,
                pick(rng, "remainders", f"mod_{m}"),
                said=f"reduced modulo {m}",
                one=f"the remainder of {{v}} modulo {m}",
            )
        return Part(
            key,
            f"each taken modulo {m}",
            lambda v: f"{v} % {m}",
            lambda v, e: v % m,
            pick(rng, "remainders", f"mod_{m}"),
            True,
            said=f"taken modulo {m}",
            one=f"{{v}} modulo {m}",
        )
    if key == "floordiv":
        return Part(
            key,
            f"each divided by {m} rounding down",
            lambda v: f"{v} // {m}",
            lambda v, e: v // m,
            pick(rng, "divided", f"div_{m}"),
            True,
            said=f"divided by {m} rounding down",
            one=f"{{v}} divided by {m} rounding down",
        )
    if key == "dist":
        return Part(
            key,
            f"distances from {k}",
            lambda v: f"math.abs({v} - {k})",
            lambda v, e: abs(v - k),
            pick(rng, "distances", f"distances_from_{k}"),
            said=f"replaced by the distance from {k}",
            one=f"the distance of {{v}} from {k}",
        )
    raise KeyError(key)
