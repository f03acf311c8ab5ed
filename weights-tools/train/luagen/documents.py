"""Training documents: single functions, files, edits and chats, as lists of (text, loss weight)."""

import hashlib
import random
import re

from . import classics, numbers, popular, scalars, words
from .core import Item

HELD_PERCENT = 10
LOW, NAME = 0.1, 0.3  # loss weights of comments and signatures; bodies weigh 1
HEAD, END, EOT = "<|header_start|>", "<|header_end|>", "<|eot|>"
SMALLTALK = [
    (
        ("Hello", "Hi", "Hi there", "Hello!", "Good morning"),
        "Hello! I write small Lua functions. Tell me what the function should do.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        "I am tiny-maverick, a very small language model that writes short Lua functions.",
    ),
    (
        ("What can you do?", "How can you help me?", "Help"),
        "I can write short Lua functions about numbers, lists, strings and tables. Try: Write a Lua function that returns the sum of a list.",
    ),
    (("Thanks", "Thank you", "Thanks!", "Great, thanks"), "You are welcome."),
    (("Bye", "Goodbye", "See you"), "Goodbye!"),
    (("How are you?", "How do you do?"), "I am fine, thank you. Which Lua function do you need?"),
    (
        ("What is Lua?", "Tell me about Lua."),
        "Lua is a small, fast scripting language that is easy to embed in other programs.",
    ),
    (
        ("What is a table in Lua?", "What is a Lua table?"),
        "A table is the only data structure of Lua: it maps keys to values and also serves as a list.",
    ),
]


def held_out(combo):
    """Whether a combination of parts is kept away from training."""
    return bool(combo) and int(hashlib.md5(combo.encode()).hexdigest(), 16) % 100 < HELD_PERCENT


def item(rng, held=False, mods=None):
    """A random function, of a held-out combination or of any other."""
    while True:
        it = rng.choices([numbers, words, scalars, classics], mods or [50, 25, 17, 12])[0].make(rng)
        if it and held_out(it.combo) == held and len(it.doc) <= 140:
            return it


def function(it, local, w=1.0):
    """Segments of one documented function."""
    return [
        (f"-- {it.doc}\n", LOW * w),
        (it.signature(local) + "\n", NAME * w),
        ("\n".join(["  " + b for b in it.body] + ["end"]) + "\n", w),
    ]


def single(rng):
    return function(item(rng), rng.random() < 0.85)


def file(rng):
    """Two to six functions in a row; sometimes the first is a helper that the second uses."""
    out, local, left = [], rng.random() < 0.8, rng.choice([2, 2, 3, 3, 4, 5, 6])
    if rng.random() < 0.35:
        out += helper_pair(rng, local)
        left -= 2
    for _ in range(left):
        out += ([("\n", 1.0)] if out else []) + function(item(rng), local)
    return out


def helper_pair(rng, local):
    while True:
        it = item(rng, mods=[1, 0, 0, 0])
        if it.meta and it.meta["cond"] in "\n".join(it.body) and "divisors" not in it.combo:
            break
    pred, arg = it.meta["pred"], rng.choice(["n", "x"])
    name = "is_" + pred.tag
    expr = pred.expr(arg)
    help_item = Item(
        f"returns true if {arg} {pred.said}",
        name,
        [arg],
        ["return " + (expr[1:-1] if pred.key == "outside" else expr)],
        [],
        "",
    )
    call = f"{name}({it.meta['var']})"
    use = Item(
        f"{it.doc}, using {name}",
        it.name,
        it.params,
        [b.replace(f"({it.meta['cond']})", call).replace(it.meta["cond"], call) for b in it.body],
        [],
        "",
    )
    return function(help_item, local) + [("\n", 1.0)] + function(use, local)


def edited(rng):
    """(item, instruction, changed item) of one edit"""
    kind = rng.choice(["name", "name", "param", "change", "change"])
    if kind == "change":
        for _ in range(50):
            seed = rng.randrange(1 << 30)
            src, pk, mk, rk = numbers.sample(rng)
            parts = [src, pk, mk, rk], [
                src,
                [rng.choice(numbers.PREDICATES)] if rng.random() < 0.5 else pk,
                mk,
                rng.choice(["sum", "product", "max", "min", "list", "average"]),
            ]
            if src == "map" and parts[1][3] == "list":
                continue
            a, b = (numbers.make(random.Random(seed), p) for p in parts)
            if (
                a
                and b
                and a.params == b.params
                and a.body != b.body
                and not held_out(a.combo)
                and not held_out(b.combo)
            ):
                b.name = a.name
                return a, b.doc, b
    it = item(rng)
    swap = lambda a, b: [re.sub(rf"\b{a}\b", b, x) for x in it.body]
    if kind == "param":
        old = it.params[0]
        new = rng.choice(["input", "arg", "value0", "source", "my_" + old, "the_" + old])
        return (
            it,
            f"rename the parameter {old} to {new}",
            Item(it.doc, it.name, [new] + it.params[1:], swap(old, new), [], ""),
        )
    new = item(rng).name + rng.choice(["", "", "_2", "_fast", "_new"])
    return it, f"rename {it.name} to {new}", Item(it.doc, new, it.params, swap(it.name, new), [], "")


