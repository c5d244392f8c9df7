"""Random templates, rendered by jinja2 as transformers sets it up and by kvmesh: equal text, equal refusal, or a difference that is shown.

    python tests/compare/chat_templates.py build/tests/chat_render COUNT [SEED]

Needs: pip install transformers jinja2. kvmesh may refuse what jinja2 renders (it says so); it must never render another text. What jinja2 refuses and kvmesh renders is counted apart.
"""

import collections
import datetime
import json
import pathlib
import random
import subprocess
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference"))
from chat_conversations import CONVERSATIONS  # noqa: E402
from chat_units import DATA  # noqa: E402
from transformers.utils import chat_template_utils  # noqa: E402

NAMES = ["s", "e", "u", "sp", "n", "neg", "f", "t", "fa", "no", "l", "em", "d", "ed", "m", "w", "q", "nest", "lines", "x", "messages", "tools", "a", "b", "ns", "loop", "item"]  # "f" is a macro's too
FILTERS = ["trim", "length", "count", "upper", "lower", "title", "capitalize", "string", "int", "float", "abs", "safe", "first", "last", "list", "items", "dictsort", "unique", "sort", "reverse", "round",
           "sum", "max", "min", "select", "reject", "tojson", "escape", "default('z')", "d('y', true)", "join(', ')", "join", "replace('o', '0')", "replace(' ', '')", "indent(2)", "indent(1, true)", "tojson(indent=2)",
           "map('upper')", "map('length')", "map(attribute='role')", "map(attribute='content')", "map('string')", "selectattr('role')", "selectattr('role', 'equalto', 'user')", "rejectattr('content')",
           "rejectattr('role', 'ne', 'user')", "select('string')", "select('odd')", "reject('none')", "sort(reverse=true)", "sort(attribute='role')", "dictsort(reverse=true)", "unique(attribute='role')", "round(1)",
           "trim('He')", "tojson(separators=(',', ':'))", "default(none)", "map('tojson')", "map('first')", "batch", "nope"]
TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false", "odd", "even", "divisibleby 2", "eq 1", "ne 'a'", "in [1, 'a']", "lower", "upper",
         "equalto('user')", "gt 2", "sameas none", "callable"]
ATTRIBUTES = ["role", "content", "items", "keys", "get", "a", "b", "name", "function", "type", "index", "index0", "first", "last", "length", "previtem", "nextitem", "revindex", "upper", "x", "0", "update"]
METHODS = ["upper()", "lower()", "strip()", "lstrip('H')", "split()", "split('o')", "split(' ', 1)", "rsplit(none, 1)", "startswith('H')", "endswith('d')", "title()", "capitalize()", "replace('o', 'é')", "find('o')", "items()", "keys()", "values()",
           "get('role')", "get('a', 1)", "join(w)", "splitlines()", "count('l')", "removeprefix('He')", "index(1)", "rstrip('\\n ')"]
LITERALS = ["0", "1", "2", "-1", "1.5", "'a'", "'role'", "''", "' b\\n'", "'user'", "true", "false", "none", "[]", "{}", "[1, 2]", "('x', 2)", "{'role': 'user', 'b': [1]}", "'é世'", "\"it's\"", "10", "3.0"]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or"]
SPACE = ["", "", " ", "\n", "\n\n", "  ", " \n ", "\n\t"]
WORDS = ["x", "Hello", "{", "}", "%", "#", "é", "<|im_start|>", "- ", "\n\n  ", "  \n", "a b", "'", "\\"]


