"""Solids that can't be are refused with their place, and the parts of one cover just it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from envs.drone.shapes import PartKind, Primitives, ShapeKind


def make_arrays() -> dict[str, Any]:
    kinds = np.array(list(ShapeKind), dtype=np.int32)
    sizes = np.array([[0.5, 0, 0], [0.5, 2, 0], [0.5, 2, 0], [1, 2, 3]])
    return {"kinds": kinds, "positions": np.ones((4, 3)), "rotations": np.tile(np.eye(3), (4, 1, 1)), "sizes": sizes}


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("kinds", (1,), 4, r"kinds\[1\] is 4; a kind is one of 0 \(SPHERE\), 1 \(CAPSULE\)"),
        ("positions", (2, 0), np.nan, r"positions\[2\] is \[nan, 1.0, 1.0\]; a position is finite"),
        ("sizes", (0, 0), 0.0, r"sizes\[0\] is \[0.0, 0.0, 0.0\]; the sizes that its kind uses are finite and above 0"),
        ("sizes", (3, 2), -1.0, r"sizes\[3\]"),
        ("sizes", (1, 1), np.inf, r"sizes\[1\]"),
        ("sizes", (2, 2), 1.0, r"sizes\[2\] is \[0.5, 2.0, 1.0\]; .* the others 0"),
        ("rotations", (3, 0, 0), 1.001, r"rotations\[3\] is .*; the columns are at right angles and of length 1"),
        ("rotations", (0, 0, 1), 0.1, r"rotations\[0\]"),
    ],
)
def test_what_is_no_solid_is_refused_with_its_place(name: str, index: Any, value: float, message: str) -> None:
    arrays = make_arrays()
    Primitives(**arrays)
    arrays[name][index] = value
    with pytest.raises(ValueError, match=message):
        Primitives(**arrays)


@pytest.mark.parametrize("name", ["positions", "rotations", "sizes"])
def test_arrays_of_unequal_length_are_refused(name: str) -> None:
    arrays = make_arrays()
    arrays[name] = arrays[name][:3]
    with pytest.raises(ValueError, match=rf"{name} has shape \(3, .*\); 4 primitives need \(4, "):
        Primitives(**arrays)


def test_solids_are_copies_that_nobody_can_write_to() -> None:
    arrays = make_arrays()
    scene = Primitives(**arrays)
    arrays["positions"][:] = 7
    assert np.array_equal(scene.positions, np.ones((4, 3)))
    with pytest.raises(ValueError, match="read-only"):
        scene.positions[0] = 2
    with pytest.raises(ValueError, match="read-only"):
        scene.parts.table[0] = 2


def test_a_world_may_be_empty() -> None:
    scene = Primitives(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)))  # type: ignore[arg-type]
    assert len(scene) == 0
    assert scene.parts.table.shape == (0, 18)


def test_a_capsule_is_a_cylinder_and_two_spheres_at_its_ends() -> None:
    scene = Primitives(**make_arrays())
    parts = scene.parts
    assert len(scene) == 4
    assert parts.kinds.tolist() == [
        PartKind.SPHERE,
        *(PartKind.CYLINDER, PartKind.SPHERE, PartKind.SPHERE),
        PartKind.CYLINDER,
        PartKind.BOX,
    ]
    assert parts.solids.tolist() == [0, 1, 1, 1, 2, 3]
    assert parts.table[:, 2:5].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 3], [1, 1, -1], [1, 1, 1], [1, 1, 1]]
    assert parts.radii.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0]
    assert parts.halves.tolist() == [[0, 0, 0], [0, 0, 2], [0, 0, 0], [0, 0, 0], [0, 0, 2], [1, 2, 3]]


def test_placed_solids_are_those_made_at_their_places() -> None:
    arrays = make_arrays()
    scene = Primitives(**arrays)
    moved, places = np.array([1, 3]), np.array([[4.0, 5.0, 6.0], [-1.0, 0.5, 2.0]])
    placed = scene.place(moved, places)
    arrays["positions"][moved] = places
    fresh = Primitives(**arrays)
    np.testing.assert_array_equal(placed.positions, fresh.positions)
    np.testing.assert_allclose(placed.parts.table, fresh.parts.table, atol=1e-12)
    np.testing.assert_array_equal(scene.positions, np.ones((4, 3)))
    with pytest.raises(ValueError, match="read-only"):
        placed.positions[0] = 0
