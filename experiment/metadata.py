"""The section `meta_data`: what an experiment is called, what it runs, how many runs go at a time."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.loader import Mark
from experiment.problems import Problem, suggest
from experiment.scalars import show_value
from experiment.sections import META_KEYS, Setting, Settings

TRAINING_SCRIPT = "train.py"
OUR_TRAINER = Path(__file__).resolve().parents[1] / TRAINING_SCRIPT
"""The script that trains, whose settings can be checked. A `train.py` of the user's own is another."""
MAX_COMBINATIONS = 1_000_000
_MAX_NAME = 100
_NAME = re.compile(r"\w[\w.=+,@-]*")
_UNSAFE = re.compile(r"[^\w.=+,@-]+")
_FIELD = re.compile(r"\{([^{}]*)\}")
_RUN_SETTINGS = frozenset({"env_name", "env_kwargs", "num_envs", "max_timesteps", "num_eval", "seed", "algorithm_name"})
"""Settings of runs whose names are so near to keys of meta_data that a suggestion would mislead."""


@dataclass(frozen=True)
class MetaData:
    """What concerns the experiment as a whole.

    Attributes:
        exp_name: name of the experiment's folder under the log root.
        script_path: what each run starts; as in the spec, without `./`.
        num_workers: runs at a time; None leaves it to the number of devices.
        imports: modules of the user's that register environments or trainers.
        job_name: template of the runs' labels, `run_{seed}`; None for the swept keys.
        on_finish: program and arguments to run when a launch has ended; empty for none.
        samples: how many points are drawn for the random variables; None where there are none.
        samples_seed: with other seeds these are other points.
        extend: whether runs that are there with fewer `max_timesteps` are gone on from.
        runs_trainer: whether the script is our `train.py`, whose settings can be checked.
        script_file: the script's place, to be started.
    """

    exp_name: str
    script_path: str = TRAINING_SCRIPT
    description: str = ""
    num_workers: int | None = None
    imports: tuple[str, ...] = ()
    job_name: str | None = None
    on_finish: tuple[str, ...] = ()
    samples: int | None = None
    samples_seed: int = 0
    extend: bool = False
    runs_trainer: bool = True
    script_file: str = TRAINING_SCRIPT


def read_meta_data(settings: Settings, spec_path: Path, section: Mark, problems: list[Problem]) -> MetaData:
    """Give the checked `meta_data`; what is wrong is added to the problems and replaced by its default.

    Args:
        settings: of the section, over those of its base specs.
        spec_path: its stem is the default name. Paths in the section start from the current folder.
        section: where to point when a default is what is wrong.
        problems: gets what is wrong.
    """
    return _MetaReader(settings, section, problems).read(spec_path)


def is_file(path: Path) -> bool:
    """Say whether a file is there; a path that no file system takes is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_template_keys(template: str) -> list[str]:
    """Give the keys that a `job_name` such as `run_{seed}_{optimizer.lr}` asks for."""
    return _FIELD.findall(template)


def fill_template(template: str, texts: dict[str, str]) -> str:
    """Give the label that a `job_name` makes; a key that this run doesn't set is `unset`."""
    return _FIELD.sub(lambda match: texts.get(match[1], "unset"), template)


def find_template_problems(job_name: Setting, known: Iterable[str]) -> list[Problem]:
    """Name the fields of a `job_name` that are no settings of the spec."""
    template = job_name.value
    if "{" in _FIELD.sub("", template) or "}" in _FIELD.sub("", template):
        return [job_name.at.problem("job_name has a brace without its partner; fields are written {key}")]
    known = list(known)
    problems = []
    for key in find_template_keys(template):
        if key not in known:
            hint = "; only plain {key} fields are known" if set(key) & set(":![") else suggest(key, known)
            problems.append(job_name.at.problem(f"job_name asks for {{{key}}}, which is no setting of this spec{hint}"))
    return problems


