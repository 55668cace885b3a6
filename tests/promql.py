"""Reads PromQL as far as our rules and dashboards use it: says which metrics and labels an expression names,
and refuses what Prometheus would refuse. No Prometheus is needed for that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<variable>\$__rate_interval)
    |(?P<duration>(?:\d+(?:ms|[smhdwy]))+)(?![\w.])
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],])
    )""",
    re.VERBOSE,
)
_AGGREGATIONS = frozenset(
    ["sum", "min", "max", "avg", "count", "stddev", "group", "topk", "bottomk", "quantile", "count_values"]
)
_FUNCTIONS = {
    name: number
    for number, names in {
        1: "rate increase irate delta abs absent ceil floor sort scalar vector avg_over_time max_over_time",
        2: "histogram_quantile clamp_min clamp_max",
    }.items()
    for name in names.split()
}
_OVER_RANGES = frozenset(["rate", "increase", "irate", "delta", "avg_over_time", "max_over_time"])
_LEVELS = (
    {"or"},
    {"and", "unless"},
    {"==", "!=", "<=", "<", ">=", ">"},
    {"+", "-"},
    {"*", "/", "%"},
    {"^"},
)
_KEYWORDS = frozenset(
    ["by", "without", "on", "ignoring", "offset", "bool", "and", "or", "unless", "group_left", "group_right"]
)


class PromqlError(ValueError):
    """Prometheus would not take this."""


@dataclass
class Selector:
    metric: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    """Label, operator, value."""
    range: str | None = None


@dataclass
class Expression:
    selectors: list[Selector] = field(default_factory=list)
    grouped_by: list[str] = field(default_factory=list)
    """Labels in `by`, `without`, `on` and `ignoring`."""


def parse(text: str) -> Expression:
    """Raises PromqlError."""
    parser = _Parser(_tokens(text))
    if parser.expression(0) == "range":
        raise PromqlError(f"nothing shows a range: {text!r}")
    if parser.kind != "end":
        raise PromqlError(f"{parser.text!r} is left over in {text!r}")
    return parser.found


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise PromqlError(f"what is {text[position:]!r}?")
        assert match.lastgroup is not None
        tokens.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return [*tokens, ("end", "")]


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0
        self.found = Expression()

    @property
    def kind(self) -> str:
        return self._tokens[self._at][0]

    @property
    def text(self) -> str:
        return self._tokens[self._at][1]

    def _take(self, *expected: str) -> str:
        kind, text = self._tokens[self._at]
        if expected and text not in expected and kind not in expected:
            raise PromqlError(f"{text or kind!r} where {' or '.join(expected)} belongs")
        self._at += 1
        return text

    def expression(self, level: int) -> str:
        """The type of value: `scalar`, `vector` or `range`."""
        if level == len(_LEVELS):
            return self._unary()
        value = self.expression(level + 1)
        while self.text in _LEVELS[level]:
            operator = self._take()
            is_set = operator in ("and", "or", "unless")
            if self.text == "bool":
                self._take()
            if self.text in ("on", "ignoring"):
                self._take()
                self._labels()
            other = self.expression(level + 1)
            if "range" in (value, other) or (is_set and "scalar" in (value, other)):
                raise PromqlError(f"{value} {operator} {other}")
            value = "vector" if "vector" in (value, other) else "scalar"
        return value

    def _unary(self) -> str:
        if self.text in ("-", "+"):
            self._take()
            return self._unary()
        if self.kind == "number":
            self._take()
            return "scalar"
        if self.text == "(":
            self._take()
            value = self.expression(0)
            self._take(")")
            return value
        name = self._take("name")
        if name in _AGGREGATIONS:
            return self._aggregation(name)
        if self.text == "(":
            return self._call(name)
        if name in _KEYWORDS:
            raise PromqlError(f"{name!r} where a value belongs")
        return self._selector(name)

    def _aggregation(self, name: str) -> str:
        grouped = self._grouping()
        self._take("(")
        if name in ("topk", "bottomk", "quantile", "count_values"):
            self.expression(0)
            self._take(",")
        if self.expression(0) != "vector":
            raise PromqlError(f"{name} of what is no vector")
        self._take(")")
        if not grouped:
            self._grouping()
        return "vector"

    def _grouping(self) -> bool:
        if self.text not in ("by", "without"):
            return False
        self._take()
        self._labels()
        return True

    def _labels(self) -> None:
        self._take("(")
        while self.text != ")":
            self.found.grouped_by.append(self._take("name"))
            if self.text == ",":
                self._take()
        self._take(")")

    def _call(self, name: str) -> str:
        if name not in _FUNCTIONS:
            raise PromqlError(f"{name!r} is no function that is known here")
        self._take("(")
        values = [self.expression(0)]
        while self.text == ",":
            self._take()
            values.append(self.expression(0))
        self._take(")")
        if len(values) != _FUNCTIONS[name]:
            raise PromqlError(f"{name} of {len(values)} values")
        if (values[-1] == "range") != (name in _OVER_RANGES):
            raise PromqlError(f"{name} of a {values[-1]}")
        return "scalar" if name == "scalar" else "vector"

    def _selector(self, name: str) -> str:
        selector = Selector(name)
        self.found.selectors.append(selector)
        if self.text == "{":
            self._take()
            while self.text != "}":
                label = self._take("name")
                operator = self._take("=", "!=", "=~", "!~")
                value = self._take("string")[1:-1]
                if "~" in operator:
                    re.compile(value)
                selector.matchers.append((label, operator, value))
                if self.text == ",":
                    self._take()
            self._take("}")
        if self.text == "[":
            self._take()
            selector.range = self._take("duration", "variable")
            self._take("]")
        if self.text == "offset":
            self._take()
            self._take("duration")
        return "vector" if selector.range is None else "range"
