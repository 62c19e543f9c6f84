"""The same action for several steps of an environment, as one step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from envs.make import Env


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Carry out each action several times, and give what came of it as one step.

    The rewards are summed; an ending stops the repeating. `info` is that of the last frame, with `frames`, the number
    of steps that the environment took. A time limit of the environment counts these, as it was registered.

    Args:
        env: takes the steps.
        repeat: how often, 1 or more.

    Raises:
        ValueError: `repeat` is something else.
    """

    def __init__(self, env: Env, repeat: int) -> None:
        if type(repeat) is not int or repeat < 1:
            raise ValueError(f"repeat: {repeat!r} is not a whole number from 1")
        gym.utils.RecordConstructorArgs.__init__(self, repeat=repeat)
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act until the action was carried out often enough or the episode is over."""
        frames, total, over = 0, 0.0, False
        while frames < self.repeat and not over:
            obs, reward, terminated, truncated, info = self.env.step(action)
            frames += 1
            total += float(reward)
            over = bool(terminated or truncated)
        return obs, total, bool(terminated), bool(truncated), {**info, "frames": frames}

    def snapshot_state(self) -> dict[str, Any]:
        """Give how often actions are repeated: all else is the environment's."""
        return {"repeat": self.repeat}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over nothing, from a wrapper that repeats as often.

        Raises:
            ValueError: that one repeated more or less often.
        """
        if state["repeat"] != self.repeat:
            raise ValueError(f"each action was carried out {state['repeat']} times, and here it is {self.repeat} times")
