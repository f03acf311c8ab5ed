"""Loops over the characters of a string: character class x reduction."""

from .core import Item, indent, pick

# class: (plural, "every character is ...", Lua pattern, Python test)
CLASSES = {
    "vowel": ("vowels", "a vowel", "[aeiouAEIOU]", lambda c: c in "aeiouAEIOU"),
    "digit": ("digits", "a digit", "%d", str.isdigit),
    "letter": ("letters", "a letter", "%a", str.isalpha),
    "upper": ("uppercase letters", "uppercase", "%u", str.isupper),
    "lower": ("lowercase letters", "lowercase", "%l", str.islower),
    "space": ("spaces", "a space", "%s", str.isspace),
    "punct": ("punctuation characters", "punctuation", "%p", lambda c: not c.isalnum() and not c.isspace()),
    "alnum": ("alphanumeric characters", "alphanumeric", "%w", str.isalnum),
    "char": None,
    "charp": None,  # equal to a constant, equal to a parameter
}
TEXTS = [
    "",
    "hello world",
    "Lua 5.4 is small, fast!",
    "a1b22c3",
    "The Quick Brown Fox",
    "level",
    "xX-yY_zZ?",
    "moon river banana",
    "42",
    "Anna ate an apple",
]
REDUCTIONS = [
    "count",
    "keep",
    "remove",
    "list",
    "first",
    "last",
    "any",
    "all",
    "index",
    "replace",
    "twice",
    "frequency",
    "positions",
    "upper_where",
    "without_to_upper",
    "join",
]
CONSTANT_TAGS = {"-": "dashes", "_": "underscores", ".": "dots"}


def words_for(key, rng, params):
    """(test, plural noun, what is said, name tag, Python test(char, argument)); may add a parameter"""
    if key == "char":
        ch = rng.choice("aeorstlx-_.")
        return (
            f'c == "{ch}"',
            f'"{ch}" characters',
            f'equal to "{ch}"',
            CONSTANT_TAGS.get(ch, ch + "s"),
            lambda c, a: c == ch,
        )
    if key == "charp":
        rng.choice("aeorstlx-_.")
        p = rng.choice(["ch", "char", "letter"])
        params.append(p)
        return f"c == {p}", f"characters equal to {p}", f"equal to {p}", "char", lambda c, a: c == a
    noun, said, pattern, test = CLASSES[key]
    tag = noun.replace(" ", "_").replace("_letters", "").replace("_characters", "")
    return f'c:match("{pattern}")', noun, said, tag, lambda c, a: test(c)


def docs_and_names(noun, said, where, tag, rep):
    """Reduction -> comment alternatives and name alternatives."""
    every = f"checks whether all characters {where} are {said}".replace("are a ", "are ")
    return {
        "count": ([f"returns the number of {noun} {where}", f"counts the {noun} {where}"], ["count_"]),
        "keep": ([f"returns only the {noun} {where}", f"keeps only the {noun} {where}"], ["keep_", "only_"]),
        "remove": (
            [f"returns the string without the {noun}", f"removes the {noun} from the string"],
            ["remove_", "strip_", "without_"],
        ),
        "list": ([f"returns a list of the {noun} {where}"], ["list_", "collect_"]),
        "join": ([f"returns the {noun} {where} joined with commas"], ["join_"]),
        "first": ([f"returns the first of the {noun} {where}, or nil"], ["first_"]),
        "last": ([f"returns the last of the {noun} {where}, or nil"], ["last_"]),
        "any": (
            [f"returns true if any character {where} is {said}", f"checks whether some character {where} is {said}"],
            ["has_", "any_"],
        ),
        "all": ([f"returns true if every character {where} is {said}", every], ["all_", "only_has_"]),
        "index": ([f"returns the index of the first of the {noun} {where}, or nil"], ["index_of_", "find_"]),
        "positions": ([f"returns the positions of the {noun} {where}"], ["positions_of_"]),
        "replace": (
            [f'returns the string with the {noun} replaced by "{rep}"', f'replaces the {noun} {where} by "{rep}"'],
            ["replace_", "mask_"],
        ),
        "twice": ([f"returns the string with the {noun} doubled"], ["double_"]),
        "upper_where": ([f"returns the string with the {noun} in uppercase"], ["upper_"]),
        "without_to_upper": ([f"returns the {noun} {where} in reverse order"], ["reverse_"]),
        "frequency": ([f"returns a table that counts each of the {noun} {where}"], ["count_each_", "frequency_of_"]),
    }


