"""The latent world: shapes, what its seed decides, the slow copy, tasks and their masks, and what the policy gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rl.tdmpc2.planner import draw_gumbel
from rl.tdmpc2.sizes import ModelSizes
from rl.tdmpc2.two_hot import TwoHot
from rl.tdmpc2.world_model import (
    PolicyRange,
    Tasks,
    WorldModel,
    build_half,
    choose_discrete,
    join,
    refresh_half,
)

CPU = torch.device("cpu")
RANGE = PolicyRange(-5.0, 2.0)
VECTORS = ModelSizes((7,), 3, latent_dim=16, mlp_dim=12, enc_dim=10, num_q=4, num_bins=11)
TASKS = replace(VECTORS, num_tasks=3, task_dim=5, episodic=True)
PIXELS = replace(VECTORS, obs_shape=(2, 45, 49), num_channels=4, latent_dim=4 * 1 * 2, simnorm_dim=4)
DISCRETE = replace(VECTORS, discrete=True)
KINDS = {"vectors": VECTORS, "tasks": TASKS, "pixels": PIXELS, "discrete": DISCRETE}
MASKS = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


def build(sizes: ModelSizes = VECTORS, seed: int = 0, dropout: float = 0.2) -> WorldModel:
    model = WorldModel(sizes, TwoHot(-10, 10, sizes.num_bins), RANGE, dropout)
    model.initialise(seeded(seed))
    return model


@torch.no_grad()
def scramble(model: WorldModel) -> WorldModel:
    """Give networks that learn numbers of their own, where they began with zeros."""
    generator = seeded(5)
    for network in model.components().values():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def draw_obs(sizes: ModelSizes, *rows: int) -> Tensor:
    if sizes.sees_pixels:
        return torch.randint(0, 256, (*rows, *sizes.obs_shape), generator=seeded(), dtype=torch.uint8)
    return draw(*rows, *sizes.obs_shape)


def name_tasks(*numbers: int) -> Tasks:
    index = torch.tensor(numbers)
    return Tasks(index, MASKS[index])


def read_state(model: WorldModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_numbers(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [(4,), (3, 4)])
def test_everything_has_the_shape_that_it_says(kind: str, rows: tuple[int, ...]) -> None:
    sizes = KINDS[kind]
    model = build(sizes)
    task = model.embed(name_tasks(0, 1, 2, 0) if sizes.num_tasks else None)
    latent = model.encode(draw_obs(sizes, *rows), task)
    assert latent.shape == (*rows, sizes.latent_dim)
    choice = model.act(latent, draw(*rows, 3), task)
    assert choice.action.shape == choice.mean.shape == (*rows, 3)
    assert choice.entropy.shape == (*rows, 1)
    joint = join(latent, choice.action, task)
    assert joint.shape == (*rows, sizes.joint_dim)
    assert model.follow(joint).shape == latent.shape
    assert model.predict_reward(joint).shape == (*rows, 11)
    assert model.value(joint, None).shape == (4, *rows, 11)
    assert model.value(joint, [3, 1], target=True).shape == (2, *rows, 11)
    if sizes.episodic:
        assert model.predict_end(latent, task).shape == (*rows, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_latent_states_are_groups_that_add_up_to_one(kind: str) -> None:
    sizes = KINDS[kind]
    model = scramble(build(sizes))
    task = model.embed(name_tasks(0, 1, 2, 0) if sizes.num_tasks else None)
    latent = model.encode(draw_obs(sizes, 4), task)
    following = model.follow(join(latent, draw(4, 3), task))
    for each in (latent, following):
        sums = each.view(4, -1, sizes.simnorm_dim).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_all_first_weights_and_nothing_global_is_drawn(kind: str) -> None:
    models = [WorldModel(KINDS[kind], TwoHot(-10, 10, 11), RANGE, 0.1) for _ in range(3)]
    before = torch.get_rng_state()
    for model, seed in zip(models, (3, 3, 4), strict=True):
        model.initialise(seeded(seed))
    assert torch.equal(before, torch.get_rng_state())
    first, same, other = (read_state(model) for model in models)
    assert same_numbers(first, same)
    drawn = [name for name, tensor in first.items() if tensor.dim() > 1 and len(set(tensor.flatten().tolist())) > 2]
    assert len(drawn) >= 14
    assert all(not torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_and_values_are_zero_at_first(kind: str) -> None:
    model = build(KINDS[kind]).eval()
    joint = draw(6, model.sizes.joint_dim)
    for logits in (model.predict_reward(joint), model.value(joint, None), model.value(joint, None, target=True)):
        assert model.two_hot.decode(logits).abs().max() < 1e-5


def test_ends_are_predicted_only_where_episodes_may_end() -> None:
    assert build(VECTORS).termination_head is None
    with pytest.raises(AssertionError, match="episodic"):
        build(VECTORS).predict_end(draw(2, 16))


def test_the_slow_copy_has_no_gradients_and_no_dropout_and_memory_of_its_own() -> None:
    model = scramble(build())
    online, slow = list(model.q.parameters()), list(model.target_q.parameters())
    assert [tuple(one.shape) for one in online] == [tuple(other.shape) for other in slow]
    assert not any(parameter.requires_grad for parameter in slow)
    assert {one.data_ptr() for one in online}.isdisjoint({other.data_ptr() for other in slow})
    joint = draw(6, VECTORS.joint_dim).requires_grad_()
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.q.training == mode
        assert not model.target_q.training
        assert torch.equal(model.value(joint, None, target=True), model.value(joint, None, target=True))
    logits = model.value(joint, None, target=True)
    assert set(torch.autograd.grad(logits.sum(), online, allow_unused=True)) == {None}


def test_the_slow_copy_begins_as_the_heads_are_and_stays_when_they_move() -> None:
    model = build()
    for one, other in zip(model.q.parameters(), model.target_q.parameters(), strict=True):
        assert torch.equal(one, other)
    before = [parameter.clone() for parameter in model.target_q.parameters()]
    scramble(model)
    assert all(torch.equal(one, other) for one, other in zip(before, model.target_q.parameters(), strict=True))
    model.eval()
    joint = draw(6, VECTORS.joint_dim)
    assert not torch.equal(model.value(joint, None), model.value(joint, None, target=True))


def test_the_slow_copy_is_no_component() -> None:
    model = build(TASKS)
    learnable = {id(parameter) for network in model.components().values() for parameter in network.parameters()}
    assert learnable == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert learnable.isdisjoint({id(parameter) for parameter in model.target_q.parameters()})


def test_chosen_heads_are_picked_from_all_and_rows_are_rows_in_any_shape() -> None:
    model = scramble(build()).eval()
    joint = draw(2, 5, VECTORS.joint_dim)
    every = model.value(joint, None)
    torch.testing.assert_close(model.value(joint, [2, 0]), every[[2, 0]])
    torch.testing.assert_close(every.flatten(1, 2), model.value(joint.flatten(0, 1), None))


def test_a_value_is_the_least_or_the_mean_of_what_the_chosen_heads_say() -> None:
    model = scramble(build()).eval()
    joint = draw(2, 5, VECTORS.joint_dim)
    first, second = model.two_hot.decode(model.value(joint, [3, 1]))
    torch.testing.assert_close(model.Q(joint, [3, 1], "min"), torch.minimum(first, second))
    torch.testing.assert_close(model.Q(joint, [3, 1], "avg"), (first + second) / 2)
    slow = model.two_hot.decode(model.value(joint, [3, 1], target=True)).amin(0)
    torch.testing.assert_close(model.Q(joint, [3, 1], "min", target=True), slow)


def test_dropout_is_of_value_heads_in_training_alone() -> None:
    model = scramble(build(dropout=0.5))
    joint = draw(6, VECTORS.joint_dim)
    one, same, other = (model.value(joint, None, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    for network in (model.follow, model.predict_reward):
        assert torch.equal(network(joint), network(joint))
    model.eval()
    assert torch.equal(model.value(joint, None, generator=seeded(1)), model.value(joint, None, generator=seeded(2)))


def test_a_frozen_value_moves_the_action_and_no_head() -> None:
    model = scramble(build()).eval()
    joint = draw(6, VECTORS.joint_dim).requires_grad_()
    value = model.two_hot.decode(model.value(joint, [0, 3], frozen=True)).sum()
    (slope,) = torch.autograd.grad(value, joint, retain_graph=True)
    assert slope.abs().min() > 0
    assert set(torch.autograd.grad(value, list(model.q.parameters()), allow_unused=True)) == {None}


def test_nothing_tells_tasks_apart_where_there_is_one() -> None:
    model = build()
    assert model.embed(None) is None
    assert "task_embedding" not in model.components()


def test_what_tells_tasks_apart_has_a_length_of_one_at_most() -> None:
    model = build(TASKS)
    assert model.task_embedding is not None
    small = model.embed(name_tasks(2, 0, 2))
    assert small is not None
    assert torch.equal(small, model.task_embedding[[2, 0, 2]])
    assert small.norm(dim=-1).max() < 1
    with torch.no_grad():
        model.task_embedding[0] *= 1e4
        model.task_embedding[1] *= 1e-3
    found = model.embed(name_tasks(0, 1, 2))
    assert found is not None
    assert found.norm(dim=-1)[0].item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(found[0], nn.functional.normalize(model.task_embedding[0], dim=0))
    torch.testing.assert_close(found[1:], model.task_embedding[1:])
    (slope,) = torch.autograd.grad(found.sum(), [model.task_embedding])
    assert torch.isfinite(slope).all()


def test_a_task_is_seen_by_every_network_but_those_of_pixels() -> None:
    model = scramble(build(TASKS)).eval()
    obs, action = draw(1, 7).expand(2, -1), draw(1, 3).expand(2, -1)
    task = model.embed(name_tasks(0, 2))
    latent = model.encode(obs, task)
    same = latent[:1].expand(2, -1)
    outs = [latent, model.act(same, torch.zeros(2, 3), task).mean, model.predict_end(same, task)]
    joint = join(same, action, task)
    outs += [model.follow(joint), model.predict_reward(joint), *model.value(joint, None)]
    assert all(not torch.allclose(*out) for out in outs)


def test_the_policy_is_a_squashed_normal_one() -> None:
    model = scramble(build())
    latent, noise = model.encode(draw(50, 7)), draw(50, 3, seed=1)
    out = model.policy(latent).double()
    mean, raw = out.chunk(2, dim=-1)
    log_std = RANGE.log_std_min + (RANGE.log_std_max - RANGE.log_std_min) * (torch.tanh(raw) + 1) / 2
    choice = model.act(latent, noise)
    torch.testing.assert_close(choice.mean.double(), torch.tanh(mean), rtol=1e-4, atol=1e-5)
    expected = torch.tanh(mean + noise.double() * log_std.exp())
    torch.testing.assert_close(choice.action.double(), expected, rtol=1e-4, atol=1e-5)
    assert choice.action.abs().max() <= 1
    torch.testing.assert_close(model.act(latent, torch.zeros(50, 3)).action, choice.mean)


@pytest.mark.parametrize(("raw", "log_std"), [(-50.0, -5.0), (0.0, -1.5), (50.0, 2.0)])
def test_deviations_stay_in_their_range(raw: float, log_std: float) -> None:
    model = build()
    last = model.policy[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0] * 3 + [raw] * 3))
    choice = model.act(draw(2, 16), torch.full((2, 3), 0.01))
    torch.testing.assert_close(choice.action, torch.full((2, 3), math.tanh(0.01 * math.exp(log_std))))


def find_log_prob(model: WorldModel, latent: Tensor, noise: Tensor, task: Tensor | None = None) -> Tensor:
    """Give each normal number's log density, before it is squashed, by torch's distribution."""
    mean, raw = model.policy(join(latent, task)).chunk(2, dim=-1)
    log_std = RANGE.log_std_min + (RANGE.log_std_max - RANGE.log_std_min) * (torch.tanh(raw) + 1) / 2
    normal = torch.distributions.Normal(mean, log_std.exp())
    found: Tensor = normal.log_prob(mean + noise * log_std.exp())  # type: ignore[no-untyped-call]
    return found


def test_the_entropy_is_that_before_squashing_times_the_number_of_actions() -> None:
    model = scramble(build())
    latent, noise = model.encode(draw(20, 7)), draw(20, 3, seed=1)
    expected = -3 * find_log_prob(model, latent, noise).sum(-1, keepdim=True)
    torch.testing.assert_close(model.act(latent, noise).entropy, expected, rtol=1e-4, atol=1e-4)


def test_actions_that_a_task_lacks_are_zero_and_count_for_no_entropy() -> None:
    model = scramble(build(TASKS))
    tasks = name_tasks(0, 1, 2, 1)
    task = model.embed(tasks)
    latent, noise = model.encode(draw(2, 4, 7), task), draw(2, 4, 3, seed=1)
    choice = model.act(latent, noise, task, tasks.mask)
    missing = (tasks.mask == 0).expand(2, -1, -1)
    for part in (choice.action, choice.mean):
        assert part[missing].abs().max() == 0
        assert part[~missing].abs().min() > 0
    free = model.act(latent, noise, task)
    assert torch.equal(choice.action[~missing], free.action[~missing])
    assert torch.equal(choice.mean[~missing], free.mean[~missing])
    counts = tasks.mask.sum(-1, keepdim=True)
    expected = -counts * (find_log_prob(model, latent, noise, task) * tasks.mask).sum(-1, keepdim=True)
    torch.testing.assert_close(choice.entropy, expected, rtol=1e-4, atol=1e-4)


def test_a_masked_action_gives_the_policy_no_gradient() -> None:
    model = scramble(build(TASKS))
    tasks = name_tasks(1, 1)
    task = model.embed(tasks)
    choice = model.act(draw(2, 16), draw(2, 3), task, tasks.mask)
    last = model.policy[-1]
    assert isinstance(last, nn.Linear)
    (slope,) = torch.autograd.grad((choice.action.sum() + choice.entropy.sum()), [last.bias])
    assert torch.equal(slope != 0, torch.tensor([True, False, False, True, False, False]))


def test_gradients_reach_the_policy_through_the_action() -> None:
    model = scramble(build())
    latent, noise = draw(5, 16), draw(5, 3, seed=1)
    last = model.policy[-1]
    assert isinstance(last, nn.Linear)
    choice = model.act(latent, noise)
    (slope,) = torch.autograd.grad(choice.action.sum(), [last.bias])
    torch.testing.assert_close(slope[:3], (1 - choice.action.square()).sum(0), rtol=1e-4, atol=1e-5)


def test_a_discrete_policy_gives_one_of_its_actions() -> None:
    model = scramble(build(DISCRETE))
    latent = draw(2, 30, 16)
    choice = model.act(latent, draw_gumbel((2, 30, 3), CPU, seeded()))
    for part in (choice.action, choice.mean):
        assert set(part.flatten().tolist()) == {0.0, 1.0}
        assert torch.equal(part.sum(-1), torch.ones(2, 30))
    assert torch.equal(choice.mean.argmax(-1), model.policy(latent).argmax(-1))


def test_discrete_actions_come_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0])
    count = 40_000
    drawn = choose_discrete(logits.expand(count, -1), draw_gumbel((count, 4), CPU, seeded())).action.mean(0)
    expected = logits.softmax(-1)
    for found, share in zip(drawn.tolist(), expected.tolist(), strict=True):
        assert found == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / count))


def test_the_gradient_of_a_discrete_action_is_that_of_the_softmax() -> None:
    logits, noise = draw(6, 4).requires_grad_(), draw_gumbel((6, 4), CPU, seeded())
    slope = draw(6, 4, seed=2)
    (found,) = torch.autograd.grad(choose_discrete(logits, noise).action, [logits], slope)
    (expected,) = torch.autograd.grad((logits + noise).softmax(-1), [logits], slope)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


def test_the_entropy_of_a_discrete_policy_is_that_of_its_probabilities() -> None:
    logits = 3 * draw(8, 5)
    expected = torch.distributions.Categorical(logits=logits).entropy()[:, None]  # type: ignore[no-untyped-call]
    torch.testing.assert_close(choose_discrete(logits, torch.zeros(8, 5)).entropy, expected)
    even = choose_discrete(torch.zeros(1, 5), torch.zeros(1, 5)).entropy.item()
    assert even == pytest.approx(math.log(5))


def test_numbers_are_put_side_by_side_and_repeated_over_time() -> None:
    latent, action, task = draw(3, 4, 6), draw(3, 4, 2, seed=1), draw(4, 5, seed=2)
    joint = join(latent, action, task)
    assert joint.shape == (3, 4, 13)
    assert torch.equal(joint[..., :6], latent)
    assert torch.equal(joint[..., 6:8], action)
    assert torch.equal(joint[..., 8:], task.expand(3, 4, 5))
    assert join(latent, None) is latent
    assert torch.equal(join(latent, action, None), joint[..., :8])


def test_pixels_are_seen_alike_whatever_the_task() -> None:
    model = scramble(build(replace(PIXELS, num_tasks=3, task_dim=5)))
    obs = draw_obs(PIXELS, 1).expand(2, -1, -1, -1)
    latent = model.encode(obs, model.embed(name_tasks(0, 2)))
    torch.testing.assert_close(latent[0], latent[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_copy_follows_the_model_and_stands_apart(kind: str) -> None:
    model = scramble(build(KINDS[kind]))
    half = build_half(model)
    assert not half.training
    assert not any(parameter.requires_grad for parameter in half.parameters())
    wide = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"reward_head.2.weight", "reward_head.2.bias", "q.weights.2", "q.biases.2"}
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16, torch.float32}
    fresh = read_state(half)
    refresh_half(half, model)
    assert same_numbers(read_state(half), fresh), "a resumed run builds its copy, a straight one has refreshed it"
    before = read_state(model)
    scramble(model)
    refresh_half(half, model)
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))
        assert name.startswith("target_q") or not torch.equal(tensor, before[name].to(tensor.dtype))
    joint = draw(9, model.sizes.joint_dim)
    exact = model.eval().follow(joint)
    torch.testing.assert_close(half.follow(joint.bfloat16()).float(), exact, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_from_its_state(kind: str) -> None:
    saved = read_state(scramble(build(KINDS[kind])))
    other = build(KINDS[kind], seed=9)
    other.load_state_dict(saved)
    assert same_numbers(read_state(other), saved)
