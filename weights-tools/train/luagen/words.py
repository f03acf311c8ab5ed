"""Loops over the words of a string or over a list of strings: source x predicate x mapping x reduction."""

from . import chars
from .core import Item, Part, indent, pick

PREDICATES = [
    "longer",
    "shorter",
    "exact",
    "longerp",
    "starts",
    "ends",
    "has",
    "startsp",
    "capital",
    "vowelstart",
    "digit",
    "evenlen",
    "palin",
    "ne",
]
# mapping: (phrase, Lua expression, Python function, part of the function name)
MAPPINGS = {
    "id": ("", "{}", lambda w: w, ""),
    "upper": ("in uppercase", "{}:upper()", str.upper, "_upper"),
    "lower": ("in lowercase", "{}:lower()", str.lower, "_lower"),
    "rev": ("reversed", "{}:reverse()", lambda w: w[::-1], "_reversed"),
    "len": ("lengths", "#{}", len, "_len"),
    "firstc": ("first letters", "{}:sub(1, 1)", lambda w: w[:1], "_initials"),
    "lastc": ("last letters", "{}:sub(-1)", lambda w: w[-1:], "_last_letters"),
    "bang": ("followed by an exclamation mark", '{} .. "!"', lambda w: w + "!", "_shouted"),
    "three": ("cut to three characters", "{}:sub(1, 3)", lambda w: w[:3], "_cut"),
    "quote": ("in double quotes", "'\"' .. {} .. '\"'", lambda w: f'"{w}"', "_quoted"),
}
REDUCTIONS = [
    "count",
    "list",
    "join",
    "longest",
    "shortest",
    "first",
    "last",
    "any",
    "all",
    "total",
    "set",
    "frequency",
    "index",
    "reversed",
    "maxlen",
    "without",
    "lengths",
]
NO_MAP = {"count", "any", "all", "total", "index", "maxlen", "without", "lengths", "longest", "shortest"}
WORDS = [
    "apple",
    "Bob",
    "level",
    "tree",
    "x9",
    "Lua",
    "noon",
    "engine",
    "at",
    "river",
    "Orange",
    "sun",
    "abc123",
    "banana",
    "it",
    "eye",
    "tables",
    "Stats",
]
VOWELS = tuple("aeiouAEIOU")
SEPARATORS = [(", ", "commas"), (" ", "spaces"), ("-", "dashes"), ("", "nothing between")]


def predicate(key, rng):
    """Instantiates a predicate on a word."""
    k, c = rng.choice([2, 3, 4, 5, 6]), rng.choice("abelorstn")
    if key == "longerp":
        p = rng.choice(["n", "limit", "min"])
        return Part(
            key,
            f"longer than {p}",
            lambda w: f"#{w} > {p}",
            lambda w, e: len(w) > e[p],
            "longer",
            True,
            {p: [2, 3, 4]},
            f"is longer than {p}",
        )
    if key == "startsp":
        p = rng.choice(["prefix", "start"])
        return Part(
            key,
            f"starting with {p}",
            lambda w: f"{w}:sub(1, #{p}) == {p}",
            lambda w, e: w.startswith(e[p]),
            "with_prefix",
            True,
            {p: ["a", "b", "ta", "Lu"]},
            f"starts with {p}",
        )
    phrase, said, expr, fn, tag = {
        "longer": (
            f"longer than {k} characters",
            f"is longer than {k} characters",
            "#{} > %d" % k,
            lambda w, e: len(w) > k,
            "long",
        ),
        "shorter": (
            f"shorter than {k} characters",
            f"is shorter than {k} characters",
            "#{} < %d" % k,
            lambda w, e: len(w) < k,
            "short",
        ),
        "exact": (
            f"with exactly {k} characters",
            f"has exactly {k} characters",
            "#{} == %d" % k,
            lambda w, e: len(w) == k,
            "exact",
        ),
        "starts": (
            f'starting with "{c}"',
            f'starts with "{c}"',
            '{}:sub(1, 1) == "%s"' % c,
            lambda w, e: w[:1] == c,
            f"starting_with_{c}",
        ),
        "ends": (
            f'ending with "{c}"',
            f'ends with "{c}"',
            '{}:sub(-1) == "%s"' % c,
            lambda w, e: w[-1:] == c,
            f"ending_with_{c}",
        ),
        "has": (f'containing "{c}"', f'contains "{c}"', '{}:find("%s", 1, true)' % c, lambda w, e: c in w, f"with_{c}"),
        "capital": ("capitalized", "is capitalized", '{}:match("^%u")', lambda w, e: w[:1].isupper(), "capitalized"),
        "vowelstart": (
            "starting with a vowel",
            "starts with a vowel",
            '{}:match("^[aeiouAEIOU]")',
            lambda w, e: w[:1] in VOWELS,
            "starting_with_vowel",
        ),
        "digit": (
            "containing a digit",
            "contains a digit",
            '{}:match("%d")',
            lambda w, e: any(map(str.isdigit, w)),
            "with_digit",
        ),
        "evenlen": (
            "of even length",
            "has an even length",
            "#{} % 2 == 0",
            lambda w, e: len(w) % 2 == 0,
            "even_length",
        ),
        "palin": (
            "that are palindromes",
            "is a palindrome",
            "{0} == {0}:reverse()",
            lambda w, e: w == w[::-1],
            "palindromes",
        ),
        "ne": (f'other than "{c}"', f'is not "{c}"', '{} ~= "%s"' % c, lambda w, e: w != c, f"not_{c}"),
    }[key]
    return Part(key, phrase, expr.format, fn, tag, key != "capital", {}, said)


