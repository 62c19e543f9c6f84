"""Snapshots: a fresh environment goes on to the same bits, or the snapshot is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.make import make_env
from envs.mujoco_state import list_arrays
from envs.plain_values import Decoder, Encoder, SnapshotError
from envs.snapshot import equal_bits, probe_resume_mode, restore_snapshot, take_snapshot

EXACT = [
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "Pusher-v5",
]
MIDWAY, AFTER = 37, 120


def draw_actions(env: gym.Env[Any, Any], number: int, scale: float = 1.0) -> list[Any]:
    """Draw actions from a source of their own; scaled down, they let walkers stay up for longer."""
    env.action_space.seed(5)
    actions = [env.action_space.sample() for _ in range(number)]
    return [scale * action if isinstance(action, np.ndarray) else action for action in actions]


def advance(env: gym.Env[Any, Any], actions: list[Any]) -> list[tuple[Any, ...]]:
    results: list[tuple[Any, ...]] = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        results.append((obs, reward, terminated, truncated))
        if terminated or truncated:
            results.append((env.reset()[0],))
    return [*results, (env.reset()[0],)]


@pytest.mark.parametrize("scale", [0.4, 1.0])
@pytest.mark.parametrize("env_name", EXACT)
def test_a_fresh_environment_goes_on_from_a_snapshot_to_the_bit(env_name: str, scale: float) -> None:
    env = make_env(env_name, {})
    actions = draw_actions(env, MIDWAY + AFTER, scale)
    env.reset(seed=3)
    advance(env, actions[:MIDWAY])
    for action in actions[:3]:  # into an episode
        env.step(action)
    snapshot = take_snapshot(env)
    straight = advance(env, actions[MIDWAY:])
    fresh = make_env(env_name, {})
    restore_snapshot(fresh, snapshot)
    assert equal_bits(straight, advance(fresh, actions[MIDWAY:]))
    env.close()
    fresh.close()


@pytest.mark.parametrize("env_name", ["Pendulum-v1", "Humanoid-v5", "CartPole-v1"])
def test_the_probe_finds_exact_environments(env_name: str) -> None:
    probe = probe_resume_mode(env_name, {})
    assert (probe.mode, probe.reason) == ("exact", None)


def test_a_snapshot_is_plain_data_and_shares_no_memory() -> None:
    env = make_env("HalfCheetah-v5", {})
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    before = pickle.dumps(snapshot)
    assert_plain(snapshot)
    advance(env, draw_actions(env, 5))
    assert pickle.dumps(snapshot) == before
    assert len(before) < 200_000


def assert_plain(value: object) -> None:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        for item in value.values():
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (type(None), bool, int, float, str, np.ndarray), value


def test_positions_and_velocities_alone_would_not_be_enough() -> None:
    """The reason for the whole state: this must fail, or the tests above prove nothing."""
    env, fresh = make_env("Walker2d-v5", {}), make_env("Walker2d-v5", {})
    actions = draw_actions(env, 16)
    env.reset(seed=3)
    fresh.reset(seed=3)
    for action in actions[:8]:
        env.step(action)
    core: Any = fresh.unwrapped
    simulation: Any = env.unwrapped
    core.set_state(simulation.data.qpos, simulation.data.qvel)
    straight = [env.step(action)[0] for action in actions[8:]]
    assert not equal_bits(straight, [fresh.step(action)[0] for action in actions[8:]])


def test_everything_that_can_be_read_from_a_simulation_comes_back() -> None:
    import mujoco

    env, fresh = make_env("HalfCheetah-v5", {}), make_env("HalfCheetah-v5", {})
    env.reset(seed=3)
    for action in draw_actions(env, 40):
        env.step(action)
    ours: Any = env.unwrapped
    theirs: Any = fresh.unwrapped
    mujoco.mj_subtreeVel(ours.model, ours.data)
    restore_snapshot(fresh, take_snapshot(env))
    assert ours.data.ncon == theirs.data.ncon > 0
    for one, other in ((ours.data, theirs.data), (ours.data.contact, theirs.data.contact)):
        assert equal_bits(list_arrays(one), list_arrays(other))
    assert ours.data.time == theirs.data.time > 0
    assert ours.data.flg_subtreevel == theirs.data.flg_subtreevel == 1


def test_a_changed_model_comes_back() -> None:
    env, fresh = make_env("Hopper-v5", {}), make_env("Hopper-v5", {})
    env.reset(seed=1)
    core: Any = env.unwrapped
    core.model.body_mass[1] *= 1.5
    core.model.opt.gravity[2] = -5.0
    core.model.opt.viscosity = 0.1
    actions = draw_actions(env, 60)
    advance(env, actions[:20])
    snapshot = take_snapshot(env)
    restore_snapshot(fresh, snapshot)
    assert equal_bits(advance(env, actions[20:]), advance(fresh, actions[20:]))


def test_the_generators_of_spaces_come_back() -> None:
    env, fresh = make_env("Pendulum-v1", {}), make_env("Pendulum-v1", {})
    env.reset(seed=0)
    env.action_space.seed(11)
    env.action_space.sample()
    restore_snapshot(fresh, take_snapshot(env))
    assert equal_bits(env.action_space.sample(), fresh.action_space.sample())


def test_another_chain_of_wrappers_is_refused() -> None:
    env, other = make_env("Pendulum-v1", {}), make_env("Pendulum-v1", {"max_episode_steps": -1})
    env.reset(seed=0)
    with pytest.raises(SnapshotError, match="TimeLimit"):
        restore_snapshot(other, take_snapshot(env))


def test_another_model_is_refused() -> None:
    env, other = make_env("Hopper-v5", {}), make_env("Hopper-v5", {})
    env.reset(seed=0)
    snapshot = take_snapshot(env)
    core: Any = other.unwrapped
    core.model.geom_contype[:] = 7
    with pytest.raises(SnapshotError, match=r"HopperEnv\.data"):
        restore_snapshot(other, snapshot)


class LooseEnv(gym.Env[Any, Any]):
    """A tiny environment whose odd attributes a test can choose."""

    def __init__(self, flaw: str = "none") -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,))
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.flaw = flaw
        self.history: deque[Any] = deque(maxlen=4)
        self.shared = self.history
        self.clock = 0
        self.position = np.zeros(2)
        if flaw == "object":
            self.helper = object()
        if flaw == "window":
            self.tail = self.position[1:]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.clock = 0
        self.position[:] = self.np_random.uniform(-1, 1, 2)
        self.history.clear()
        return self.position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.clock += 1
        self.shared.append(float(action[0]))
        noise = np.random.default_rng().uniform() if self.flaw == "hidden" else 0.0
        self.position[:] = np.tanh(self.position + sum(self.history) + noise)
        return self.position.astype(np.float32), float(self.position[0]), False, self.clock >= 9, {}


@pytest.fixture
def loose_env() -> Any:
    gym.register("Loose-v0", LooseEnv)
    yield "Loose-v0"
    del gym.registry["Loose-v0"]


def test_containers_shared_objects_and_a_clock_that_counts_come_back(loose_env: str) -> None:
    assert probe_resume_mode(loose_env, {}).mode == "exact"
    env, fresh = LooseEnv(), LooseEnv()
    env.reset(seed=1)
    advance(env, draw_actions(env, 4))
    restore_snapshot(fresh, take_snapshot(env))
    assert fresh.shared is fresh.history
    assert fresh.history == env.history
    assert fresh.history.maxlen == 4


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ("object", r"LooseEnv\.helper is a builtins\.object"),
        ("window", "share memory"),
        ("hidden", "obs differs 1 step"),
    ],
)
def test_an_environment_that_cannot_be_restored_resumes_by_episode(loose_env: str, flaw: str, reason: str) -> None:
    probe = probe_resume_mode(loose_env, {"flaw": flaw})
    assert probe.mode == "episode"
    assert probe.reason is not None
    assert reason.replace("\\", "") in probe.reason


class Stopwatch:
    """An object that steps may read: not plain data, whatever the attribute is called."""

    def __init__(self) -> None:
        self.ticks = 0


@pytest.mark.parametrize("name", ["clock", "window", "viewer", "screen", "surf", "renderer", "mujoco_renderer", "spec"])
def test_no_name_excuses_an_object_from_being_saved(name: str) -> None:
    env = LooseEnv()
    env.reset(seed=0)
    vars(env)[name] = Stopwatch()
    with pytest.raises(SnapshotError, match=rf"LooseEnv\.{name} is a .*Stopwatch"):
        take_snapshot(env)


def make_foreign(module: str, name: str) -> Any:
    return type(name, (), {"__module__": module})()


def test_what_only_draws_is_left_to_the_fresh_environment() -> None:
    env, fresh = LooseEnv(), LooseEnv()
    env.reset(seed=0)
    for name, kind in (("screen", ("pygame.surface", "Surface")), ("timer", ("pygame.time", "Clock"))):
        vars(env)[name] = make_foreign(*kind)
        vars(fresh)[name] = None
    vars(env)["later"] = make_foreign("pygame.surface", "Surface")
    restore_snapshot(fresh, take_snapshot(env))
    assert vars(fresh)["screen"] is vars(fresh)["timer"] is None
    assert "later" not in vars(fresh)
    vars(env)["place"] = make_foreign("pygame.math", "Vector2")
    with pytest.raises(SnapshotError, match=r"pygame\.math\.Vector2"):
        take_snapshot(env)


def test_a_fresh_simulation_keeps_its_own_renderer() -> None:
    env, fresh = make_env("HalfCheetah-v5", {}), make_env("HalfCheetah-v5", {})
    env.reset(seed=0)
    core: Any = fresh.unwrapped
    renderer = core.mujoco_renderer
    restore_snapshot(fresh, take_snapshot(env))
    assert core.mujoco_renderer is renderer is not None


def test_attributes_in_slots_are_refused() -> None:
    class Slotted(LooseEnv):
        __slots__ = ("speed",)

    with pytest.raises(SnapshotError, match="__slots__ of Slotted"):
        take_snapshot(Slotted())


class Diary(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that holds a list."""

    def __init__(self, env: gym.Env[Any, Any], entry: str) -> None:
        super().__init__(env)
        self.entries = [entry]


