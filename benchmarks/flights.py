"""Flights of a pilot that sees the map, recorded once and flown again as often as a clock asks for.

Only environments are timed then, not the pilot, and every time the same worlds are seen from the same places, resets
included. That it is the same is checked: each frame has to have the fingerprint that it was recorded with.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.drone.depth_nav import ACTION_DIM, NavigationEnv
from envs.drone.embedded import EmbeddedBackend
from envs.drone.flight import MAX_CLIMB, MAX_FORWARD, MAX_YAW_RATE, PERIOD, Flight
from envs.drone.layouts import draw_world
from envs.drone.options import read_options
from envs.drone.pilots import open_privileged
from envs.drone.raycast import Caster, choose_caster
from envs.drone.shapes import Primitives
from envs.drone.world import World, gather_primitives
from envs.make import make_env
from envs.registration import register_environments

Frame = NDArray[np.float32]
Sight = tuple[Primitives, NDArray[np.float64], NDArray[np.float64]]
"""What there is to see, from where, and turned how."""


@dataclass
class Leg:
    """One flight from a start to its end, or to the end of the recording.

    Attributes:
        layout_seed: of its world.
        actions: one a step.
        track: where the drone was, as (x, y, z, yaw): at the start, and after each step.
    """

    layout_seed: int
    world: World
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    track: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass
class Recording:
    """What one environment went through, row by row: a step, or the reset that begins the next leg.

    Attributes:
        seed: of the reset before the first row.
        actions: (rows, 3), zeros at a reset.
        begins: whether a row is a reset.
        fingerprints: of the frame that each row ends with.
        sights: what each frame was cast of.
        obstacle_pixels: share of each frame that looks different with the obstacles taken away.
        simulated_s: how far the clock of the simulation has gone in all steps.
    """

    seed: int
    legs: list[Leg] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)
    fingerprints: list[bytes] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    obstacle_pixels: list[float] = field(default_factory=list)
    simulated_s: float = 0.0

    @property
    def num_steps(self) -> int:
        """How many rows are steps."""
        return len(self.begins) - sum(self.begins)


@dataclass(frozen=True)
class Timing:
    """What flying recordings again took, in seconds, and how many different frames their steps gave."""

    steps: int
    cpu_s: float
    wall_s: float
    distinct: int


@dataclass(frozen=True)
class Floors:
    """CPU seconds of the parts of flying, each done by itself: MuJoCo and the controller, rays, new worlds."""

    physics_s: float
    depth_s: float
    worlds_s: float


def record(env_name: str, env_kwargs: Mapping[str, Any], seed: int, rows: int) -> Recording:
    """Let the pilot that sees the map fly a number of rows in one environment."""
    env = make_env(env_name, env_kwargs)
    task = env.unwrapped
    assert isinstance(task, NavigationEnv)
    backend = task.flight.backend
    assert isinstance(backend, EmbeddedBackend)
    recording = Recording(seed)
    obs, info = env.reset(seed=seed)
    act = open_privileged(env)
    recording.legs.append(begin_leg(task.flight, info["layout_seed"]))
    ended = False
    for _ in range(rows):
        recording.begins.append(ended)
        if ended:
            obs, info = env.reset()
            act = open_privileged(env)
            recording.legs.append(begin_leg(task.flight, info["layout_seed"]))
            recording.actions.append(np.zeros(ACTION_DIM, np.float32))
            ended = False
        else:
            action, before = act(obs), backend.time
            obs, _, terminated, truncated, _ = env.step(action)
            recording.simulated_s += backend.time - before
            recording.actions.append(action)
            recording.legs[-1].actions.append(action)
            recording.legs[-1].track.append(read_place(task.flight))
            ended = terminated or truncated
        note_frame(recording, task, obs)
    env.close()
    return recording


def begin_leg(flight: Flight, layout_seed: int) -> Leg:
    """Give a leg that has nothing but its start yet."""
    assert flight.world is not None
    return Leg(layout_seed, flight.world, track=[read_place(flight)])


def read_place(flight: Flight) -> tuple[float, float, float, float]:
    """Give where a drone is, and where it heads."""
    assert flight.pose is not None
    rotation = flight.pose.rotation
    return (*flight.pose.position, math.atan2(rotation[1, 0], rotation[0, 0]))


def note_frame(recording: Recording, task: NavigationEnv, obs: Any) -> None:
    """Put down what was seen last, and of what."""
    backend, camera = task.flight.backend, task.eyes.camera
    assert isinstance(backend, EmbeddedBackend)
    assert backend.world is not None
    position, rotation = backend.aim(task.eyes.level)
    caster = choose_caster(task.options.caster)
    empty = gather_primitives(replace(backend.world, obstacles=()))
    full, bare = (caster.cast(scene, camera, position, rotation) for scene in (backend.scene, empty))
    recording.sights.append((backend.scene, position, rotation))
    recording.obstacle_pixels.append(float((full != bare).mean()))
    recording.fingerprints.append(fingerprint(pick_frame(obs)))


def pick_frame(obs: Any) -> Frame:
    """Give what is new in an observation, of one world or of many: the newest picture, or the whole flat vector."""
    frame: Frame = obs["depth"][..., -1, 0, :, :] if isinstance(obs, dict) else obs
    return frame


def fingerprint(frame: Frame) -> bytes:
    """Give 16 bytes that differ where frames do."""
    return hashlib.blake2b(frame.tobytes(), digest_size=16).digest()


def fly_alone(env_name: str, env_kwargs: Mapping[str, Any], recording: Recording) -> Timing:
    """Fly a recording again in one environment with all its wrappers, on the clock; making it isn't timed."""
    env = make_env(env_name, env_kwargs)
    obs, _ = env.reset(seed=recording.seed)
    newest = pick_frame(obs)
    frames = make_room((len(recording.begins), *newest.shape))
    started, wall_started = time.process_time(), time.perf_counter()
    for frame, begins, action in zip(frames, recording.begins, recording.actions, strict=True):
        obs = env.reset()[0] if begins else env.step(action)[0]
        frame[...] = pick_frame(obs)
    cpu_s, wall_s = time.process_time() - started, time.perf_counter() - wall_started
    env.close()
    return finish([recording], frames[:, None], cpu_s, wall_s)