def source(src, rng):
    """(parameter, noun, where, loop, words of an argument, argument sampler)"""
    some = lambda: rng.sample(WORDS, rng.choice([0, 3, 5, 8]))
    if src == "string":
        s = rng.choice(["s", "text", "line", "sentence"])
        where = pick(rng, "in the string", "of the sentence", f"in {s}")
        return s, "words", where, f'for w in {s}:gmatch("%S+") do', str.split, lambda: " ".join(some())
    s = rng.choice(["words", "list", "names", "strings", "items"])
    noun, where = pick(rng, "strings", "words"), pick(rng, "in the list", f"in {s}")
    return s, noun, where, f"for _, w in ipairs({s}) do", lambda x: x, some


def sample(rng):
    """(source, predicates, mapping, reduction), or None if they do not fit together"""
    src, rk = rng.choice(["list", "list", "string"]), rng.choice(REDUCTIONS)
    pk = [] if rng.random() < 0.12 else [rng.choice(PREDICATES)] if rng.random() < 0.85 else rng.sample(PREDICATES, 2)
    if rk in ("any", "all", "index", "without") and len(pk) != 1:
        pk = [rng.choice(PREDICATES)]
    mk = "id" if rk in NO_MAP or rng.random() < 0.3 else rng.choice(sorted(MAPPINGS))
    if mk == "len" or (rk == "list" and mk == "id" and not pk and src == "list"):
        return None
    return src, pk, mk, rk


def docs_and_names(plural, what, noun, where, preds, joined):
    """Reduction -> comment alternatives and name alternatives."""
    said = " and ".join(p.said for p in preds)
    phrase = preds[0].phrase if preds else ""
    without = (
        f"without those {phrase}"
        if preds and preds[0].post and phrase[:4] != "that"
        else f"except {phrase} ones".replace("that are palindromes ones", "palindromes")
    )
    some = f"checks whether some {noun[:-1]} {where} {said}"
    return {
        "count": ([f"returns the number of {plural}", f"counts the {plural}"], ["count_"]),
        "list": ([f"returns a list of the {what}", f"returns the {what} as a list"], ["list_", "get_", "select_"]),
        "reversed": ([f"returns the {what} in reverse order"], ["reverse_"]),
        "join": ([f"returns the {what} {joined}"], ["join_"]),
        "longest": ([f"returns the longest of the {plural}, or nil"], ["longest_"]),
        "shortest": ([f"returns the shortest of the {plural}, or nil"], ["shortest_"]),
        "first": ([f"returns the first of the {what}, or nil"], ["first_"]),
        "last": ([f"returns the last of the {what}, or nil"], ["last_"]),
        "any": ([f"returns true if any of the {noun} {where} {said}", some], ["any_", "has_"]),
        "all": (
            [f"returns true if each of the {noun} {where} {said}", some.replace("some", "every", 1)],
            ["all_", "every_"],
        ),
        "total": ([f"returns the total length of the {plural}"], ["total_length_", "length_of_"]),
        "maxlen": ([f"returns the length of the longest of the {plural}, or 0"], ["max_length_"]),
        "lengths": (
            [f"returns a list of the lengths of the {plural}", f"returns the lengths of the {plural}"],
            ["lengths_of_"],
        ),
        "set": ([f"returns a set of the {what}"], ["set_of_"]),
        "frequency": ([f"returns a table that counts each of the {what}"], ["count_each_"]),
        "index": ([f"returns the index of the first of the {plural}, or nil"], ["index_of_", "find_"]),
        "without": ([f"returns a list of the {noun} {where} {without}"], ["without_"]),
    }


