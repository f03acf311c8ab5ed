"""Loops over the characters or the words of a string, or over a list of strings."""
from .core import Item, Part, indent, pick

CHARS = {  # predicate key: (plural, singular said, pattern)
    "vowel": ("vowels", "a vowel", "[aeiouAEIOU]", lambda c: c in "aeiouAEIOU"), "digit": ("digits", "a digit", "%d", str.isdigit),
    "letter": ("letters", "a letter", "%a", str.isalpha), "upper": ("uppercase letters", "uppercase", "%u", str.isupper),
    "lower": ("lowercase letters", "lowercase", "%l", str.islower), "space": ("spaces", "a space", "%s", str.isspace),
    "punct": ("punctuation characters", "punctuation", "%p", lambda c: not c.isalnum() and not c.isspace()),
    "alnum": ("alphanumeric characters", "alphanumeric", "%w", str.isalnum),
    "char": (None,) * 4, "charp": (None,) * 4,
}
TEXTS = ["", "hello world", "Lua 5.4 is small, fast!", "a1b22c3", "The Quick Brown Fox", "level", "xX-yY_zZ?", "moon river banana", "42", "Anna ate an apple"]
CHAR_REDUCE = ["count", "keep", "remove", "list", "first", "last", "any", "all", "index", "replace", "twice", "frequency", "positions", "upper_where", "without_to_upper", "join"]


