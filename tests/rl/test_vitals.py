"""What agents measure for the guard, by hand; that measuring changes nothing; and whose fault a NaN is."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.buffers import Batch
from rl.ddpg import DDPGAgent
from rl.ddpg_config import DDPGConfig
from rl.off_policy import OffPolicyTrainer
from rl.residual import ActionMap
from rl.vitals import measure_critic, measure_stuck_share, measure_when_passed_back
from training.protocol import Treatment
from training.resources import hash_state
from training.signals import CRITIC_VITALS
from training.vitals import is_measured

BuildTrainer = Any
ALGORITHMS = ("ddpg", "td3", "sac")


def run_steps(trainer: OffPolicyTrainer, number: int) -> list[Any]:
    return [trainer.train_step() for _ in range(number)]


@pytest.mark.parametrize("critics", [1, 2])
def test_a_critic_is_measured_as_numpy_would(critics: int) -> None:
    generator = np.random.default_rng(0)
    values, target, reward, next_value = (generator.normal(size=(size, 16, 1)) for size in (critics, 1, 1, 1))
    target, reward, next_value = target[0], reward[0], next_value[0]
    discount = generator.uniform(0.5, 0.99, (16, 1))
    vitals = measure_critic(
        [torch.from_numpy(value) for value in values], *map(torch.from_numpy, (target, reward, next_value, discount))
    )
    expected = {
        "error_square": np.mean((values - target) ** 2),
        "target_variance": np.var(target),
        "reward_square": np.mean(reward**2),
        "reward_max": np.abs(reward).max(),
        "value_size": np.abs(values[0]).mean(),
        "next_value_size": np.abs(next_value).mean(),
        "bootstrap_size": np.abs(target - reward).mean(),
        "discount": discount.max(),
    }
    assert vitals.keys() == expected.keys() == CRITIC_VITALS
    for name, value in expected.items():
        assert float(vitals[name]) == pytest.approx(value, rel=1e-12), name


def test_an_action_is_stuck_where_it_is_at_a_bound_and_would_better_be_inside() -> None:
    own = torch.tensor([[0.999], [0.999], [-0.999], [-0.999], [0.98], [-1.0]])
    slope = torch.tensor([[1.0], [-1.0], [-1.0], [1.0], [1.0], [0.0]])  # the loss falls against it
    stuck = np.array([True, False, True, False, False, True])
    obs = torch.zeros(6, 3)
    assert float(measure_stuck_share(own, slope, obs, ActionMap(1))) == pytest.approx(stuck.mean())


def test_a_correction_that_is_cut_off_by_the_actions_bound_is_not_stuck() -> None:
    own, slope = torch.tensor([[0.999], [0.999]]), torch.ones(2, 1)
    obs = torch.tensor([[5.0, 0.2], [5.0, 0.9]])  # the base action comes last
    assert float(measure_stuck_share(own, slope, obs, ActionMap(1, 0.3))) == 0.5


@pytest.mark.parametrize("every", [1, 2, 3, 5, 10, 25])
def test_a_fifth_of_updates_is_measured_whatever_is_done_only_in_some(every: int) -> None:
    assert is_measured(0)
    assert sum(map(is_measured, range(250))) == 50
    acts = [update for update in range(1250) if (update + 1) % every == 0]
    assert any(map(is_measured, acts))


def test_what_was_measured_is_let_go_with_its_graph() -> None:
    weights, vitals = torch.full((4, 1), 0.5, requires_grad=True), {}
    own = torch.tanh(weights)
    measure_when_passed_back(own, torch.zeros(4, 3), ActionMap(1), vitals)
    own.sum().backward()
    seen = weakref.ref(own)
    del own
    assert seen() is None
    assert float(vitals["stuck_share"]) == 0


def count_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_update_leaves_a_tensor_behind(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm)
    run_steps(trainer, 120)
    before = count_tensors()
    run_steps(trainer, 60)
    assert count_tensors() <= before


def test_the_actor_of_td3_is_measured_for_every_delay(small_trainer: BuildTrainer) -> None:
    for delay in (1, 2, 5):
        results = run_steps(small_trainer(algorithm_name="td3", policy_delay=delay), 80)
        names = set().union(*(result.vitals for result in results))
        assert {"gradient/actor", "weights/actor", "stuck_share"} <= names
        first = next(result.vitals for result in results if result.updates)
        assert {"weights/actor", "weights/critic"} <= first.keys()


def make_agents(**settings: Any) -> tuple[DDPGAgent, DDPGAgent]:
    """Two equal agents in float64; the first updates by hand."""
    base = {"algorithm_name": "ddpg", "env_name": "Pendulum-v1", "hidden_dims": [16, 16], "max_grad_norm": 0.5}
    config = DDPGConfig.from_settings(base | settings)
    agents = [DDPGAgent(config, 4, 1, torch.device("cpu")) for _ in range(2)]
    for agent in agents:
        for network in (agent.actor, agent.critic, agent.target_actor, agent.target_critic):
            network.double()
            # Some of the actions are at their bounds.
            network.mlp.initialise(torch.Generator().manual_seed(1), final_bound=20.0)
    agents[0].update_by_hand()
    by_autograd = agents[1]
    rates = {"actor": by_autograd.actor_optimizer, "critic": by_autograd.critic_optimizer}
    for optimizer in rates.values():  # their moments are of the numbers that the networks had before
        for moments in (optimizer._first, optimizer._second):
            moments[:] = [moment.double() for moment in moments]
    return agents[0], agents[1]


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, 24, 4, generator=generator, dtype=torch.float64)
    reward = torch.randn(24, 1, generator=generator, dtype=torch.float64)
    action = torch.rand(24, 1, generator=generator, dtype=torch.float64) * 2 - 1
    return Batch(obs, action, reward, (reward > 1).double(), next_obs, torch.tensor(0.9, dtype=torch.float64))


@pytest.mark.parametrize(
    "settings",
    [{}, {"guard": "repair"}, {"base_controller": "pendulum_energy", "delta_scale_max": 0.4}, {"max_grad_norm": 0.0}],
    ids=str,
)
def test_the_update_by_hand_measures_what_autograd_does(settings: dict[str, Any]) -> None:
    by_hand, by_autograd = make_agents(**settings)
    stuck = []
    for seed in range(4):
        left: dict[str, Any] = {}
        right: dict[str, Any] = {}
        by_hand.update(make_batch(seed), left)
        by_autograd.update(make_batch(seed), right)
        networks = {f"{what}/{name}" for what in ("gradient", "weights") for name in ("actor", "critic")}
        skips = {"skips"} if "guard" in settings else set()
        assert left.keys() == right.keys() == CRITIC_VITALS | networks | {"stuck_share"} | skips
        for name, value in left.items():
            # Adam amplifies the rounding of gradients near 0 from one update to the next.
            assert float(value) == pytest.approx(float(right[name]), rel=1e-6), name
        stuck.append(float(left["stuck_share"]))
    assert 0 < max(stuck) < 1


@pytest.mark.parametrize("guard", ["warn", "repair"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_measuring_changes_no_bit_of_training(
    small_trainer: BuildTrainer, monkeypatch: pytest.MonkeyPatch, algorithm: str, guard: str
) -> None:
    measured, unmeasured = (small_trainer(algorithm_name=algorithm, guard=guard, normalize_obs=True) for _ in "ab")
    results = run_steps(measured, 100)
    assert sum(bool(result.vitals) for result in results) == 12
    agent = unmeasured.agent
    real = agent.update
    monkeypatch.setattr(agent, "update", lambda batch, vitals: real(batch))
    run_steps(unmeasured, 100)
    states = [trainer.state_dict() for trainer in (measured, unmeasured)]
    for name in ("agent", "buffer", "slots", "obs_normalizer"):
        assert hash_state({name: states[0][name]}) == hash_state({name: states[1][name]}), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gate_that_refuses_nothing_changes_no_bit_of_training(small_trainer: BuildTrainer, algorithm: str) -> None:
    gated = small_trainer(algorithm_name=algorithm, guard="repair")
    plain = small_trainer(algorithm_name=algorithm, guard="warn")
    run_steps(gated, 150)
    run_steps(plain, 150)
    for name in gated.agent.components():
        left, right = (trainer.agent.components()[name].state_dict() for trainer in (gated, plain))
        assert hash_state(dict(left)) == hash_state(dict(right)), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_optimizers_tell_of_steps_left_out(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm, guard="repair")
    run_steps(trainer, 60)
    optimizers = trainer.agent._list_optimizers()
    for optimizer in optimizers:
        optimizer.gate.judge(torch.tensor(math.nan))
    skips = [float(result.vitals["skips"]) for result in run_steps(trainer, 6) if "skips" in result.vitals]
    assert skips[0] == len(optimizers) == (3 if algorithm == "sac" else 2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_treatments_are_multiples_of_the_configs_rates_and_batch(small_trainer: BuildTrainer, algorithm: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm, learning_rate=1e-2, actor_learning_rate=2e-3, batch_size=32)
    for treatment in (Treatment(0.5, 0), Treatment(0.125, 1), Treatment(0.125, 1)):
        trainer.treat(treatment)
        factor = treatment.learning_rate_factor
        assert trainer.agent.critic_optimizer.learning_rate == 1e-2 * factor
        assert trainer.agent.actor_optimizer.learning_rate == 2e-3 * factor
        assert len(trainer._sample().obs if len(trainer._buffer) else [0] * trainer._batch_size) in (32, 16)
        assert trainer._batch_size == 32 >> treatment.batch_halvings
    trainer.treat(Treatment(0.5, 9))
    assert trainer._batch_size == 1


def test_each_redrawing_has_a_stream_of_its_own(small_trainer: BuildTrainer) -> None:
    drawn = []
    for number in (0, 1, 2, 1):
        trainer = small_trainer()
        run_steps(trainer, 50)
        if number:
            trainer.redraw(number)
        drawn.append(trainer._sample().obs.numpy().tobytes())
    assert len(set(drawn)) == 3
    assert drawn[1] == drawn[3]


class LateEnv(gym.Env[Any, Any]):
    """No reward at all before step 120, then a large one in every step."""

    def __init__(self, size: float = 1.0) -> None:
        self.observation_space = self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.size, self.taken = size, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        obs = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return obs, self.size * (self.taken > 120), False, self.taken % 20 == 0, {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_reward_is_learned_from_however_large_it_is(small_trainer: BuildTrainer, algorithm: str) -> None:
    gym.register("Late-v0", LateEnv)
    try:
        skips = []
        for size in (1.0, 1e9):
            trainer = small_trainer(
                algorithm_name=algorithm, env_name="Late-v0", env_kwargs={"size": size}, guard="repair"
            )
            skips.append(sum(float(result.vitals.get("skips", 0.0)) for result in run_steps(trainer, 170)))
        assert skips == [0.0, 0.0]
    finally:
        del gym.registry["Late-v0"]


class FaultyEnv(gym.Env[Any, Any]):
    """Episodes of ten steps; gives what isn't a number in some of them, counted from 1 over its whole life."""

    def __init__(self, kind: str = "reward", steps: tuple[int, ...] | list[int] = (), episode: int = 0) -> None:
        self.observation_space = gym.spaces.Box(-10, 10, (2,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.kind, self.steps, self.episode = kind, list(steps), episode
        self.taken = self.time = self.episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.episodes += 1
        broken = self.episodes == self.episode
        return np.full(2, math.nan if broken else 0.5, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        self.time += 1
        obs, reward = np.full(2, float(action[0]) + self.time / 10, dtype=np.float32), 1.0
        if self.taken in self.steps:
            obs = obs * math.nan if self.kind == "obs" else obs
            reward = math.inf if self.kind == "reward" else reward
        return obs, reward, self.time == 10, False, {}


@pytest.fixture
def _faulty() -> Any:
    gym.register("Faulty-v0", FaultyEnv)
    yield
    del gym.registry["Faulty-v0"]


def read_rows(trainer: OffPolicyTrainer) -> Any:
    log = trainer.state_dict()["buffer"]["rows"]
    return log.rows[: log.total]


def list_faults(results: list[Any]) -> list[tuple[int, str]]:
    return [(step, fault) for step, result in enumerate(results, start=1) for fault in result.faults]


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize(("kind", "what"), [("reward", "reward inf"), ("obs", "an observation")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_repaired_run_leaves_out_what_is_no_number_and_begins_a_new_episode(
    small_trainer: BuildTrainer, algorithm: str, kind: str, what: str
) -> None:
    kwargs = {"kind": kind, "steps": [34, 75]}
    trainer = small_trainer(algorithm_name=algorithm, env_name="Faulty-v0", env_kwargs=kwargs, guard="repair")
    results = run_steps(trainer, 100)
    assert list_faults(results) == [
        (34, f"{what} of environment 0 in its episode 4, step 4"),
        (75, f"{what} of environment 0 in its episode 9, step 1"),
    ]
    assert np.isfinite(read_rows(trainer)).all()
    assert len(read_rows(trainer)) == 98
    assert [episode.length for result in results for episode in result.episodes] == [10] * 9
    for result in results:
        assert all(math.isfinite(float(value)) for value in {**result.metrics, **result.vitals}.values())


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize("kind", ["reward", "obs"])
def test_elsewhere_it_is_told_and_kept(small_trainer: BuildTrainer, kind: str) -> None:
    trainer = small_trainer(env_name="Faulty-v0", env_kwargs={"kind": kind, "steps": [34]}, guard="warn")
    results = run_steps(trainer, 40)
    assert [step for step, _ in list_faults(results)] == [34]
    rows = read_rows(trainer)
    assert len(rows) == 40
    assert not np.isfinite(rows[33]).all()


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize("learning_starts", [40, 10])
def test_an_episode_that_begins_with_what_is_no_number_is_the_environments_fault(
    small_trainer: BuildTrainer, learning_starts: int
) -> None:
    trainer = small_trainer(
        env_name="Faulty-v0", env_kwargs={"episode": 3}, guard="repair", learning_starts=learning_starts
    )
    results = run_steps(trainer, 60)
    assert list_faults(results) == [(21, "an observation of environment 0 in its episode 3, step 1")]
    assert np.isfinite(read_rows(trainer)).all()


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("guard", ["warn", "repair"])
def test_a_learners_nan_is_not_the_environments_fault(small_trainer: BuildTrainer, algorithm: str, guard: str) -> None:
    trainer = small_trainer(algorithm_name=algorithm, env_name="Faulty-v0", guard=guard)
    run_steps(trainer, 45)
    with torch.no_grad():
        for parameter in trainer.agent.actor.parameters():
            parameter.fill_(math.nan)
    with np.errstate(invalid="ignore"):
        assert list_faults(run_steps(trainer, 30)) == []


@pytest.mark.usefixtures("_faulty")
def test_a_fault_in_one_of_several_environments_leaves_the_others_alone(small_trainer: BuildTrainer) -> None:
    settings = {"env_name": "Faulty-v0", "num_envs": 2, "n_step": 3, "normalize_reward": True, "guard": "repair"}
    trainer = small_trainer(**settings, env_kwargs={"steps": [24]})
    trainer._slots[1].env.unwrapped.steps = []
    results = run_steps(trainer, 60)
    assert [step for step, _ in list_faults(results)] == [24]
    rows = read_rows(trainer)
    assert np.isfinite(rows).all()
    assert math.isfinite(trainer._reward_normalizer.scale())
