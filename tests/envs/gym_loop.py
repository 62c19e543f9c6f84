"""A loop as scripts for gym have it; run by `test_classic_gym.py` with the gym of old, in its virtual environment."""

import hashlib
import json
import sys

import gym
import numpy as np

from envs.classic_gym import register_in_gym

register_in_gym()
env = gym.make(sys.argv[1])
assert isinstance(env, gym.Env)
assert isinstance(env.action_space, gym.spaces.Box)
obs = env.reset(seed=7)
assert obs in env.observation_space
action = np.linspace(-0.3, 0.4, env.action_space.shape[0], dtype=np.float32)
digest = hashlib.sha256()
done = False
rewards = []
while not done:
    obs, reward, done, info = env.step(action)
    rewards.append(reward)
    for part in obs.values() if isinstance(obs, dict) else [obs]:
        digest.update(part.tobytes())
print(json.dumps({"rewards": rewards, "digest": digest.hexdigest(), "truncated": info["TimeLimit.truncated"]}))
