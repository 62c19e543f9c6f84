"""Noise schedules as tables: what one denoising step does, looked up for a whole batch at mixed positions.

A sample starts as noise and takes K steps. They are counted by position: position 0 is the noisiest, and position
K - 1 ends in a clean latent. One step from latent z, with the denoiser's output e, is

    clean = clip(clean_sample * z + clean_output * e)
    mean  = sample * z + output * e + clean_weight * clean + previous * (clean of the position before)
    next  = mean + std * normal

with a number per position for each name. The tables are read off HuggingFace's schedulers once, through their public
`step`. Where `diffusers` isn't installed, `ddpm` and `ddim` come from formulas that give the same tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffuser.models.schedule_rules import ScheduleSettings, find_schedule_faults

FAR = 1e6
"""A clean latent that any clip range cuts, for reading the weight of the clipped one off a scheduler."""


@dataclass(frozen=True)
class ScheduleTables:
    """The numbers of a schedule, float64 on the CPU; the names are those of this module's first lines.

    Attributes:
        timesteps: (K,), int64: the noise level, in [0, T), that each position starts from.
        alphas_cumprod: (T,), float32: the share of the clean latent's variance that is left at each level.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor
    clean_sample: Tensor
    clean_output: Tensor
    sample: Tensor
    output: Tensor
    clean_weight: Tensor
    previous: Tensor
    std: Tensor


def build_tables(settings: ScheduleSettings) -> ScheduleTables:
    """Read the tables off the scheduler that the settings name, or compute them where `diffusers` isn't installed.

    Raises:
        ValueError: the settings can't hold together.
        ImportError: `dpm_solver` without `diffusers`.
    """
    if faults := find_schedule_faults(settings, needs_density=False):
        raise ValueError("; ".join(message for _, message in faults))
    try:
        return round_tables(read_tables(settings))
    except ImportError as error:
        if settings.sampler == "dpm_solver":
            raise ImportError(
                "sampler: dpm_solver needs the package diffusers (pip install -e '.[diffusers]'); ddpm and ddim do not"
            ) from error
    return round_tables(compute_tables(settings))


def round_tables(tables: ScheduleTables) -> ScheduleTables:
    """Give the tables to 12 decimals: in float32 those of both sources are then the same to the bit."""
    columns = [field.name for field in fields(tables) if getattr(tables, field.name).dtype == torch.float64]
    return replace(tables, **{name: getattr(tables, name).round(decimals=12) for name in columns})


def find_beta_ends(num_diffusion_steps: int) -> tuple[float, float]:
    """Give the first and last beta of the linear schedule.

    Those of Ho et al. 2020 (1e-4 and 0.02) are for 1,000 levels. With 100 they would leave a third of the variance at
    the noisiest level, and sampling would start from what training never saw; so they grow as levels get fewer.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, their code's rule for other numbers of levels.
    """
    scale = 1000 / num_diffusion_steps
    return min(1e-4 * scale, 0.5), min(0.02 * scale, 0.999)


def build_scheduler(settings: ScheduleSettings) -> Any:
    """Give the scheduler of `diffusers` that the settings name, its timesteps set.

    Raises:
        ImportError: `diffusers` isn't installed.
    """
    with _quiet():
        import diffusers

    beta_start, beta_end = find_beta_ends(settings.num_diffusion_steps)
    arguments: dict[str, Any] = {
        "num_train_timesteps": settings.num_diffusion_steps,
        "beta_schedule": settings.beta_schedule,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "prediction_type": settings.prediction_type,
        "timestep_spacing": "trailing",
    }
    if settings.sampler != "dpm_solver":
        arguments["clip_sample"] = settings.clip_range is not None
        arguments["clip_sample_range"] = 1.0 if settings.clip_range is None else settings.clip_range
    kinds: dict[str, Any] = {
        "ddpm": diffusers.DDPMScheduler,
        "ddim": diffusers.DDIMScheduler,
        "dpm_solver": diffusers.DPMSolverMultistepScheduler,
    }
    scheduler = kinds[settings.sampler](**arguments)
    with _quiet():
        scheduler.set_timesteps(settings.num_sampling_steps)
    return scheduler


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what the package and what it imports warn about: old ways of calling torch and NumPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_tables(settings: ScheduleSettings) -> ScheduleTables:
    """Read the tables off a scheduler by steps from (z, e, noise) = (1, 0, 0), (0, 1, 0) and (0, 0, 1), in float64.

    Raises:
        ImportError: `diffusers` isn't installed.
    """
    if settings.sampler == "dpm_solver":
        return _read_solver(settings)
    scheduler = build_scheduler(replace(settings, clip_range=None))
    clipping = build_scheduler(replace(settings, clip_range=1.0))
    rows = [_probe_position(scheduler, clipping, int(level), settings) for level in scheduler.timesteps]
    return _collect(scheduler, rows)