def test_two_wrappers_of_one_class_keep_their_lists_apart() -> None:
    """The core shares its list with the outer one; by the class's name alone it would get the inner one's."""

    def nest() -> tuple[Diary, Diary, Any]:
        core: Any = LooseEnv()
        inner = Diary(core, "inner")
        outer = Diary(inner, "outer")
        core.entries = outer.entries
        return outer, inner, core

    env, _, _ = nest()
    env.reset(seed=0)
    env.entries.append("more")
    outer, inner, core = nest()
    restore_snapshot(outer, take_snapshot(env))
    assert (outer.entries, inner.entries) == (["outer", "more"], ["inner"])
    assert core.entries is outer.entries


def move_number(kind: Any) -> None:
    kind.shared_value += 1


def move_list(kind: Any) -> None:
    kind.shared_value.append(1)


def move_item(kind: Any) -> None:
    kind.shared_value["steps"] += 1


def move_set(kind: Any) -> None:
    kind.shared_value.add(len(kind.shared_value))


def draw_shared(kind: Any) -> None:
    kind.shared_value.random()


SHARED: list[tuple[Any, Callable[[Any], None]]] = [
    (0, move_number),
    (np.zeros(2), move_number),
    ([], move_list),
    ({"steps": 0}, move_item),
    (Counter({"steps": 0}), move_item),
    (set(), move_set),
    (np.random.default_rng(0), draw_shared),
]


