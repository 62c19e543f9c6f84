"""The whole state of a MuJoCo simulation as plain arrays, exact to the bit.

Positions and velocities are not enough: the solver starts from the last step's accelerations, and the rewards of some
environments (Ant, Humanoid) read body positions from before the integration. So the integration state is kept together
with every array of MjData, and the floating-point arrays of MjModel, which randomised environments change.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.plain_values import SnapshotError

_ASSETS = ("tex_", "mesh_", "skin_", "bvh_", "oct_", "names", "paths", "text_")
"""Arrays of MjModel that are large and made when the model is compiled: kept as a hash."""
_DATA_FLAGS = ("flg_energypos", "flg_energyvel", "flg_rnepost", "flg_subtreevel")
_MODEL_STRUCTS = ("opt", "stat")


def is_mujoco_data(value: object) -> bool:
    """Tell whether a value is an MjData, without importing MuJoCo for those who don't use it."""
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, mujoco.MjData)


def list_arrays(struct: Any) -> dict[str, NDArray[Any]]:
    """Give the arrays of an MjData or MjModel by name: views of its own memory."""
    arrays = {}
    for name in dir(struct):
        if not name.startswith("_"):
            value = getattr(struct, name)
            if isinstance(value, np.ndarray):
                arrays[name] = value
    return arrays


def read_mujoco(data: Any) -> dict[str, Any]:
    """Give the state of a simulation and of its model as arrays and plain values."""
    import mujoco

    size = mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    integration = np.empty(size)
    mujoco.mj_getState(data.model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    return {
        "integration": integration,
        "data": {name: value.copy() for name, value in list_arrays(data).items() if value.size},
        "flags": {name: getattr(data, name) for name in _DATA_FLAGS if hasattr(data, name)},
        "contact": {name: value.copy() for name, value in list_arrays(data.contact).items() if value.size},
        "model": {name: value.copy() for name, value in _list_model_arrays(data.model).items()},
        "model_structs": {name: _read_struct(getattr(data.model, name)) for name in _MODEL_STRUCTS},
        "assets": _hash_assets(data.model),
    }


def write_mujoco(data: Any, state: dict[str, Any], path: str) -> None:
    """Put a simulation of the same model into a state that `read_mujoco` gave.

    Arrays whose length depends on the number of contacts are put back where that number agrees; the next step of the
    simulation makes them anew in any case.

    Raises:
        SnapshotError: the model has other sizes, or other meshes or textures. `path` is named.
    """
    import mujoco

    model, integration = data.model, mujoco.mjtState.mjSTATE_INTEGRATION
    if mujoco.mj_stateSize(model, integration) != state["integration"].size or _hash_assets(model) != state["assets"]:
        raise SnapshotError(f"{path} is a simulation of another model than the one that the snapshot was taken of")
    _copy_agreeing(_list_model_arrays(model), state["model"])
    for name, fields in state["model_structs"].items():
        _write_struct(getattr(model, name), fields)
    mujoco.mj_setState(model, data, state["integration"], integration)
    mujoco.mj_forward(model, data)  # makes room for the contacts; what it moves is put back next
    _copy_agreeing(list_arrays(data), state["data"])
    _copy_agreeing(list_arrays(data.contact), state["contact"])
    for name, value in state["flags"].items():
        setattr(data, name, value)


def _list_model_arrays(model: Any) -> dict[str, NDArray[Any]]:
    """Give the arrays that an environment may change: physical properties, never indices or sizes."""
    return {
        name: value
        for name, value in list_arrays(model).items()
        if value.dtype.kind == "f" and value.size and not name.startswith(_ASSETS)
    }


def _hash_assets(model: Any) -> str:
    """Give one hash of everything in a model that `_list_model_arrays` leaves out."""
    kept = _list_model_arrays(model)
    digest = hashlib.sha256()
    for name, value in sorted(list_arrays(model).items()):
        if name not in kept:
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _read_struct(struct: Any) -> dict[str, Any]:
    """Give the numbers and arrays of one of MuJoCo's small structs."""
    fields: dict[str, Any] = {}
    for name in dir(struct):
        if not name.startswith("_"):
            value = getattr(struct, name)
            if isinstance(value, np.ndarray):
                fields[name] = value.copy()
            elif isinstance(value, bool | int | float):
                fields[name] = value
    return fields


def _write_struct(struct: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            getattr(struct, name)[...] = value
        else:
            setattr(struct, name, value)


def _copy_agreeing(targets: dict[str, NDArray[Any]], sources: dict[str, NDArray[Any]]) -> None:
    for name, value in sources.items():
        target = targets.get(name)
        if target is not None and target.shape == value.shape and target.flags.writeable:
            target[...] = value
