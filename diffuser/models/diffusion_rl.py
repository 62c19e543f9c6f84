"""The diffusion agent's networks together: losses, sampling, and probabilities of what was sampled.

Latents are (batch, num_tokens, num_agents, vae_latent_dim). A chain is the K + 1 latents of one sample, noise first:
(batch, K + 1, num_tokens, num_agents, vae_latent_dim); the step at position p leads from `chain[:, p]` to
`chain[:, p + 1]`. Observations come normalised and actions are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from diffuser.datasets.batch import History, SequenceBatch
from diffuser.models.critic import ChunkCritic
from diffuser.models.denoiser import LatentDenoiser, MLPDenoiser, TemporalUNet, count_tokens
from diffuser.models.encoder import TrajectoryEncoder
from diffuser.models.layers import draw_weights
from diffuser.models.schedule_rules import ScheduleSettings
from diffuser.models.scheduling import NoiseSchedule, measure_log_density
from diffuser.models.vae import ActionVAE, draw_posterior, kl_loss, reconstruction_loss
from diffuser.models.value import ValueFunction
from training.resources import count_parameters

Metrics = dict[str, Tensor]

STD_RANGE = (0.05, 0.5)
"""Where the learned deviation of exploring steps is kept."""
FIRST_STD = 0.1
"""The learned deviation before training (the least of Ren et al. 2024, arXiv:2409.00588, for its gym tasks)."""


class ExplorationScale(nn.Module):
    """The least deviation of an exploring step, one for each latent dimension, learned as its logarithm."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((latent_dim,), math.log(FIRST_STD)))

    def forward(self) -> Tensor:
        """Give the deviations, (latent_dim,), within their range."""
        low, high = STD_RANGE
        return self.log_std.clamp(math.log(low), math.log(high)).exp()

    @torch.no_grad()
    def put_in_range(self) -> None:
        """Bring the parameter back into its range after an optimizer's step: outside it has no gradient."""
        self.log_std.clamp_(*(math.log(bound) for bound in STD_RANGE))


