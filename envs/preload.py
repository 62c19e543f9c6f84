"""The modules of environments, imported before one is made: for a process that runs are forked from."""

from __future__ import annotations

import importlib

import gymnasium as gym

from envs.registration import register_environments

OURS = ("envs", "gymnasium", "dm_control")
"""Packages whose modules only define things when they are imported."""


def import_environment(env_name: str) -> None:
    """Import the module of an environment; not that of a user's own, which may look at the run that imports it."""
    register_environments()
    module, _, name = env_name.rpartition(":")
    spec = gym.registry.get(name)
    entry = spec.entry_point.partition(":")[0] if spec is not None and isinstance(spec.entry_point, str) else ""
    for place in filter(None, (module, entry)):
        if place.partition(".")[0] in OURS:
            importlib.import_module(place)
