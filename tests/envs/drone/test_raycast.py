"""Depth images against MuJoCo's rays and against geometry: anywhere, close by, in corners, from inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.drone.camera import Camera
from envs.drone.numpy_caster import NumpyCaster
from envs.drone.raycast import Caster, choose_caster
from envs.drone.shapes import Primitives, ShapeKind
from native.build import NoCompilerError

Floats = NDArray[np.float64]

CAMERA = Camera(height=24, width=32)
LEVEL = np.eye(3)
UP = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
DOWN = UP.T.copy()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=["numpy", "compiled"])
def caster(request: pytest.FixtureRequest, cache: Path) -> Caster:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        try:
            return choose_caster(request.param)
        except NoCompilerError as error:
            pytest.skip(str(error))


@dataclass(frozen=True)
class World:
    """The same solids for us and for MuJoCo, on an endless ground."""

    scene: Primitives
    data: Any

    def find_depth(self, camera: Camera, position: Floats, rotation: Floats) -> Floats:
        """Give what MuJoCo's rays say that a camera sees, (height, width)."""
        left, up = np.meshgrid(camera.columns, camera.rows)
        directions = np.stack([np.ones_like(left), left, up], axis=-1).reshape(-1, 3)
        lengths = np.linalg.norm(directions, axis=1)
        distances = self.shoot(position, directions / lengths[:, None] @ rotation.T)
        clipped: Floats = np.minimum(distances / lengths, camera.max_depth).reshape(camera.height, camera.width)
        return clipped

    def shoot(self, position: Floats, rays: Floats) -> Floats:
        """Give how far unit rays (n, 3) go, infinity where they hit nothing."""
        ids, distances = np.zeros(len(rays), np.int32), np.zeros(len(rays))
        args = (rays.ravel(), None, True, -1, ids, distances, None, len(rays), 1e10)
        mujoco.mj_multiRay(self.data.model, self.data, position, *args)
        return np.where(ids < 0, np.inf, distances)


def build_world(scene: Primitives) -> World:
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1])
    for kind, position, rotation, size in zip(scene.kinds, scene.positions, scene.rotations, scene.sizes, strict=True):
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        geom = getattr(mujoco.mjtGeom, f"mjGEOM_{ShapeKind(kind).name}")
        spec.worldbody.add_geom(type=geom, pos=position, quat=quaternion, size=size)
    data = mujoco.MjData(spec.compile())
    mujoco.mj_forward(data.model, data)
    return World(scene, data)


def rotate_randomly(rng: np.random.Generator, num: int) -> Floats:
    """Give rotations without a preferred direction, (num, 3, 3)."""
    rotations = np.empty((num, 9))
    for rotation, quaternion in zip(rotations, rng.normal(size=(num, 4)), strict=True):
        mujoco.mju_quat2Mat(rotation, quaternion / np.linalg.norm(quaternion))
    return rotations.reshape(num, 3, 3)


def build_scene(rng: np.random.Generator, num: int, *, level: bool = False) -> Primitives:
    """Give solids of all kinds on a square field of 24 m, any way up, or along the world's axes if `level`."""
    kinds = rng.permutation(np.arange(num) % len(ShapeKind)).astype(np.int32)
    positions = np.concatenate([rng.uniform(-12, 12, (num, 2)), rng.uniform(0, 4, (num, 1))], axis=1)
    rotations = np.tile(np.eye(3), (num, 1, 1)) if level else rotate_randomly(rng, num)
    sizes = rng.uniform(0.1, 2, (num, 3)) * (np.arange(3) < np.array([1, 2, 2, 3])[kinds][:, None])
    return Primitives(kinds, positions, rotations, sizes)


def make_solid(kind: ShapeKind, position: tuple[float, float, float], *sizes: float) -> Primitives:
    """Give one solid along the world's axes."""
    padded = np.array([[*sizes, 0.0, 0.0][:3]])
    return Primitives(np.array([kind], dtype=np.int32), np.array([position]), np.eye(3)[None], padded)


def join(*scenes: Primitives) -> Primitives:
    names = ("kinds", "positions", "rotations", "sizes")
    return Primitives(*(np.concatenate([getattr(scene, name) for scene in scenes]) for name in names))