def make_sharing_env(value: Any, move: Callable[[Any], None], in_module: bool) -> tuple[type[LooseEnv], ModuleType]:
    """Give a class whose steps change what all its objects share, and its module."""
    module = ModuleType("shared_simulator")

    class Sharing(LooseEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            move(module if in_module else Sharing)
            return super().step(action)

    Sharing.__module__ = module.__name__
    vars(module)["CONSTANT"] = [1, 2, 3]
    if in_module:
        vars(module)["shared_value"] = value
    else:
        Sharing.shared_value = value  # type: ignore[attr-defined]
    return Sharing, module


@pytest.fixture
def probe_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type[LooseEnv], ModuleType], str | None]]:
    """Give a function that probes a class in a module, and gives the reason if it isn't exact."""

    def probe(kind: type[LooseEnv], module: ModuleType) -> str | None:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        gym.register("Shared-v0", kind)
        return probe_resume_mode("Shared-v0", {}).reason

    yield probe
    del gym.registry["Shared-v0"]


@pytest.mark.parametrize("in_module", [False, True])
@pytest.mark.parametrize(("value", "move"), SHARED)
def test_what_steps_change_in_a_class_or_module_ends_exactness(
    probe_class: Any, value: Any, move: Callable[[Any], None], in_module: bool
) -> None:
    reason = probe_class(*make_sharing_env(value, move, in_module))
    assert reason is not None
    where = r"shared_simulator.shared_value" if in_module else "Sharing.shared_value"
    assert where in reason
    assert reason.endswith("changed in steps of Shared-v0, outside what a snapshot can hold")
    assert "CONSTANT" not in reason


