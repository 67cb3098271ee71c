"""YAML text is read strictly, and what is not plain YAML is named with its line."""

from __future__ import annotations

import json
import re

import pytest

from csflow.config.document import Document
from csflow.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E-1", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", 1000),
        ("+5", 5),
        ("-.inf", float("-inf")),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("=", "="),
        ("2024-01-01", "2024-01-01"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_what_people_read(text: str, value: object) -> None:
    assert Document(f"a: {text}", "x.yaml").value == {"a": value}


def test_values_know_their_line_and_how_they_are_written() -> None:
    document = Document("a: 1\nb:\n  - no\n  - {c: 0123}\nd: 'x'\n", "x.yaml")
    assert document.value == {"a": 1, "b": [False, {"c": 123}], "d": "x"}
    assert (document.line_of(("b", "1", "c")), document.line_of(("e",))) == (4, None)
    assert (document.written(("b", "0")), document.written(("b", "1", "c"))) == ("no", "0123")
    assert document.written(("d",)) is None


def test_keys_are_names_whatever_yaml_makes_of_them() -> None:
    assert Document("on: 1\n2: 3\n~: 4", "x.yaml").value == {"on": 1, "2": 3, "~": 4}


def test_merged_sections_give_way_to_own_keys() -> None:
    text = "a: &a {p: 1, q: 2}\nb: &b {q: 5}\nc:\n  <<: *a\n  p: 3\nd: {<<: [*b, *a]}\n"
    value = Document(text, "x.yaml").value
    assert value is not None
    assert (value["c"], value["d"]) == ({"p": 3, "q": 2}, {"p": 1, "q": 5})


def test_the_mark_of_a_windows_editor_is_no_text() -> None:
    assert Document("\ufeffa: 1\r\nb: 2\r\n", "x.yaml").value == {"a": 1, "b": 2}


def test_keys_that_are_there_twice_are_named_with_both_lines() -> None:
    document = Document("a: {b: 1, b: 1}\nc: 1\nd: {c: 3}\nc: 2", "x.yaml")
    assert document.duplicates == [
        "x.yaml, line 1: key 'a.b' is there already, in line 1. Keep one.",
        "x.yaml, line 4: key 'c' is there already, in line 2. Keep one.",
    ]
    assert Document("a: 1\nb: {a: 1}", "x.yaml").duplicates == []


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~"])
def test_nothing_is_nothing(text: str) -> None:
    assert Document(text, "x.yaml").value is None


def bomb() -> str:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))]
    return "\n".join(lines)


def merge_bomb() -> str:
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\ta: 1", "line 1.*tab: use blanks"),
        ("a: 1\n---\nb: 2", "line 2.*remove the '---'"),
        ("c: * 3 * * *", "line 1.*needs quotes"),
        ("c: */5 * * * *", "line 1.*needs quotes"),
        ("c: @daily", "line 1.*needs quotes"),
        ("a: b: c", "line 1.*': ' in it needs quotes"),
        ("a:1\nb: 2", "blank after the colon"),
        ("a: [1, 2", "not YAML, line 1.*Check brackets"),
        ("a: 'x", "not YAML"),
        ("a: \x00", "not YAML, line 1"),
        ("a: *nowhere", "undefined alias 'nowhere'"),
        ("a: &a [*a]", "alias leads into itself"),
        ("a: &a {<<: *a}", "'<<' takes an alias of another section"),
        ("a: {<<: 5}", "'<<' takes an alias of another section"),
        ("? [a]\n: b", "key is a list or a section"),
        ("a: !!python/object:os.system x", "tag !!python/object:os.system is not for"),
        ("a: !!set {x}", "tag !!set"),
        ("a: !secret x", "tag !secret"),
        ("a: !!int x", "'x' cannot be read as int"),
        ("a: !!bool maybe", "'maybe' cannot be read as bool"),
        ('a: "\\ud800"', "line 1: .* cannot be read as str"),
        ('"\\ud800": 1', "line 1: .* cannot be read as str"),
        ("[" * 3000, "nested too deeply"),
        (bomb(), "more than 20000 values"),
        (merge_bomb(), "more than 20000 sections are merged"),
    ],
)
def test_what_is_refused_is_named_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.compile(words, re.DOTALL)) as caught:
        Document(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml")


def test_values_fit_into_json() -> None:
    value = Document("a: 2024-01-01\nb: [yes, 1:30, 0b11]\nc: {d: ~}", "x.yaml").value
    assert json.loads(json.dumps(value)) == value