class _MetaReader:
    def __init__(self, settings: Settings, section: Mark, problems: list[Problem]) -> None:
        self._settings = settings
        self._section = section
        self._problems = problems

    def read(self, spec_path: Path) -> MetaData:
        for key, setting in self._settings.items():
            if key not in META_KEYS:
                self._problems.append(setting.key.problem(_explain_unknown_key(key)))
        if gpus := self._settings.get("using_gpus"):
            shown = gpus.value if isinstance(gpus.value, list) else [gpus.value]
            flag = ",".join(str(gpu) for gpu in shown)
            self._problems.append(
                gpus.key.problem(f"using_gpus is not read; give the devices when you start: -g {flag}")
            )
        script = self._read_script()
        file = script if is_file(Path(script)) else str(OUR_TRAINER)
        return MetaData(
            exp_name=self._read_exp_name(spec_path),
            script_path=script,
            description=self._take_text("description") or "",
            num_workers=self._read_count("num_workers"),
            imports=self._read_imports(),
            job_name=self._take_text("job_name") or None,
            on_finish=self._read_on_finish(),
            samples=self._read_count("samples", MAX_COMBINATIONS),
            samples_seed=self._read_samples_seed(),
            extend=self._read_extend(script if os.path.realpath(file) != str(OUR_TRAINER) else None),
            runs_trainer=os.path.realpath(file) == str(OUR_TRAINER),
            script_file=file,
        )

    def _refuse(self, key: str, message: str) -> None:
        setting = self._settings.get(key)
        self._problems.append((setting.at if setting else self._section).problem(message))

    def _take_text(self, key: str) -> str | None:
        value = self._take(key)
        if value is None or isinstance(value, str):
            return value
        self._refuse(key, f"{key} must be text, got {show_value(value)}; put it in quotes")
        return None

    def _take(self, key: str) -> Any:
        return self._settings[key].value if key in self._settings else None

    def _read_exp_name(self, spec_path: Path) -> str:
        name = self._take_text("exp_name")
        if name is None and "exp_name" in self._settings:
            if self._take("exp_name") is None:
                self._refuse("exp_name", "exp_name is empty; give a name, or remove the key to take the file's")
            return spec_path.stem
        given = name is not None
        name = spec_path.stem if name is None else name
        if fault := _explain_bad_name(name):
            origin = f"exp_name {name!r}" if given else f"the file's name makes exp_name {name!r}, which"
            self._refuse("exp_name", f"{origin} {fault}{'' if given else '; give exp_name in meta_data'}")
        return name

    def _read_script(self) -> str:
        script = self._take_text("script_path")
        if script is None:
            script = TRAINING_SCRIPT
        script = os.path.normpath(script) if script else script
        if is_file(Path(script)) or script == TRAINING_SCRIPT:
            return script
        near = [TRAINING_SCRIPT, *(path.name for path in Path().glob("*.py"))]
        self._refuse(
            "script_path", f"the script {script!r} is not there, seen from {Path.cwd()}{suggest(script, near)}"
        )
        return script

    def _read_count(self, key: str, most: int | None = None) -> int | None:
        if key not in self._settings:
            return None
        value = self._take(key)
        if type(value) is not int or value < 1:
            self._refuse(key, f"{key} must be a whole number >= 1, got {show_value(value)}")
            return None
        if most is not None and value > most:
            self._refuse(key, f"{key} must be <= {most:,}, the most combinations of a grid, got {show_value(value)}")
            return None
        return value

    def _read_samples_seed(self) -> int:
        if "samples_seed" not in self._settings:
            return 0
        value = self._take("samples_seed")
        if type(value) is not int or value < 0:
            self._refuse("samples_seed", f"samples_seed must be a whole number >= 0, got {show_value(value)}")
            return 0
        return value

    def _read_on_finish(self) -> tuple[str, ...]:
        if "on_finish" not in self._settings:
            return ()
        setting = self._settings["on_finish"]
        words = setting.value
        if isinstance(words, list):
            for word, mark in zip(words, setting.items, strict=True):
                if not isinstance(word, str):
                    self._problems.append(mark.problem(f"on_finish: {show_value(word)} is no text; put it in quotes"))
        elif isinstance(words, str):
            try:
                words = shlex.split(words)
            except ValueError as error:
                self._refuse("on_finish", f"on_finish can't be split into words ({error}); give them as a list")
                return ()
        else:
            self._refuse("on_finish", f"on_finish must be a command, as text or a list, got {show_value(words)}")
            return ()
        if not words or not words[0]:
            self._refuse("on_finish", "on_finish names no program; give a command, or remove the key")
        return tuple(str(word) for word in words)

    def _read_extend(self, foreign: str | None) -> bool:
        value = self._take("extend")
        if "extend" not in self._settings:
            return False
        if not isinstance(value, bool):
            hint = "; a base spec is named by extends" if isinstance(value, str) else ""
            self._refuse("extend", f"extend must be true or false, got {show_value(value)}{hint}")
            return False
        if value and foreign is not None:
            self._refuse("extend", f"extend goes on from runs of {TRAINING_SCRIPT}; {foreign} is not ours")
        return bool(value)

    def _read_imports(self) -> tuple[str, ...]:
        names = self._take("imports")
        if names is None:
            return ()
        setting = self._settings["imports"]
        if not isinstance(names, list):
            self._refuse("imports", f"imports must be a list of module names, got {show_value(names)}")
            return ()
        for name, mark in zip(names, setting.items, strict=True):
            if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
                example = "; write package.module" if "/" in str(name) or str(name).endswith(".py") else ""
                self._problems.append(mark.problem(f"imports: {show_value(name)} is not a module's name{example}"))
        return tuple(str(name) for name in names)


def _explain_unknown_key(key: str) -> str:
    hint = "" if key in _RUN_SETTINGS else suggest(key, [name for name in META_KEYS if name != "using_gpus"])
    return f"unknown key {key!r} in meta_data{hint or '; a setting of the runs belongs in constants or variables'}"


def _explain_bad_name(name: str) -> str | None:
    """Say why a name can't be a folder's, and one that could."""
    if _NAME.fullmatch(name) and len(name.encode()) <= _MAX_NAME:
        return None
    likely = _UNSAFE.sub("-", name.strip("./ ")).lstrip(".=+,@-")[:_MAX_NAME]
    hint = f"; did you mean {likely!r}?" if _NAME.fullmatch(likely) else ""
    if "/" in name or "\\" in name:
        return f"must name one folder, without a path{hint}"
    if len(name.encode()) > _MAX_NAME:
        return f"is longer than {_MAX_NAME} bytes"
    return f"must begin with a letter, digit or _ and hold only these and . - = + , @{hint}"
