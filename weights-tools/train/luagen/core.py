"""The item type shared by all families, and the conversion of test values to Lua source."""

from dataclasses import dataclass, field

SAME = """local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do if not same(v, b[k]) then return false end end
  for k in pairs(b) do if a[k] == nil then return false end end
  return true
end
""".replace("local function same", "local same\nfunction same")


@dataclass
class Item:
    """One function: what its comment says, its code, and test calls with their expected results."""

    doc: str  # starts with a verb: "returns the sum of ..."
    name: str
    params: list
    body: list  # lines, indented relative to the function
    cases: list  # (list of arguments, expected result), or a string of Lua asserts using NAME
    family: str
    combo: str = ""  # which parts are combined; split decides on it
    meta: dict = field(default_factory=dict)  # a single predicate, for files that move it to a helper

    def signature(self, local=True):
        return f"{'local ' if local else ''}function {self.name}({', '.join(self.params)})"

    def code(self, local=True):
        return "\n".join([self.signature(local)] + ["  " + b for b in self.body] + ["end"]) + "\n"

    def text(self, local=True):
        return f"-- {self.doc}\n" + self.code(local)

    def prompt(self, local=True):
        return f"-- {self.doc}\n{self.signature(local)}\n"

    def tests(self):
        """Lua source that fails with an error if the function (defined before it) is wrong."""
        out = [SAME]
        for case in self.cases:
            if isinstance(case, str):
                out.append(case.replace("NAME", self.name))
            else:
                args, want = case
                out.append(f"assert(same({self.name}({', '.join(map(lua, args))}), {lua(want)}))")
        return "\n".join(out) + "\n"


def lua(v):
    """Lua literal of a Python value."""
    if v is None:
        return "nil"
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, (int, float)):
        return repr(v)
    if isinstance(v, str):
        return '"' + v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(v, dict):
        return "{" + ", ".join(f"[{lua(k)}] = {lua(x)}" for k, x in v.items()) + "}"
    if isinstance(v, (list, tuple)):
        return "{" + ", ".join(map(lua, v)) + "}"
    raise TypeError(type(v))


@dataclass
class Part:
    """An instantiated grammar part: a predicate or a mapping on one variable."""

    key: str
    phrase: str
    expr: object  # variable name -> Lua expression
    fn: object  # (value, env of extra parameters) -> Python value
    tag: str  # piece of a function name
    post: bool = False  # the phrase follows the noun ("numbers above 3")
    params: dict = field(default_factory=dict)  # extra parameter -> sample values
    said: str = ""  # for predicates: "is even"; for mappings: participle "squared"
    one: str = ""  # mapping of one value: "the square of {v}"


def indent(lines):
    return ["  " + x for x in lines]


def pick(rng, *options):
    return options[rng.randrange(len(options))]
