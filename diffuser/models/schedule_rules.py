"""Which noise schedules there are and which combinations can't work. Imports no torch, so that configs can ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampler = Literal["ddpm", "ddim", "dpm_solver"]
BetaSchedule = Literal["squaredcos_cap_v2", "linear"]
PredictionType = Literal["sample", "v_prediction", "epsilon"]


@dataclass(frozen=True)
class ScheduleSettings:
    """What decides a noise schedule.

    Attributes:
        num_diffusion_steps: noise levels that the denoiser is trained on.
        num_sampling_steps: how many of them a sample goes through, equally far apart, the noisiest always among them.
        sampler: the rule of one step.
        beta_schedule: how noise grows with the level.
        prediction_type: what the denoiser gives: the clean latent, the noise, or the velocity between both.
        eta: noise added by a step of `ddim`: 0 for none, 1 for as much as `ddpm`. The others don't read it.
        clip_range: predicted clean latents are cut to [-clip_range, clip_range]; None for not at all.
    """

    num_diffusion_steps: int
    num_sampling_steps: int
    sampler: Sampler
    beta_schedule: BetaSchedule
    prediction_type: PredictionType
    eta: float
    clip_range: float | None


def find_schedule_faults(settings: ScheduleSettings, needs_density: bool) -> list[tuple[tuple[str, ...], str]]:
    """Name the settings that can't hold together: the keys of each fault, and what it says.

    Args:
        settings: single values in range; whether they are is the config's to check.
        needs_density: steps must have a probability density, as the policy gradient needs it.
    """
    total, steps = settings.num_diffusion_steps, settings.num_sampling_steps
    faults: list[tuple[tuple[str, ...], str]] = []
    if total % steps:
        fitting = ", ".join(str(number) for number in range(1, total + 1) if total % number == 0)
        message = (
            f"num_sampling_steps ({steps}) does not divide num_diffusion_steps ({total}): steps would have unequal "
            f"lengths, and samplers disagree about where they end; take one of {fitting}"
        )
        faults.append((("num_sampling_steps", "num_diffusion_steps"), message))
    if settings.prediction_type == "epsilon" and settings.beta_schedule == "squaredcos_cap_v2":
        message = (
            "prediction_type (epsilon) with beta_schedule (squaredcos_cap_v2): almost nothing of the latent is left at "
            "the noisiest level, and dividing by it makes samples explode; take prediction_type sample or "
            "v_prediction, or beta_schedule linear"
        )
        faults.append((("prediction_type", "beta_schedule"), message))
    if settings.sampler == "dpm_solver" and settings.clip_range is not None:
        message = f"clip_range ({settings.clip_range}): sampler dpm_solver doesn't clip; leave clip_range out"
        faults.append((("clip_range", "sampler"), message))
    if settings.sampler == "dpm_solver" and needs_density:
        message = (
            "sampler (dpm_solver) adds no noise and looks back over two steps, so that no step has a density to take a "
            "policy gradient of; take ddim or ddpm"
        )
        faults.append((("sampler",), message))
    return faults
