"""What one batch does, held against the paper written out plainly (`paper.py`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rl.descent import Descent
from rl.tdmpc2.agent import TDMPC2, Batch
from rl.tdmpc2.config import TDMPC2Config
from rl.tdmpc2.sizes import ModelSizes
from rl.tdmpc2.world_model import Tasks
from tests.rl.tdmpc2.conftest import SMALL
from tests.rl.tdmpc2.paper import Plain
from train import build_config
from training.resources import hash_state
from training.rowlog import RowLog
from training.state import pack_state, unpack_state

COUNT, HORIZON, DISCOUNTS = 7, 3, (0.9, 0.97)
MASKS = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
VECTORS: dict[str, Any] = {"obs_shape": (3,), "action_dim": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "vectors": VECTORS,
    "episodic": VECTORS | {"episodic": True},
    "tasks": VECTORS | {"num_tasks": 2, "task_dim": 4, "episodic": True},
    "discrete": {"obs_shape": (3,), "action_dim": 4, "discrete": True, "episodic": True},
    "pixels": {"obs_shape": (2, 40, 40), "action_dim": 2, "num_channels": 16},
}
"""Images of 40 x 40 become one pixel of each channel: 16 numbers."""


def configure(**settings: Any) -> TDMPC2Config:
    config = build_config(SMALL | {"num_q": 5, "dropout": 0.0, "random_shift": 0} | settings)
    assert isinstance(config, TDMPC2Config)
    return config


def build_agent(shape: Mapping[str, Any] = VECTORS, **settings: Any) -> TDMPC2:
    """Give an agent whose networks say something of everything, and whose slow copy says something else."""
    config = configure(**settings, episodic=shape.get("episodic", False))
    sizes = {name: getattr(config, name) for name in ("latent_dim", "mlp_dim", "enc_dim", "num_q", "num_bins")}
    agent = TDMPC2(config, ModelSizes(**sizes, **shape), torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        if agent.model.task_embedding is not None:
            agent.model.task_embedding[1] *= 2 / agent.model.task_embedding[1].norm()  # one is cut to length 1
    return agent


def make_batch(sizes: ModelSizes, seed: int = 0, count: int = COUNT, padded: bool = False) -> Batch:
    """Draw sequences; where some are `padded`, what is after their ends is drawn too, and must not count."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(HORIZON + 1, count, *sizes.obs_shape, generator=generator)
    action = 2 * torch.rand(HORIZON, count, sizes.action_dim, generator=generator) - 1
    number = torch.arange(count) % max(sizes.num_tasks, 1)
    tasks = None
    if sizes.num_tasks:
        tasks = Tasks(number, MASKS[number])
        action = action * tasks.mask
    length = torch.arange(count) % HORIZON + 1 if padded else torch.full((count,), HORIZON)
    return Batch(
        obs=(60 * obs + 128).clamp(0, 255).to(torch.uint8) if sizes.sees_pixels else obs,
        action=functional.one_hot(action.argmax(-1), sizes.action_dim).float() if sizes.discrete else action,
        reward=3 * torch.randn(HORIZON, count, 1, generator=generator),
        terminated=(torch.rand(HORIZON, count, 1, generator=generator) < 0.3).float(),
        valid=(torch.arange(HORIZON)[:, None] < length).float()[..., None],
        discount=torch.tensor(DISCOUNTS)[number][:, None],
        tasks=tasks,
    )


