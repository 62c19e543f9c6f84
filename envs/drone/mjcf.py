"""Worlds as MuJoCo elements, for collisions."""

from __future__ import annotations

from envs.drone.world import Obstacle, World


def write_obstacle(obstacle: Obstacle, name: str) -> str:
    """Give an obstacle as a MuJoCo geom."""
    size, position, quaternion = (
        " ".join(map(repr, numbers)) for numbers in (obstacle.size, obstacle.position, obstacle.quaternion)
    )
    return f'<geom name="{name}" type="{obstacle.shape}" size="{size}" pos="{position}" quat="{quaternion}"/>'


def write_moving_obstacle(obstacle: Obstacle, name: str) -> str:
    """Give an obstacle as a body that is put elsewhere between steps."""
    resting = Obstacle(obstacle.shape, obstacle.size, (0.0, 0.0, 0.0), obstacle.quaternion)
    position = " ".join(map(repr, obstacle.position))
    return f'<body mocap="true" pos="{position}">{write_obstacle(resting, name)}</body>'


def write_walls(world: World) -> str:
    """Give the four walls as planes that look inwards."""
    half = world.width / 2
    planes = (
        (0.0, 0.0, "1 0 0"),
        (world.length, 0.0, "-1 0 0"),
        (world.length / 2, -half, "0 1 0"),
        (world.length / 2, half, "0 -1 0"),
    )
    return "".join(f'<geom type="plane" size="0 0 1" pos="{x!r} {y!r} 0" zaxis="{axis}"/>' for x, y, axis in planes)
