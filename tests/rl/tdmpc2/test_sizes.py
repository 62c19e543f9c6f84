"""Counted parameters and work: against the published arithmetic, the networks themselves, and torch's own counter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from rl.tdmpc2.agent import TDMPC2, Batch
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.planner import PlannerSettings, Situation, draw_gumbel, draw_noise, plan
from rl.tdmpc2.sizes import (
    MODEL_SIZES,
    ModelSizes,
    check_pixels,
    count_components,
    count_head,
    count_plan_flops,
    count_update_flops,
    find_pixel_map,
    sum_with_targets,
)
from rl.tdmpc2.trainer import count_parameters as count_of_settings
from rl.tdmpc2.two_hot import TwoHot
from rl.tdmpc2.world_model import PolicyRange, Tasks, WorldModel
from training.resources import count_parameters

CPU = torch.device("cpu")
DOCUMENT = ModelSizes((151,), 61, num_tasks=1, task_dim=96)
"""The document's dimensions, with one task told apart; without its embedding is what most of its numbers mean."""
PIXELS = ModelSizes((3, 64, 64), 6, num_channels=2, latent_dim=32, mlp_dim=8, num_bins=5)
SIZES = {1: (1_214_651, 1_694_853, 1_435_067), 5: (4_960_618, 7_871_843, 5_389_930)} | {
    19: (18_062_442, 27_816_547, 18_970_218),
    48: (47_208_298, 71_158_883, 48_791_146),
    317: (312_595_417, 495_605_505, 317_383_129),
}
"""Learnable and with targets, of one task with 24 observations and 6 actions; learnable of 80 tasks with 39 and 6."""


def build(sizes: ModelSizes, device: str = "cpu") -> WorldModel:
    with torch.device(device):
        return WorldModel(sizes, TwoHot(-10, 10, sizes.num_bins), PolicyRange(-10, 2), dropout=0.01)


def make_sizes(model_size: int) -> ModelSizes:
    sizes: dict[str, Any] = dict(MODEL_SIZES[model_size])
    return ModelSizes((24,), 6, **sizes)


def count_numbers(model: WorldModel) -> int:
    assert len(list(model.buffers())) == 0
    return sum(parameter.numel() for parameter in model.parameters())


def test_each_part_of_the_documents_model_counts_what_it_should() -> None:
    counts = count_components(replace(DOCUMENT, episodic=True))
    assert counts == {
        "encoder": 196_608,
        "dynamics": 871_424,
        "reward": 659_557,
        "policy": 639_098,
        "q": 3_297_785,
        "termination": 577_025,
        "task_embedding": 96,
    }
    assert 2 * counts["q"] == 6_595_570
    assert count_head(DOCUMENT.joint_dim, 512, 101) == 659_557


@pytest.mark.parametrize(("num_tasks", "episodic"), [(1, False), (1, True), (80, False)])
def test_the_documents_model_counts_what_it_should_as_a_whole(num_tasks: int, episodic: bool) -> None:
    counts = count_components(replace(DOCUMENT, num_tasks=num_tasks, episodic=episodic))
    more = 96 * num_tasks + 577_025 * episodic
    assert sum(counts.values()) == 5_664_472 + more
    assert sum_with_targets(counts) == 8_962_257 + more


def test_a_single_task_counts_what_it_should_as_the_code_runs_it() -> None:
    single = ModelSizes((151,), 61)
    counts = count_components(single)
    assert counts == {"encoder": 172_032, "dynamics": 822_272, "reward": 610_405, "policy": 589_946, "q": 3_052_025}
    assert (sum(counts.values()), sum_with_targets(counts)) == (5_246_680, 8_298_705)
    episodic = count_components(replace(single, episodic=True))
    assert (episodic["termination"], sum_with_targets(episodic)) == (527_873, 8_826_578)


@pytest.mark.parametrize("size", SIZES)
def test_the_five_sizes_count_what_they_should(size: int) -> None:
    counts = count_components(make_sizes(size))
    of_many = count_components(replace(make_sizes(size), obs_shape=(39,), num_tasks=80, task_dim=96))
    assert (sum(counts.values()), sum_with_targets(counts), sum(of_many.values())) == SIZES[size]


def test_there_are_five_sizes_and_the_defaults_are_the_second() -> None:
    assert set(MODEL_SIZES) == set(SIZES)
    assert ModelSizes((24,), 6) == make_sizes(5)
    assert sum(count_components(ModelSizes((3,), 1)).values()) == 4_932_192
    assert sum(count_components(ModelSizes((223,), 38)).values()) == 5_159_082


@pytest.mark.parametrize("size", SIZES)
def test_a_network_of_each_size_has_as_many_numbers_as_are_counted(size: int) -> None:
    model = build(make_sizes(size), "meta")
    counts = count_parameters(model.components())
    assert (sum(counts.values()), count_numbers(model)) == SIZES[size][:2]


