"""What the networks do while the policy acts: attention, features and values of every window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.actions import ActionScale
from rl.slots import copy_obs
from rl.vmamba_td3.agent import VMambaTD3
from rl.vmamba_td3.stream import FrameFeatures, PrivilegedStream


class Tracer:
    """The policy without noise, which gives its action with what led to it.

    Its actions are those of the trainer's `begin_acting`, to the bit.

    Args:
        agent: its networks are looked into.
        scale: from [-1, 1] to the environment's units.
        depth_scale: what depth goes up to in observations.
        device: of the networks.
    """

    def __init__(self, agent: VMambaTD3, scale: ActionScale, depth_scale: float, device: torch.device) -> None:
        self._agent, self._scale, self._device = agent, scale, device
        self._depth_scale = np.float32(depth_scale)
        self._known = {owner: FrameFeatures() for owner in ("actor", "critic")}

    @torch.no_grad()
    def __call__(self, obs: Any) -> dict[str, NDArray[Any]]:
        """Give what `training.protocol.ShowsAttention` lists, for one window."""
        seen = copy_obs(obs)
        self._agent.networks.eval()
        depth = seen["depth"] / self._depth_scale
        base = torch.from_numpy(seen["base"][None]).to(self._device)
        stream = self._agent.find_stream("actor")
        visual = self._known["actor"].find(stream, self._agent.version, depth, self._device)
        state = stream.state_encoder(base)
        context = stream.gather(visual, base)
        chosen = self._agent.choose(context)
        return {
            "action": self._scale.to_env(_to_numpy(chosen[0])),
            "attention": _to_numpy(stream.mamba.find_attention(visual, state)[0]),
            "visual": _to_numpy(visual[0, -1]),
            "state": _to_numpy(state[0, -1]),
            "context": _to_numpy(context[0]),
            "values": self._find_values(depth, base, chosen),
            "base": seen["base"][-1],
            "depth": depth[-1, 0],
        }

    def _find_values(self, depth: NDArray[np.float32], base: Tensor, action: Tensor) -> NDArray[np.float32]:
        """Give the values that both critics have for an action in [-1, 1], (2,).

        None of them, (0,), where they see what only the simulator knows: whoever acts isn't told that.
        """
        if isinstance(self._agent.networks["critic_stream"], PrivilegedStream):
            return np.zeros(0, np.float32)
        stream = self._agent.find_stream("critic")
        features = self._known["critic"].find(stream, self._agent.version, depth, self._device)
        values: tuple[Tensor, Tensor] = self._agent.networks["critic"](stream.gather(features, base), action)
        return _to_numpy(torch.cat(values)[:, 0])


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
