"""Ways through a world for one who knows the map: shortest on a grid, clear of everything, then straightened."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.drone.quadrotor import RADIUS
from envs.drone.world import World

CELL = 0.2
"""Metres from one grid point to the next."""
MARGIN = 0.15
"""Metres that a way keeps from everything, beside the drone's radius."""
COMFORT = 0.6
"""Metres from the drone's surface within which a way costs more."""
SLICES = 5
"""Altitudes at which clearance is looked up, between those that are flown through."""
_STEPS = [(dx, dy, math.hypot(dx, dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]


@dataclass(frozen=True)
class Grid:
    """Clearance of the drone's surface over a field, in metres: (columns along x, rows along y)."""

    clearance: NDArray[np.float64]
    width: float

    def find_cell(self, x: float, y: float) -> tuple[int, int]:
        """Give the grid point nearest to a place."""
        columns, rows = self.clearance.shape
        column, row = round(x / CELL), round((y + self.width / 2) / CELL)
        return min(max(column, 0), columns - 1), min(max(row, 0), rows - 1)

    def find_place(self, cell: tuple[int, int]) -> tuple[float, float]:
        """Give where a grid point is."""
        return cell[0] * CELL, cell[1] * CELL - self.width / 2

    def is_clear(self, one: tuple[float, float], other: tuple[float, float], needed: float) -> bool:
        """Tell whether a straight line keeps a clearance."""
        count = max(2, math.ceil(math.dist(one, other) / (CELL / 2)))
        parts = np.linspace(0, 1, count)
        columns = np.rint((one[0] + parts * (other[0] - one[0])) / CELL).astype(int)
        rows = np.rint((one[1] + parts * (other[1] - one[1]) + self.width / 2) / CELL).astype(int)
        return bool((self.clearance[columns, rows] >= needed).all())


def measure_grid(world: World) -> Grid:
    """Give the clearance between the altitudes of start and goal; of what swings, wherever it may be."""
    columns, rows = math.floor(world.length / CELL) + 1, math.floor(world.width / CELL) + 1
    x, y = np.meshgrid(np.arange(columns) * CELL, np.arange(rows) * CELL - world.width / 2, indexing="ij")
    clearance = np.minimum(np.minimum(x, world.length - x), world.width / 2 - np.abs(y))
    for altitude in np.linspace(world.start[2], world.goal[2], SLICES):
        points = np.stack([x, y, np.full_like(x, altitude)], -1)
        for obstacle in world.obstacles:
            swing = 0.0 if obstacle.motion is None else math.hypot(*obstacle.motion.reach)
            clearance = np.minimum(clearance, obstacle.find_distances(points) - swing)
    return Grid(clearance - RADIUS, world.width)


def plan_path(world: World) -> list[tuple[float, float]] | None:
    """Give the corners of a short and clear way from start to goal over ground; None where there is none.

    By A* (Hart, Nilsson and Raphael 1968) on a grid of eight neighbours; cells near something cost more.
    """
    grid = measure_grid(world)
    start, goal = grid.find_cell(*world.start[:2]), grid.find_cell(*world.goal[:2])
    closeness = np.clip(1 - grid.clearance / COMFORT, 0, 1)
    cells = _search(1 + 4 * closeness * closeness, grid.clearance < MARGIN, start, goal)
    if cells is None:
        return None
    places = [world.start[:2], *(grid.find_place(cell) for cell in cells[1:-1]), world.goal[:2]]
    return _straighten(places, grid)


def _search(
    price: NDArray[np.float64], blocked: NDArray[np.bool_], start: tuple[int, int], goal: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """Give the cheapest cells from start to goal; a step costs its length times the price of where it leads."""
    columns, rows = price.shape
    prices, walls = price.tolist(), blocked.tolist()
    costs, came_from = {start: 0.0}, {start: start}
    queue, done = [(math.dist(start, goal), start)], set()
    while queue:
        _, cell = heapq.heappop(queue)
        if cell == goal:
            return _trace(came_from, cell)
        if cell in done:
            continue
        done.add(cell)
        for dx, dy, length in _STEPS:
            column, row = cell[0] + dx, cell[1] + dy
            if not (0 <= column < columns and 0 <= row < rows):
                continue
            following = (column, row)
            if following in done or (walls[column][row] and following != goal):
                continue
            cost = costs[cell] + length * prices[column][row]
            if cost < costs.get(following, math.inf):
                costs[following], came_from[following] = cost, cell
                heapq.heappush(queue, (cost + math.dist(following, goal), following))
    return None


def _trace(came_from: dict[tuple[int, int], tuple[int, int]], cell: tuple[int, int]) -> list[tuple[int, int]]:
    cells = [cell]
    while came_from[cell] != cell:
        cell = came_from[cell]
        cells.append(cell)
    return cells[::-1]


def _straighten(places: list[tuple[float, float]], grid: Grid) -> list[tuple[float, float]]:
    """Leave out corners where a straight line is as clear as the way around them."""
    kept, index = [places[0]], 0
    while index < len(places) - 1:
        further = index + 1
        for candidate in range(min(len(places) - 1, index + 60), index + 1, -1):
            between = [grid.clearance[grid.find_cell(*place)] for place in places[index : candidate + 1]]
            needed = max(MARGIN, min(*between, COMFORT) - CELL / 2)
            if grid.is_clear(places[index], places[candidate], needed):
                further = candidate
                break
        kept.append(places[further])
        index = further
    return kept