def _collect(scheduler: Any, rows: list[dict[str, float]]) -> ScheduleTables:
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    return ScheduleTables(scheduler.timesteps.clone(), scheduler.alphas_cumprod.clone(), **columns)


def _probe_position(scheduler: Any, clipping: Any, level: int, settings: ScheduleSettings) -> dict[str, float]:
    """Give one position's numbers; see `read_tables`.

    The weight of the clipped latent is what a step loses when a far one is cut to 1, per unit.
    """

    def step(kind: Any, sample: float, output: float, noisy: bool) -> tuple[float, float]:
        given = (_single(output), level, _single(sample))
        if settings.sampler == "ddim":
            result = kind.step(*given, eta=settings.eta, variance_noise=_single(float(noisy)))
            return float(result.prev_sample), float(result.pred_original_sample)
        result = kind.step(*given, generator=torch.Generator().manual_seed(0))
        drawn = 0.0 if noisy or level == 0 else float(silent.prev_sample)
        return float(result.prev_sample) - drawn, float(result.pred_original_sample)

    if settings.sampler == "ddpm":
        silent = scheduler.step(_single(0), level, _single(0), generator=torch.Generator().manual_seed(0))
    sample, clean_sample = step(scheduler, 1, 0, False)
    output, clean_output = step(scheduler, 0, 1, False)
    std, _ = step(scheduler, 0, 0, True)
    if settings.sampler == "ddpm":
        std /= float(torch.randn((1, 1), dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    far, far_clean = step(scheduler, 0, math.copysign(FAR, clean_output), False)
    cut, cut_clean = step(clipping, 0, math.copysign(FAR, clean_output), False)
    weight = (far - cut) / (far_clean - cut_clean)
    return {
        "clean_sample": clean_sample,
        "clean_output": clean_output,
        "sample": sample - weight * clean_sample,
        "output": output - weight * clean_output,
        "clean_weight": weight,
        "previous": 0.0,
        "std": std,
    }


def _single(value: float) -> Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


def _read_solver(settings: ScheduleSettings) -> ScheduleTables:
    """Read DPM-Solver++'s tables in one chain, as it remembers the step before: a batch with three rows a position.

    Of the rows of one position, the first has z = 1 there, the second e = 1, and the third e = 1 a position before.
    """
    scheduler = build_scheduler(settings)
    count = len(scheduler.timesteps)
    found = torch.zeros(3, count, dtype=torch.float64)
    clean = [_find_clean(share, settings) for share in scheduler.alphas_cumprod[scheduler.timesteps]]
    for position, level in enumerate(scheduler.timesteps):
        z, e = torch.zeros(2, 3, count, dtype=torch.float64)
        z[0, position] = e[1, position] = 1
        if position + 1 < count:
            e[2, position + 1] = 1
        found[:, position] = scheduler.step(e, level, z).prev_sample[:, position]
    clean_sample, clean_output = torch.tensor(clean, dtype=torch.float64).T
    found[2, 1:] /= clean_output[:-1]  # what is remembered is the clean latent that an output of 1 stands for
    empty = torch.zeros(count, dtype=torch.float64)
    sample, output, previous = found
    return ScheduleTables(
        timesteps=scheduler.timesteps.clone(),
        alphas_cumprod=scheduler.alphas_cumprod.clone(),
        clean_sample=clean_sample,
        clean_output=clean_output,
        sample=sample,
        output=output,
        clean_weight=empty,
        previous=previous,
        std=empty,
    )


def _find_clean(share: Tensor, settings: ScheduleSettings) -> tuple[float, float]:
    """Give the weights of latent and output in the clean latent, at a level that `share` of the variance is left at."""
    signal, noise = float(share**0.5), float((1 - share) ** 0.5)
    return {
        "sample": (0.0, 1.0),
        "v_prediction": (signal, -noise),
        "epsilon": (1 / signal, -noise / signal),
    }[settings.prediction_type]


def compute_tables(settings: ScheduleSettings) -> ScheduleTables:
    """Compute the tables of `ddpm` and `ddim` from their formulas.

    Levels are in float32 and so is what is taken of them, as in `diffusers`: in float64 the tables would be more
    precise and differ from theirs by 1e-5.

    Source: Ho et al. 2020, arXiv:2006.11239, equations 6 and 7; Song et al. 2021, arXiv:2010.02502, equations 12, 16.
    """
    shares = torch.cumprod(1 - compute_betas(settings), dim=0)
    stride = settings.num_diffusion_steps // settings.num_sampling_steps
    levels = torch.arange(settings.num_diffusion_steps - 1, -1, -stride)
    share = shares[levels]
    earlier = torch.cat([share[1:], torch.ones(1)])  # what is left after the step: everything at the end
    beta, earlier_beta = 1 - share, 1 - earlier
    clean = [_find_clean(one, settings) for one in share]
    clean_sample = torch.tensor([pair[0] for pair in clean], dtype=torch.float64)
    clean_output = torch.tensor([pair[1] for pair in clean], dtype=torch.float64)
    if settings.sampler == "ddpm":
        kept = share / earlier
        added = 1 - kept
        variance = (earlier_beta / beta * added).clamp(min=1e-20)
        std = torch.where(levels > 0, variance**0.5, 0)
        weight, sample = (earlier**0.5 * added / beta).double(), (kept**0.5 * earlier_beta / beta).double()
        output = torch.zeros_like(sample)
    else:
        std = settings.eta * (earlier_beta / beta * (1 - share / earlier)) ** 0.5
        weight, direction = (earlier**0.5).double(), ((1 - earlier - std**2) ** 0.5).double()
        noise_sample, noise_output = _find_noise(share, settings.prediction_type)
        sample, output = direction * noise_sample, direction * noise_output
    return ScheduleTables(
        levels, shares, clean_sample, clean_output, sample, output, weight, torch.zeros_like(sample), std.double()
    )


def compute_betas(settings: ScheduleSettings) -> Tensor:
    """Give the share of variance that each level adds, (T,), float32."""
    total = settings.num_diffusion_steps
    if settings.beta_schedule == "linear":
        return torch.linspace(*find_beta_ends(total), total)

    def keep(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - keep((level + 1) / total) / keep(level / total), 0.999) for level in range(total)]
    return torch.tensor(betas, dtype=torch.float32)


def _find_noise(share: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """Give the weights of latent and output in the noise, for every level of `share`."""
    signal, noise = (share**0.5).double(), ((1 - share) ** 0.5).double()
    if prediction_type == "sample":
        return 1 / noise, -signal / noise
    if prediction_type == "v_prediction":
        return noise, signal
    return torch.zeros_like(signal), torch.ones_like(signal)


class NoiseSchedule(nn.Module):
    """The tables on a device, in float32, and what is done by them. It has no parameters and no state.

    `position` is an int in [0, K) for a whole batch, or (batch,) int64 for one each; latents have any shape behind
    the batch.

    Args:
        settings: of the schedule; combinations that can't work raise ValueError.
    """

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    clean_sample: Tensor
    clean_output: Tensor
    sample: Tensor
    output: Tensor
    clean_weight: Tensor
    previous: Tensor
    std: Tensor

    def __init__(self, settings: ScheduleSettings) -> None:
        super().__init__()
        self.settings = settings
        self.num_steps = settings.num_sampling_steps
        self.looks_back = settings.sampler == "dpm_solver"
        tables = build_tables(settings)
        if settings.clip_range is None:
            tables = fold_clean(tables)
        for field in fields(tables):
            if field.name != "alphas_cumprod":
                table = getattr(tables, field.name)
                self.register_buffer(field.name, table.float() if table.is_floating_point() else table, False)
        shares = tables.alphas_cumprod.double()
        self.register_buffer("signal", (shares**0.5).float(), persistent=False)
        self.register_buffer("noise", ((1 - shares) ** 0.5).float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Give latents at the noise levels `timesteps`, (batch,), from clean latents and standard normal noise."""
        return _spread(self.signal[timesteps], clean) * clean + _spread(self.noise[timesteps], clean) * noise

    def find_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Give what the denoiser should say of `add_noise(clean, noise, timesteps)`."""
        if self.settings.prediction_type == "sample":
            return clean
        if self.settings.prediction_type == "epsilon":
            return noise
        return _spread(self.signal[timesteps], clean) * noise - _spread(self.noise[timesteps], clean) * clean

    def estimate_clean(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        """Give the clean latent that the denoiser's output speaks of at noise levels (batch,)."""
        if self.settings.prediction_type == "sample":
            return output
        signal, noise = _spread(self.signal[timesteps], noisy), _spread(self.noise[timesteps], noisy)
        if self.settings.prediction_type == "epsilon":
            return (noisy - noise * output) / signal
        return signal * noisy - noise * output

    def predict_clean(self, position: int | Tensor, noisy: Tensor, output: Tensor) -> Tensor:
        """Give the clean latent that the denoiser's output stands for, clipped where a range is set."""
        weights = (_spread(table[position], noisy) for table in (self.clean_sample, self.clean_output))
        clean = next(weights) * noisy + next(weights) * output
        limit = self.settings.clip_range
        return clean if limit is None else clean.clamp(-limit, limit)

    def find_mean(
        self, position: int | Tensor, noisy: Tensor, output: Tensor, previous_clean: Tensor | None = None
    ) -> Tensor:
        """Give the mean of the next latent.

        Args:
            position: of the step.
            noisy: (batch, ...), the latent before the step.
            output: the denoiser's, of the same shape.
            previous_clean: what `predict_clean` gave a position before; only a schedule that `looks_back` reads it.
        """
        mean = _spread(self.sample[position], noisy) * noisy + _spread(self.output[position], noisy) * output
        if self.settings.clip_range is not None:
            clean = self.predict_clean(position, noisy, output)
            mean = mean + _spread(self.clean_weight[position], noisy) * clean
        if previous_clean is not None:
            mean = mean + _spread(self.previous[position], noisy) * previous_clean
        return mean

    def find_std(self, position: int | Tensor, like: Tensor) -> Tensor:
        """Give the deviation of the next latent, shaped to go with `like`, without any floor."""
        return _spread(self.std[position], like)


def fold_clean(tables: ScheduleTables) -> ScheduleTables:
    """Give tables for steps that don't clip, in which the clean latent's weight is part of those of z and e."""
    return replace(
        tables,
        sample=tables.sample + tables.clean_weight * tables.clean_sample,
        output=tables.output + tables.clean_weight * tables.clean_output,
        clean_weight=torch.zeros_like(tables.clean_weight),
    )


def measure_log_density(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give the logarithm of a normal density, summed over all but the batch: (batch,)."""
    log_densities = -0.5 * ((value - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
    return log_densities.flatten(1).sum(1)


def _spread(table: Tensor, like: Tensor) -> Tensor:
    """Shape (batch,) as (batch, 1, ...) to go with `like`; a single number stays one."""
    return table if table.ndim == 0 else table.view(-1, *[1] * (like.ndim - 1))
