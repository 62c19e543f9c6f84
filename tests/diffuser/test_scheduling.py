"""Noise schedules: tables against HuggingFace's schedulers, against formulas, and against what is known."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from diffuser.models import scheduling
from diffuser.models.schedule_rules import ScheduleSettings, find_schedule_faults
from diffuser.models.scheduling import (
    NoiseSchedule,
    ScheduleTables,
    build_scheduler,
    build_tables,
    compute_tables,
    measure_log_density,
    read_tables,
    round_tables,
)

MakeSchedule = Callable[..., ScheduleSettings]

KINDS = [
    {"beta_schedule": beta, "prediction_type": prediction, "num_diffusion_steps": total, "num_sampling_steps": steps}
    for beta, prediction, (total, steps) in itertools.product(
        ("squaredcos_cap_v2", "linear"), ("sample", "v_prediction", "epsilon"), ((100, 10), (50, 50), (20, 1))
    )
    if (beta, prediction) != ("squaredcos_cap_v2", "epsilon")
]
SAMPLERS: list[dict[str, Any]] = [
    {"sampler": "ddpm"},
    {"sampler": "ddim", "eta": 0.0},
    {"sampler": "ddim", "eta": 0.5},
    {"sampler": "ddim", "eta": 1.0},
]


def step_by_scheduler(
    scheduler: Any, settings: ScheduleSettings, level: int, z: Tensor, e: Tensor, n: Tensor
) -> Tensor:
    """One step of HuggingFace's, adding the noise `n`, which DDPM draws by itself."""
    if settings.sampler == "ddim":
        result: Tensor = scheduler.step(e, level, z, eta=settings.eta, variance_noise=n).prev_sample
        return result
    generator = torch.Generator().manual_seed(5)  # as whoever asks draws `n`
    drawn: Tensor = scheduler.step(e, level, z, generator=generator).prev_sample
    return drawn


def step_by_tables(
    tables: ScheduleTables, position: int, clip: float | None, z: Tensor, e: Tensor, n: Tensor
) -> Tensor:
    at = {field.name: getattr(tables, field.name)[position] for field in fields(tables)}
    clean = at["clean_sample"] * z + at["clean_output"] * e
    clean = clean if clip is None else clean.clamp(-clip, clip)
    return at["sample"] * z + at["output"] * e + at["clean_weight"] * clean + at["std"] * n


