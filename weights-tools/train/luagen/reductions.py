"""The reductions of numbers: comment, Lua body and expected result of each."""

from .core import indent, pick


def noun_phrase(preds, noun, where):
    adj = [p.phrase for p in preds if not p.post]
    post = [p.phrase for p in preds if p.post]
    return " ".join(
        adj[:1]
        + [noun]
        + ([where] if where.startswith("of") else [])
        + (["that are " + adj[1]] if len(adj) > 1 else [])
        + [" and ".join(post)] * bool(post)
        + ([] if where.startswith("of") else [where])
    )


def evaluate(rk, xs, preds, m, env, k):
    ok = lambda x: all(p.fn(x, env) for p in preds)
    sel = [m.fn(x, env) for x in xs if ok(x)]
    if rk == "sum":
        return sum(sel)
    if rk == "product":
        out = 1
        for x in sel:
            out *= x
        return out if not isinstance(out, int) else (out + 2**63) % 2**64 - 2**63
    if rk == "running":
        out = []
        for x in sel:
            out.append((out[-1] if out else 0) + x)
        return out
    if rk == "frequency":
        return {x: sel.count(x) for x in sel}
    return {
        "count": lambda: len(sel),
        "max": lambda: max(sel, default=None),
        "min": lambda: min(sel, default=None),
        "list": lambda: sel,
        "reversed": lambda: sel[::-1],
        "average": lambda: sum(sel) / len(sel) if sel else 0,
        "first": lambda: sel[0] if sel else None,
        "last": lambda: sel[-1] if sel else None,
        "any": lambda: bool(sel),
        "all": lambda: all(map(ok, xs)),
        "none": lambda: not sel,
        "index": lambda: next((i + 1 for i, x in enumerate(xs) if ok(x)), None),
        "positions": lambda: [i + 1 for i, x in enumerate(xs) if ok(x)],
        "concat": lambda: ", ".join(map(repr, sel)),
        "set": lambda: {x: True for x in sel},
        "where": lambda: [m.fn(x, env) if ok(x) else x for x in xs],
        "without": lambda: [x for x in xs if not ok(x)],
        "take": lambda: sel[:k],
    }[rk]()


def describe(rng, rk, preds, m, noun, where):
    """Comment text and a descriptive function name."""
    plural = noun_phrase(preds, noun, where)
    what = plural
    if m.key != "id":
        what = f"{plural} {m.phrase}" if m.post else f"{m.phrase} of the {plural}"
    ptag = "_".join(p.tag for p in preds)
    tail = "_".join(x for x in (ptag, m.tag) if x)
    t = lambda *heads: f"{pick(rng, *heads)}_{tail}" if tail else f"{pick(rng, *heads)}_{noun}"
    one = noun_phrase(preds, noun[:-1], where)
    said = " and ".join(p.said for p in preds)
    are = said.replace("is ", "are ", 1).replace("and is ", "and ").replace("does ", "do ") if said else ""
    are = are.replace("ends in", "end in").replace("are a multiple", "are multiples")
    return {
        "sum": lambda: (
            f"returns the {pick(rng, 'sum', 'sum', 'total')} of the {what}",
            t("sum", "sum", "total", "sum_of"),
        ),
        "product": lambda: (f"returns the product of the {what}", t("product", "product_of", "multiply")),
        "count": lambda: (
            pick(
                rng,
                f"returns the number of {plural}",
                f"counts the {plural}",
                f"returns how many {noun} {where} {are}" if said else f"counts the {plural}",
            ),
            t("count", "num", "count"),
        ),
        "max": lambda: (f"returns the {pick(rng, 'largest', 'maximum')} of the {what}, or nil", t("max", "largest")),
        "min": lambda: (f"returns the {pick(rng, 'smallest', 'minimum')} of the {what}, or nil", t("min", "smallest")),
        "list": lambda: (
            pick(rng, f"returns a list of the {what}", f"returns the {what} as a list", f"collects the {what}"),
            t("collect", "list", "get", "select"),
        ),
        "reversed": lambda: (f"returns the {what} in reverse order", t("reversed", "reverse")),
        "average": lambda: (
            f"returns the {pick(rng, 'average', 'mean')} of the {what}, or 0",
            t("average", "mean", "avg"),
        ),
        "first": lambda: (f"returns the first of the {what}, or nil", t("first", "find")),
        "last": lambda: (f"returns the last of the {what}, or nil", t("last", "find_last")),
        "any": lambda: (
            pick(
                rng,
                f"returns true if any of the {noun} {where} {said}",
                f"checks whether some {noun[:-1]} {where} {said}",
            ),
            t("any", "has", "contains"),
        ),
        "all": lambda: (
            pick(rng, f"returns true if all {noun} {where} {are}", f"checks whether every {noun[:-1]} {where} {said}"),
            t("all", "every"),
        ),
        "none": lambda: (f"returns true if none of the {noun} {where} {said}", t("none", "no")),
        "index": lambda: (
            pick(
                rng, f"returns the index of the first {one}, or nil", f"returns the position of the first {one}, or nil"
            ),
            t("index_of", "find_index", "position_of"),
        ),
        "positions": lambda: (
            pick(rng, f"returns the indices of the {plural}", f"returns the positions of the {plural}"),
            t("indices_of", "positions_of"),
        ),
        "concat": lambda: (f"returns the {what} joined with commas", t("join", "format", "show")),
        "set": lambda: (f"returns a set of the {what}", t("set_of", "to_set")),
        "frequency": lambda: (f"returns a table that counts each of the {what}", t("count_each", "frequency")),
        "running": lambda: (
            f"returns the {pick(rng, 'running totals', 'running sums')} of the {what}",
            t("running", "cumulative"),
        ),
        "where": lambda: (
            pick(
                rng,
                f"returns a copy of the list with the {noun_phrase(preds, noun, '').strip()} {m.said}",
                f"returns the list with the {noun_phrase(preds, noun, '').strip()} {m.said} and the rest unchanged",
            ),
            t("change", "update", "map"),
        ),
        "without": lambda: (
            pick(
                rng,
                f"returns the list without the {noun_phrase(preds, noun, '').strip()}",
                f"removes the {noun_phrase(preds, noun, '').strip()} from the list",
            ),
            t("remove", "drop", "reject"),
        ),
        "take": lambda: (f"returns the first {{k}} of the {what}", t("first_{k}", "take")),
    }[rk]()


