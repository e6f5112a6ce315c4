"""Hypothesis strategies that damage valid files: their bytes, and the values inside."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP = 3000
_DEEP_LIST, _DEEP_TABLE = "@deep list@", "@deep table@"  # what no encoder writes: see `to_json`
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-320, 1e308, -1e308, 10**6, 10**9, 2**31, 2**32,
    2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "nan", "é", "日本語", "\x00", "a\nb", "\u2028", "\ud800", "\u202e", "<script>",
    "[red]", "../../x", "x" * 100_000, [], [[]], [None], {}, {"": 0}, {"value": 1}, [0] * 50_000,
    list(range(300)), _DEEP_LIST, _DEEP_TABLE,
)  # fmt: skip
ODD_KEYS = ("", " ", "é", "a\nb", "\x00", "format", "version", "x" * 5000, "a.b", "__class__")


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, *, ends: int = 4096) -> bytes:
    """Flip, overwrite, cut, insert or repeat bytes, once or more; often near either end."""
    data = bytearray(content)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        where = draw(st.sampled_from(("head", "tail", "anywhere")))
        low = max(0, len(data) - ends) if where == "tail" else 0
        high = min(len(data), ends) if where == "head" else len(data)
        at = draw(st.integers(low, max(low, high)))
        length = draw(st.one_of(st.integers(1, 16), st.integers(1, 4096)))
        change = draw(st.sampled_from(("flip", "overwrite", "cut", "drop", "insert", "repeat")))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "overwrite":
            new = draw(_RUNS)
            data[at : at + len(new)] = new
        elif change == "cut":
            del data[at:]
        elif change == "drop":
            del data[at : at + length]
        elif change == "insert":
            data[at:at] = draw(_RUNS)
        elif change == "repeat":
            data[at:at] = data[at : at + length] * draw(st.sampled_from((1, 1, 2, 50)))
    return bytes(data)


_RUNS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        (b"\x00" * 8, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f", b"\xed\xa0\x80",
         b"[" * 5000, b"{\"a\":" * 3000, b"9" * 5000, b"\n" * 100, b"\xef\xbb\xbf", b"NaN", b"-1", b"1e999", b"PK\x03\x04", b"\x93NUMPY\x03\x00")
    ),
)  # fmt: skip


# ── values ───────────────────────────────────────────────────────────────────────────────────────


@st.composite
def damaged_values(draw: st.DrawFn, content: Any) -> Any:
    """Replace, drop, add, rename, repeat or swap values anywhere in JSON-like content."""
    whole = [copy.deepcopy(content)]
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        parent, key = _choose(draw, whole)
        change = draw(st.sampled_from(("odd", "odd", "odd", "drop", "add", "repeat", "move")))
        if change == "odd" or parent is whole:
            parent[key] = draw(odd_values)
        elif change == "drop":
            del parent[key]
        elif isinstance(parent, dict):
            value = parent[key] if change == "repeat" else draw(odd_values)
            if change == "move":
                value = parent.pop(key)
            parent[draw(st.sampled_from((*ODD_KEYS, *map(str, parent))))] = value
        else:
            parent[key:key] = [copy.deepcopy(parent[key])] * draw(st.sampled_from((1, 2, 500)))
    return whole[0]


odd_values = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(codec=None), max_size=8),
).map(copy.deepcopy)


def _choose(draw: st.DrawFn, whole: list[Any]) -> tuple[Any, Any]:
    """Walk from the root down to some value; return what holds it, and its key there."""
    parent, key = whole, 0
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.integers(0, 9)):
        parent = parent[key]
        keys = list(parent) if isinstance(parent, dict) else range(min(len(parent), 1000))
        key = draw(st.sampled_from(keys))
    return parent, key


def to_json(content: Any) -> bytes:
    """Write content as JSON, NaN, lone surrogates and absurd nesting included."""
    text = json.dumps(content, ensure_ascii=True)
    text = text.replace(json.dumps(_DEEP_LIST), "[" * DEEP + "]" * DEEP)
    return text.replace(json.dumps(_DEEP_TABLE), '{"a":' * DEEP + "1" + "}" * DEEP).encode()


def to_toml(content: Any) -> bytes:
    """Write a table as TOML: inline tables and lists, after one line per key."""
    if not isinstance(content, dict):
        return to_json(content)
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in content.items()]
    return "\n".join(lines).encode(errors="surrogatepass")


def _toml_key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False) if key != "a.b" else ".".join("a" * DEEP)


def _toml_value(value: Any) -> str:
    if value == _DEEP_LIST:
        return "[" * DEEP + "]" * DEEP
    if value == _DEEP_TABLE:
        return "{a=" * DEEP + "1" + "}" * DEEP
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