@st.composite
def draw_sizes(draw: st.DrawFn) -> ModelSizes:
    """Give small sizes of all kinds, of vectors and of pixels."""
    small = st.integers(1, 9)
    num_tasks = draw(st.sampled_from([0, 1, 3]))
    simnorm_dim, num_channels = draw(st.sampled_from([1, 2, 4])), 4
    pixels = draw(st.booleans())
    shape = (draw(st.integers(1, 4)), draw(st.integers(39, 60)), draw(st.integers(39, 60)))
    _, height, width = find_pixel_map(shape, num_channels)
    return ModelSizes(
        shape if pixels else (draw(small),),
        draw(small),
        discrete=draw(st.booleans()),
        num_tasks=num_tasks,
        task_dim=draw(small) if num_tasks else 0,
        latent_dim=num_channels * height * width if pixels else simnorm_dim * draw(small),
        mlp_dim=draw(small),
        enc_dim=draw(small),
        num_enc_layers=draw(st.integers(1, 5)),
        num_channels=num_channels,
        num_q=draw(st.integers(2, 6)),
        num_bins=draw(st.integers(2, 9)),
        simnorm_dim=simnorm_dim,
        episodic=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None)
@given(draw_sizes())
def test_networks_have_as_many_numbers_as_are_counted(sizes: ModelSizes) -> None:
    model, counts = build(sizes, "meta"), count_components(sizes)
    assert count_parameters(model.components()) == counts
    assert list(model.components()) == list(counts)
    assert count_numbers(model) == sum_with_targets(counts)
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in learnable) == sum(counts.values())


def test_a_model_of_pixels_built_before_leaves_nothing_in_one_of_vectors() -> None:
    vectors = ModelSizes((7,), 2, latent_dim=16, mlp_dim=8, enc_dim=8, num_bins=5)
    alone = build(vectors)
    pixels = build(PIXELS)
    after = build(vectors)
    assert list(after.state_dict()) == list(alone.state_dict())
    assert count_numbers(after) == sum_with_targets(count_components(vectors))
    assert count_numbers(pixels) == sum_with_targets(count_components(PIXELS))
    assert set(after.components()) == set(pixels.components()) == {"encoder", "dynamics", "reward", "policy", "q"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"episodic": True, "num_q": 3},
        {"env_name": "CartPole-v1", "num_enc_layers": 4},
        {"env_name": "MultiTask-v0", "env_kwargs": {"tasks": ["Pendulum-v1", "HalfCheetah-v5"]}, "task_dim": 5},
    ],
)
def test_what_settings_count_is_what_their_trainer_has(small_tdmpc2: Any, changes: dict[str, Any]) -> None:
    trainer = small_tdmpc2(**changes)
    expected = count_of_settings(trainer.config)
    assert count_parameters(trainer.components()) == expected
    assert count_numbers(trainer.agent.model) == sum_with_targets(expected)


def test_settings_that_name_no_sizes_count_the_default_ones() -> None:
    config = TDMPC2Config.from_settings({"algorithm_name": "tdmpc2", "env_name": "Pendulum-v1"})
    assert sum(count_of_settings(config).values()) == 4_932_192


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(39, 140), st.integers(39, 140))
def test_images_become_as_many_features_as_are_counted(channels: int, height: int, width: int) -> None:
    shape = (channels, height, width)
    found = find_pixel_map(shape, 4)
    latent_dim = found[0] * found[1] * found[2]
    sizes = replace(PIXELS, obs_shape=shape, num_channels=4, latent_dim=latent_dim, simnorm_dim=1)
    check_pixels(sizes)
    latent = build(sizes, "meta").encode(torch.zeros(2, *shape, dtype=torch.uint8, device="meta"))
    assert latent.shape == (2, latent_dim)


def test_images_of_64_pixels_become_the_512_numbers_of_the_default() -> None:
    assert find_pixel_map((9, 64, 64), 32) == (32, 4, 4)
    check_pixels(ModelSizes((9, 64, 64), 6))


@pytest.mark.parametrize("size", [(38, 64), (64, 38), (3, 3)])
def test_images_that_are_too_small_are_refused_with_the_least_that_does(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"images of {size[0]}x{size[1]} pixels are too small: 39x39 is the least"):
        find_pixel_map((3, *size), 32)
    assert find_pixel_map((3, 39, 39), 32) == (32, 1, 1)


def test_images_with_other_features_than_the_latent_state_are_refused_with_what_fits() -> None:
    words = r"latent_dim \(512\): images of 84x84 pixels become 32 x 6 x 6 = 1152 numbers; set latent_dim to that"
    with pytest.raises(ValueError, match=words):
        check_pixels(ModelSizes((3, 84, 84), 6))


def count_flops(work: Callable[[], object]) -> int:
    """Give what torch's counter finds in some work."""

    def count_linear(left: Sequence[int], right: Sequence[int], *rest: Any, out_shape: Any = None) -> int:
        assert len(left) == len(right) == 2
        return 2 * left[0] * left[1] * right[0]

    mapping = {torch.ops.mkldnn._linear_pointwise: count_linear} if torch._C._has_mkldnn else {}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return int(counter.get_total_flops())


