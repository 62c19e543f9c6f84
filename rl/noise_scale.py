"""How noisy the critic's gradient is: the scale by which a larger batch stops being worth its samples.

The gradient of a batch of `B` samples is the true gradient `G` plus noise with the covariance `Sigma / B`. At
`B = tr(Sigma) / |G|^2`, the simple noise scale, both are equally long (McCandlish et al. 2018, arXiv:1812.06162).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

EVERY = 100
"""Updates between two looks."""
DECAY = 0.95
"""Weight of all earlier looks, so that an average is over some twenty of them."""


class NoiseScale:
    """Averages of what single batches say of `|G|^2` and `tr(Sigma)`, and the ratio of the two.

    Each of the two is a poor guess from one batch, and their ratio a worse one; so both are averaged exponentially
    before they are divided (McCandlish et al. 2018, appendix A.1). Both averages begin at 0, which their ratio doesn't
    notice.
    """

    TRANSIENT: ClassVar = ()

    def __init__(self) -> None:
        self._updates = 0
        self._squared_gradient = 0.0
        self._variance = 0.0

    def look(self, network: nn.Module, compute_loss: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Count an update that is about to come, and look at its gradient if it is one in `EVERY`.

        Nothing is drawn and nothing changes but the averages. A look waits for the device.

        Args:
            network: as for `measure_norms`.
            compute_loss: called at a look; its samples are the batch of the update.

        Returns:
            `train/noise_scale` after a look, where the averaged `|G|^2` is positive: an unbiased guess of something
            small may be below 0.
        """
        self._updates += 1
        if self._updates % EVERY:
            return {}
        whole, mean_single, samples = measure_norms(network, compute_loss)
        if samples == 1:
            return {}
        squared_gradient, variance = estimate(float(whole), float(mean_single), samples)
        self._squared_gradient += (1 - DECAY) * (squared_gradient - self._squared_gradient)
        self._variance += (1 - DECAY) * (variance - self._variance)
        if not self._squared_gradient > 0:
            return {}
        return {"train/noise_scale": torch.tensor(self._variance / self._squared_gradient)}

    def state_dict(self) -> dict[str, Any]:
        """Give the count of updates and both averages."""
        return {
            "updates": self._updates,
            "squared_gradient": self._squared_gradient,
            "variance": self._variance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._updates = state["updates"]
        self._squared_gradient, self._variance = state["squared_gradient"], state["variance"]


def estimate(whole: float, mean_single: float, samples: int) -> tuple[float, float]:
    """Give unbiased guesses of `|G|^2` and `tr(Sigma)` from gradients of one sample and of all.

    Args:
        whole: squared norm of the gradient of a batch.
        mean_single: mean over its samples of the squared norms of their own gradients.
        samples: of the batch, two or more, drawn independently.

    Source: McCandlish et al. 2018, appendix A.1, with a small batch of 1 and a big one of `samples`.
    """
    squared_gradient = (samples * whole - mean_single) / (samples - 1)
    variance = (mean_single - whole) * samples / (samples - 1)
    return squared_gradient, variance


def measure_norms(network: nn.Module, compute_loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor, int]:
    """Give the squared norm of a batch's gradient, the mean of those of its samples, and the number of samples.

    One pass back is enough: the gradient of a sample by a layer's weights is the outer product of what came back to the
    layer and what had gone into it, so that its norm is the product of two others (Goodfellow 2015, arXiv:1510.01799).

    Args:
        network: all its parameters belong to linear layers, each of which the loss runs through once.
        compute_loss: gives a mean over samples, of which each has a term of its own.
    """
    passes: list[tuple[Tensor, Tensor]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _, given, out: passes.append((given[0], out))) for layer in layers]
    try:
        loss = compute_loss()
    finally:
        for hook in hooks:
            hook.remove()
    parameters = list(network.parameters())
    assert len(passes) == len(layers), "the loss doesn't run once through each layer"
    assert len(parameters) == 2 * len(layers), "there are parameters beside weights and biases of linear layers"
    gradients = torch.autograd.grad(loss, [*parameters, *(out for _, out in passes)])
    samples = len(passes[0][0])
    singles = torch.zeros(samples, device=loss.device, dtype=loss.dtype)
    with torch.no_grad():
        for (given, _), slope in zip(passes, gradients[len(parameters) :], strict=True):
            singles += (slope * slope).sum(1) * ((given * given).sum(1) + 1)
        whole = torch.stack(torch._foreach_norm(gradients[: len(parameters)])).square().sum()
    # The slopes are those of the mean, which are smaller than a sample's own by their number.
    return whole, singles.mean() * samples**2, samples