def draw_positions(rng: np.random.Generator, num: int) -> Floats:
    return np.concatenate([rng.uniform(-12, 12, (num, 2)), rng.uniform(0.01, 5, (num, 1))], axis=1)


def assert_seen_alike(world: World, caster: Caster, camera: Camera, positions: Floats, rotations: Floats) -> None:
    """Hold every pixel of every pose to MuJoCo's ray, within a millimetre, and to NumPy's, to the bit."""
    for position, rotation in zip(positions, rotations, strict=True):
        depth = caster.cast(world.scene, camera, position, rotation)
        assert depth.shape == (camera.height, camera.width)
        assert depth.dtype == np.float64
        assert depth.tobytes() == NumpyCaster().cast(world.scene, camera, position, rotation).tobytes()
        expected = world.find_depth(camera, position, rotation)
        np.testing.assert_allclose(depth, expected, rtol=0, atol=1e-3, err_msg=f"from {position}, {rotation.tolist()}")


@pytest.mark.parametrize("seed", range(5))
def test_random_poses_see_what_mujocos_rays_see(caster: Caster, seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = build_world(build_scene(rng, 30))
    assert_seen_alike(world, caster, CAMERA, draw_positions(rng, 200), rotate_randomly(rng, 200))


def test_many_solids_and_a_wide_camera_change_nothing(caster: Caster) -> None:
    rng = np.random.default_rng(10)
    world = build_world(build_scene(rng, 150))
    camera = Camera(height=17, width=5, horizontal_fov=150, vertical_fov=40, max_depth=7.5)
    assert_seen_alike(world, caster, camera, draw_positions(rng, 100), rotate_randomly(rng, 100))


@pytest.mark.parametrize("way", [-0.01, 0.01])
def test_a_centimetre_before_and_behind_a_surface_mujocos_rays_agree(caster: Caster, way: float) -> None:
    rng = np.random.default_rng(20)
    world = build_world(build_scene(rng, 40))
    starts, turns = draw_positions(rng, 300), rotate_randomly(rng, 300)
    reaches = np.array([world.shoot(start, turn[:, :1].T)[0] for start, turn in zip(starts, turns, strict=True)])
    near = reaches < 50
    assert near.sum() > 150
    positions = starts[near] + (reaches[near] + way)[:, None] * turns[near, :, 0]
    assert_seen_alike(world, caster, CAMERA, positions, turns[near])
    assert_seen_alike(world, caster, CAMERA, positions, rotate_randomly(rng, near.sum()))


def test_in_corners_between_boxes_mujocos_rays_agree(caster: Caster) -> None:
    rng = np.random.default_rng(30)
    walls = join(
        make_solid(ShapeKind.BOX, (3.0, 0, 2), 0.5, 3, 2),
        make_solid(ShapeKind.BOX, (0, 3.5, 2), 3.5, 0.5, 2),
        make_solid(ShapeKind.BOX, (0, 0, 4.25), 3.5, 4, 0.25),
    )
    world = build_world(walls)
    for distance in (0.1, 0.01, 1e-3, 1e-6):
        corners = np.array([[2.5, 3.0, 4.0], [2.5, 3.0, 0.0], [2.5, 1.0, 4.0]]) - distance * np.array([1, 1, 0])
        corners[:, 2] += distance * np.array([-1, 1, -1])
        for corner in corners:
            assert_seen_alike(world, caster, CAMERA, np.tile(corner, (20, 1)), rotate_randomly(rng, 20))


@pytest.mark.parametrize("kind", list(ShapeKind))
def test_from_inside_a_solid_the_depth_is_that_of_the_way_out(caster: Caster, kind: ShapeKind) -> None:
    rng = np.random.default_rng(40 + kind)
    scene = build_scene(rng, 60)
    world = build_world(scene)
    chosen = scene.kinds == kind
    offsets = rng.uniform(-1, 1, (chosen.sum(), 3)) * np.maximum(scene.sizes[chosen], scene.sizes[chosen, :1]) * 0.55
    if kind == ShapeKind.CAPSULE:
        offsets[:, 2] = rng.choice([-1, 1], chosen.sum()) * (scene.sizes[chosen, 1] + 0.5 * scene.sizes[chosen, 0])
    elif kind == ShapeKind.CYLINDER:
        offsets[:, 2] = rng.uniform(-1, 1, chosen.sum()) * scene.sizes[chosen, 1]
    positions = scene.positions[chosen] + (scene.rotations[chosen] @ offsets[:, :, None])[:, :, 0]
    assert_seen_alike(world, caster, CAMERA, positions, rotate_randomly(rng, len(positions)))
    assert_seen_alike(world, caster, Camera(5, 5, max_depth=0.2), positions, rotate_randomly(rng, len(positions)))


@pytest.mark.parametrize("rotation", [LEVEL, UP, DOWN], ids=["level", "up", "down"])
@pytest.mark.parametrize("kind", list(ShapeKind))
def test_straight_along_the_axes_of_solids_mujocos_rays_agree(
    caster: Caster, kind: ShapeKind, rotation: Floats
) -> None:
    """An odd camera's middle ray runs along an axis, through the middle, beside it and inside."""
    world = build_world(make_solid(kind, (0, 0, 5), *([0.5, 1.5, 0.75][: [1, 2, 2, 3][kind]])))
    for away in ((0, 0, 0), (0.3, 0, 0), (0, 0.2, 0.1), (0.6, 0.1, 0)):
        for steps in (-4.0, 4.0, 0.0):
            position = np.array([0, 0, 5.0]) + away + steps * rotation[:, 0]
            assert_seen_alike(world, caster, Camera(9, 9), position[None], rotation[None])


def test_in_the_planes_of_a_boxs_faces_mujocos_rays_agree(caster: Caster) -> None:
    """The middle row or column of an odd camera runs in the plane of a face; so do rays inside the face itself."""
    world = build_world(make_solid(ShapeKind.BOX, (0, 0, 2), 0.5, 1, 0.5))
    sideways = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for position in ((-3, 0, 2.5), (-3, 0, 1.5), (-3, 1, 2), (-3, -1, 2), (-3, 1, 2.5), (-3, 0.25, 2)):
        assert_seen_alike(world, caster, Camera(7, 7), np.array([position], dtype=float), LEVEL[None])
    for position in ((0.5, -3, 2), (-0.5, -3, 2.5)):
        assert_seen_alike(world, caster, Camera(7, 7), np.array([position], dtype=float), sideways[None])


@pytest.mark.parametrize("yaw", [0.0, 90.0, 180.0, 270.0])
def test_level_poses_among_level_solids_see_what_mujocos_rays_see(caster: Caster, yaw: float) -> None:
    rng = np.random.default_rng(50)
    world = build_world(build_scene(rng, 40, level=True))
    cosine, sine = np.round(np.cos(np.radians(yaw))), np.round(np.sin(np.radians(yaw)))
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    positions = draw_positions(rng, 50)
    assert_seen_alike(world, caster, Camera(15, 15), positions, np.tile(turn, (50, 1, 1)))


def test_the_ground_is_seen_from_above_only(caster: Caster) -> None:
    empty = Primitives(np.zeros(0, np.int32), np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)))
    camera = Camera(4, 4, max_depth=30)
    above = caster.cast(empty, camera, np.array([0.0, 0, 1.5]), LEVEL)
    assert above[:2].tolist() == [[30.0] * 4] * 2, "the upper half is sky"
    assert np.allclose(above[2:], [[6.0] * 4, [2.0] * 4])
    assert np.allclose(caster.cast(empty, camera, np.array([9.0, 9, 1.5]), DOWN), 1.5)
    for rotation in (LEVEL, UP, DOWN):
        assert (caster.cast(empty, camera, np.array([0, 0, -1.5]), rotation) == 30).all()


