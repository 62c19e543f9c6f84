"""The typed config of a run: keys that every trainer reads, ranges, identity. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticUndefined

from experiment.identity import PARENT_KEYS, hash_identity, name_parent
from experiment.memory import MemoryRoom
from experiment.plan import nest_settings
from experiment.problems import Fault, SettingsError, suggest
from training.memory_need import MemoryNeed, find_shortage, need_networks
from training.shortening import count_steps_until, describe_kind, shorten_acting


def _whole_float_to_int(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole_float_to_int)]
"""An integer that may be written `1e6`."""

NOT_IDENTITY: dict[str, Any] = {"identity": False}
"""`json_schema_extra` of a key that can't change results; it is left out of a run's id."""

SHAPE: dict[str, Any] = {"shape": True}
"""`json_schema_extra` of a key that decides the sizes of networks."""

MEMORY: dict[str, Any] = {"memory": True}
"""`json_schema_extra` of a trainer's own key that decides how much memory a run takes, beside those of its shape."""

OTHER_NAMES = {
    "lr": "learning_rate",
    "gamma": "discount",
    "algo": "algorithm_name",
    "algorithm": "algorithm_name",
    "env": "env_name",
    "env_id": "env_name",
    "total_timesteps": "max_timesteps",
    "n_timesteps": "max_timesteps",
    "num_steps": "max_timesteps",
    "n_envs": "num_envs",
    "n_eval_episodes": "num_eval",
    "eval_episodes": "num_eval",
    "net_arch": "hidden_dims",
    "hidden_sizes": "hidden_dims",
    "action_noise_std": "noise_std",
    "exploration_noise": "noise_std",
    "polyak": "tau",
    "grad_clip": "max_grad_norm",
    "alpha": "q_weight",
    "beta": "temperature",
    "dataset_name": "dataset",
}
"""What users of other libraries call our keys."""