class Grammar:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, choices):
        return self.random.choice(choices)

    def expression(self, depth):
        if depth <= 0 or self.random.random() < 0.2:
            return self.pick(NAMES) if self.random.random() < 0.6 else self.pick(LITERALS)
        inner = lambda: self.expression(depth - 1)  # noqa: E731
        form = self.random.randrange(16)
        if form < 3:
            return f"{inner()} {self.pick(BINARY)} {inner()}"
        if form < 6:
            return f"{inner()}|{self.pick(FILTERS)}"
        if form < 8:
            return f"{inner()}.{self.pick(METHODS)}"
        if form == 8:
            return f"{inner()}.{self.pick(ATTRIBUTES)}"
        if form == 9:
            return f"{inner()}[{self.pick(['0', '-1', '1', repr(self.pick(ATTRIBUTES)), inner()])}]"
        if form == 10:
            return f"{inner()}[{self.pick(['', '1', '-2', '0'])}:{self.pick(['', '2', '-1', '9'])}{self.pick(['', ':', ':2', ':-1'])}]"
        if form == 11:
            return f"{inner()} is {self.pick(['', 'not '])}{self.pick(TESTS)}"
        if form == 12:
            return f"{inner()} if {inner()}" + (f" else {inner()}" if self.random.random() < 0.8 else "")
        if form == 13:
            return self.pick([f"[{inner()}, {inner()}]", f"({inner()}, {inner()})", "{'k': " + inner() + "}", f"range({self.pick(['3', '1, 4', 'n'])})", f"dict(a={inner()})", f"namespace(a={inner()})", f"f({inner()})", f"f({inner()}, b={inner()})"])
        if form == 14:
            return f"{self.pick(['not ', '-', '+', ''])}{inner()}"
        return f"({inner()})"

    def open(self):
        return "{%" + self.pick(["", "", "-", "-", "+"]) + " "

    def close(self):
        return " " + self.pick(["", "", "-", "-", "+"]) + "%}"

    def tag(self, text):
        return self.open() + text + self.close()

    def text(self):
        return self.pick(SPACE) + self.pick(WORDS) + self.pick(SPACE)

    def body(self, depth, loops):
        return "".join(self.statement(depth, loops) for _ in range(self.random.randrange(1, 4)))

    def statement(self, depth, loops):
        form = self.random.randrange(14)
        if depth <= 0 or form < 3:
            return self.text()
        if form < 6:
            return "{{" + self.pick(["", "", "-"]) + " " + self.expression(self.random.randrange(4)) + " " + self.pick(["", "", "-"]) + "}}" + self.pick(SPACE)
        e = lambda: self.expression(2)  # noqa: E731
        if form == 6:
            return self.tag(f"if {e()}") + self.body(depth - 1, loops) + (self.tag(f"elif {e()}") + self.body(depth - 1, loops) if self.random.random() < 0.3 else "") + (
                self.tag("else") + self.body(depth - 1, loops) if self.random.random() < 0.5 else "") + self.tag("endif")
        if form < 9:
            target = self.pick(["item", "item", "a", "a, b"])
            of = self.pick(["messages", "l", "w", "d.items()", "d|items", "range(4)", "tools", "s", e()])
            test = self.pick(["", "", f" if {e()}", " if loop.first"]) if self.random.random() < 0.5 else ""
            return self.tag(f"for {target} in {of}{test}") + self.body(depth - 1, True) + (self.tag("else") + self.body(depth - 1, loops) if self.random.random() < 0.2 else "") + self.tag("endfor")
        if form == 9:
            return self.tag(f"set {self.pick(['a', 'b', 'ns.a', 'a, b', 'x', 's'])} = {e()}")
        if form == 10:
            return self.block(depth, loops)
        if form == 11:
            return self.tag("macro f(a, b='B')") + self.body(depth - 1, False) + self.tag("endmacro") + "{{ f(1) }}"
        if form == 12 and loops:
            return self.tag(f"if {e()}") + self.tag(self.pick(["break", "continue"])) + self.tag("endif")
        return self.pick(["{#" + self.pick(["", "-", "+"]) + " note " + self.pick(["", "-", "+"]) + "#}", self.tag("set ns = namespace(a=0)"), self.tag("raw") + self.text() + "{{ x }}" + self.tag("endraw") if self.random.random() < 0.3 else self.text()])

    def block(self, depth, loops):
        begin, end = self.pick([("set a", "endset"), ("set b | upper", "endset"), ("filter trim", "endfilter"), ("generation", "endgeneration"), ("with a=1, x=n", "endwith"), ("call(a) f(2)", "endcall")])
        return self.tag(begin) + self.body(depth - 1, loops and end not in ("endgeneration", "endcall")) + self.tag(end)

    def template(self):
        if self.random.random() < 0.5:  # a small one, more of which are no mistakes
            return "{{ " + self.expression(self.random.randrange(1, 4)) + " }}"
        return "".join(self.statement(3, False) for _ in range(self.random.randrange(1, 7)))


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 7, 26)


def main(program, count, seed):
    warnings.simplefilter("ignore")
    chat_template_utils.datetime = Clock
    compiled = chat_template_utils._compile_jinja_template
    compiled = getattr(chat_template_utils, "_cached_compile_jinja_template", compiled)
    compiled = getattr(compiled, "__wrapped__", compiled)
    grammar, found = Grammar(seed), collections.Counter()
    kvmesh = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for i in range(count):
        template = grammar.template()
        conversation = CONVERSATIONS[i % len(CONVERSATIONS)]
        variables = {**DATA, "messages": conversation["messages"], "tools": conversation.get("tools")}
        try:
            expected = compiled(template).render(**variables)
        except Exception as e:
            expected, why = None, f"{type(e).__name__}: {e}"
        kvmesh.stdin.write(json.dumps({"template": template, "variables": variables}) + "\n")
        kvmesh.stdin.flush()
        line = kvmesh.stdout.readline()
        if not line:
            print("kvmesh ended at", repr(template))
            return 1
        answer = json.loads(line)
        if answer.get("text") == expected:
            kind = "equal texts" if expected is not None else "both refuse"
        elif "error" in answer:
            kind = "only kvmesh refuses" if " at 0x" not in expected else "only kvmesh refuses: an object's address"
            if "address" not in kind and found[kind] < 25:
                print("REFUSED", repr(template), answer["error"])
        elif expected is None:
            kind = "only jinja2 refuses"
            if found[kind] < 25:
                print("RENDERED", repr(template), "\n   jinja2:", why[:200], "\n   kvmesh:", repr(answer["text"])[:200])
        else:
            kind = "DIFFERENT TEXTS"
            print(kind, repr(template), "\n   jinja2:", repr(expected)[:300], "\n   kvmesh:", repr(answer["text"])[:300])
        found[kind] += 1
    print(f"{count} templates, seed {seed}:", ", ".join(f"{n} {kind}" for kind, n in found.most_common()))
    return found["DIFFERENT TEXTS"] > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
