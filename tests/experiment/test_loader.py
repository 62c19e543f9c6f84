"""YAML text to data and places: YAML 1.2, problems with line and column, hostile input."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import experiment.loader
from experiment.loader import Mark, load_yaml, parse_yaml
from experiment.problems import SpecError


def read(text: str) -> Any:
    return parse_yaml(text, "x.yaml").data


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "x.yaml")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E6", 1e6),
        (".5e-3", 5e-4),
        ("-1.e+4", -1e4),
        ("12e03", 12e3),
        ("0o17", 15),
        ("0x1f", 31),
        ("1_000_000", 1_000_000),
        ("010", 10),
        ("+5", 5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_0", "1_0"),
        ("1e-4x", "1e-4x"),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("~", None),
        ("Null", None),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    got = read(f"[{text}]")[0] if text != "-" else read('{a: "-"}')["a"]
    assert (got, type(got)) == (value, type(value))


def test_the_published_learning_rates_are_floats() -> None:
    assert read("rl_learning_rate: [1e-4, 3e-4, 1e-3]") == {"rl_learning_rate": [0.0001, 0.0003, 0.001]}


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back_from_its_repr(number: float) -> None:
    assert read(f"[{number!r}]") == [number]


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30))
def test_every_whole_number_reads_back(number: int) -> None:
    assert read(f"[{number}]") == [number]


def test_keys_and_values_know_their_places() -> None:
    marks = parse_yaml("a:\n  lr: [1, 2]\n'b': {c: x}\n", "x.yaml").marks
    assert marks.keys["a", "lr"] == Mark("x.yaml", 2, 3)
    assert marks.values["a", "lr"] == Mark("x.yaml", 2, 7)
    assert marks.values["a", "lr", 1] == Mark("x.yaml", 2, 11)
    assert marks.keys["b", "c"] == Mark("x.yaml", 3, 7)
    assert marks.values[()] == Mark("x.yaml", 1, 1)


def test_columns_count_characters_also_beyond_ascii() -> None:
    assert parse_yaml("描述: {学习: 1}\n", "x.yaml").marks.values["描述", "学习"] == Mark("x.yaml", 1, 10)


def test_an_alias_gives_a_copy_that_points_to_where_it_is_written() -> None:
    document = parse_yaml("a: &x [1, 2]\nb: *x\n", "x.yaml")
    assert document.data == {"a": [1, 2], "b": [1, 2]}
    assert document.data["a"] is not document.data["b"]
    assert document.marks.values["b", 1] == Mark("x.yaml", 1, 11)


def test_merge_keys_give_way_to_the_mapping_itself_and_keep_their_place_in_the_order() -> None:
    data = read("b: &b {x: 1, y: 2}\nd: {q: 0, <<: [*b, {x: 9, w: 4}], y: 3}\n")
    assert list(data["d"].items()) == [("q", 0), ("x", 1), ("w", 4), ("y", 3)]


def test_a_quoted_merge_key_is_a_key() -> None:
    assert read("{'<<': 1}") == {"<<": 1}


BROKEN = [
    ("a: 1\na: 2\n", "2:1: duplicate key 'a' (first on line 1)"),
    ("a:\n\tb: 1\n", "2:1: a tab is used for indentation; YAML takes spaces only"),
    ("a:\n  b: 1\n\tc: 2\n", "3:1: a tab is used for indentation; YAML takes spaces only"),
    ("a:\n  - 1\n \t- 2\n", "3:2: a tab is used for indentation; YAML takes spaces only"),
    ("a: [1, 2\nb: 3\n", "1:4: this list is not closed: ',' or ']' is missing before line 2"),
    ("a: {b: 1, c\n", "1:4: this mapping is not closed: ',' or '}' is missing before line 2"),
    ("a: 'x\nb: 1\n", "1:4: this quote is never closed"),
    ("a: b: c\n", "1:5: a ':' can't stand here; check the indentation, or put the text in quotes"),
    ("a: 1\nb 2\nc: 3\n", "2:1: a key without ': ' after it; write 'key: value'"),
    ("a:1\nc: 3\n", "1:1: a key without ': ' after it; write 'key: value'"),
    ("a: 1\nb\n", "2:1: a key without ': ' after it; write 'key: value'"),
    ("a: @x\n", "1:4: text can't begin with '@'; put it in quotes"),
    ("a: [1]]\n", "1:7: this ']' closes nothing"),
    ("a:\n  b: 1\n c: 2\n", "3:2: the indentation fits no line above; entries of one mapping or list begin in"),
    ('a: "\\q"\n', "1:5: this escape is not known; use single quotes, or write \\\\ for a backslash"),
    ("a: 1\n---\nb: 1\n", "2:1: a second document begins here; a spec is one document"),
    ("%YAML 2.0\n---\na: 1\n", "1:1: only YAML 1.x is read; remove the %YAML line"),
    ("a: !!python/object/apply:os.system [id]\n", "1:4: the tag !!python/object/apply:os.system is not allowed"),
    ("a: !!timestamp 2024-01-01\n", "1:4: the tag !!timestamp is not allowed"),
    ("a: !mine {b: 1}\n", "1:4: the tag !mine is not allowed"),
    ("a: !x!y 1\n", "1:4: tags ('!...') are not allowed"),
    ("a: !!int x\n", "1:4: 'x' is not of the type !!int"),
    ("1: a\n", "1:1: the key 1 is not text; put it in quotes if it is meant"),
    ("true: a\n", "1:1: the key true is not text; put it in quotes if it is meant"),
    ("? [a]\n: 1\n", "1:3: a key has to be text, this is a list or a mapping"),
    ("a:\n  : 1\n", "2:3: there is no key before this ':'"),
    ("a: {: 1}\n", "1:5: there is no key before this ':'"),
    ("a: [,]\n", "1:5: a value is missing here"),
    ("a: *x\n", "1:4: the alias *x has no anchor &x before it"),
    ("a: &x\n  - *x\n", "2:5: the alias *x stands inside what it names, so it would never end"),
    ("a: {<<: 3}\n", "1:5: '<<' takes a mapping, or a list of mappings"),
    ("a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n", "4:3: a second '<<'; merge several with a list"),
    ("a: " + "[" * 60, "1:53: nested more than 50 deep; nothing in a spec needs that"),
    ("a: 9" + "9" * 5000, "1:4: a whole number of 5001 digits; no setting needs more than 1000"),
    ("a: x\x07", "1:5: the character U+0007 can't stand in YAML; remove it"),
    ("", "1:1: the file is empty"),
    ("# only a comment\n", "1:1: the file is empty"),
]


@pytest.mark.parametrize(("text", "problem"), BROKEN)
def test_broken_yaml_is_said_in_plain_words_with_its_place(text: str, problem: str) -> None:
    (found,) = problems_of(text)
    assert found.startswith(f"x.yaml:{problem}")


def test_several_problems_are_given_at_once() -> None:
    assert [text.split(": ")[0] for text in problems_of("a: 1\na: 2\nb: {c: !x 1, c: *y}\n2: 3\n")] == [
        "x.yaml:2:1",
        "x.yaml:3:8",
        "x.yaml:3:14",
        "x.yaml:3:17",
        "x.yaml:4:1",
    ]


def test_an_alias_bomb_is_refused_at_once_where_it_goes_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    started = time.process_time()
    (found,) = problems_of("\n".join(lines))
    assert found.startswith("x.yaml:5:45: the alias *a3 makes the aliases unfold to more than 100000 values")
    assert time.process_time() - started < 1.0


def test_a_chain_of_merges_is_no_way_around_the_limit() -> None:
    lines = ["m0: &m0 {" + ", ".join(f"k{i}: {i}" for i in range(1000)) + "}"]
    lines += [f"m{i}: &m{i} {{<<: *m{i - 1}}}" for i in range(1, 500)]
    assert "unfold to more than" in problems_of("\n".join(lines))[0]


def test_aliases_can_t_nest_deeper_than_brackets_may() -> None:
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60)]
    assert "more than 50 deep" in problems_of("\n".join(lines))[0]


def test_large_specs_read_fast() -> None:
    row = ", ".join(f"{number}e-4" for number in range(20))
    text = "variables:\n" + "".join(f"  k{index}: [{row}]\n" for index in range(2000))

    def measure() -> float:
        started = time.process_time()
        assert len(read(text)["variables"]) == 2000
        return time.process_time() - started

    # Of three: on a machine that does something else too, a single one says as much of that.
    assert min(measure() for _ in range(3)) < 0.5


def test_without_libyaml_the_same_is_read_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment.loader, "_LOADER", yaml.SafeLoader)
    assert read("a: [1e-4, on, 'x']\nb: &b {c: 1}\nd: {<<: *b}\n") == {
        "a": [1e-4, "on", "x"],
        "b": {"c": 1},
        "d": {"c": 1},
    }
    slips = [(text, problem) for text, problem in BROKEN if "\\q" not in text]
    assert [problems_of(text)[0][: len(problem) + 7] for text, problem in slips] == [f"x.yaml:{p}" for _, p in slips]


def check_that_it_reads_or_says_why(text: str) -> None:
    try:
        document = parse_yaml(text, "x.yaml")
    except SpecError as error:
        placed = [problem.line and problem.column for problem in error.problems]
    else:
        placed = [document.marks.values[()].line]
    assert all(placed)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_anything_but_data_or_a_spec_error(text: str) -> None:
    check_that_it_reads_or_says_why(text)


@settings(deadline=None)
@given(st.text("ab:[]{}&*<!-\n \t'\"#,?|>", max_size=40))
def test_no_heap_of_yaml_signs_makes_anything_but_data_or_a_spec_error(text: str) -> None:
    check_that_it_reads_or_says_why(text)


def test_files_that_can_t_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("a: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9t\xe9\n")
    (tmp_path / "large.yaml").write_text("a: " + "x" * 1_000_000)

    def problem_of(name: str) -> str:
        with pytest.raises(SpecError) as caught:
            load_yaml(tmp_path / name)
        return str(caught.value).removeprefix(f"{tmp_path}/")

    assert problem_of("swep.yaml") == "swep.yaml: there is no such file; did you mean 'sweep.yaml'?"
    assert problem_of("sweep.yml") == "sweep.yml: there is no such file; did you mean 'sweep.yaml'?"
    assert problem_of("latin.yaml") == "latin.yaml:2:4: byte 0xe9 is not UTF-8 text; save the file as UTF-8"
    assert problem_of("large.yaml") == "large.yaml: larger than 1 MB; a spec holds settings, not data"
    assert problem_of("").endswith("this is a folder; give a YAML file")
    assert "can't be read" in problem_of("sweep.yaml/x.yaml")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = load_yaml(tmp_path / "x.yaml")
    assert document.data == {"a": 1, "b": 2}
    assert document.marks.keys["b",][1:] == (2, 1)