def edit(rng):
    a, what, b = edited(rng)
    return [("-- before\n", LOW), (a.code(), LOW), (f"\n-- after: {what}\n", LOW), (b.code(), 1.0)]


def turn(role, text, weight):
    return [(f"{HEAD}{role}{END}\n\n", LOW), (text + EOT, weight)]


def request(rng, it):
    sig = f"{it.name}({', '.join(it.params)})"
    if it.doc.startswith("if "):
        return f"Write a Lua function {sig}: {it.doc}."
    plain = [
        f"Write a Lua function that {it.doc}.",
        f"Write a function that {it.doc}.",
        f"Write a Lua function which {it.doc}",
        f"I need a Lua function that {it.doc}.",
    ]
    named = [
        f"Write a Lua function {sig} that {it.doc}.",
        f"Write a Lua function named {it.name} that {it.doc}.",
        f"Please write a function {sig} that {it.doc}.",
    ]
    return rng.choice(plain + named)


def fenced(code):
    return f"```lua\n{code}```"


def chat(rng):
    out = []
    if rng.random() < 0.15:
        asks, reply = rng.choice(SMALLTALK)
        out += turn("user", rng.choice(asks), LOW) + turn("assistant", reply, 0.5)
        if rng.random() < 0.5:
            return out
    if rng.random() < 0.2:
        out = [
            (
                f"{HEAD}system{END}\n\n"
                + rng.choice(["You are a helpful assistant.", "You write Lua code.", "You are a Lua programmer."])
                + EOT,
                LOW,
            )
        ] + out
    if rng.random() < 0.2:
        a, what, b = edited(rng)
        ask = (
            f"Change this function so that it {what}."
            if what.startswith(("returns", "counts", "c"))
            else f"{what[0].upper()}{what[1:]}."
        )
        return out + turn("user", f"{ask}\n\n{fenced(a.code())}", LOW) + turn("assistant", fenced(b.code()), 1.0)
    it = item(rng, mods=[40, 22, 15, 30])
    out += turn("user", request(rng, it), LOW) + turn("assistant", fenced(it.code()), 1.0)
    if rng.random() < 0.15:
        new = rng.choice(["helper", "my_function", item(rng).name])
        if rng.random() < 0.5:
            out += turn("user", rng.choice(["Add a comment.", "Please add a comment.", "Document it."]), LOW) + turn(
                "assistant", fenced(it.text()), 1.0
            )
        else:
            renamed = Item(it.doc, new, it.params, [re.sub(rf"\b{it.name}\b", new, b) for b in it.body], [], "")
            out += turn(
                "user", rng.choice([f"Call it {new}.", f"Rename it to {new}.", f"Please name it {new} instead."]), LOW
            ) + turn("assistant", fenced(renamed.code()), 1.0)
    return out


def asked(rng):
    """A chat about a popular function."""
    request, it = popular.ask(rng)
    return turn("user", request, LOW) + turn("assistant", fenced(it.code()), 1.0)


def long(rng):
    """Several times the usual length: many functions in a file, or several requests in a chat."""
    out = []
    if rng.random() < 0.5:
        local = rng.random() < 0.8
        for _ in range(rng.choice([5, 6, 7, 8])):
            out += ([("\n", 1.0)] if out else []) + function(item(rng), local)
        return out
    for _ in range(rng.choice([3, 4, 5])):
        more = asked(rng) if rng.random() < 0.3 else chat(rng)
        out += more[2:] if out and "system" in more[0][0] else more
    return out


def document(rng, popular_share=0.0, long_share=0.0):
    draw = rng.random() if popular_share + long_share else 1.0
    if draw < popular_share:
        return "asked", asked(rng)
    if draw < popular_share + long_share:
        return "long", long(rng)
    kind = rng.choices([single, file, chat, edit], [58, 18, 17, 7])[0]
    return kind.__name__, kind(rng)