def test_constants_of_a_class_or_module_leave_it_exact(probe_class: Any) -> None:
    assert probe_class(*make_sharing_env([1, 2], lambda kind: None, in_module=False)) is None


def test_attributes_that_appeared_since_construction_come_and_go() -> None:
    env, fresh = LooseEnv(), LooseEnv()
    env.reset(seed=0)
    vars(env)["target"] = 3.5
    vars(fresh)["leftover"] = 1
    restore_snapshot(fresh, take_snapshot(env))
    assert vars(fresh)["target"] == 3.5
    assert "leftover" not in vars(fresh)


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
values = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.tuples(st.integers())), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(values)
def test_every_plain_value_survives(value: Any) -> None:
    decoded = Decoder().decode(Encoder().encode(value, "x"), "x")
    assert repr(decoded) == repr(value)  # the text tells 1, 1.0 and True apart, and -0.0 from 0.0


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3)),
        np.array([np.nan, -0.0]),
    ],
)
def test_arrays_and_scalars_keep_type_bits_and_layout(value: Any) -> None:
    decoded = Decoder().decode(Encoder().encode(value, "x"), "x")
    assert type(decoded) is type(value)
    assert equal_bits(decoded, value)
    assert decoded.flags.f_contiguous == value.flags.f_contiguous


def test_a_list_that_holds_itself_survives() -> None:
    value: list[Any] = [1]
    value.append(value)
    decoded = Decoder().decode(Encoder().encode(value, "x"), "x")
    assert decoded[1] is decoded


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), np.array([None]), len, b"bytes"])
def test_other_values_are_refused_by_name(value: Any) -> None:
    with pytest.raises(SnapshotError, match=r"Layer\.thing"):
        Encoder().encode(value, "Layer.thing")


def test_every_numpy_generator_goes_on() -> None:
    for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM):
        generator = np.random.Generator(kind(3))
        generator.integers(0, 9, 7, dtype=np.int32)
        decoded = Decoder().decode(Encoder().encode(generator, "x"), "x")
        assert equal_bits(decoded.standard_normal(5), generator.standard_normal(5))


def test_environments_need_no_torch() -> None:
    code = "import sys; import envs.make, envs.snapshot; print('torch' in sys.modules, 'mujoco' in sys.modules)"
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
