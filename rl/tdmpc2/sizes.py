"""What the networks of TD-MPC2 are made of: sizes, checked, counted, and the work that they are. Imports no torch.

Tests hold each formula against the networks themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

MODEL_SIZES: Mapping[int, Mapping[str, int]] = {
    1: {"enc_dim": 256, "mlp_dim": 384, "latent_dim": 128, "num_enc_layers": 2, "num_q": 2},
    5: {"enc_dim": 256, "mlp_dim": 512, "latent_dim": 512, "num_enc_layers": 2, "num_q": 5},
    19: {"enc_dim": 1024, "mlp_dim": 1024, "latent_dim": 768, "num_enc_layers": 3, "num_q": 5},
    48: {"enc_dim": 1792, "mlp_dim": 1792, "latent_dim": 768, "num_enc_layers": 4, "num_q": 5},
    317: {"enc_dim": 4096, "mlp_dim": 4096, "latent_dim": 1376, "num_enc_layers": 5, "num_q": 8},
}
"""By the millions of parameters that they are named after; Hansen et al. 2024, arXiv:2310.16828, table 8."""

NUM_MEMBERS = 2
"""Value heads that a target, a policy's loss or a plan takes, drawn from all."""
KEPT = 2.5
"""Numbers kept for each that a layer gives: before its norm, after it, after its activation, and in the way back.
Measured; see docs/preflight.md."""
CONVOLUTIONS = ((7, 2), (5, 2), (3, 2), (3, 1))
"""Side and stride of the encoder's convolutions over pixels, none of them padded."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a world model.

    Attributes:
        obs_shape: (obs_dim,), or (channels, height, width) of pixels.
        action_dim: numbers of an action; of a discrete one, how many there are.
        discrete: whether actions are one of `action_dim`, and not `action_dim` numbers.
        num_tasks: 0 where there is one and nothing tells it apart.
        task_dim: numbers that a task becomes; 0 where there is one.
        latent_dim: numbers that an observation becomes.
        mlp_dim: width of the hidden layers of all but the encoder.
        enc_dim: width of the encoder's hidden layers.
        num_enc_layers: its layers, the last one included.
        num_channels: of the convolutions over pixels.
        num_q: value heads.
        num_bins: of the two-hot code of rewards and values.
        simnorm_dim: latent numbers that add up to 1.
        episodic: whether the end of a task is predicted.
    """

    obs_shape: tuple[int, ...]
    action_dim: int
    discrete: bool = False
    num_tasks: int = 0
    task_dim: int = 0
    latent_dim: int = 512
    mlp_dim: int = 512
    enc_dim: int = 256
    num_enc_layers: int = 2
    num_channels: int = 32
    num_q: int = 5
    num_bins: int = 101
    simnorm_dim: int = 8
    episodic: bool = False

    @property
    def joint_dim(self) -> int:
        """Numbers of a latent state, an action and a task together."""
        return self.latent_dim + self.action_dim + self.task_dim

    @property
    def policy_dim(self) -> int:
        """Numbers that the policy gives: logits of discrete actions, means and log deviations of others."""
        return self.action_dim if self.discrete else 2 * self.action_dim

    @property
    def sees_pixels(self) -> bool:
        """Whether observations are images."""
        return len(self.obs_shape) == 3