def test_left_is_left_and_up_is_up(caster: Caster) -> None:
    ball = make_solid(ShapeKind.SPHERE, (5.0, 2.0, 4.0), 0.5)
    depth = caster.cast(ball, Camera(5, 5), np.array([0.0, 0, 2]), LEVEL)
    assert np.argwhere(depth[:3] < 20).tolist() == [[1, 1]]


def test_what_is_behind_the_camera_is_not_seen(caster: Caster) -> None:
    for kind in ShapeKind:
        sizes = [0.5, 3.0, 0.5][: [1, 2, 2, 3][kind]]
        depth = caster.cast(make_solid(kind, (-3.5, 0, 5), *sizes), CAMERA, np.array([0.0, 0, 5]), LEVEL)
        assert (depth[:12] == 20).all()


def test_depth_is_planar_and_cut_at_the_greatest(caster: Caster) -> None:
    wall = make_solid(ShapeKind.BOX, (5.0, 0, 0), 1, 50, 50)
    assert np.allclose(caster.cast(wall, CAMERA, np.array([0.0, 0, 10]), LEVEL), 4)
    assert (caster.cast(wall, Camera(4, 4, max_depth=3), np.array([0.0, 0, 10]), LEVEL) == 3).all()


def test_many_worlds_at_once_are_seen_as_one_by_one(caster: Caster) -> None:
    rng = np.random.default_rng(60)
    scenes = [build_scene(rng, num) for num in (30, 0, 1, 12)]
    positions, rotations = draw_positions(rng, 4), rotate_randomly(rng, 4)
    depths = caster.cast_many(scenes, CAMERA, positions, rotations)
    assert depths.shape == (4, 24, 32)
    for depth, scene, position, rotation in zip(depths, scenes, positions, rotations, strict=True):
        assert np.array_equal(depth, caster.cast(scene, CAMERA, position, rotation))
    assert caster.cast_many([], CAMERA, np.zeros((0, 3)), np.zeros((0, 3, 3))).shape == (0, 24, 32)


