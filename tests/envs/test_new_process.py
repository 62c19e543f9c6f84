"""Environments of our own go on in another process to the same bits, from a snapshot that a checkpoint would hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.make import make_env
from envs.registration import OWN
from envs.snapshot import probe_resume_mode, take_snapshot
from training.state import pack_state

ROOT = Path(__file__).parents[2]
MIDWAY, AFTER = 30, 200
ROUGH = {
    "DepthNav-v0": {
        "moving": 0.5,
        "wind": 2.0,
        "depth_noise": 0.5,
        "seq_len": 3,
        "height": 12,
        "width": 16,
        "privileged": True,
    },
    "DepthNavState-v0": {"moving": 0.5, "wind": 2.0, "depth_noise": 0.5},
}
"""Arguments with which an environment has all the state that it can have."""
DIFFERENT = {"DepthRecall-v0": 40}
"""How many of the next transitions differ at least, where not all of them do: those of a task with few sights."""
GO_ON = """
import json, sys
import torch
from envs.make import make_env
from envs.snapshot import restore_snapshot
from tests.envs.test_new_process import AFTER, fly_on
from training.state import unpack_state
path, env_name, env_kwargs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
env = make_env(env_name, env_kwargs)
restore_snapshot(env, unpack_state(torch.load(path, weights_only=True), {}.__getitem__))
print(json.dumps(fly_on(env, AFTER)))
"""


def fly_on(env: Any, count: int) -> list[str]:
    """Give a hash of each of the next transitions; actions come from the environment's own space."""
    hashes = []
    for _ in range(count):
        obs, reward, terminated, truncated, info = env.step(0.6 * env.action_space.sample())
        parts = [obs, np.float64(reward), terminated, truncated, sorted(info.items())]
        if terminated or truncated:
            parts.append(env.reset()[0])
        hashes.append(hash_parts(parts))
    return hashes


def hash_parts(parts: list[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for array in part.values() if isinstance(part, dict) else [part]:
            digest.update(repr(array).encode() if isinstance(array, list) else np.asarray(array).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("env_name", [row.env_name for row in OWN])
def test_a_new_process_goes_on_from_a_snapshot_to_the_bit(env_name: str, tmp_path: Path) -> None:
    env_kwargs = ROUGH.get(env_name, {})
    env = make_env(env_name, env_kwargs)
    env.reset(seed=4)
    env.action_space.seed(9)
    fly_on(env, MIDWAY)
    path = tmp_path / "snapshot.pt"
    torch.save(pack_state(take_snapshot(env)), path)
    straight = fly_on(env, AFTER)
    answer = subprocess.run(
        [sys.executable, "-c", GO_ON, str(path), env_name, json.dumps(env_kwargs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == straight
    assert len(set(straight)) >= DIFFERENT.get(env_name, AFTER)
    env.close()


@pytest.mark.parametrize("env_name", [row.env_name for row in OWN])
def test_the_probe_says_that_our_own_environments_resume_exactly(env_name: str) -> None:
    probe = probe_resume_mode(env_name, ROUGH.get(env_name, {}))
    assert (probe.mode, probe.reason) == ("exact", None)
