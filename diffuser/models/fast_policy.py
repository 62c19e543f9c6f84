"""Acting for one environment at a time in NumPy: what `DiffusionRL.act` gives, in a fraction of the time.

At batch 1 the networks' arithmetic is less than what calling torch for it costs. This works on the memory of the
model's parameters, and so sees every change that is made in place, as optimizers and `load_state_dict` do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from diffuser.models.denoiser import MLPDenoiser
from diffuser.models.diffusion_rl import DiffusionRL
from diffuser.models.encoder import TrajectoryEncoder
from diffuser.models.layers import MLP

Floats = NDArray[np.float32]

MISH_LINEAR = 20.0
"""Beyond this, mish(x) is x in float32, and e^x would soon be too large for its square."""


def mish(features: Floats) -> Floats:
    """Give x tanh(log(1 + e^x)), written as x n / (n + 2) with n = e^x (e^x + 2): one exponential instead of three."""
    grown = np.exp(np.minimum(features, MISH_LINEAR))
    grown *= grown + 2
    grown /= grown + 2
    grown *= features
    return grown


class NumpyMLP:
    """An `MLP` for one row, on the memory of its parameters."""

    def __init__(self, mlp: MLP) -> None:
        self.layers: list[tuple[Floats, Floats]] = []
        for layer in mlp.layers:
            assert isinstance(layer, nn.Linear)
            self.layers.append((layer.weight.detach().numpy(), layer.bias.detach().numpy()))

    def __call__(self, features: Floats) -> Floats:
        """Give (out_dim,) for (in_dim,)."""
        weight, bias = self.layers[0]
        return self.finish(weight @ features + bias)

    def finish(self, first: Floats) -> Floats:
        """Give the output from what the first layer gives before its Mish."""
        features = first
        for weight, bias in self.layers[1:]:
            features = weight @ mish(features)
            features += bias
        return features


class FastPolicy:
    """A `DiffusionRL` with an `mlp` denoiser, for one history at a time.

    Args:
        model: on the CPU, in float32.

    Raises:
        ValueError: the model's denoiser is a U-Net, or it chooses among candidates.
    """

    def __init__(self, model: DiffusionRL) -> None:
        if not isinstance(model.denoiser, MLPDenoiser):
            raise ValueError("denoiser: only mlp can act through NumPy; use DiffusionRL.act for unet")
        if model.num_candidates > 1:
            raise ValueError("num_candidates: only 1 can act through NumPy; use DiffusionRL.act for more")
        assert isinstance(model.trajectory_encoder, TrajectoryEncoder)
        self._temperature = np.float32(model.temperature)
        self.noise_shape = (model.num_steps + 1, model.latent_size)
        self._encoder = NumpyMLP(model.trajectory_encoder.mlp)
        self._denoiser = NumpyMLP(model.denoiser.mlp)
        self._decoder = NumpyMLP(model.vae.decoder)
        schedule = model.schedule
        self._levels: Floats = model.denoiser.levels(schedule.timesteps).numpy().T
        names = ("sample", "output", "std", "clean_sample", "clean_output", "clean_weight", "previous")
        self._tables = {name: getattr(schedule, name).tolist() for name in names}
        self._clip = schedule.settings.clip_range
        self._tokens, self._agents, self._dim = model.latent_shape
        self._action_dim = model.vae.action_dim

    def act(self, obs: Floats, action: Floats, mask: NDArray[np.bool_], noise: Floats) -> Floats:
        """Give a chunk, (horizon, num_agents, action_dim) in [-1, 1].

        Args:
            obs, action, mask: one row of `History`'s.
            noise: standard normal, of `noise_shape`: the first latent, and what each step adds; zeros from its second
                row on for a deterministic chain.
        """
        hidden = np.where(mask[:, None, None], np.concatenate([obs, action], axis=-1), np.float32(0))
        c = self._encoder(np.concatenate([hidden.reshape(-1), mask.astype(np.float32)]))
        return self.decode(self.sample(c, self._temperature * noise))

    def sample(self, c: Floats, noise: Floats) -> Floats:
        """Give a clean latent, (latent_size,), for one encoded history and noise as in `act`."""
        size, tables = noise.shape[1], self._tables
        weight, bias = self._denoiser.layers[0]
        # What the first layer makes of situation and noise level is known before the first step.
        given = weight[:, size + len(c) :] @ self._levels + (weight[:, size : size + len(c)] @ c + bias)[:, None]
        by_position, inward = np.ascontiguousarray(given.T), weight[:, :size]
        latent: Floats = noise[0]
        previous: Floats | None = None
        for position, known in enumerate(by_position):
            output = self._denoiser.finish(inward @ latent + known)
            mean = tables["sample"][position] * latent + tables["output"][position] * output
            if self._clip is not None or any(tables["previous"]):
                clean = tables["clean_sample"][position] * latent + tables["clean_output"][position] * output
                if self._clip is not None:
                    mean += tables["clean_weight"][position] * clean.clip(-self._clip, self._clip)
                if previous is not None:
                    mean += tables["previous"][position] * previous
                previous = clean
            latent = mean + tables["std"][position] * noise[position + 1]
        return latent

    def decode(self, latent: Floats) -> Floats:
        """Give a chunk, (horizon, num_agents, action_dim), of a latent."""
        pieces = [np.tanh(self._decoder(one)) for one in latent.reshape(-1, self._dim)]
        stacked = np.stack(pieces).reshape(self._tokens, self._agents, -1, self._action_dim)
        chunk: Floats = stacked.transpose(0, 2, 1, 3).reshape(-1, self._agents, self._action_dim)
        return chunk