def test_without_a_compiler_numpy_is_taken_with_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(UserWarning, match=r"made by NumPy, several times slower: .* install one") as caught:
        caster = choose_caster("auto")
    assert len(caught) == 1
    assert caster.name == "numpy"
    assert choose_caster("numpy").name == "numpy"
    with pytest.raises(NoCompilerError, match="install one"):
        choose_caster("compiled")


def test_with_a_compiler_the_compiled_caster_is_taken(
    caster: Caster, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if caster.name == "compiled":
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert choose_caster("auto").name == "compiled"


def measure_distance(scene: Primitives, points: Floats) -> Floats:
    """Give how far points (n, 3) are outside of the nearest solid; below 0 inside of one."""
    distances = np.full(len(points), np.inf)
    for kind, position, rotation, size in zip(scene.kinds, scene.positions, scene.rotations, scene.sizes, strict=True):
        own = np.abs((points - position) @ rotation)
        if kind == ShapeKind.BOX:
            beyond = own - size
        elif kind == ShapeKind.CYLINDER:
            beyond = np.stack([np.hypot(own[:, 0], own[:, 1]) - size[0], own[:, 2] - size[1]], axis=1)
        else:  # the nearest point of its axis; a sphere's is its centre
            own[:, 2] = np.maximum(own[:, 2] - size[1], 0)
            beyond = (np.linalg.norm(own, axis=1) - size[0])[:, None]
        outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
        distances = np.minimum(distances, outside + np.minimum(beyond.max(axis=1), 0))
    return distances


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 12))
def test_rays_end_on_surfaces_and_go_through_nothing(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    scene, caster = build_scene(rng, num), choose_caster("numpy")
    position, rotation = draw_positions(rng, 1)[0], rotate_randomly(rng, 1)[0]
    depth = caster.cast(scene, CAMERA, position, rotation).ravel()
    left, up = np.meshgrid(CAMERA.columns, CAMERA.rows)
    rays = np.stack([np.ones_like(left), left, up], axis=-1).reshape(-1, 3) @ rotation.T
    ends = position + depth[:, None] * rays
    on_ground = np.abs(ends[:, 2]) < 1e-9
    seen = (depth < CAMERA.max_depth) & ~on_ground
    if measure_distance(scene, position[None])[0] > 0:
        assert (np.abs(measure_distance(scene, ends[seen])) < 1e-6).all()
        for share in rng.uniform(0, 1, 20):
            points = position + share * depth[:, None] * rays
            assert (measure_distance(scene, points) > -1e-6).all()
            assert (points[:, 2] > -1e-9).all()