def make_agent(sizes: ModelSizes, **changes: Any) -> TDMPC2:
    settings: dict[str, Any] = {"algorithm_name": "tdmpc2", "env_name": "Pendulum-v1"}
    settings |= {"episodic": sizes.episodic, "num_bins": sizes.num_bins}
    return TDMPC2(TDMPC2Config.from_settings(settings | changes), sizes, CPU)


def draw_obs(sizes: ModelSizes, *rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if sizes.sees_pixels:
        return torch.randint(0, 256, (*rows, *sizes.obs_shape), generator=generator, dtype=torch.uint8)
    return torch.randn(*rows, *sizes.obs_shape, generator=generator)


def draw_batch(sizes: ModelSizes, size: int, horizon: int) -> Batch:
    tasks = Tasks(torch.zeros(size, dtype=torch.int64), torch.ones(size, sizes.action_dim)) if sizes.num_tasks else None
    action = draw_gumbel((horizon, size, sizes.action_dim), CPU, torch.Generator().manual_seed(1)).softmax(-1)
    reward, terminated = torch.ones(horizon, size, 1), torch.zeros(horizon, size, 1)
    discount = torch.full((size, 1), 0.99)
    return Batch(
        draw_obs(sizes, horizon + 1, size), action, reward, terminated, torch.ones_like(reward), discount, tasks
    )


def count_update(agent: TDMPC2, size: int, horizon: int) -> int:
    batch = draw_batch(agent.model.sizes, size, horizon)
    return count_flops(lambda: agent.update(batch))


def count_act(agent: TDMPC2, planner: PlannerSettings) -> int:
    model = agent.model.eval()
    sizes = model.sizes
    tasks = Tasks(torch.zeros(1, dtype=torch.int64), torch.ones(1, sizes.action_dim)) if sizes.num_tasks else None
    obs, mean = draw_obs(sizes, 1), torch.zeros(planner.horizon, 1, sizes.action_dim)
    noise = draw_noise(
        1, planner, sizes.action_dim, sizes.num_q, discrete=sizes.discrete, device=CPU, generator=torch.Generator()
    )

    @torch.no_grad()
    def act() -> None:
        task = model.embed(tasks)
        situation = Situation(model.encode(obs, task), torch.full((1, 1), 0.99), task, tasks.mask if tasks else None)
        plan(model, situation, mean, noise, planner, explore=True)

    return count_flops(act)


def test_an_update_and_a_plan_of_the_default_size_are_30_7_and_35_8_billion_operations() -> None:
    sizes = ModelSizes((24,), 6)
    agent = make_agent(sizes)
    counted = count_update(agent, size=256, horizon=3)
    assert counted == pytest.approx(30.7e9, rel=0.03)
    assert count_update_flops(sizes, 256, 3) == pytest.approx(counted, rel=0.005)
    counted = count_act(agent, PlannerSettings(3, 6, 512, 64, 24, min_std=0.05, max_std=2.0, temperature=0.5))
    assert counted == pytest.approx(35.8e9, rel=0.03)
    assert count_plan_flops(sizes, 3, 512, 6, 24) == pytest.approx(counted, rel=0.005)


SMALL = ModelSizes((40,), 3, latent_dim=64, mlp_dim=96, enc_dim=80, num_bins=33)
KINDS = {
    "vectors": SMALL,
    "deep_encoder": replace(SMALL, num_enc_layers=4, num_q=2),
    "episodic": replace(SMALL, episodic=True),
    "tasks": replace(SMALL, num_tasks=3, task_dim=24),
    "discrete": replace(SMALL, action_dim=5, discrete=True),
    "pixels": replace(SMALL, obs_shape=(3, 64, 64), num_channels=8, latent_dim=128),
    "all": replace(SMALL, num_tasks=2, task_dim=16, episodic=True, num_q=7, num_enc_layers=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_an_update_is_what_torch_counts(kind: str) -> None:
    sizes = KINDS[kind]
    for size, horizon in ((16, 1), (6, 4)):
        counted = count_update(make_agent(sizes, horizon=horizon), size, horizon)
        assert count_update_flops(sizes, size, horizon) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_the_work_of_a_plan_is_what_torch_counts(kind: str) -> None:
    sizes = KINDS[kind]
    for proposals, horizon, iterations in ((0, 1, 3), (40, 4, 2)):
        planner = PlannerSettings(horizon, iterations, 200, 8, proposals, min_std=0.05, max_std=2.0, temperature=0.5)
        counted = count_act(make_agent(sizes, horizon=horizon), planner)
        assert count_plan_flops(sizes, horizon, 200, iterations, proposals) == pytest.approx(counted, rel=0.02)


def test_sizes_and_settings_need_no_torch() -> None:
    code = "import sys, rl.tdmpc2.sizes, rl.tdmpc2.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
