"""The diffusion agent's networks: shapes, losses, chains and their probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffuser.datasets.batch import SequenceBatch
from diffuser.models.diffusion_rl import STD_RANGE, DiffusionRL, ModelSizes, count_model_parameters
from diffuser.models.fast_policy import FastPolicy

MakeModel = Callable[..., DiffusionRL]
MakeBatch = Callable[..., SequenceBatch]
MakeSizes = Callable[..., ModelSizes]

METRICS = {"loss", "diffusion_loss", "vae_loss", "vae_recon_loss", "vae_kl_loss"}


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encode(model: DiffusionRL, batch: SequenceBatch) -> Tensor:
    history = batch.history
    return model.encode_history(history.obs, history.action, history.mask)


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
@pytest.mark.parametrize("sizes", [{}, {"horizon": 1}, {"horizon": 5, "num_agents": 2}, {"vae_latent_dim": 1}], ids=str)
def test_shapes_for_both_denoisers(
    make_model: MakeModel, make_batch: MakeBatch, denoiser: str, sizes: dict[str, Any]
) -> None:
    model, batch = make_model(denoiser=denoiser, **sizes), make_batch(**sizes)
    c = encode(model, batch)
    assert c.shape == (7, 8)
    tokens = batch.chunk.shape[1] if denoiser == "unet" else 1
    assert model.latent_shape == (tokens, batch.chunk.shape[2], sizes.get("vae_latent_dim", 6))
    chain = model.sample(c, generator=make_generator(), return_chain=True, explore=True)
    assert chain.shape == (7, 6, *model.latent_shape)
    assert model.log_prob(chain, c).shape == (7, 5)
    assert model.value is not None
    assert model.value(c).shape == (7,)
    chunk = model.act(batch.history, generator=make_generator())
    assert chunk.shape == batch.chunk.shape
    assert chunk.abs().max() <= 1


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
@pytest.mark.parametrize("latent_dim", [1, 64, 512])
def test_every_network_learns_with_finite_gradients(
    make_model: MakeModel, make_batch: MakeBatch, denoiser: str, latent_dim: int
) -> None:
    model, batch = make_model(denoiser=denoiser, vae_latent_dim=latent_dim), make_batch()
    loss, metrics = model.loss(batch, make_generator())
    loss.backward()
    assert set(metrics) == METRICS
    for name in ("vae", "trajectory_encoder", "denoiser"):
        for parameter in model.components()[name].parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize(
    "schedule", [{"prediction_type": "v_prediction"}, {"prediction_type": "epsilon", "beta_schedule": "linear"}]
)
def test_each_kind_of_prediction_lowers_its_loss_and_none_lets_it_reach_the_vae(
    make_model: MakeModel, make_batch: MakeBatch, schedule: dict[str, Any]
) -> None:
    for kind in (schedule, {}):
        model, batch = make_model(vae_weight=0.0, schedule=kind), make_batch(64)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            loss, _ = model.loss(batch, make_generator())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_the_loss_is_the_diffusions_and_the_weighted_vaes(make_model: MakeModel, make_batch: MakeBatch) -> None:
    batch = make_batch()
    metrics = {weight: make_model(vae_weight=weight).loss(batch, make_generator())[1] for weight in (0.0, 1.0, 2.5)}
    for weight, numbers in metrics.items():
        expected = numbers["diffusion_loss"] + weight * numbers["vae_loss"]
        torch.testing.assert_close(numbers["loss"], expected)
        assert numbers["vae_loss"] == metrics[0.0]["vae_loss"]
        parts = numbers["vae_recon_loss"] + 1e-3 * numbers["vae_kl_loss"]
        torch.testing.assert_close(numbers["vae_loss"], parts)
        assert not any(number.requires_grad for number in numbers.values())


def test_the_vaes_losses_are_what_their_names_say(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch()
    _, metrics = model.loss(batch, make_generator())
    mean, logvar = model.vae.encode(batch.chunk, batch.chunk_mask)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    divergence = torch.distributions.kl_divergence(posterior, prior).flatten(1).sum(1).mean()
    torch.testing.assert_close(metrics["vae_kl_loss"], divergence)
    latent = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=make_generator())
    errors = (model.decode(latent) - batch.chunk) ** 2
    per_chunk = [errors[0, :1].sum(), *(errors[row].sum() for row in range(1, 7))]  # the first has one action
    torch.testing.assert_close(metrics["vae_recon_loss"], torch.stack(per_chunk).mean())


def test_the_diffusion_learns_samples_of_the_posterior_without_reaching_it(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model(), make_batch()
    taught: list[Tensor] = []
    learn = model.diffusion_loss
    monkeypatch.setattr(model, "diffusion_loss", lambda latent, *rest: taught.append(latent) or learn(latent, *rest))
    for seed in range(400):
        model.loss(batch, make_generator(seed))
    assert not any(latent.requires_grad for latent in taught)
    mean, logvar = model.vae.encode(batch.chunk, batch.chunk_mask)
    latents = torch.stack(taught)
    torch.testing.assert_close(latents.mean(0), mean, rtol=0, atol=0.25)
    torch.testing.assert_close(latents.std(0), (0.5 * logvar).exp(), rtol=0.2, atol=0)


@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
def test_what_is_padded_changes_nothing(make_model: MakeModel, make_batch: MakeBatch, denoiser: str) -> None:
    model, batch = make_model(denoiser=denoiser), make_batch()

    def spoil(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[:, :, None, None], values, math.nan)

    history = batch.history
    hidden = replace(history, obs=spoil(history.obs, history.mask), action=spoil(history.action, history.mask))
    spoilt = replace(batch, history=hidden, chunk=spoil(batch.chunk, batch.chunk_mask))
    losses = [model.loss(windows, make_generator())[1] for windows in (batch, spoilt)]
    assert losses[0] == losses[1]
    assert losses[1]["loss"].isfinite()
    chunks = [model.act(windows.history, generator=make_generator()) for windows in (batch, spoilt)]
    assert torch.equal(*chunks)
    seen = replace(history, obs=torch.where(history.mask[:, :, None, None], history.obs + 0.1, history.obs))
    assert not torch.equal(model.act(seen, generator=make_generator()), chunks[0])
    began = replace(history, mask=torch.ones_like(history.mask))
    assert not torch.equal(model.act(began, generator=make_generator())[0], chunks[0][0])


def test_tokens_without_an_action_count_in_no_loss(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make_model(denoiser="unet"), make_batch(2)
    there = batch.chunk_mask[:, :, None, None]
    monkeypatch.setattr(model.denoiser, "forward", lambda noisy, timesteps, c: torch.zeros_like(noisy))
    _, metrics = model.loss(batch, make_generator())
    mean, logvar = model.vae.encode(batch.chunk, batch.chunk_mask)
    latent = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=make_generator())
    torch.testing.assert_close(metrics["diffusion_loss"], latent[there.expand_as(latent)].square().mean())
    divergences = 0.5 * (mean**2 + logvar.exp() - 1 - logvar)
    torch.testing.assert_close(metrics["vae_kl_loss"], divergences[there.expand_as(latent)].sum() / 2)


def count_mlp(*sizes: int) -> int:
    return sum((one + 1) * other for one, other in pairwise(sizes))


def count_block(inward: int, channels: int, condition: int) -> int:
    convolutions = (3 * inward + 1) * channels + (3 * channels + 1) * channels
    skip = (inward + 1) * channels if inward != channels else 0
    return convolutions + 4 * channels + (condition + 1) * 2 * channels + skip


@pytest.mark.parametrize("sizes", [{}, {"num_agents": 3, "horizon": 5}, {"vae_latent_dim": 512, "hidden_dims": (32,)}])
def test_parameters_are_as_many_as_arithmetic_says(
    make_model: MakeModel, make_sizes: MakeSizes, sizes: dict[str, Any]
) -> None:
    for denoiser in ("mlp", "unet"):
        s = make_sizes(denoiser=denoiser, **sizes)
        hidden, c, agents, dim = s.hidden_dims, s.trajectory_latent_dim, s.num_agents, s.vae_latent_dim
        piece = s.action_dim * (1 if denoiser == "unet" else s.horizon)
        mlp_size, outer, inner = agents * dim, s.unet_channels, 2 * s.unet_channels
        unet = (
            (c + 16 + 1) * inner
            + count_block(agents * dim, outer, inner)
            + (3 * outer + 1) * inner
            + count_block(inner, inner, inner)
            + (3 * inner + 1) * outer
            + count_block(2 * outer, outer, inner)
            + (outer + 1) * agents * dim
        )
        expected = {
            "vae": count_mlp(piece, *hidden, 2 * dim) + count_mlp(dim, *hidden, piece),
            "trajectory_encoder": count_mlp(s.history_horizon * (agents * (s.obs_dim + s.action_dim) + 1), *hidden, c),
            "denoiser": unet if denoiser == "unet" else count_mlp(mlp_size + c + 16, *s.denoiser_hidden_dims, mlp_size),
            "exploration": dim,
            "value_function": count_mlp(c, *hidden, 1),
        }
        assert count_model_parameters(s) == expected
        model = make_model(denoiser=denoiser, **sizes)
        assert sum(parameter.numel() for parameter in model.parameters()) == sum(expected.values())
        without = count_model_parameters(replace(s, use_value_function=False))
        assert without == {name: count for name, count in expected.items() if name != "value_function"}


def test_first_weights_come_from_the_generator_alone(make_model: MakeModel) -> None:
    for denoiser in ("mlp", "unet"):
        before = torch.get_rng_state()
        one, same, other = (make_model(seed, denoiser=denoiser) for seed in (3, 3, 4))
        assert torch.equal(before, torch.get_rng_state())
        for name, left in one.named_parameters():
            assert torch.equal(left, same.get_parameter(name)), name
            if "norm" not in name and "exploration" not in name:
                assert not torch.equal(left, other.get_parameter(name)), name
        bound = 1 / math.sqrt(one.vae.encoder.layers[0].in_features)  # type: ignore[arg-type]
        assert 0.5 * bound < one.vae.encoder.layers[0].weight.abs().max() <= bound  # type: ignore[union-attr, operator]


def test_a_state_dict_holds_parameters_alone_and_brings_all_back(make_model: MakeModel, make_batch: MakeBatch) -> None:
    one, other, batch = make_model(1), make_model(2), make_batch()
    assert set(one.state_dict()) == {name for name, _ in one.named_parameters()}
    other.load_state_dict(one.state_dict())
    chunks = [model.act(batch.history, generator=make_generator()) for model in (one, other)]
    assert torch.equal(*chunks)


@pytest.mark.parametrize("schedule", [{"sampler": "ddpm"}, {"eta": 0.0}, {"eta": 1.0}, {"clip_range": 0.5}], ids=str)
@pytest.mark.parametrize("denoiser", ["mlp", "unet"])
def test_log_probabilities_are_independent_normal_densities(
    make_model: MakeModel, make_batch: MakeBatch, denoiser: str, schedule: dict[str, Any]
) -> None:
    model = make_model(denoiser=denoiser, schedule=schedule)
    c = encode(model, make_batch()).detach()
    with torch.no_grad():
        model.log_std.copy_(torch.linspace(math.log(0.06), math.log(0.4), 6))
    chain = model.sample(c, generator=make_generator(), return_chain=True, explore=True)
    rows = []
    for position in range(5):
        level = model.schedule.timesteps[position].expand(7)
        mean = model.schedule.find_mean(position, chain[:, position], model.denoiser(chain[:, position], level, c))
        std = model.log_std.exp().clamp(min=model.schedule.std[position].item())
        densities = torch.distributions.Normal(mean, std).log_prob(chain[:, position + 1])
        rows.append(densities.flatten(1).sum(1))
    expected = torch.stack(rows, dim=1)
    torch.testing.assert_close(model.log_prob(chain, c), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.log_prob(chain, c, [4, 1]), expected[:, [4, 1]], rtol=1e-5, atol=1e-4)


def test_the_ratio_of_a_chain_to_itself_is_one_and_gradients_reach_the_policy(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model()
    c = encode(model, make_batch(64)).detach()
    chain = model.sample(c, generator=make_generator(), return_chain=True, explore=True)
    with torch.no_grad():
        before = model.log_prob(chain, c)
    rows, positions = torch.arange(64).repeat_interleave(5), torch.arange(5).repeat(64)
    order = torch.randperm(320, generator=make_generator())  # in another order, as in minibatches
    rows, positions = rows[order], positions[order]
    again = model.step_log_prob(chain[rows, positions], chain[rows, positions + 1], positions, c[rows])
    ratio = ((again - before[rows, positions]) / model.latent_size).exp()
    assert (ratio - 1).abs().max() < 1e-5
    (ratio * torch.randn(320, generator=make_generator())).mean().backward()
    for parameter in [*model.denoiser.parameters(), model.log_std]:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.vae.parameters())


def test_exploring_steps_have_a_floor_and_others_do_not(make_model: MakeModel) -> None:
    model = make_model(schedule={"eta": 0.0})
    c = torch.zeros(4096, 8)
    noise = torch.randn(4096, 6, *model.latent_shape, generator=make_generator())
    noise[:, 0] = 0.3
    plain, exploring = model.run_chain(c, noise), model.run_chain(c, noise, explore=True)
    assert plain[:, 1:].std(0).max() < 1e-6
    torch.testing.assert_close(exploring[:, 1].std(0), torch.full(model.latent_shape, 0.1), rtol=0.05, atol=0)
    noisy = make_model()
    assert (noisy.find_std(0, noise[:, 0]) == noisy.schedule.std[0]).all()  # the schedule's own is above the floor
    assert noisy.find_std(4, noise[:, 0]).unique().item() == pytest.approx(0.1)


def test_a_deterministic_chain_follows_from_its_first_latent(make_model: MakeModel) -> None:
    model = make_model()
    c = torch.randn(5, 8, generator=make_generator())
    chains = [model.sample(c, generator=make_generator(1), deterministic=True, return_chain=True) for _ in range(2)]
    assert torch.equal(*chains)
    noise = torch.zeros(5, 6, *model.latent_shape)
    noise[:, 0] = chains[0][:, 0]
    torch.testing.assert_close(model.run_chain(c, noise), chains[0])
    assert not torch.equal(model.sample(c, generator=make_generator(1)), chains[0][:, -1])
    assert torch.equal(model.sample(c, generator=make_generator(1), deterministic=True), chains[0][:, -1])


def test_a_sample_does_not_depend_on_who_else_is_sampled(make_model: MakeModel) -> None:
    for denoiser in ("mlp", "unet"):
        model = make_model(denoiser=denoiser)
        c = torch.randn(5, 8, generator=make_generator())
        noise = torch.randn(5, 6, *model.latent_shape, generator=make_generator())
        together = model.run_chain(c, noise)
        alone = torch.cat([model.run_chain(c[row : row + 1], noise[row : row + 1]) for row in range(5)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_solver_samples_and_has_no_density(make_model: MakeModel) -> None:
    model = make_model(schedule={"sampler": "dpm_solver"})
    c = torch.randn(5, 8, generator=make_generator())
    chains = [model.sample(c, generator=make_generator(1), return_chain=True, deterministic=d) for d in (True, False)]
    assert torch.equal(*chains)
    with pytest.raises(AssertionError, match="no density"):
        model.log_prob(chains[0], c)


def test_the_learned_deviation_has_an_entropy_and_stays_in_its_range(make_model: MakeModel) -> None:
    model = make_model()
    last = model.find_entropy([4])
    assert last.item() == pytest.approx(math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e))
    last.backward()
    assert model.log_std.grad is not None
    assert (model.log_std.grad > 0).all()
    for factor, bound in ((-9.0, STD_RANGE[0]), (9.0, STD_RANGE[1])):
        with torch.no_grad():
            model.log_std.fill_(factor)
        assert model.exploration()[0].item() == pytest.approx(bound)
        model.exploration.put_in_range()
        model.log_std.grad = None
        model.find_entropy([4]).backward()
        assert (model.log_std.grad > 0).all(), "at the edge of its range it must find back"


def test_a_frozen_representation_gets_no_gradient(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch()
    model.freeze_representation()
    loss, _ = model.loss(batch, make_generator())
    loss.backward()
    frozen = [*model.vae.parameters(), *model.trajectory_encoder.parameters()]
    assert all(parameter.grad is None for parameter in frozen)
    assert all(parameter.grad is not None for parameter in model.denoiser.parameters())


def test_a_unet_with_too_few_channels_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"channels of the U-Net \(48\) must be a multiple of 32"):
        make_model(denoiser="unet", unet_channels=48)


@pytest.mark.parametrize(
    "schedule",
    [{}, {"sampler": "ddpm"}, {"sampler": "dpm_solver", "prediction_type": "v_prediction"}, {"clip_range": 0.4}],
    ids=str,
)
def test_numpy_acts_as_torch_does_and_follows_its_changes(
    make_model: MakeModel, make_batch: MakeBatch, schedule: dict[str, Any]
) -> None:
    model = make_model(schedule=schedule, num_agents=2)
    policy, history = FastPolicy(model), make_batch(num_agents=2).history
    noise = np.random.default_rng(0).standard_normal((7, *policy.noise_shape), dtype=np.float32)
    for _ in range(2):
        with torch.no_grad():
            c = model.encode_history(history.obs, history.action, history.mask)
            chain = model.run_chain(c, torch.from_numpy(noise).view(7, 6, *model.latent_shape))
            expected = model.decode(chain[:, -1]).numpy()
        for row in range(7):
            given = (array[row].numpy() for array in (history.obs, history.action, history.mask))
            np.testing.assert_allclose(policy.act(*given, noise[row]), expected[row], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05)
    with pytest.raises(ValueError, match="only mlp can act through NumPy"):
        FastPolicy(make_model(denoiser="unet"))


SIDES = 0.7
"""Where both modes of the test below are; what is within 0.2 of one belongs to it."""


def share_in_modes(actions: Tensor) -> tuple[float, float]:
    """The share of chunks all of whose actions are in the left mode, and in the right one."""
    flat = actions.flatten(1)
    left, right = (((flat - side).abs() < 0.2).all(1).float().mean().item() for side in (-SIDES, SIDES))
    return left, right


def draw_two_modes(size: int, generator: torch.Generator, make_batch: MakeBatch, seed: int) -> SequenceBatch:
    """Chunks to the left or to the right, at random whatever was seen."""
    batch = make_batch(size, seed=seed, horizon=2)
    side = torch.randint(0, 2, (size, 1, 1, 1), generator=generator) * 2 - 1
    chunk = SIDES * side + 0.03 * torch.randn(batch.chunk.shape, generator=generator)
    whole = replace(batch.history, mask=torch.ones_like(batch.history.mask))
    return replace(batch, history=whole, chunk=chunk, chunk_mask=torch.ones_like(batch.chunk_mask))


@pytest.mark.parametrize(("denoiser", "steps"), [("mlp", 1000), ("unet", 250)])
def test_two_modes_come_back_where_a_mean_fails_and_latents_have_unit_variance(
    make_model: MakeModel, make_batch: MakeBatch, denoiser: str, steps: int
) -> None:
    generator = make_generator()
    schedule = {"num_diffusion_steps": 50, "num_sampling_steps": 10}
    sizes = {"denoiser": denoiser, "hidden_dims": (64, 64), "denoiser_hidden_dims": (128, 128), "vae_latent_dim": 16}
    model = make_model(kl_weight=3e-3, schedule=schedule, horizon=2, **sizes)
    history, chunk = (data := draw_two_modes(4096, generator, make_batch, 1)).history, data.chunk
    mean = nn.Linear(9, 4)
    optimizers = [torch.optim.Adam(network.parameters(), lr=3e-3) for network in (model, mean)]
    for step in range(steps):
        rows = torch.randint(0, 4096, (128,), generator=generator)
        part = replace(history, obs=history.obs[rows], action=history.action[rows], mask=history.mask[rows])
        batch = SequenceBatch(part, chunk[rows], data.chunk_mask[rows], data.return_to_go[rows])
        control = ((torch.tanh(mean(part.obs.flatten(1))) - batch.chunk.flatten(1)) ** 2).mean()
        for optimizer, loss in zip(optimizers, (model.loss(batch, generator)[0], control), strict=True):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    unseen = draw_two_modes(2000, generator, make_batch, 2)
    shares = share_in_modes(model.act(unseen.history, generator=generator))
    with torch.no_grad():
        posterior = model.vae.encode(unseen.chunk, unseen.chunk_mask)
        latents = posterior[0] + (0.5 * posterior[1]).exp() * torch.randn(posterior[0].shape, generator=generator)
    assert all(0.4 <= share <= 0.6 for share in shares), shares
    assert max(share_in_modes(torch.tanh(mean(unseen.history.obs.flatten(1))))) == 0
    assert 0.8 <= latents.std() <= 1.2