def chars(rng):
    pk, rk = rng.choice(sorted(CHARS)), rng.choice(CHAR_REDUCE)
    s = rng.choice(["s", "text", "str", "line", "word"])
    where = pick(rng, "in the string", f"in {s}", "of the string")
    params = [s]
    if pk in ("char", "charp"):
        ch = rng.choice("aeorstlx-_.")
        if pk == "char":
            lit = f'"{ch}"'
            test, noun, said, tag = f"c == {lit}", f"{lit} characters", f"equal to {lit}", {"-": "dashes", "_": "underscores", ".": "dots"}.get(ch, f"{ch}s")
            arg = None
        else:
            p = rng.choice(["ch", "char", "letter"])
            params.append(p)
            test, noun, said, tag, arg = f"c == {p}", f"characters equal to {p}", f"equal to {p}", "char", True
        fn = lambda c, a: c == (a or ch)
    else:
        noun, said, pat, f = CHARS[pk]
        test, tag, arg = f'c:match("{pat}")', noun.replace(" ", "_").replace("_letters", "").replace("_characters", ""), None
        fn = lambda c, a: f(c)
    rep = rng.choice("*#_-.")
    when = lambda *l: [f"if {test} then"] + indent(l) + ["end"]
    loop = lambda inner: [f'for c in {s}:gmatch(".") do'] + indent(inner) + ["end"]
    iloop = lambda inner: [f"for i = 1, #{s} do", f"  local c = {s}:sub(i, i)"] + indent(inner) + ["end"]
    build = lambda inner: ['local result = ""'] + loop(inner) + ["return result"]
    neg = [f"if not ({test}) then" if pk.startswith("char") else f"if not {test} then", "  result = result .. c", "end"]
    one = {"char": f'"{locals().get("ch", "")}" character', "charp": noun[:0] + f"character equal to {params[-1]}"}.get(pk, noun[:-1])
    S = lambda x, a: [c for c in x if fn(c, a)]
    doc, nm, body, ev = {
        "count": lambda: (pick(rng, f"returns the number of {noun} {where}", f"counts the {noun} {where}"), "count_" + tag, ["local count = 0"] + loop(when("count = count + 1")) + ["return count"], lambda x, a: len(S(x, a))),
        "keep": lambda: (pick(rng, f"returns only the {noun} {where}", f"keeps only the {noun} {where}"), pick(rng, "keep_", "only_") + tag, build(when("result = result .. c")), lambda x, a: "".join(S(x, a))),
        "remove": lambda: (pick(rng, f"returns the string without the {noun}", f"removes the {noun} from the string"), pick(rng, "remove_", "strip_", "without_") + tag, build(neg), lambda x, a: "".join(c for c in x if not fn(c, a))),
        "list": lambda: (f"returns a list of the {noun} {where}", pick(rng, "list_", "collect_") + tag, ["local result = {}"] + loop(when("result[#result + 1] = c")) + ["return result"], lambda x, a: S(x, a)),
        "join": lambda: (f"returns the {noun} {where} joined with commas", "join_" + tag, ["local result = {}"] + loop(when("result[#result + 1] = c")) + ['return table.concat(result, ", ")'], lambda x, a: ", ".join(S(x, a))),
        "first": lambda: (f"returns the first of the {noun} {where}, or nil", "first_" + tag, loop(when("return c")) + ["return nil"], lambda x, a: (S(x, a) or [None])[0]),
        "last": lambda: (f"returns the last of the {noun} {where}, or nil", "last_" + tag, ["local last = nil"] + loop(when("last = c")) + ["return last"], lambda x, a: (S(x, a) or [None])[-1]),
        "any": lambda: (pick(rng, f"returns true if any character {where} is {said}", f"checks whether some character {where} is {said}"), pick(rng, "has_", "any_") + tag, loop(when("return true")) + ["return false"], lambda x, a: bool(S(x, a))),
        "all": lambda: (pick(rng, f"returns true if every character {where} is {said}", f"checks whether all characters {where} are {said}".replace("are a ", "are ")), pick(rng, "all_", "only_has_") + tag, loop([neg[0], "  return false", "end"]) + ["return true"], lambda x, a: all(fn(c, a) for c in x)),
        "index": lambda: (f"returns the index of the first of the {noun} {where}, or nil", pick(rng, "index_of_", "find_") + tag, iloop(when("return i")) + ["return nil"], lambda x, a: next((i + 1 for i, c in enumerate(x) if fn(c, a)), None)),
        "positions": lambda: (f"returns the positions of the {noun} {where}", "positions_of_" + tag, ["local result = {}"] + iloop(when("result[#result + 1] = i")) + ["return result"], lambda x, a: [i + 1 for i, c in enumerate(x) if fn(c, a)]),
        "replace": lambda: (pick(rng, f'returns the string with the {noun} replaced by "{rep}"', f'replaces the {noun} {where} by "{rep}"'), pick(rng, "replace_", "mask_") + tag, build([f"if {test} then", f'  result = result .. "{rep}"', "else", "  result = result .. c", "end"]), lambda x, a: "".join(rep if fn(c, a) else c for c in x)),
        "twice": lambda: (f"returns the string with the {noun} doubled", "double_" + tag, build([f"if {test} then", "  result = result .. c .. c", "else", "  result = result .. c", "end"]), lambda x, a: "".join(c * (2 if fn(c, a) else 1) for c in x)),
        "upper_where": lambda: (f"returns the string with the {noun} in uppercase", "upper_" + tag, build([f"if {test} then", "  result = result .. c:upper()", "else", "  result = result .. c", "end"]), lambda x, a: "".join(c.upper() if fn(c, a) else c for c in x)),
        "without_to_upper": lambda: (f"returns the {noun} {where} in reverse order", "reverse_" + tag, build(when("result = c .. result")), lambda x, a: "".join(S(x, a)[::-1])),
        "frequency": lambda: (f"returns a table that counts each of the {noun} {where}", pick(rng, "count_each_", "frequency_of_") + tag, ["local counts = {}"] + loop(when("counts[c] = (counts[c] or 0) + 1")) + ["return counts"], lambda x, a: {c: S(x, a).count(c) for c in S(x, a)}),
    }[rk]()
    cases = []
    for x in rng.sample(TEXTS, 6):
        a = rng.choice("aeoln") if arg else None
        cases.append(([x] + ([a] if arg else []), ev(x, a)))
    name = nm if rng.random() < 0.85 else pick(rng, "f", "scan", "process", "convert")
    return Item(doc, name, params, body, cases, f"chars.{rk}", f"chars|{pk}|{rk}")


WORD_PREDS = ["longer", "shorter", "exact", "longerp", "starts", "ends", "has", "startsp", "capital", "vowelstart", "digit", "evenlen", "palin", "ne"]
WORD_MAPS = {"id": ("", "{}", lambda w: w), "upper": ("in uppercase", "{}:upper()", str.upper), "lower": ("in lowercase", "{}:lower()", str.lower),
             "rev": ("reversed", "{}:reverse()", lambda w: w[::-1]), "len": ("lengths", "#{}", len), "firstc": ("first letters", "{}:sub(1, 1)", lambda w: w[:1]),
             "lastc": ("last letters", "{}:sub(-1)", lambda w: w[-1:]), "bang": ("followed by an exclamation mark", '{} .. "!"', lambda w: w + "!"),
             "three": ("cut to three characters", "{}:sub(1, 3)", lambda w: w[:3]), "quote": ("in double quotes", "'\"' .. {} .. '\"'", lambda w: f'"{w}"')}