def reduction(rk, cond, e, v, mk, k):
    """(lines before the loop, lines in the loop, lines after it)"""
    when = lambda lines: [f"if {cond} then"] + indent(lines) + ["end"] if cond else lines
    pe = e if mk == "id" or e.startswith("math.abs") else f"({e})"
    append = "result[#result + 1] = " + e
    if rk in ("max", "min"):
        op = ">" if rk == "max" else "<"
        x, pre = (v, []) if mk == "id" else ("x", [f"local x = {e}"])
        return (
            ["local best = nil"],
            when(pre + [f"if best == nil or {x} {op} best then", f"  best = {x}", "end"]),
            ["return best"],
        )
    if rk == "frequency":
        x, pre = (v, []) if mk == "id" else ("x", [f"local x = {e}"])
        return ["local counts = {}"], when(pre + [f"counts[{x}] = (counts[{x}] or 0) + 1"]), ["return counts"]
    return {
        "sum": lambda: (["local total = 0"], when([f"total = total + {e}"]), ["return total"]),
        "product": lambda: (["local product = 1"], when([f"product = product * {pe}"]), ["return product"]),
        "count": lambda: (["local count = 0"], when(["count = count + 1"]), ["return count"]),
        "list": lambda: (["local result = {}"], when([append]), ["return result"]),
        "reversed": lambda: (["local result = {}"], when([f"table.insert(result, 1, {e})"]), ["return result"]),
        "average": lambda: (
            ["local total = 0", "local count = 0"],
            when([f"total = total + {e}", "count = count + 1"]),
            ["if count == 0 then", "  return 0", "end", "return total / count"],
        ),
        "first": lambda: ([], when([f"return {e}"]), ["return nil"]),
        "last": lambda: (["local last = nil"], when([f"last = {e}"]), ["return last"]),
        "any": lambda: ([], when(["return true"]), ["return false"]),
        "none": lambda: ([], when(["return false"]), ["return true"]),
        "all": lambda: ([], [f"if not ({cond}) then", "  return false", "end"], ["return true"]),
        "index": lambda: ([], when(["return i"]), ["return nil"]),
        "positions": lambda: (["local result = {}"], when(["result[#result + 1] = i"]), ["return result"]),
        "concat": lambda: (["local result = {}"], when([append]), ['return table.concat(result, ", ")']),
        "set": lambda: (["local result = {}"], when([f"result[{e}] = true"]), ["return result"]),
        "running": lambda: (
            ["local result = {}", "local total = 0"],
            when([f"total = total + {e}", "result[#result + 1] = total"]),
            ["return result"],
        ),
        "where": lambda: (
            ["local result = {}"],
            [f"if {cond} then", f"  result[i] = {e}", "else", f"  result[i] = {v}", "end"],
            ["return result"],
        ),
        "without": lambda: (
            ["local result = {}"],
            [f"if not ({cond}) then", f"  result[#result + 1] = {v}", "end"],
            ["return result"],
        ),
        "take": lambda: (
            ["local result = {}"],
            when([append, f"if #result == {k} then", "  break", "end"]),
            ["return result"],
        ),
    }[rk]()