class TrainerConfig(BaseModel):
    """The keys that every trainer reads. A trainer's own config derives from this one.

    Counts and frequencies are in environment steps for trainers that act, in training steps for those that don't;
    a frequency of 0 means never. Values are checked strictly: no text becomes a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False)

    config_version: ClassVar[int] = 1
    """Raised when the same settings begin to mean something else, so that old runs are not taken for new ones."""
    memory_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "update": ("batch_size",),
        "replay": ("buffer_size", "max_timesteps"),
    }
    """The settings to lower where a part of `predict_memory` is too large, by the part's name."""

    algorithm_name: str
    env_name: Annotated[str, Field(min_length=1, json_schema_extra=SHAPE)]
    env_kwargs: Annotated[dict[str, Any], Field(json_schema_extra=SHAPE)] = {}
    eval_env_kwargs: Annotated[dict[str, Any], Field(json_schema_extra=SHAPE)] = {}
    imports: list[str] = []
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    max_timesteps: Annotated[Int, Field(gt=0)] = 100_000
    wall_budget_s: Annotated[float, Field(gt=0)] | None = None
    learning_starts: Annotated[Int, Field(ge=0)] = 1_000
    batch_size: Annotated[Int, Field(gt=0)] = 256
    buffer_size: Annotated[Int, Field(gt=0)] = 1_000_000
    num_envs: Annotated[Int, Field(ge=1)] = 1
    eval_freq: Annotated[Int, Field(ge=0)] | None = None
    num_eval: Annotated[Int, Field(gt=0)] = 10
    num_final_eval: Annotated[Int, Field(ge=0)] = 50
    save_freq: Annotated[Int | None, Field(ge=0, json_schema_extra=NOT_IDENTITY)] = None
    keep_last: Annotated[Int, Field(ge=1, json_schema_extra=NOT_IDENTITY)] = 2
    keep_replay: Annotated[bool, Field(json_schema_extra=NOT_IDENTITY)] = False
    log_freq: Annotated[Int | None, Field(ge=0, json_schema_extra=NOT_IDENTITY)] = None
    continue_training: Annotated[bool, Field(json_schema_extra=NOT_IDENTITY)] = True
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra=NOT_IDENTITY)] = "auto"
    guard: Literal["warn", "stop", "repair"] = "warn"
    guard_max_critic_loss: Annotated[float, Field(gt=0)] | None = None
    guard_max_actor_loss: Annotated[float, Field(gt=0)] | None = None
    guard_min_episode_length: Annotated[float, Field(gt=0)] | None = None
    init_from: Annotated[str, Field(min_length=1)] | None = None
    init_weights_from: Annotated[str, Field(min_length=1)] | None = None

    @property
    def evaluation_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment in evaluations: `env_kwargs`, with those of `eval_env_kwargs` in their place."""
        return self.env_kwargs | self.eval_env_kwargs

    @property
    def evaluates(self) -> bool:
        """Whether the policy is ever evaluated."""
        return self.num_final_eval > 0 or self.eval_every > 0

    @property
    def eval_every(self) -> int:
        """Steps between evaluations; a tenth of the run unless `eval_freq` says otherwise, 0 for never."""
        return max(1, self.max_timesteps // 10) if self.eval_freq is None else self.eval_freq

    @property
    def save_every(self) -> int:
        """Steps between checkpoints; a tenth of the run unless `save_freq` says otherwise, 0 for the end alone."""
        return max(1, self.max_timesteps // 10) if self.save_freq is None else self.save_freq

    @property
    def log_every(self) -> int:
        """Steps between metric rows; a hundredth of the run unless `log_freq` says otherwise, 0 for never."""
        return max(1, self.max_timesteps // 100) if self.log_freq is None else self.log_freq

    @property
    def guard_limits(self) -> dict[str, float]:
        """Limits in the task's own scale, for the guard: of `critic_loss`, `actor_loss`, `episode_length`."""
        limits = {
            "critic_loss": self.guard_max_critic_loss,
            "actor_loss": self.guard_max_actor_loss,
            "episode_length": self.guard_min_episode_length,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    @property
    def wall_limit_s(self) -> float | None:
        """Seconds of training steps after which the run is over, None without such an end."""
        return self.wall_budget_s

    def find_contradictions(self) -> list[Fault]:
        """Name pairs of settings that can't hold together. A trainer adds its own to these."""
        faults = []
        if self.learning_starts >= self.max_timesteps:
            faults.append(self._pair("learning_starts", ">=", "max_timesteps", "nothing would be trained"))
        if self.batch_size > self.buffer_size:
            faults.append(self._pair("batch_size", ">", "buffer_size", "no batch would ever be full"))
        if self.eval_freq is not None and self.eval_freq > self.max_timesteps:
            faults.append(self._pair("eval_freq", ">", "max_timesteps", "nothing would be evaluated"))
        return faults

    def find_environment_faults(self) -> list[Fault]:
        """Name what is wrong between these settings and the environment, which is made for this. Imports it."""
        return []

    def predict_memory(self, parameters: Mapping[str, int], *, on_gpu: bool) -> MemoryNeed:
        """Give what a run with these settings takes at its peak. Imports the environment, where spaces decide it.

        Args:
            parameters: numbers that learn, by component; empty where nobody has counted them.
            on_gpu: whether it trains on a GPU.
        """
        return need_networks(parameters, on_gpu=on_gpu)

    def find_memory_faults(self, room: MemoryRoom, parameters: Mapping[str, int] | None = None) -> list[Fault]:
        """Name what doesn't fit into the memory of the machine and the device that the run is placed on.

        Asked there before anything starts, and again before anything is built. Imports the environment.

        Args:
            room: what there is.
            parameters: numbers that learn, by component; None where nobody has counted them.
        """
        need = self.predict_memory(parameters or {}, on_gpu=room.gpu_bytes is not None)
        return find_shortage(need, room, self.memory_keys)

    def inactive_keys(self) -> dict[str, str]:
        """Give the keys that were set and that another key switches off, each with the reason."""
        return {key: reason for key, reason in self.list_switched_off().items() if key in self.model_fields_set}

    def list_switched_off(self) -> dict[str, str]:
        """Give the keys that others switch off, whether or not they were set. A trainer adds its own to these."""
        off = {} if self.evaluates else {"eval_env_kwargs": "eval_freq and num_final_eval are 0"}
        if self.init_from is not None:
            off["init_weights_from"] = "init_from goes on with all of another run's state"
        return off

    def _pair(self, key: str, relation: str, other: str, outcome: str) -> Fault:
        return Fault(
            (key, other), f"{key} ({getattr(self, key)}) {relation} {other} ({getattr(self, other)}): {outcome}"
        )

    def identity_settings(self) -> dict[str, Any]:
        """Give the active settings that can change results and differ from their defaults, in normal form."""
        inactive = self.inactive_keys()
        values = self.__dict__
        active = {
            key: values[key]
            for key, default in identity_defaults(type(self)).items()
            if values[key] != default and key not in inactive
        }
        # Wherever the parent's folder is, it is the same run.
        return active | {key: name_parent(active[key]) for key in PARENT_KEYS if key in active}

    def run_id(self) -> str:
        """Give the run's identity: trainer, version and active settings that differ from their defaults."""
        return hash_identity(self.algorithm_name, self.config_version, self.identity_settings())

    def resolved(self) -> dict[str, Any]:
        """Give every setting with its value, nested models as mappings, ready for `config.yaml`."""
        return self.model_dump(mode="json")

    def shape_settings(self) -> dict[str, Any]:
        """Give the settings that decide the sizes of the networks or make environments, to look at each shape once."""
        keys = [name for name, field in type(self).model_fields.items() if _is_marked(field, "shape", True)]
        shape = {"algorithm_name": self.algorithm_name, "imports": self.imports}
        shape |= {key: getattr(self, key) for key in keys}
        return shape if self.evaluates else shape | {"eval_env_kwargs": {}}

    def footprint_settings(self) -> dict[str, Any]:
        """Give the settings that decide how much memory a run takes: its shape's and more, a config of their own."""
        keys = [name for name, field in type(self).model_fields.items() if _is_marked(field, "memory", True)]
        return self.shape_settings() | {key: getattr(self, key) for key in ("batch_size", "num_envs", *keys)}

    def speed_settings(self) -> dict[str, Any]:
        """Give the settings that may decide how long a step takes: all that are read but seed, beginning and end."""
        off = {*self.list_switched_off(), *PARENT_KEYS, "seed", "max_timesteps"}
        return {key: getattr(self, key) for key in identity_defaults(type(self)) if key not in off} | {
            "algorithm_name": self.algorithm_name
        }

    def shortened(self) -> Self:
        """Give the same run cut to a few updates; networks, memory of an update, environment and options stay.

        See `training.shortening`. A trainer that learns otherwise refines it.
        """
        return shorten_acting(self, count_steps_until(self.batch_size, self.num_envs))

    def kind_settings(self) -> dict[str, Any]:
        """Give what decides the way through the code; runs that are alike in it break alike."""
        return describe_kind(self)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Build the config from flat settings with dotted keys.

        Raises:
            SettingsError: with every fault, each naming its key, its value and the likely right one.
        """
        try:
            config = cls.model_validate(nest_settings(settings))
        except pydantic.ValidationError as error:
            faults = [_to_fault(detail, cls) for detail in error.errors(include_url=False, include_context=True)]
            raise SettingsError(faults) from None
        if faults := config.find_contradictions():
            raise SettingsError(faults)
        return config


_IDENTITY_DEFAULTS: dict[type[TrainerConfig], dict[str, Any]] = {}


def identity_defaults(config_class: type[TrainerConfig]) -> dict[str, Any]:
    """Give the keys of a config that take part in a run's id, with their defaults; computed once a class."""
    if config_class not in _IDENTITY_DEFAULTS:
        _IDENTITY_DEFAULTS[config_class] = {
            name: field.default
            for name, field in config_class.model_fields.items()
            if name != "algorithm_name" and not _is_marked(field, "identity", False)
        }
    return _IDENTITY_DEFAULTS[config_class]


def _is_marked(field: pydantic.fields.FieldInfo, mark: str, value: bool) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get(mark) is value


_LIMITS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
}