@dataclass(frozen=True)
class ModelSizes:
    """What decides the shapes of the networks.

    Attributes:
        horizon: actions in a chunk.
        history_horizon: observations in a history.
        denoiser: `mlp` diffuses one latent for a whole chunk; `unet` one a step, convolved along time.
        hidden_dims: of the VAE's, the encoder's and the value function's layers.
        denoiser_hidden_dims: of the `mlp` denoiser's layers.
        unet_channels: of the `unet` denoiser, a multiple of 32.
        use_value_function: whether there is one.
        use_critic: whether there is one of chunks.
    """

    obs_dim: int
    action_dim: int
    num_agents: int
    horizon: int
    history_horizon: int
    vae_latent_dim: int
    trajectory_latent_dim: int
    denoiser: Literal["mlp", "unet"]
    hidden_dims: Sequence[int]
    denoiser_hidden_dims: Sequence[int]
    unet_channels: int
    use_value_function: bool
    use_critic: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Tokens, agents and dimensions of a latent."""
        return count_tokens(self.denoiser, self.horizon), self.num_agents, self.vae_latent_dim


def build_networks(sizes: ModelSizes, num_diffusion_steps: int) -> dict[str, nn.Module]:
    """Give the networks by name, their weights not drawn.

    Raises:
        ValueError: the U-Net can't have so many channels.
    """
    c_dim, hidden = sizes.trajectory_latent_dim, sizes.hidden_dims
    tokens, agents, latent_dim = sizes.latent_shape
    denoiser: LatentDenoiser
    if sizes.denoiser == "unet":
        denoiser = TemporalUNet(agents * latent_dim, c_dim, num_diffusion_steps, sizes.unet_channels)
    else:
        denoiser = MLPDenoiser(math.prod(sizes.latent_shape), c_dim, num_diffusion_steps, sizes.denoiser_hidden_dims)
    networks = {
        "vae": ActionVAE(sizes.action_dim, sizes.horizon, tokens, latent_dim, hidden),
        "trajectory_encoder": TrajectoryEncoder(
            sizes.obs_dim, sizes.action_dim, agents, sizes.history_horizon, c_dim, hidden
        ),
        "denoiser": denoiser,
        "exploration": ExplorationScale(latent_dim),
    }
    if sizes.use_value_function:
        networks["value_function"] = ValueFunction(c_dim, hidden)
    if sizes.use_critic:
        networks["critic"] = ChunkCritic(
            sizes.obs_dim, sizes.action_dim, agents, sizes.history_horizon, sizes.horizon, hidden
        )
    return networks


def count_model_parameters(sizes: ModelSizes) -> dict[str, int]:
    """Count the learnable numbers of each network, on the meta device and without any schedule."""
    with torch.device("meta"):
        return count_parameters(build_networks(sizes, num_diffusion_steps=1))


class DiffusionRL(nn.Module):
    """A latent diffusion policy: history -> c -> latent -> chunk of actions.

    Args:
        sizes: of the networks.
        schedule: of the noise.
        vae_weight: of the VAE's loss beside the diffusion's; at 0 the VAE gets no gradient.
        kl_weight: of the divergence from N(0, 1) beside the squared error of a chunk.
        generator: of the CPU; draws all first weights.
        q_weight: how much the critic counts beside the diffusion's loss; above 0 there must be one.
        num_candidates: chunks that `act` draws, of which the critic chooses one; above 1 there must be one.
        temperature: factor on all noise of `act`; at 0 it draws nothing, and candidates would be alike.

    Attributes:
        value: the value function, or None.
        critic: of chunks, or None.
        latent_shape: tokens, agents and dimensions of a latent.
        latent_size: their product.
        num_steps: K, the steps of a chain.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        schedule: ScheduleSettings,
        *,
        vae_weight: float,
        kl_weight: float,
        generator: torch.Generator,
        q_weight: float = 0.0,
        num_candidates: int = 1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        assert sizes.use_critic or (num_candidates == 1 and not q_weight), "both ask the critic"
        self.q_weight = q_weight
        self.num_candidates = num_candidates
        self.temperature = temperature
        self.latent_shape = sizes.latent_shape
        self.latent_size = math.prod(sizes.latent_shape)
        self.vae_weight = vae_weight
        self.kl_weight = kl_weight
        # Layers draw first weights from torch's global generator, which is put back: ours come from `generator`.
        with torch.random.fork_rng(devices=[]):
            networks = build_networks(sizes, schedule.num_diffusion_steps)
        for network in networks.values():
            draw_weights(network, generator)
        self.vae = cast(ActionVAE, networks["vae"])
        self.trajectory_encoder = networks["trajectory_encoder"]
        self.denoiser = cast(LatentDenoiser, networks["denoiser"])
        self.exploration = cast(ExplorationScale, networks["exploration"])
        self.value = networks.get("value_function")
        self.critic = cast(ChunkCritic | None, networks.get("critic"))
        self.schedule = NoiseSchedule(schedule)
        self.num_steps = self.schedule.num_steps

    @property
    def log_std(self) -> nn.Parameter:
        """Logarithms of the least deviations of exploring steps, (vae_latent_dim,)."""
        return self.exploration.log_std

    def components(self) -> dict[str, nn.Module]:
        """Give the networks by name; the learned deviation is a component too."""
        names = ("vae", "trajectory_encoder", "denoiser", "exploration")
        components: dict[str, nn.Module] = {name: getattr(self, name) for name in names}
        others = {"value_function": self.value, "critic": self.critic}
        return components | {name: network for name, network in others.items() if network is not None}

    def freeze_representation(self) -> None:
        """Stop gradients to the VAE and the trajectory encoder: stored chains keep the meaning they were drawn with.

        No state dict remembers it: call it again after loading where it had been called.
        """
        self.vae.requires_grad_(False)
        self.trajectory_encoder.requires_grad_(False)

    def encode_history(self, obs: Tensor, action: Tensor, mask: Tensor) -> Tensor:
        """Give c, (batch, trajectory_latent_dim); shapes are those of `History`."""
        encoded: Tensor = self.trajectory_encoder(History(obs, action, mask))
        return encoded

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """Give `diffusion_loss + vae_weight * vae_loss + q_weight * q_loss`, and its named numbers.

        The diffusion learns samples of the VAE's posterior, not its means, so that the latents it learns are about
        N(0, 1) in every dimension; no gradient goes from it, or from the critic, into the VAE.

        Args:
            generator: draws posterior samples, noise levels and noise; of the CPU or of the batch's device.
        """
        c = self.trajectory_encoder(batch.history)
        latent, vae_loss, metrics = self._find_vae_loss(batch, generator)
        token_mask = self.vae.find_token_mask(batch.chunk_mask)
        diffusion_loss, clean = self.diffusion_loss(latent, c, token_mask, generator)
        loss = diffusion_loss + self.vae_weight * vae_loss if self.vae_weight else diffusion_loss
        metrics = {"diffusion_loss": diffusion_loss.detach()} | metrics
        if self.q_weight:
            q_loss = self.find_q_loss(batch.history, clean)
            loss = loss + self.q_weight * q_loss
            metrics["q_loss"] = q_loss.detach()
        return loss, {"loss": loss.detach()} | metrics

    def find_q_loss(self, history: History, latent: Tensor) -> Tensor:
        """Give minus the mean value of the chunks that latents stand for, in units of its own size.

        Gradients reach the latents, and the critic; not the VAE.

        Source: Kang et al. 2023, arXiv:2305.20081, section 4.1, for judging what one step of the denoiser predicts in
        place of a whole chain's end; Fujimoto and Gu 2021, arXiv:2106.06860, for the unit.
        """
        assert self.critic is not None
        value, _ = self.critic.value_of_chunk(history, self.vae.decode(latent, frozen=True))
        return -value.mean() / value.detach().abs().mean()

    def _find_vae_loss(self, batch: SequenceBatch, generator: torch.Generator) -> tuple[Tensor, Tensor, Metrics]:
        """Give a posterior sample without gradient, the VAE's loss, and its numbers."""
        mean, logvar = self.vae.encode(batch.chunk, batch.chunk_mask)
        latent = draw_posterior(mean, logvar, self.draw_noise(mean.shape, generator))
        recon = reconstruction_loss(batch.chunk, self.vae.decode(latent), batch.chunk_mask)
        kl = kl_loss(mean, logvar, self.vae.find_token_mask(batch.chunk_mask))
        total = recon + self.kl_weight * kl
        metrics = {"vae_loss": total.detach(), "vae_recon_loss": recon.detach(), "vae_kl_loss": kl.detach()}
        return latent.detach(), total, metrics

    def diffusion_loss(
        self, latent: Tensor, c: Tensor, token_mask: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Give the mean squared error of the denoiser at noise levels drawn uniformly, and the clean latents it says.

        Args:
            latent: clean, without gradient.
            c: encoded histories; gradients reach their encoder.
            token_mask: (batch, num_tokens): tokens where it is False count nothing.
            generator: draws levels and noise.
        """
        levels = torch.randint(
            self.schedule.settings.num_diffusion_steps, (len(latent),), generator=generator, device=generator.device
        ).to(latent.device)
        noise = self.draw_noise(latent.shape, generator)
        noisy = self.schedule.add_noise(latent, noise, levels)
        output: Tensor = self.denoiser(noisy, levels, c)
        errors = (output - self.schedule.find_target(latent, noise, levels)) ** 2
        weights = token_mask[:, :, None, None].expand_as(errors).to(errors.dtype)
        return (errors * weights).sum() / weights.sum(), self.schedule.estimate_clean(noisy, output, levels)

    def draw_noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Give standard normal numbers on the model's device, from a generator of the CPU or of that device."""
        return torch.randn(tuple(shape), generator=generator, device=generator.device).to(self.log_std.device)

    @torch.no_grad()
    def sample(
        self,
        c: Tensor,
        *,
        generator: torch.Generator,
        deterministic: bool = False,
        return_chain: bool = False,
        explore: bool = False,
    ) -> Tensor:
        """Give a clean latent for each situation, or its whole chain.

        Args:
            c: (batch, trajectory_latent_dim).
            generator: draws the noise that chains begin with and, unless `deterministic`, that of every step.
            deterministic: steps add no noise; the first latent is drawn all the same.
            return_chain: give all K + 1 latents.
            explore: no step's deviation is below the learned one, so that every step has a density.
        """
        noise = self.draw_noise((len(c), self.num_steps + 1, *self.latent_shape), generator)
        if deterministic:
            noise[:, 1:] = 0
        chain = self.run_chain(c, noise, explore=explore)
        return chain if return_chain else chain[:, -1]

    @torch.no_grad()
    def run_chain(self, c: Tensor, noise: Tensor, *, explore: bool = False) -> Tensor:
        """Give the chains that given noise leads to, shaped as it: its first latent, and what each step adds.

        Noise drawn for each environment by a generator of its own makes a sample independent of who else is sampled.
        """
        chain = torch.empty_like(noise)
        chain[:, 0] = latent = noise[:, 0]
        previous = None
        denoise = self.denoiser.look_ahead(self.schedule.timesteps, c)
        for position in range(self.num_steps):
            output = denoise(position, latent)
            mean = self.schedule.find_mean(position, latent, output, previous)
            if self.schedule.looks_back:
                previous = self.schedule.predict_clean(position, latent, output)
            std = self.find_std(position, mean) if explore else self.schedule.find_std(position, mean)
            latent = mean + std * noise[:, position + 1]
            chain[:, position + 1] = latent
        return chain

    def find_std(self, position: int | Tensor, like: Tensor) -> Tensor:
        """Give the deviation of exploring steps, broadcast to the shape of `like`; gradients reach `log_std`."""
        return torch.maximum(self.schedule.find_std(position, like), self.exploration()).expand_as(like)

    def log_prob(self, chain: Tensor, c: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """Give the log-densities of an exploring chain's steps, (batch, number of positions).

        Args:
            chain: of `sample(..., return_chain=True, explore=True)`.
            c: what it was sampled for.
            positions: of the steps, each in [0, K); all of them unless given.
        """
        wanted = torch.tensor(range(self.num_steps) if positions is None else positions, device=chain.device)
        batch, count = len(chain), len(wanted)
        noisy, cleaner = chain[:, wanted].flatten(0, 1), chain[:, wanted + 1].flatten(0, 1)
        densities = self.step_log_prob(noisy, cleaner, wanted.repeat(batch), c.repeat_interleave(count, dim=0))
        return densities.view(batch, count)

    def step_log_prob(self, noisy: Tensor, cleaner: Tensor, positions: Tensor, c: Tensor) -> Tensor:
        """Give the log-densities of exploring steps at mixed positions, (batch,), summed over the latent's numbers.

        Args:
            noisy: latents before the step.
            cleaner: latents after it.
            positions: (batch,), int64.
            c: (batch, trajectory_latent_dim).
        """
        assert not self.schedule.looks_back, "a step of dpm_solver has no density; the config refuses it"
        output = self.denoiser(noisy, self.schedule.timesteps[positions], c)
        mean = self.schedule.find_mean(positions, noisy, output)
        return measure_log_density(cleaner, mean, self.find_std(positions, mean))

    def find_entropy(self, positions: Sequence[int] | None = None) -> Tensor:
        """Give the entropy of an exploring step in nats per latent number, averaged over positions (all by default).

        Steps whose own deviation is above the learned one have a part in the number and none in its gradient.
        """
        wanted = torch.tensor(range(self.num_steps) if positions is None else positions, device=self.log_std.device)
        std = torch.maximum(self.schedule.std[wanted][:, None], self.exploration())
        return std.log().mean() + 0.5 * math.log(2 * math.pi * math.e)

    def decode(self, latent: Tensor) -> Tensor:
        """Give chunks, (batch, horizon, num_agents, action_dim) in [-1, 1], of latents."""
        return self.vae.decode(latent)

    @torch.no_grad()
    def act(self, history: History, *, generator: torch.Generator, deterministic: bool = False) -> Tensor:
        """Give a chunk for each history, (batch, horizon, num_agents, action_dim) in [-1, 1].

        Args:
            generator: draws the noise of `decide`.
            deterministic: steps add no noise; the first latents are drawn all the same.
        """
        noise = self.draw_noise((len(history.obs), *self.noise_shape), generator)
        if deterministic:
            noise[:, :, 1:] = 0
        return self.decide(history, noise)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """What `decide` wants for each history: candidates, K + 1, tokens, agents, dimensions."""
        return (self.num_candidates, self.num_steps + 1, *self.latent_shape)

    @torch.no_grad()
    def decide(self, history: History, noise: Tensor) -> Tensor:
        """Give the best of `num_candidates` chunks for each history, (batch, horizon, num_agents, action_dim).

        Args:
            noise: standard normal, (batch, *noise_shape); see `run_chain`.
        """
        c = self.trajectory_encoder(history).repeat_interleave(self.num_candidates, dim=0)
        latents = self.run_chain(c, self.temperature * noise.flatten(0, 1))[:, -1]
        chunks = self.decode(latents)
        candidates = chunks.view(-1, self.num_candidates, *chunks.shape[1:])
        if self.critic is None or self.num_candidates == 1:
            return candidates[:, 0]
        best = self.critic.rank(history, candidates)
        return candidates[torch.arange(len(best), device=best.device), best]
