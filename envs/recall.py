"""`DepthRecall-v0`: say which side something was on, some steps after it was last seen.

A test of memory and of nothing else. The first frame of an episode shows a block on the left or on the right; all later
frames are empty. Only the last action counts. A window that still reaches back to the first frame has the answer; one
that doesn't has nothing to go by, for no action changes what is seen.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.refusals import check_action, refuse_reset_options

FAR, NEAR = np.float32(1), np.float32(51 / 255)
"""Depth of an empty frame, and of the block."""


class DepthRecallEnv(gym.Env[Any, NDArray[Any]]):
    """Recall a side.

    An observation: `base`, (seq_len, 1), the time in [0, 1], at 1 when the answer is asked for; `depth`, (seq_len, 1,
    side, side), in steps of 1/255. The oldest step comes first; at the beginning all are the first.

    Args:
        seq_len: steps that an observation holds, 1 to 64.
        delay: steps from the frame with the block to the answer, 1 to 64. A window longer than this is needed.
        side: of a frame, in pixels, 2 to 1024.

    Raises:
        ValueError: an argument is out of its range; with a line for each.

    Attributes:
        answer: -1 for left, 1 for right.
        time: steps so far in the episode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, seq_len: int = 4, delay: int = 3, side: int = 32) -> None:
        ranges = {"seq_len": (seq_len, 1, 64), "delay": (delay, 1, 64), "side": (side, 2, 1024)}
        problems = [
            f"{name}: {value!r} is not a whole number from {low} to {high}"
            for name, (value, low, high) in ranges.items()
            if type(value) is not int or not low <= value <= high
        ]
        if problems:
            raise ValueError("\n".join(problems))
        self.delay, self.side = delay, side
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = gym.spaces.Dict(
            {
                "base": gym.spaces.Box(0, 1, (seq_len, 1), np.float32),
                "depth": gym.spaces.Box(0, 1, (seq_len, 1, side, side), np.float32),
            }
        )
        self.answer, self.time = 1, 0
        self._base = np.zeros((seq_len, 1), np.float32)
        self._depth = np.full((seq_len, 1, side, side), FAR)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        """Show the block.

        Raises:
            ValueError: there are reset options, which mean nothing here.
        """
        super().reset(seed=seed)
        refuse_reset_options(options)
        self.answer, self.time = int(self.np_random.choice([-1, 1])), 0
        frame = np.full((1, self.side, self.side), FAR)
        half = self.side // 2
        frame[:, half // 2 : half // 2 + half, slice(0, half) if self.answer < 0 else slice(self.side - half, None)] = (
            NEAR
        )
        self._base[:], self._depth[:] = 0, frame
        return self._read(), {}

    def step(self, action: NDArray[Any]) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        """Wait, or at the end hear whether the action was right: its sign, and more of it for more reward.

        Raises:
            ValueError: the action isn't one number in [-1, 1].
        """
        said = float(check_action(action, 1)[0])
        over = self.time == self.delay
        reward = said * self.answer if over else 0.0
        self.time += 1
        for past, new in ((self._base, np.float32(min(1.0, self.time / self.delay))), (self._depth, FAR)):
            past[:-1] = past[1:]
            past[-1] = new
        return self._read(), reward, over, False, {"is_success": reward > 0} if over else {}

    def _read(self) -> dict[str, NDArray[np.float32]]:
        return {"base": self._base.copy(), "depth": self._depth.copy()}

    def snapshot_state(self) -> dict[str, Any]:
        """Give what was seen, what is right, and the time."""
        return {"answer": self.answer, "time": self.time, "base": self._base.copy(), "depth": self._depth.copy()}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take over what `snapshot_state` gave.

        Raises:
            ValueError: the frames are of another size.
        """
        if state["depth"].shape != self._depth.shape:
            raise ValueError(f"the frames are {state['depth'].shape} large, and here {self._depth.shape}")
        self.answer, self.time = int(state["answer"]), int(state["time"])
        self._base[:], self._depth[:] = state["base"], state["depth"]
