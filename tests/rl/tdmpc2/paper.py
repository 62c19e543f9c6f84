"""The losses of TD-MPC2 as the paper has them: sequence by sequence, one state at a time, by torch's own functions.

Source: Hansen et al. 2024, arXiv:2310.16828, section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rl.tdmpc2.agent import Batch
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.sizes import CONVOLUTIONS, ModelSizes


class Plain:
    """The networks by their weights' names, in float64. All value heads are run, whoever is asked."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: ModelSizes, config: TDMPC2Config) -> None:
        self.weights = {name: weight.double().requires_grad_() for name, weight in weights.items()}
        self.sizes, self.config = sizes, config
        self.bins = torch.linspace(config.vmin, config.vmax, config.num_bins, dtype=torch.float64)

    def norm(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.layer_norm(features, features.shape, weight, bias)

    def simnorm(self, features: Tensor) -> Tensor:
        return features.view(-1, self.sizes.simnorm_dim).softmax(1).view(-1)

    def run(self, network: str, features: Tensor) -> Tensor:
        """Give what a network makes of numbers: its last layer is bare, or ends in SimNorm where it has a norm."""
        weights, number = self.weights, 0
        while (layer := f"{network}.{number}") + ".weight" in weights:
            features = weights[f"{layer}.weight"] @ features + weights[f"{layer}.bias"]
            last = f"{network}.{number + 1}.weight" not in weights
            if f"{layer}.norm.weight" in weights:
                features = self.norm(features, weights[f"{layer}.norm.weight"], weights[f"{layer}.norm.bias"])
                features = self.simnorm(features) if last else functional.mish(features)
            number += 1
        return features

    def embed(self, batch: Batch, place: int) -> Tensor:
        if batch.tasks is None:
            return torch.zeros(0, dtype=torch.float64)
        row = self.weights["task_embedding"][batch.tasks.number[place]]
        return row / row.norm() if row.norm() > 1 else row

    def encode(self, obs: Tensor, task: Tensor) -> Tensor:
        if not self.sizes.sees_pixels:
            return self.run("encoder", torch.cat([obs.double(), task]))
        features = obs.double()[None] / 255 - 0.5
        for number, (_, stride) in enumerate(CONVOLUTIONS):
            name = f"encoder.convolutions.{number}"
            features = functional.relu(features) if number else features
            features = functional.conv2d(features, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], stride)
        return self.simnorm(features.flatten())

    def value(self, network: str, joint: Tensor) -> Tensor:
        """Give logits of all heads, (num_q, num_bins)."""
        found = []
        for head in range(self.sizes.num_q):
            features = joint
            for layer in range(3):
                weight, bias = (self.weights[f"{network}.{kind}.{layer}"][head] for kind in ("weights", "biases"))
                features = weight @ features + bias
                if layer < 2:
                    pair = (self.weights[f"{network}.norm_{kind}.{layer}"][head] for kind in ("weights", "biases"))
                    features = functional.mish(self.norm(features, *pair))
            found.append(features)
        return torch.stack(found)

    def act(self, latent: Tensor, noise: Tensor, task: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give an action, and its entropy as the policy's loss counts it."""
        out = self.run("policy", torch.cat([latent, task]))
        if self.sizes.discrete:
            soft = (out + noise.double()).softmax(0)
            hard = functional.one_hot(soft.argmax(), len(soft)).double()
            probabilities = out.softmax(0)
            return hard + soft - soft.detach(), -(probabilities * probabilities.log()).sum()
        mean, log_std = out.chunk(2)
        low, high = self.config.log_std_min, self.config.log_std_max
        log_std = low + (high - low) * (torch.tanh(log_std) + 1) / 2
        before = mean + log_std.exp() * noise.double()
        own = torch.ones(len(mean), dtype=torch.bool) if mask is None else mask.bool()
        away = ((before - mean) / log_std.exp())[own]
        log_chance = -(away.square() / 2 + log_std[own] + math.log(2 * math.pi) / 2).sum()
        return torch.tanh(before) * own, -log_chance * own.sum()

    def encode_number(self, number: Tensor) -> Tensor:
        """Give a number's weights on the bins: each bin's hat over the number's symlog."""
        place = (number.sign() * torch.log(1 + number.abs())).clamp(self.bins[0], self.bins[-1])
        return (1 - (place - self.bins).abs() / (self.bins[1] - self.bins[0])).clamp(min=0)

    def decode(self, logits: Tensor) -> Tensor:
        mean = logits.softmax(-1) @ self.bins
        return mean.sign() * (mean.abs().exp() - 1)

    def find_target(self, batch: Batch, place: int, step: int, noise: Tensor, heads: Sequence[int]) -> Tensor:
        """Give what a step is worth: its reward and what the slow copy says of what comes next."""
        with torch.no_grad():
            task = self.embed(batch, place)
            latent = self.encode(batch.obs[step + 1, place], task)
            action, _ = self.act(latent, noise[step, place], task, read_mask(batch, place))
            values = self.decode(self.value("target_q", torch.cat([latent, action, task])))
            reward = batch.reward[step, place, 0].double()
            if batch.terminated[step, place]:
                return reward
            return reward + batch.discount[place, 0].double() * min(values[head] for head in heads)

    def find_model_losses(
        self, batch: Batch, noise: Tensor, heads: Sequence[int]
    ) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
        """Give the losses, and the latent states of each sequence; steps after an episode's end are never looked at."""
        names = ("consistency", "reward", "value", "termination")
        sums = dict.fromkeys(names, torch.zeros((), dtype=torch.float64))
        imagined = []
        for place in range(batch.valid.shape[1]):
            task = self.embed(batch, place)
            latents = [self.encode(batch.obs[0, place], task)]
            for step in range(int(batch.valid[:, place].sum())):
                weight = self.config.rho**step
                joint = torch.cat([latents[-1], batch.action[step, place].double(), task])
                latents.append(self.run("dynamics", joint))
                with torch.no_grad():
                    wanted = self.encode(batch.obs[step + 1, place], task)
                sums["consistency"] = sums["consistency"] + weight * functional.mse_loss(latents[-1], wanted)
                reward = self.encode_number(batch.reward[step, place, 0].double())
                found = self.run("reward_head", joint)
                sums["reward"] = sums["reward"] + weight * functional.cross_entropy(found, reward)
                target = self.encode_number(self.find_target(batch, place, step, noise, heads))
                for logits in self.value("q", joint):
                    loss = functional.cross_entropy(logits, target) / self.sizes.num_q
                    sums["value"] = sums["value"] + weight * loss
                if self.sizes.episodic:
                    logit = self.run("termination_head", torch.cat([latents[-1], task]))
                    loss = functional.binary_cross_entropy(torch.sigmoid(logit), batch.terminated[step, place].double())
                    sums["termination"] = sums["termination"] + loss
            imagined.append([latent.detach() for latent in latents])
        steps = batch.valid.shape[0] * batch.valid.shape[1]
        losses = {name: total / steps for name, total in sums.items()}
        losses["total"] = (
            self.config.consistency_coef * losses["consistency"]
            + self.config.reward_coef * losses["reward"]
            + self.config.value_coef * losses["value"]
            + self.config.termination_coef * losses["termination"]
        )
        return losses, imagined

    def find_policy_loss(
        self, batch: Batch, imagined: list[list[Tensor]], noise: Tensor, heads: Sequence[int], scale: float
    ) -> tuple[Tensor, float]:
        """Give the policy's loss, and the scale that values are divided by in it, from the one before."""
        gains: list[tuple[int, Tensor, Tensor]] = []
        for place, latents in enumerate(imagined):
            with torch.no_grad():
                task = self.embed(batch, place)
            for step, latent in enumerate(latents):
                action, entropy = self.act(latent, noise[step, place], task, read_mask(batch, place))
                values = self.decode(self.value("q", torch.cat([latent, action, task])))
                gains.append((step, entropy, (values[heads[0]] + values[heads[1]]) / 2))
        first = np.quantile([float(value.detach()) for step, _, value in gains if step == 0], [0.05, 0.95])
        scale += self.config.tau * (max(first[1] - first[0], 1.0) - scale)
        total = sum(
            self.config.rho**step * (self.config.entropy_coef * entropy + value / scale)
            for step, entropy, value in gains
        )
        assert isinstance(total, Tensor)
        return -total / (len(batch.valid) + 1) / len(imagined), scale


def read_mask(batch: Batch, place: int) -> Tensor | None:
    return None if batch.tasks is None else batch.tasks.mask[place]