def fly_together(env_name: str, env_kwargs: Mapping[str, Any], recordings: Sequence[Recording]) -> Timing:
    """Fly several recordings again side by side in one process, on the clock.

    Args:
        recordings: of equal length, with seeds that count up from the first's.
    """
    register_environments()
    env = gym.make_vec(env_name, num_envs=len(recordings), **env_kwargs)
    obs, _ = env.reset(seed=recordings[0].seed)
    actions = np.stack([recording.actions for recording in recordings], axis=1)
    frames = make_room((len(actions), *pick_frame(obs).shape))
    started, wall_started = time.process_time(), time.perf_counter()
    for frame, action in zip(frames, actions, strict=True):
        frame[...] = pick_frame(env.step(action)[0])
    cpu_s, wall_s = time.process_time() - started, time.perf_counter() - wall_started
    env.close()
    return finish(recordings, frames, cpu_s, wall_s)


def make_room(shape: tuple[int, ...]) -> Frame:
    """Give memory for frames that has been written to: the first write to a page takes the kernel's time."""
    return np.full(shape, -1, np.float32)


def finish(recordings: Sequence[Recording], frames: Frame, cpu_s: float, wall_s: float) -> Timing:
    """Check the frames (rows, worlds, ...) of a flight against its recordings, and sum up."""
    seen: set[bytes] = set()
    for world, recording in enumerate(recordings):
        prints = [fingerprint(frame) for frame in frames[:, world]]
        assert prints == recording.fingerprints, f"seed {recording.seed} flew another way than when it was recorded"
        seen |= {each for each, begins in zip(prints, recording.begins, strict=True) if not begins}
    return Timing(sum(recording.num_steps for recording in recordings), cpu_s, wall_s, len(seen))


def measure_floors(env_name: str, env_kwargs: Mapping[str, Any], recordings: Sequence[Recording]) -> Floors:
    """Do the parts of flying again, each by itself, with no environment about them."""
    env = make_env(env_name, env_kwargs)
    task = env.unwrapped
    assert isinstance(task, NavigationEnv)
    caster, camera = choose_caster(task.options.caster), task.eyes.camera
    env.close()
    legs = [(leg, index > 0) for recording in recordings for index, leg in enumerate(recording.legs)]
    physics_s = worlds_s = 0.0
    for leg, counts in legs:
        backend, moment = EmbeddedBackend(caster), time.process_time()
        backend.reset(draw_world(read_options(env_kwargs), leg.layout_seed))
        worlds_s += (time.process_time() - moment) * counts  # the first was there before the clock started
        physics_s += time_physics(backend, leg)
    return Floors(physics_s, time_depth(caster, camera, recordings), worlds_s)


def time_physics(backend: EmbeddedBackend, leg: Leg) -> float:
    """Give CPU seconds of following a leg's velocities, and check that they lead where they did."""
    started = time.process_time()
    for action in leg.actions:
        forward, climb, turn = action.tolist()
        backend.fly(MAX_FORWARD * forward, MAX_CLIMB * climb, MAX_YAW_RATE * turn, PERIOD)
    seconds = time.process_time() - started
    assert backend.read_pose().position == leg.track[-1][:3], f"layout {leg.layout_seed}: it ended somewhere else"
    return seconds


def time_depth(caster: Caster, camera: Any, recordings: Sequence[Recording]) -> float:
    """Give CPU seconds of casting each frame again, those of all worlds at once."""
    rows = [
        (list(scenes), np.array(positions), np.array(rotations))
        for row in zip(*(recording.sights for recording in recordings), strict=True)
        for scenes, positions, rotations in [zip(*row, strict=True)]
    ]
    started = time.process_time()
    for scenes, positions, rotations in rows:
        caster.cast_many(scenes, camera, positions, rotations)
    return time.process_time() - started