def find_pixel_map(obs_shape: tuple[int, ...], num_channels: int) -> tuple[int, int, int]:
    """Give channels, height and width of what the convolutions make of an image.

    Raises:
        ValueError: the image is too small.
    """
    _, *sides = obs_shape
    for side, stride in CONVOLUTIONS:
        sides = [(length - side) // stride + 1 for length in sides]
        if min(sides) < 1:
            raise ValueError(f"images of {obs_shape[1]}x{obs_shape[2]} pixels are too small: 39x39 is the least")
    return num_channels, sides[0], sides[1]


def check_pixels(sizes: ModelSizes) -> None:
    """Refuse images whose features aren't as many as the latent state has numbers.

    Raises:
        ValueError: with what would fit.
    """
    channels, height, width = find_pixel_map(sizes.obs_shape, sizes.num_channels)
    if channels * height * width != sizes.latent_dim:
        raise ValueError(
            f"latent_dim ({sizes.latent_dim}): images of {sizes.obs_shape[1]}x{sizes.obs_shape[2]} pixels become "
            f"{channels} x {height} x {width} = {channels * height * width} numbers; set latent_dim to that, or "
            "another num_channels"
        )


def list_encoder_dims(sizes: ModelSizes) -> list[int]:
    """Give the widths of an encoder of vectors, input and output included."""
    hidden = [sizes.enc_dim] * max(sizes.num_enc_layers - 1, 1)
    return [sizes.obs_shape[0] + sizes.task_dim, *hidden, sizes.latent_dim]


def count_components(sizes: ModelSizes) -> dict[str, int]:
    """Count the learnable numbers of each network; `target_q` has as many as `q`, doesn't learn, and is left out."""
    latent, hidden = sizes.latent_dim, sizes.mlp_dim
    counts = {
        "encoder": _count_encoder(sizes),
        "dynamics": _count_mlp([sizes.joint_dim, hidden, hidden, latent], last_is_normed=True),
        "reward": count_head(sizes.joint_dim, hidden, sizes.num_bins),
        "policy": count_head(latent + sizes.task_dim, hidden, sizes.policy_dim),
        "q": sizes.num_q * count_head(sizes.joint_dim, hidden, sizes.num_bins),
    }
    if sizes.episodic:
        counts["termination"] = count_head(latent + sizes.task_dim, hidden, 1)
    if sizes.num_tasks:
        counts["task_embedding"] = sizes.num_tasks * sizes.task_dim
    return counts


def sum_with_targets(counts: Mapping[str, int]) -> int:
    """Give the numbers of all networks and of the value heads' slow copy."""
    return sum(counts.values()) + counts["q"]


def count_head(in_dim: int, hidden_dim: int, out_dim: int) -> int:
    """Count two normed layers and a bare one: a value head, or what predicts rewards, ends and actions."""
    return _count_mlp([in_dim, hidden_dim, hidden_dim, out_dim], last_is_normed=False)


def _count_encoder(sizes: ModelSizes) -> int:
    if not sizes.sees_pixels:
        return _count_mlp(list_encoder_dims(sizes), last_is_normed=True)
    inputs = [sizes.obs_shape[0], *[sizes.num_channels] * (len(CONVOLUTIONS) - 1)]
    return sum(
        (inner * side * side + 1) * sizes.num_channels for inner, (side, _) in zip(inputs, CONVOLUTIONS, strict=True)
    )


def _count_mlp(dims: list[int], *, last_is_normed: bool) -> int:
    linear = sum((inner + 1) * outer for inner, outer in itertools.pairwise(dims))
    normed = dims[1:] if last_is_normed else dims[1:-1]
    return linear + 2 * sum(normed)


def count_update_flops(sizes: ModelSizes, batch_size: int, horizon: int) -> int:
    """Count the floating-point operations of the matrix products in one update; a product and a sum are two.

    The way back costs two more of each product, but for what needs only one of them: the first layer's products
    where nothing before them learns, and value heads that the policy's loss runs through without moving them.
    """
    joint, state = sizes.joint_dim, sizes.latent_dim + sizes.task_dim
    head = _multiply(joint, sizes.mlp_dim, sizes.mlp_dim, sizes.num_bins)
    policy = _multiply(state, sizes.mlp_dim, sizes.mlp_dim, sizes.policy_dim)
    dynamics = _multiply(joint, sizes.mlp_dim, sizes.mlp_dim, sizes.latent_dim)
    encoder = _multiply_encoder(sizes)
    first = 0 if sizes.num_tasks and not sizes.sees_pixels else _multiply_encoder_layers(sizes)[0]
    steps, states = horizon, horizon + 1
    target = steps * (encoder + policy + NUM_MEMBERS * head)
    model = 3 * encoder - first + steps * 3 * (dynamics + head + sizes.num_q * head)
    if sizes.episodic:
        model += steps * 3 * _multiply(state, sizes.mlp_dim, sizes.mlp_dim, 1)
    learning = states * (3 * policy - state * sizes.mlp_dim + 2 * NUM_MEMBERS * head)
    return 2 * batch_size * (target + model + learning)


def count_update_numbers(sizes: ModelSizes, horizon: int) -> int:
    """Count the numbers that a sample leaves behind in an update, for gradients: about; see `KEPT`.

    The policy's loss runs through value heads that don't move, and keeps as much of them.
    """
    head, states = 2 * sizes.mlp_dim + sizes.num_bins, horizon + 1
    dynamics, policy = 2 * sizes.mlp_dim + sizes.latent_dim, 2 * sizes.mlp_dim + sizes.policy_dim
    model = horizon * (dynamics + (1 + sizes.num_q) * head) + _count_encoder_outputs(sizes)
    learning = states * (policy + NUM_MEMBERS * head)
    return round(KEPT * (model + learning + states * sizes.joint_dim))


def _count_encoder_outputs(sizes: ModelSizes) -> int:
    if not sizes.sees_pixels:
        return sum(list_encoder_dims(sizes)[1:])
    sides, outputs = list(sizes.obs_shape[1:]), 0
    for side, stride in CONVOLUTIONS:
        sides = [(length - side) // stride + 1 for length in sides]
        outputs += sizes.num_channels * sides[0] * sides[1]
    return outputs


def count_plan_flops(sizes: ModelSizes, horizon: int, num_samples: int, iterations: int, num_pi_trajs: int) -> int:
    """Count the floating-point operations of the matrix products in planning one action; a product and a sum are two.

    Proposals of the policy are rolled out once, and then judged in every iteration beside the samples.
    """
    head = _multiply(sizes.joint_dim, sizes.mlp_dim, sizes.mlp_dim, sizes.num_bins)
    state = sizes.latent_dim + sizes.task_dim
    policy = _multiply(state, sizes.mlp_dim, sizes.mlp_dim, sizes.policy_dim)
    dynamics = _multiply(sizes.joint_dim, sizes.mlp_dim, sizes.mlp_dim, sizes.latent_dim)
    judged = horizon * (dynamics + head) + policy + NUM_MEMBERS * head
    if sizes.episodic:
        judged += horizon * _multiply(state, sizes.mlp_dim, sizes.mlp_dim, 1)
    proposed = num_pi_trajs * (horizon * policy + (horizon - 1) * dynamics)
    return 2 * (_multiply_encoder(sizes) + proposed + iterations * num_samples * judged)


def _multiply(*dims: int) -> int:
    return sum(inner * outer for inner, outer in itertools.pairwise(dims))


def _multiply_encoder(sizes: ModelSizes) -> int:
    return sum(_multiply_encoder_layers(sizes))


def _multiply_encoder_layers(sizes: ModelSizes) -> list[int]:
    if not sizes.sees_pixels:
        return [inner * outer for inner, outer in itertools.pairwise(list_encoder_dims(sizes))]
    channels, *sides = sizes.obs_shape
    layers = []
    for side, stride in CONVOLUTIONS:
        sides = [(length - side) // stride + 1 for length in sides]
        layers.append(channels * side * side * sizes.num_channels * sides[0] * sides[1])
        channels = sizes.num_channels
    return layers