WORD_REDUCE = ["count", "list", "join", "longest", "shortest", "first", "last", "any", "all", "total", "set", "frequency", "index", "reversed", "maxlen", "without", "lengths"]
WORDS = ["apple", "Bob", "level", "tree", "x9", "Lua", "noon", "engine", "at", "river", "Orange", "sun", "abc123", "banana", "it", "eye", "tables", "Stats"]


def word_pred(key, rng):
    k, c = rng.choice([2, 3, 4, 5, 6]), rng.choice("abelorstn")
    par = {}
    if key == "longerp":
        p = rng.choice(["n", "limit", "min"])
        par = {p: [2, 3, 4]}
        return Part(key, f"longer than {p}", lambda w: f"#{w} > {p}", lambda w, e: len(w) > e[p], "longer", True, par, f"is longer than {p}")
    if key == "startsp":
        p = rng.choice(["prefix", "start"])
        return Part(key, f"starting with {p}", lambda w: f"{w}:sub(1, #{p}) == {p}", lambda w, e: w.startswith(e[p]), "with_prefix", True, {p: ["a", "b", "ta", "Lu"]}, f"starts with {p}")
    return {
        "longer": Part(key, f"longer than {k} characters", lambda w: f"#{w} > {k}", lambda w, e: len(w) > k, "long", True, par, f"is longer than {k} characters"),
        "shorter": Part(key, f"shorter than {k} characters", lambda w: f"#{w} < {k}", lambda w, e: len(w) < k, "short", True, par, f"is shorter than {k} characters"),
        "exact": Part(key, f"with exactly {k} characters", lambda w: f"#{w} == {k}", lambda w, e: len(w) == k, "exact", True, par, f"has exactly {k} characters"),
        "starts": Part(key, f'starting with "{c}"', lambda w: f'{w}:sub(1, 1) == "{c}"', lambda w, e: w[:1] == c, f"starting_with_{c}", True, par, f'starts with "{c}"'),
        "ends": Part(key, f'ending with "{c}"', lambda w: f'{w}:sub(-1) == "{c}"', lambda w, e: w[-1:] == c, f"ending_with_{c}", True, par, f'ends with "{c}"'),
        "has": Part(key, f'containing "{c}"', lambda w: f'{w}:find("{c}", 1, true)', lambda w, e: c in w, f"with_{c}", True, par, f'contains "{c}"'),
        "capital": Part(key, "capitalized", lambda w: f'{w}:match("^%u")', lambda w, e: w[:1].isupper(), "capitalized", False, par, "is capitalized"),
        "vowelstart": Part(key, "starting with a vowel", lambda w: f'{w}:match("^[aeiouAEIOU]")', lambda w, e: w[:1] in tuple("aeiouAEIOU"), "starting_with_vowel", True, par, "starts with a vowel"),
        "digit": Part(key, "containing a digit", lambda w: f'{w}:match("%d")', lambda w, e: any(map(str.isdigit, w)), "with_digit", True, par, "contains a digit"),
        "evenlen": Part(key, "of even length", lambda w: f"#{w} % 2 == 0", lambda w, e: len(w) % 2 == 0, "even_length", True, par, "has an even length"),
        "palin": Part(key, "that are palindromes", lambda w: f"{w} == {w}:reverse()", lambda w, e: w == w[::-1], "palindromes", True, par, "is a palindrome"),
        "ne": Part(key, f'other than "{c}"', lambda w: f'{w} ~= "{c}"', lambda w, e: w != c, f"not_{c}", True, par, f'is not "{c}"'),
    }[key]