@dataclass
class Watch:
    """What updates drew and descended, in order: draws, chosen heads, and by the descent's name what it was given."""

    noise: list[Tensor] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def watch(agent: TDMPC2, monkeypatch: pytest.MonkeyPatch, *, still: bool = False) -> Watch:
    """Look at what an agent does; with `still`, no network moves."""
    seen = Watch()
    draw, choose = agent._draw, agent._choose_heads
    names = {id(parameter): name for name, parameter in agent.model.named_parameters()}

    def keep_noise(*given: Any) -> Tensor:
        seen.noise.append(draw(*given))
        return seen.noise[-1]

    def keep_heads() -> list[int]:
        seen.heads.append(choose())
        return seen.heads[-1]

    def look_into(name: str, descent: Descent) -> None:
        descend, parameters = descent.descend, [one for part in descent.optimizers for one in part.parameters]

        def keep(loss: Tensor, *given: Any) -> None:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            seen.losses[name] = loss.detach()
            seen.gradients[name] = dict(zip((names[id(each)] for each in parameters), gradients, strict=True))
            seen.weights[name] = {key: value.clone() for key, value in agent.model.state_dict().items()}
            if not still:
                descend(loss, *given)

        monkeypatch.setattr(descent, "descend", keep)

    monkeypatch.setattr(agent, "_draw", keep_noise)
    monkeypatch.setattr(agent, "_choose_heads", keep_heads)
    look_into("model", agent._model_descent)
    look_into("policy", agent._policy_descent)
    return seen