@pytest.mark.parametrize("clip", [None, 0.8, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_tables_equal_the_schedulers_own_steps(
    make_schedule: MakeSchedule, sampler: dict[str, Any], clip: float | None
) -> None:
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        settings = make_schedule(clip_range=clip, **kind, **sampler)
        scheduler, tables, schedule = build_scheduler(settings), build_tables(settings), NoiseSchedule(settings)
        for position, level in enumerate(scheduler.timesteps.tolist()):
            z, e = torch.randn(2, 64, 3, dtype=torch.float64, generator=generator)
            n = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            theirs = step_by_scheduler(scheduler, settings, level, z, e, n)
            torch.testing.assert_close(step_by_tables(tables, position, clip, z, e, n), theirs, rtol=1e-6, atol=1e-6)
            mean = schedule.find_mean(position, z.float(), e.float())
            ours = mean + schedule.find_std(position, mean) * n.float()
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_solvers_tables_equal_its_steps_with_their_memory(
    make_schedule: MakeSchedule, kind: dict[str, Any]
) -> None:
    settings = make_schedule(sampler="dpm_solver", **kind)
    scheduler, schedule = build_scheduler(settings), NoiseSchedule(settings)
    assert schedule.looks_back
    z = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    previous = None
    for position, level in enumerate(scheduler.timesteps):
        e = torch.randn(32, 3, generator=torch.Generator().manual_seed(position))
        theirs = scheduler.step(e, level, z).prev_sample
        ours = schedule.find_mean(position, z, e, previous)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
        previous, z = schedule.predict_clean(position, z, e), theirs
    assert schedule.std.abs().max() == 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_formulas_give_the_same_tables_to_the_bit(make_schedule: MakeSchedule, sampler: dict[str, Any]) -> None:
    for kind in KINDS:
        settings = make_schedule(**kind, **sampler)
        read, computed = round_tables(read_tables(settings)), round_tables(compute_tables(settings))
        for field in fields(read):
            mine, theirs = getattr(computed, field.name), getattr(read, field.name)
            assert mine.shape == theirs.shape
            assert torch.equal(mine.float(), theirs.float()), (kind, field.name)


def test_without_the_package_formulas_serve_and_the_solver_says_what_to_install(
    make_schedule: MakeSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_package = NoiseSchedule(make_schedule())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    without = NoiseSchedule(make_schedule())
    assert torch.equal(with_package.output, without.output)
    with pytest.raises(ImportError, match="dpm_solver needs the package diffusers"):
        NoiseSchedule(make_schedule(sampler="dpm_solver"))


def test_ddim_with_all_its_noise_and_all_steps_is_ddpm(make_schedule: MakeSchedule) -> None:
    for prediction in ("sample", "v_prediction"):
        steps = {"num_diffusion_steps": 100, "num_sampling_steps": 100, "prediction_type": prediction}
        ddim = NoiseSchedule(make_schedule(sampler="ddim", eta=1.0, **steps))
        ddpm = NoiseSchedule(make_schedule(sampler="ddpm", **steps))
        generator = torch.Generator().manual_seed(0)
        z, e = torch.randn(2, 100, 8, generator=generator)
        positions = torch.arange(100)
        means = [schedule.find_mean(positions, z, e) for schedule in (ddim, ddpm)]
        torch.testing.assert_close(*means, rtol=0, atol=1e-4)
        torch.testing.assert_close(ddim.std, ddpm.std, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 1.5])
def test_mixed_positions_give_what_each_gives_alone(make_schedule: MakeSchedule, clip: float | None) -> None:
    for sampler in ("ddpm", "ddim"):
        schedule = NoiseSchedule(make_schedule(sampler=sampler, clip_range=clip, prediction_type="v_prediction"))
        z, e = torch.randn(2, 8, 2, 3, generator=torch.Generator().manual_seed(0))
        positions = torch.tensor([4, 0, 3, 3, 1, 2, 0, 4])
        mixed = schedule.find_mean(positions, z, e)
        for row, position in enumerate(positions.tolist()):
            alone = schedule.find_mean(position, z[row : row + 1], e[row : row + 1])
            torch.testing.assert_close(mixed[row : row + 1], alone)
            assert schedule.find_std(positions, z)[row].item() == schedule.std[position].item()


def test_log_densities_are_those_of_a_normal_distribution() -> None:
    value, mean = torch.randn(2, 6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.05
    expected = torch.distributions.Normal(mean, std).log_prob(value).sum((1, 2))
    torch.testing.assert_close(measure_log_density(value, mean, std), expected)


def say_exactly(schedule: NoiseSchedule, noisy: Tensor, level: Tensor) -> Tensor:
    """What the best denoiser says where clean latents are N(0, 1): the mean of clean and noise given their mix."""
    signal, noise = schedule.signal[level], schedule.noise[level]
    return schedule.find_target(signal * noisy, noise * noisy, level.expand(len(noisy)))


def sample_with(schedule: NoiseSchedule, error: float = 0.0, size: int = 8192) -> Tensor:
    """Ends of chains from an exact denoiser; with an error, from one that knows nothing far from the data."""
    generator = torch.Generator().manual_seed(3)
    latent, previous = torch.randn(size, 8, generator=generator), None
    for position in range(schedule.num_steps):
        known = latent.clamp(-4, 4) if error else latent
        output = say_exactly(schedule, known, schedule.timesteps[position])
        output = output + error * torch.randn(output.shape, generator=generator)
        mean = schedule.find_mean(position, latent, output, previous)
        previous = schedule.predict_clean(position, latent, output) if schedule.looks_back else None
        latent = mean + schedule.find_std(position, mean) * torch.randn(mean.shape, generator=generator)
    return latent


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize(
    "kind", [("squaredcos_cap_v2", "sample"), ("squaredcos_cap_v2", "v_prediction"), ("linear", "epsilon")]
)
def test_an_exact_denoiser_gives_back_unit_variance(
    make_schedule: MakeSchedule, sampler: str, kind: tuple[str, str]
) -> None:
    beta, prediction = kind
    total = 400 if beta == "linear" else 100  # of the same number, linear steps are the larger ones
    steps = {"num_diffusion_steps": total, "num_sampling_steps": total, "sampler": sampler}
    latents = sample_with(NoiseSchedule(make_schedule(beta_schedule=beta, prediction_type=prediction, **steps)))
    assert latents.std().item() == pytest.approx(1, abs=0.03)
    assert latents.mean().item() == pytest.approx(0, abs=0.03)


def test_clipping_at_one_cuts_what_a_latent_needs(make_schedule: MakeSchedule) -> None:
    steps = {"num_diffusion_steps": 100, "num_sampling_steps": 100}
    assert sample_with(NoiseSchedule(make_schedule(clip_range=1.0, **steps))).std().item() < 0.75


def test_predicted_noise_on_the_cosine_schedule_would_explode(
    make_schedule: MakeSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"num_diffusion_steps": 100, "num_sampling_steps": 10}
    refused = make_schedule(prediction_type="epsilon", **steps)
    with pytest.raises(ValueError, match=r"prediction_type \(epsilon\) with beta_schedule \(squaredcos_cap_v2\)"):
        NoiseSchedule(refused)
    allowed = (("sample", "squaredcos_cap_v2"), ("v_prediction", "squaredcos_cap_v2"), ("epsilon", "linear"))
    for prediction, beta in allowed:
        good = NoiseSchedule(make_schedule(prediction_type=prediction, beta_schedule=beta, **steps))
        assert sample_with(good, error=0.02).std().item() < 1.15
    monkeypatch.setattr(scheduling, "find_schedule_faults", lambda settings, needs_density: [])
    assert sample_with(NoiseSchedule(refused), error=0.02).std().item() > 10


@pytest.mark.parametrize("total", [10, 20, 100, 1000])
@pytest.mark.parametrize("beta", ["squaredcos_cap_v2", "linear"])
def test_almost_nothing_is_left_at_the_noisiest_level_however_many_there_are(
    make_schedule: MakeSchedule, beta: str, total: int
) -> None:
    schedule = NoiseSchedule(make_schedule(beta_schedule=beta, num_diffusion_steps=total))
    assert schedule.timesteps[0] == total - 1
    assert schedule.signal[-1] < 0.02
    assert (schedule.signal.diff() < 0).all()


def test_a_noisy_latent_is_the_mix_that_its_level_says(make_schedule: MakeSchedule) -> None:
    for prediction in ("sample", "v_prediction"):
        settings = make_schedule(num_diffusion_steps=50, num_sampling_steps=50, prediction_type=prediction)
        schedule, scheduler = NoiseSchedule(settings), build_scheduler(settings)
        clean, noise = torch.randn(2, 50, 2, 3, generator=torch.Generator().manual_seed(0))
        levels = torch.arange(50)
        noisy = schedule.add_noise(clean, noise, levels)
        torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, levels))
        # What the denoiser is asked to say gives back the clean latent at every level.
        target = schedule.find_target(clean, noise, levels)
        torch.testing.assert_close(schedule.predict_clean(49 - levels, noisy, target), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "density", "words"),
    [
        (
            {"num_sampling_steps": 6},
            False,
            r"num_sampling_steps \(6\) does not divide .* take one of 1, 2, 4, 5, 10, 20",
        ),
        ({"num_sampling_steps": 40}, False, r"num_sampling_steps \(40\)"),
        ({"sampler": "dpm_solver", "clip_range": 3.0}, False, r"clip_range \(3.0\): sampler dpm_solver doesn't clip"),
        ({"sampler": "dpm_solver"}, True, r"sampler \(dpm_solver\) .* take ddim or ddpm"),
        ({"prediction_type": "epsilon"}, False, r"samples explode"),
    ],
)
def test_combinations_that_can_not_work_are_named(
    make_schedule: MakeSchedule, changes: dict[str, Any], density: bool, words: str
) -> None:
    ((keys, message),) = find_schedule_faults(make_schedule(**changes), needs_density=density)
    assert set(keys) <= {field.name for field in fields(ScheduleSettings)}
    with pytest.raises(ValueError, match=words):
        raise ValueError(message)
    assert not find_schedule_faults(make_schedule(), needs_density=True)


def test_rules_load_no_torch_and_models_load_no_diffusers() -> None:
    program = (
        "import sys; import diffuser.models.schedule_rules; assert 'torch' not in sys.modules; "
        "import diffuser.models.diffusion_rl, diffuser.datasets.sequence; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