def words(rng):
    src, rk = rng.choice(["list", "list", "string"]), rng.choice(WORD_REDUCE)
    pk = [] if rng.random() < 0.12 else [rng.choice(WORD_PREDS)] if rng.random() < 0.85 else rng.sample(WORD_PREDS, 2)
    if rk in ("any", "all", "index", "without") and len(pk) != 1:
        pk = [rng.choice(WORD_PREDS)]
    mk = "id" if rk in ("count", "any", "all", "total", "index", "maxlen", "without", "lengths", "longest", "shortest") or rng.random() < 0.3 else rng.choice(sorted(WORD_MAPS))
    if mk == "len" or (rk == "list" and mk == "id" and not pk and src == "list"):
        return None
    if src == "string":
        s = rng.choice(["s", "text", "line", "sentence"])
        noun, where, loop, v = "words", pick(rng, "in the string", "of the sentence", f"in {s}"), f'for w in {s}:gmatch("%S+") do', "w"
        get, sampler = lambda a: a.split(), lambda: " ".join(rng.sample(WORDS, rng.choice([0, 3, 5, 8])))
    else:
        s = rng.choice(["words", "list", "names", "strings", "items"])
        noun, where, loop, v = pick(rng, "strings", "words"), pick(rng, "in the list", f"in {s}"), f"for _, w in ipairs({s}) do", "w"
        get, sampler = lambda a: a, lambda: rng.sample(WORDS, rng.choice([0, 3, 5, 8]))
    if rk in ("index",) and src == "string":
        return None
    if len(pk) == 2 and "palin" in pk:
        return None
    ps = sorted((word_pred(k, rng) for k in pk), key=lambda p: p.post)
    extra = {}
    for p in ps:
        for n, vals in p.params.items():
            if n in extra or n == s:
                return None
            extra[n] = vals
    adj, post = [p.phrase for p in ps if not p.post], [p.phrase for p in ps if p.post]
    if len(post) == 2 and post[1].startswith("that"):
        post = post[::-1]
    plural = " ".join(adj + [noun] + [" and ".join(post)] * bool(post) + [where])
    mph, mex, mfn = WORD_MAPS[mk]
    what = plural if mk == "id" else f"{mph} of the {plural}" if mk in ("firstc", "lastc", "len") else f"{plural} {mph}"
    cond, e = " and ".join(p.expr("w") for p in ps), mex.format("w")
    when = lambda *l: [f"if {cond} then"] + indent(l) + ["end"] if cond else list(l)
    L = lambda inner: [loop] + indent(inner) + ["end"]
    tag = "_".join(p.tag for p in ps) or noun
    mt = "" if mk == "id" else "_" + {"firstc": "initials", "lastc": "last_letters", "rev": "reversed", "bang": "shouted", "three": "cut", "quote": "quoted"}.get(mk, mk)
    said = " and ".join(p.said for p in ps)
    sel = lambda x, env: [w for w in get(x) if all(p.fn(w, env) for p in ps)]
    ms = lambda x, env: [mfn(w) for w in sel(x, env)]
    res = lambda inner, end="return result": ["local result = {}"] + L(inner) + [end]
    sep, sepn = rng.choice([(", ", "commas"), (" ", "spaces"), ("-", "dashes"), ("", "nothing between")]) if rk == "join" else ("", "")
    joined = f"joined with {sepn}" if sep else "joined together"
    doc, nm, body, ev = {
        "count": lambda: (pick(rng, f"returns the number of {plural}", f"counts the {plural}"), "count_" + tag, ["local count = 0"] + L(when("count = count + 1")) + ["return count"], lambda x, e: len(sel(x, e))),
        "list": lambda: (pick(rng, f"returns a list of the {what}", f"returns the {what} as a list"), pick(rng, "list_", "get_", "select_") + tag + mt, res(when(f"result[#result + 1] = {e}")), ms),
        "reversed": lambda: (f"returns the {what} in reverse order", "reverse_" + tag + mt, res(when(f"table.insert(result, 1, {e})")), lambda x, e: ms(x, e)[::-1]),
        "join": lambda: (f"returns the {what} {joined}", "join_" + tag + mt, res(when(f"result[#result + 1] = {e}"), f'return table.concat(result, "{sep}")' if sep else "return table.concat(result)"), lambda x, e: sep.join(ms(x, e))),
        "longest": lambda: (f"returns the longest of the {plural}, or nil", "longest_" + tag, ["local best = nil"] + L(when("if best == nil or #w > #best then", "  best = w", "end")) + ["return best"], lambda x, e: max(sel(x, e), key=len, default=None)),
        "shortest": lambda: (f"returns the shortest of the {plural}, or nil", "shortest_" + tag, ["local best = nil"] + L(when("if best == nil or #w < #best then", "  best = w", "end")) + ["return best"], lambda x, e: min(sel(x, e), key=len, default=None)),
        "first": lambda: (f"returns the first of the {what}, or nil", "first_" + tag + mt, L(when(f"return {e}")) + ["return nil"], lambda x, e: (ms(x, e) or [None])[0]),
        "last": lambda: (f"returns the last of the {what}, or nil", "last_" + tag + mt, ["local last = nil"] + L(when(f"last = {e}")) + ["return last"], lambda x, e: (ms(x, e) or [None])[-1]),
        "any": lambda: (pick(rng, f"returns true if any of the {noun} {where} {said}", f"checks whether some {noun[:-1]} {where} {said}"), pick(rng, "any_", "has_") + tag, L(when("return true")) + ["return false"], lambda x, e: bool(sel(x, e))),
        "all": lambda: (pick(rng, f"returns true if each of the {noun} {where} {said}", f"checks whether every {noun[:-1]} {where} {said}"), pick(rng, "all_", "every_") + tag, L([f"if not ({cond}) then", "  return false", "end"]) + ["return true"], lambda x, e: len(sel(x, e)) == len(get(x))),
        "total": lambda: (f"returns the total length of the {plural}", pick(rng, "total_length_", "length_of_") + tag, ["local total = 0"] + L(when("total = total + #w")) + ["return total"], lambda x, e: sum(map(len, sel(x, e)))),
        "maxlen": lambda: (f"returns the length of the longest of the {plural}, or 0", "max_length_" + tag, ["local best = 0"] + L(when("if #w > best then", "  best = #w", "end")) + ["return best"], lambda x, e: max(map(len, sel(x, e)), default=0)),
        "lengths": lambda: (pick(rng, f"returns a list of the lengths of the {plural}", f"returns the lengths of the {plural}"), "lengths_of_" + tag, res(when("result[#result + 1] = #w")), lambda x, e: [len(w) for w in sel(x, e)]),
        "set": lambda: (f"returns a set of the {what}", "set_of_" + tag + mt, res(when(f"result[{e}] = true")), lambda x, e: {w: True for w in ms(x, e)}),
        "frequency": lambda: (f"returns a table that counts each of the {what}", "count_each_" + tag + mt, ["local counts = {}"] + L(when(f"counts[{e}] = (counts[{e}] or 0) + 1" if mk == "id" else f"local x = {e}", *([] if mk == "id" else ["counts[x] = (counts[x] or 0) + 1"]))) + ["return counts"], lambda x, e: {w: ms(x, e).count(w) for w in ms(x, e)}),
        "index": lambda: (f"returns the index of the first of the {plural}, or nil", pick(rng, "index_of_", "find_") + tag, [loop.replace("for _,", "for i,")] + indent(when("return i")) + ["end", "return nil"], lambda x, e: next((i + 1 for i, w in enumerate(x) if all(p.fn(w, e) for p in ps)), None)),
        "without": lambda: (f"returns a list of the {noun} {where} without those {ps[0].phrase}" if ps and ps[0].post and not ps[0].phrase.startswith("that") else f"returns a list of the {noun} {where} except {ps[0].phrase} ones".replace("except that are palindromes ones", "except palindromes"), "without_" + tag, res([f"if not ({cond}) then", "  result[#result + 1] = w", "end"]), lambda x, e: [w for w in get(x) if w not in sel(x, e)]),
    }[rk]()
    cases = []
    for _ in range(6):
        x, env = sampler(), {n: rng.choice(vals) for n, vals in extra.items()}
        cases.append(([x] + list(env.values()), ev(x, env)))
    name = nm if rng.random() < 0.85 else pick(rng, "f", "process", "scan", "convert")
    return Item(doc, name, [s] + list(extra), body, cases, f"words.{rk}", f"words|{src}|{'+'.join(sorted(pk))}|{mk}|{rk}")


def make(rng):
    return words(rng) if rng.random() < 0.6 else chars(rng)