def _to_fault(detail: ErrorDetails, config_class: type[TrainerConfig]) -> Fault:
    """Say a pydantic error in the words of the spec: key, what is wanted, what is there."""
    # Of a list's item, and of a choice between types, the place goes on with an index or a type's name.
    key = str(detail["loc"][0])
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault((key,), f"unknown key {key!r}{hint_for_key(key, config_class)}", about="key")
    if kind == "missing":
        return Fault((key,), f"the key {key!r} is missing")
    if kind in _LIMITS:
        name, sign = _LIMITS[kind]
        return Fault((key,), f"{key} must be {sign} {context[name]:g}, got {show(value)}")
    if kind == "literal_error":
        return Fault((key,), f"{key} must be one of {context['expected']}, got {show(value)}")
    if kind in _TYPES:
        return Fault((key,), f"{key} must be {_TYPES[kind]}, got {show(value)}")
    return Fault((key,), f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {show(value)}")


def hint_for_key(key: str, config_class: type[TrainerConfig]) -> str:
    """Give the likeliest right key as `; did you mean 'x'?`, knowing other libraries' names too."""
    fields = config_class.model_fields
    if OTHER_NAMES.get(key) in fields:
        return f"; did you mean {OTHER_NAMES[key]!r}?"
    return suggest(key, fields)


def show(value: object) -> str:
    """Write a value as a user would recognise it, and say when a number is text."""
    if value is PydanticUndefined:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return f"the text {value!r}" if isinstance(value, str) else repr(value)
