"""Settings given on the command line as `key=value`."""

from __future__ import annotations

from collections.abc import Sequence

from experiment.loader import Mark, parse_yaml
from experiment.problems import Problem, SpecError
from experiment.sections import Setting, Settings


def parse_assignments(option: str, texts: Sequence[str], problems: list[Problem]) -> Settings:
    """Give the settings that `key=value` texts make, by dotted key; values are read by the rules of a spec.

    Args:
        option: `-o` or `--only`, named in what is wrong; a setting's place is the option with its text.
        texts: what came after the option, each time that it was given.
        problems: gets what is wrong.
    """
    settings: Settings = {}
    for text in texts:
        mark = Mark(f"{option} {text}")
        for key, setting in _parse_one(option, text, mark, problems).items():
            if key in settings:
                problems.append(mark.problem(f"{key} is given twice (also as {settings[key].key})"))
            settings[key] = setting
    return settings


def _parse_one(option: str, text: str, mark: Mark, problems: list[Problem]) -> Settings:
    key, equals, written = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        example = f"{key.strip('.') or 'seed'}=VALUE"
        problems.append(mark.problem(f"{option} takes key=value, for example {option} {example}"))
        return {}
    if not written.strip():
        problems.append(mark.problem(f"no value for {key}; write {key}=null for none, or {key}='\"\"' for empty text"))
        return {}
    try:
        value = parse_yaml(written, mark.file).data
    except SpecError as error:
        problems += [mark.problem(f"the value of {key} can't be read: {fault.message}") for fault in error.problems]
        return {}
    return _flatten(key, value, mark)


def _flatten(key: str, value: object, mark: Mark) -> Settings:
    if isinstance(value, dict) and value:
        settings: Settings = {}
        for name, inner in value.items():
            settings |= _flatten(f"{key}.{name}", inner, mark)
        return settings
    items = (mark,) * len(value) if isinstance(value, list) else ()
    return {key: Setting(value, mark, mark, items)}