def assert_same_gradients(found: Mapping[str, Tensor], plain: Plain, loss: Tensor) -> None:
    """Each tensor's gradient differs by a ten-thousandth of its length at most, or of a hundredth of the longest's."""
    wanted = torch.autograd.grad(loss, [plain.weights[name] for name in found])
    longest = max(float(gradient.norm()) for gradient in wanted)
    for (name, gradient), right in zip(found.items(), wanted, strict=True):
        distance = float((gradient.double() - right).norm())
        assert distance <= 1e-4 * max(float(right.norm()), 0.01 * longest), name


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_paper(
    variant: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sequences are padded, these here leave out what is after their ends, and the agent's losses mask it."""
    agent = build_agent(VARIANTS[variant], entropy_coef=0.01, tau=0.1, termination_coef=0.7)
    sizes, config = agent.model.sizes, agent._config
    batch = make_batch(sizes, padded=padded)
    seen = watch(agent, monkeypatch)
    agent.scale.fill_(2.5)
    metrics = agent.update(batch)

    before = Plain(seen.weights["model"], sizes, config)
    losses, imagined = before.find_model_losses(batch, seen.noise[0], seen.heads[0])
    for name, loss in losses.items():
        if name != "termination" or sizes.episodic:
            torch.testing.assert_close(metrics[f"train/{name}_loss"].double(), loss.detach(), rtol=1e-4, atol=0)
    assert_same_gradients(seen.gradients["model"], before, losses["total"])
    lengths = torch.stack([gradient.norm() for gradient in seen.gradients["model"].values()])
    torch.testing.assert_close(metrics["train/model_grad_norm"], lengths.norm(), rtol=1e-4, atol=0)

    after = Plain(seen.weights["policy"], sizes, config)
    loss, scale = after.find_policy_loss(batch, imagined, seen.noise[1], seen.heads[1], 2.5)
    torch.testing.assert_close(metrics["train/policy_loss"].double(), loss.detach(), rtol=1e-4, atol=0)
    assert_same_gradients(seen.gradients["policy"], after, loss)
    assert float(agent.scale) == pytest.approx(scale, rel=1e-4)
    assert scale != pytest.approx(2.5, rel=1e-3)


def test_what_stands_after_an_episodes_end_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for noise in (0.0, 40.0):
        agent = build_agent(VARIANTS["episodic"])
        batch = make_batch(agent.model.sizes, padded=True)
        ended = batch.valid == 0
        seen = watch(agent, monkeypatch)
        agent.update(
            replace(
                batch,
                obs=torch.cat([batch.obs[:1], batch.obs[1:] + noise * ended]),
                action=batch.action + noise * ended,
                reward=batch.reward + noise * ended,
                terminated=torch.where(ended & (noise > 0), 1 - batch.terminated, batch.terminated),
            )
        )
        gradients.append(seen.gradients["model"] | seen.gradients["policy"])
    assert ended.any()
    assert [name for name, gradient in gradients[0].items() if not torch.equal(gradient, gradients[1][name])] == []


@pytest.mark.parametrize("variant", ["vectors", "tasks", "discrete"])
def test_a_terminal_step_is_worth_its_reward_and_a_truncated_one_what_the_slow_copy_says_too(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build_agent(VARIANTS[variant])
    sizes = agent.model.sizes
    batch = make_batch(sizes)
    seen = watch(agent, monkeypatch)
    target, *_ = agent._find_target(batch, batch.obs)
    ended = batch.terminated.bool()
    assert ended.any()
    assert torch.equal(target[ended], batch.reward[ended])
    plain = Plain(agent.model.state_dict(), sizes, agent._config)
    for step, place, _ in (~ended).nonzero().tolist():
        by_hand = plain.find_target(batch, place, step, seen.noise[0], seen.heads[0])
        torch.testing.assert_close(target[step, place, 0].double(), by_hand, rtol=1e-4, atol=1e-5)
        assert (by_hand - batch.reward[step, place, 0]).abs() > 1e-4


def test_a_target_takes_the_lower_of_two_heads_that_are_drawn_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent()
    seen = watch(agent, monkeypatch, still=True)
    for _ in range(60):
        agent.update(make_batch(agent.model.sizes))
    assert all(first != second for first, second in seen.heads)
    drawn = {frozenset(pair) for pair in seen.heads}
    assert len(drawn) == 10  # all pairs of five


def test_the_policys_step_moves_the_policy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(VARIANTS["tasks"], tau=1e-6)
    monkeypatch.setattr(agent._model_descent, "descend", lambda *_: None)
    before = copy.deepcopy(agent.model.state_dict())
    agent.update(make_batch(agent.model.sizes))
    moved = {name for name, tensor in agent.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} - {"target_q"} == {"policy"}
    assert {name for name in before if name.startswith("policy.")} <= moved


def test_the_models_step_leaves_the_policy_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(VARIANTS["tasks"])
    monkeypatch.setattr(agent._policy_descent, "descend", lambda *_: None)
    before = copy.deepcopy(agent.model.state_dict())
    agent.update(make_batch(agent.model.sizes))
    kept = {name for name, tensor in agent.model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in kept} == {"policy"}


def test_the_slow_copy_comes_nearer_by_the_same_share_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(tau=0.1)
    watch(agent, monkeypatch, still=True)
    online = [parameter.detach().clone() for parameter in agent.model.q.parameters()]
    before = [slow - fast for slow, fast in zip(agent.model.target_q.parameters(), online, strict=True)]
    for _ in range(12):
        agent.update(make_batch(agent.model.sizes))
    for slow, fast, distance in zip(agent.model.target_q.parameters(), online, before, strict=True):
        torch.testing.assert_close(slow - fast, 0.9**12 * distance, rtol=1e-4, atol=1e-6)


def test_the_scale_follows_the_distance_of_two_quantiles_and_is_never_below_one() -> None:
    agent = build_agent(tau=0.25)
    values = torch.linspace(-30.0, 10.0, 41)[torch.randperm(41)][:, None]
    for number in range(1, 9):
        agent._follow_scale(values)
        assert float(agent.scale) == pytest.approx(36 - 35 * 0.75**number, rel=1e-5)
    for _ in range(60):
        agent._follow_scale(torch.full((9, 1), 3.0))
    assert float(agent.scale) == pytest.approx(1.0, abs=1e-4)
    assert float(agent.scale) >= 1.0


def test_the_first_update_divides_values_by_one_where_all_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(tau=0.5)
    with torch.no_grad():
        agent.model.q.weights[-1].zero_()
    watch(agent, monkeypatch, still=True)
    metrics = agent.update(make_batch(agent.model.sizes))
    assert float(metrics["train/q_scale"]) == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_updates_on_one_batch_lower_each_loss(variant: str) -> None:
    """With a slow copy that hardly moves, all targets stay where they are but for the policy's."""
    agent = build_agent(VARIANTS[variant], lr=3e-3, tau=1e-6, dropout=0.01)
    batch = make_batch(agent.model.sizes, count=16, padded=True)
    history = [agent.update(batch) for _ in range(51)]
    names = ["consistency", "reward", "value", "total", *(["termination"] if agent.model.sizes.episodic else [])]
    for name in names:
        first, last = (float(history[place][f"train/{name}_loss"]) for place in (0, -1))
        assert last < 0.9 * first, name
    values = [float(metrics["train/q_mean"]) for metrics in history]
    assert all(np.isfinite(values))


def test_the_policy_climbs_what_the_value_heads_say(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(lr=3e-3, entropy_coef=0.0)
    monkeypatch.setattr(agent._model_descent, "descend", lambda *_: None)
    monkeypatch.setattr(agent, "_choose_heads", lambda: [1, 3])
    batch = make_batch(agent.model.sizes, count=32)
    values = [float(agent.update(batch)["train/q_mean"]) for _ in range(80)]
    assert np.mean(values[-10:]) > np.mean(values[:10]) + 0.5


def test_rates_are_the_configs_and_the_encoders_is_a_share_of_it() -> None:
    agent = build_agent(VARIANTS["episodic"], lr=1e-3, enc_lr_scale=0.3)

    def list_rates() -> list[float]:
        model, policy = agent._model_descent, agent._policy_descent
        return [one.learning_rate for one in (*model.optimizers, *policy.optimizers)]

    assert list_rates() == pytest.approx([3e-4] + [1e-3] * 5)
    agent.scale_learning_rates(0.5)
    assert list_rates() == pytest.approx([1.5e-4] + [5e-4] * 5)
    agent.scale_learning_rates(1.0)
    assert list_rates() == pytest.approx([3e-4] + [1e-3] * 5)


def test_gradients_of_the_model_are_shortened_together_and_the_policys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build_agent(grad_clip_norm=0.01)
    steps: dict[str, list[Tensor]] = {"model": [], "policy": []}
    for name, descent in (("model", agent._model_descent), ("policy", agent._policy_descent)):
        for optimizer in descent.optimizers:

            def keep(gradients: Sequence[Tensor], *_: Any, name: str = name) -> None:
                steps[name] += [gradient.flatten() for gradient in gradients]

            monkeypatch.setattr(optimizer, "step", keep)
    metrics = agent.update(make_batch(agent.model.sizes))
    assert float(metrics["train/model_grad_norm"]) > 0.1
    assert float(torch.cat(steps["model"]).norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(torch.cat(steps["policy"]).norm()) == pytest.approx(
        min(0.01, float(metrics["train/policy_grad_norm"])), rel=1e-3
    )


def test_each_sequences_images_move_together_and_edges_are_repeated() -> None:
    agent = build_agent(VARIANTS["pixels"], random_shift=2)
    ramp = torch.arange(40 * 40).view(1, 1, 1, 40, 40).remainder(251).to(torch.uint8)
    moved = agent._shift(ramp.expand(3, 12, 2, 40, 40).contiguous())
    found = set()
    for sequence in moved.unbind(1):
        assert torch.equal(sequence[0], sequence[1])
        assert torch.equal(sequence[0], sequence[2])
        assert torch.equal(sequence[0, 0], sequence[0, 1])
        fits = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(sequence[0, 0], take_shifted(ramp[0, 0, 0], down, right))
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) > 4


def take_shifted(image: Tensor, down: int, right: int) -> Tensor:
    rows = (torch.arange(len(image)) + down).clamp(0, len(image) - 1)
    columns = (torch.arange(image.shape[1]) + right).clamp(0, image.shape[1] - 1)
    return image[rows][:, columns]


def test_images_that_are_not_to_move_and_vectors_stay_as_they_are() -> None:
    for agent in (build_agent(VARIANTS["pixels"], random_shift=0), build_agent(random_shift=2)):
        obs = make_batch(agent.model.sizes).obs
        assert agent._shift(obs) is obs


@pytest.mark.parametrize("variant", VARIANTS)
def test_acting_and_judging_draw_from_nothing_that_learning_draws_from(variant: str) -> None:
    """With dropout: acting has none."""
    agent = build_agent(VARIANTS[variant], dropout=0.3, random_shift=2)
    batch = make_batch(agent.model.sizes)
    agent.update(batch)
    before = hash_state(agent.state_dict())
    chosen = [agent.act(batch.obs[0], batch.tasks, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(chosen[0].action, chosen[1].action)
    values = [agent.value(batch.obs[0], chosen[0].action, batch.tasks) for _ in range(2)]
    assert torch.equal(values[0], values[1])
    assert values[0].shape == (COUNT, 1)
    assert hash_state(agent.state_dict()) == before


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("guard", ["warn", "repair"])
def test_a_loaded_agent_goes_on_with_the_same_bits(variant: str, guard: str) -> None:
    """Dropout, heads, policies and shifts draw on where they were; also in an agent of another seed and life."""
    settings = {"dropout": 0.1, "random_shift": 2, "guard": guard}
    one, other = build_agent(VARIANTS[variant], **settings), build_agent(VARIANTS[variant], **settings, seed=4)
    batches = [make_batch(one.model.sizes, seed, padded=bool(seed % 2)) for seed in range(8)]
    for batch in batches[:4]:
        one.update(batch)
    other.update(batches[7])
    packed = copy.deepcopy(pack_state(one.state_dict()))
    no_logs: dict[str, RowLog] = {}
    other.load_state_dict(unpack_state(packed, no_logs.__getitem__))
    for batch in batches[4:]:
        metrics = one.update(batch)
        again = other.update(batch)
        assert {name: float(value) for name, value in metrics.items()} == {
            name: float(value) for name, value in again.items()
        }
    assert hash_state(one.state_dict()) == hash_state(other.state_dict())


def test_every_attribute_is_in_the_state_or_declared_transient() -> None:
    agent = build_agent(VARIANTS["tasks"])
    saved = {f"_{key}" for key in agent.state_dict()} | set(agent.state_dict())
    assert set(vars(agent)) <= saved | set(TDMPC2.TRANSIENT)
    assert set(TDMPC2.TRANSIENT) <= set(vars(agent)), "a transient attribute that isn't there"


def drop(state: dict[str, Any], name: str) -> dict[str, Any]:
    return state | {"model": {key: value for key, value in state["model"].items() if key != name}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state | {"format": 2}, "the saved agent is of format 2, and this version reads format 1"),
        (lambda state: drop(state, "policy.0.bias"), "don't have the same networks: policy.0.bias is in one alone"),
        (
            lambda _: build_agent(VARIANTS["episodic"]).state_dict(),
            "don't have the same networks: termination_head.0.bias is in one alone",
        ),
        (
            lambda _: build_agent(mlp_dim=24).state_dict(),
            r"the saved model's dynamics\.0\.weight has shape \(24, 18\), and this run's \(16, 18\): model_size",
        ),
        (
            lambda _: build_agent(num_q=3).state_dict(),
            r"the saved model's q\.weights\.0 has shape \(3, 16, 18\), and this run's \(5, 16, 18\): model_size",
        ),
        (
            lambda _: build_agent(VECTORS | {"obs_shape": (4,)}).state_dict(),
            r"the saved model's encoder\.0\.weight has shape \(16, 4\), and this run's \(16, 3\): .*the environment",
        ),
    ],
    ids=["format", "missing", "episodic", "width", "heads", "observations"],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    agent = build_agent()
    before = hash_state(agent.state_dict())
    with pytest.raises(ValueError, match=said) as refused:
        agent.load_state_dict(change(agent.state_dict()))
    assert "\n" not in str(refused.value)
    assert hash_state(agent.state_dict()) == before