def bodies(s, test, unless, rep):
    """Reduction -> lines of the body."""
    when = lambda *lines: [f"if {test} then"] + indent(lines) + ["end"]
    loop = lambda inner: [f'for c in {s}:gmatch(".") do'] + indent(inner) + ["end"]
    counted = lambda inner: [f"for i = 1, #{s} do", f"  local c = {s}:sub(i, i)"] + indent(inner) + ["end"]
    text = lambda inner: ['local result = ""'] + loop(inner) + ["return result"]
    change = lambda new: text(
        [f"if {test} then", f"  result = result .. {new}", "else", "  result = result .. c", "end"]
    )
    listed = lambda end: ["local result = {}"] + loop(when("result[#result + 1] = c")) + [end]
    return {
        "count": ["local count = 0"] + loop(when("count = count + 1")) + ["return count"],
        "keep": text(when("result = result .. c")),
        "remove": text([f"if {unless} then", "  result = result .. c", "end"]),
        "list": listed("return result"),
        "join": listed('return table.concat(result, ", ")'),
        "first": loop(when("return c")) + ["return nil"],
        "last": ["local last = nil"] + loop(when("last = c")) + ["return last"],
        "any": loop(when("return true")) + ["return false"],
        "all": loop([f"if {unless} then", "  return false", "end"]) + ["return true"],
        "index": counted(when("return i")) + ["return nil"],
        "positions": ["local result = {}"] + counted(when("result[#result + 1] = i")) + ["return result"],
        "replace": change(f'"{rep}"'),
        "twice": change("c .. c"),
        "upper_where": change("c:upper()"),
        "without_to_upper": text(when("result = c .. result")),
        "frequency": ["local counts = {}"] + loop(when("counts[c] = (counts[c] or 0) + 1")) + ["return counts"],
    }


def evaluate(rk, x, ok, rep):
    """The expected result for the string x, where ok tells the chosen characters."""
    sel, at = [c for c in x if ok(c)], [i + 1 for i, c in enumerate(x) if ok(c)]
    return {
        "count": lambda: len(sel),
        "keep": lambda: "".join(sel),
        "remove": lambda: "".join(c for c in x if not ok(c)),
        "list": lambda: sel,
        "join": lambda: ", ".join(sel),
        "first": lambda: sel[0] if sel else None,
        "last": lambda: sel[-1] if sel else None,
        "any": lambda: bool(sel),
        "all": lambda: len(sel) == len(x),
        "index": lambda: at[0] if at else None,
        "positions": lambda: at,
        "replace": lambda: "".join(rep if ok(c) else c for c in x),
        "twice": lambda: "".join(c * (1 + ok(c)) for c in x),
        "upper_where": lambda: "".join(c.upper() if ok(c) else c for c in x),
        "without_to_upper": lambda: "".join(sel[::-1]),
        "frequency": lambda: {c: sel.count(c) for c in sel},
    }[rk]()


def make(rng):
    key, rk, s = rng.choice(sorted(CLASSES)), rng.choice(REDUCTIONS), rng.choice(["s", "text", "str", "line", "word"])
    where = pick(rng, "in the string", f"in {s}", "of the string")
    params = [s]
    test, noun, said, tag, fn = words_for(key, rng, params)
    rep = rng.choice("*#_-.")
    docs, names = docs_and_names(noun, said, where, tag, rep)[rk]
    doc, name = pick(rng, *docs) if len(docs) > 1 else docs[0], (
        pick(rng, *names) if len(names) > 1 else names[0]
    ) + tag
    unless = f"not ({test})" if key.startswith("char") else f"not {test}"
    cases = []
    for x in rng.sample(TEXTS, 6):
        a = rng.choice("aeoln") if len(params) > 1 else None
        cases.append(([x] + ([a] if a else []), evaluate(rk, x, lambda c: fn(c, a), rep)))
    if rng.random() >= 0.85:
        name = pick(rng, "f", "scan", "process", "convert")
    return Item(doc, name, params, bodies(s, test, unless, rep)[rk], cases, f"chars.{rk}", f"chars|{key}|{rk}")