def bodies(loop, cond, e, mk, sep):
    """Reduction -> lines of the body."""
    when = lambda *lines: [f"if {cond} then"] + indent(lines) + ["end"] if cond else list(lines)
    L = lambda inner: [loop] + indent(inner) + ["end"]
    gather = lambda inner, end="return result": ["local result = {}"] + L(inner) + [end]
    best = (
        lambda op: ["local best = nil"]
        + L(when(f"if best == nil or #w {op} #best then", "  best = w", "end"))
        + ["return best"]
    )
    add = when(f"result[#result + 1] = {e}")
    tally = (
        ["counts[w] = (counts[w] or 0) + 1"] if mk == "id" else [f"local x = {e}", "counts[x] = (counts[x] or 0) + 1"]
    )
    return {
        "count": ["local count = 0"] + L(when("count = count + 1")) + ["return count"],
        "list": gather(add),
        "reversed": gather(when(f"table.insert(result, 1, {e})")),
        "join": gather(add, f'return table.concat(result, "{sep}")' if sep else "return table.concat(result)"),
        "longest": best(">"),
        "shortest": best("<"),
        "first": L(when(f"return {e}")) + ["return nil"],
        "last": ["local last = nil"] + L(when(f"last = {e}")) + ["return last"],
        "any": L(when("return true")) + ["return false"],
        "all": L([f"if not ({cond}) then", "  return false", "end"]) + ["return true"],
        "total": ["local total = 0"] + L(when("total = total + #w")) + ["return total"],
        "maxlen": ["local best = 0"] + L(when("if #w > best then", "  best = #w", "end")) + ["return best"],
        "lengths": gather(when("result[#result + 1] = #w")),
        "set": gather(when(f"result[{e}] = true")),
        "frequency": ["local counts = {}"] + L(when(*tally)) + ["return counts"],
        "index": [loop.replace("for _,", "for i,")] + indent(when("return i")) + ["end", "return nil"],
        "without": gather([f"if not ({cond}) then", "  result[#result + 1] = w", "end"]),
    }


def evaluate(rk, xs, ok, fn, sep):
    """The expected result for the words xs, where ok tells the chosen ones and fn maps them."""
    sel = [w for w in xs if ok(w)]
    out = [fn(w) for w in sel]
    return {
        "count": lambda: len(sel),
        "list": lambda: out,
        "reversed": lambda: out[::-1],
        "join": lambda: sep.join(out),
        "longest": lambda: max(sel, key=len, default=None),
        "shortest": lambda: min(sel, key=len, default=None),
        "first": lambda: out[0] if out else None,
        "last": lambda: out[-1] if out else None,
        "any": lambda: bool(sel),
        "all": lambda: len(sel) == len(xs),
        "total": lambda: sum(map(len, sel)),
        "maxlen": lambda: max(map(len, sel), default=0),
        "lengths": lambda: [len(w) for w in sel],
        "set": lambda: {w: True for w in out},
        "frequency": lambda: {w: out.count(w) for w in out},
        "index": lambda: next((i + 1 for i, w in enumerate(xs) if ok(w)), None),
        "without": lambda: [w for w in xs if not ok(w)],
    }[rk]()


def words(rng):
    parts = sample(rng)
    if parts is None:
        return None
    src, pk, mk, rk = parts
    s, noun, where, loop, split, sampler = source(src, rng)
    if (rk == "index" and src == "string") or (len(pk) == 2 and "palin" in pk):
        return None
    preds = sorted((predicate(k, rng) for k in pk), key=lambda p: p.post)
    extra = {}
    for p in preds:
        for n, values in p.params.items():
            if n in extra or n == s:
                return None
            extra[n] = values
    post = [p.phrase for p in preds if p.post]
    plural = " ".join([p.phrase for p in preds if not p.post] + [noun] + [" and ".join(post)] * bool(post) + [where])
    phrase, expr, fn, map_tag = MAPPINGS[mk]
    what = plural if mk == "id" else f"{phrase} of the {plural}" if mk in ("firstc", "lastc") else f"{plural} {phrase}"
    sep, sep_name = rng.choice(SEPARATORS) if rk == "join" else ("", "")
    docs, names = docs_and_names(
        plural, what, noun, where, preds, f"joined with {sep_name}" if sep else "joined together"
    )[rk]
    doc, head = pick(rng, *docs) if len(docs) > 1 else docs[0], pick(rng, *names) if len(names) > 1 else names[0]
    name = head + ("_".join(p.tag for p in preds) or noun) + map_tag
    cases = []
    for _ in range(6):
        x, env = sampler(), {n: rng.choice(values) for n, values in extra.items()}
        cases.append(
            ([x] + list(env.values()), evaluate(rk, split(x), lambda w: all(p.fn(w, env) for p in preds), fn, sep))
        )
    if rng.random() >= 0.85:
        name = pick(rng, "f", "process", "scan", "convert")
    body = bodies(loop, " and ".join(p.expr("w") for p in preds), expr.format("w"), mk, sep)[rk]
    return Item(
        doc, name, [s] + list(extra), body, cases, f"words.{rk}", f"words|{src}|{'+'.join(sorted(pk))}|{mk}|{rk}"
    )


def make(rng):
    return words(rng) if rng.random() < 0.6 else chars.make(rng)
