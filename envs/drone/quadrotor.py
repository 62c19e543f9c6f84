"""The quadrotor: a rigid body in MuJoCo, flown by thrust and body rates, or through a velocity controller.

Frames: the world's z points up; the body's x points forward, y left, z up along the thrust. SI units throughout.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray

GRAVITY = 9.81
MASS = 1.0
RADIUS = 0.25
"""Of the sphere that collides, in metres: rotors included."""
INERTIA = (0.012, 0.012, 0.02)
DRAG = 0.3
"""Of the rotors and the frame, linear in the speed through the air, in N s/m."""
THRUST_LAG = 0.03
"""Time constant of the motors, in seconds."""
RATE_LAG = 0.04
"""Time constant with which body rates follow their commands, in seconds."""
MAX_THRUST = 2.5 * MASS * GRAVITY
MAX_RATES = (6.0, 6.0, 3.0)
"""Of roll, pitch and yaw, in rad/s."""
TIMESTEP = 0.005
CONTROL_STEPS = 4
CONTROL_PERIOD = CONTROL_STEPS * TIMESTEP
"""Seconds between two commands of the velocity controller."""

VELOCITY_GAIN = 3.0
ATTITUDE_GAIN = 9.0
MAX_TILT_ACCELERATION = GRAVITY * math.tan(math.radians(30))
MAX_CLIMB_ACCELERATION = 5.0

Vector: TypeAlias = tuple[float, float, float]
FULL_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def write_model(obstacles: str, mocap: str = "") -> str:
    """Give the MJCF text of a quadrotor over the ground plane z = 0.

    Args:
        obstacles: elements of the world body that never move.
        mocap: bodies that are put elsewhere between steps.
    """
    torques = "".join(
        f'<general name="{axis}" site="centre" gear="0 0 0 {gear}" ctrlrange="{-limit} {limit}" ctrllimited="true" '
        f'gainprm="{inertia / RATE_LAG}" biastype="affine" biasprm="0 0 {-inertia / RATE_LAG}"/>'
        for axis, gear, limit, inertia in zip(
            ("roll", "pitch", "yaw"), ("1 0 0", "0 1 0", "0 0 1"), MAX_RATES, INERTIA, strict=True
        )
    )
    return f"""<mujoco model="quadrotor">
      <option timestep="{TIMESTEP}" gravity="0 0 {-GRAVITY}" integrator="Euler"/>
      <worldbody>
        <geom name="ground" type="plane" size="0 0 1"/>
        {obstacles}
        <body name="drone" pos="0 0 1">
          <freejoint name="drone"/>
          <inertial pos="0 0 0" mass="{MASS}" diaginertia="{INERTIA[0]} {INERTIA[1]} {INERTIA[2]}"/>
          <geom name="drone" type="sphere" size="{RADIUS}"/>
          <site name="centre"/>
        </body>
        {mocap}
      </worldbody>
      <actuator>
        <general name="thrust" site="centre" gear="0 0 1 0 0 0" ctrlrange="0 {MAX_THRUST}" ctrllimited="true"
          dyntype="filterexact" dynprm="{THRUST_LAG}"/>
        {torques}
      </actuator>
    </mujoco>"""


class Quadrotor:
    """One quadrotor among obstacles.

    Args:
        obstacles: MJCF elements of the world body, as for `write_model`.
        mocap: MJCF bodies with `mocap="true"`, in the order of `move_mocap`.

    Attributes:
        data: the simulation. Its positions and velocities are current; what MuJoCo derives from them lags a time step.
        collided: whether it has touched something since the last reset.
        wind: of the air, in the world, in m/s.
    """

    def __init__(self, obstacles: str = "", mocap: str = "") -> None:
        self.model = mujoco.MjModel.from_xml_string(write_model(obstacles, mocap))
        self.data = mujoco.MjData(self.model)
        self.model.dof_damping[:3] = DRAG
        self._body = self.model.body("drone").id
        self.collided = False
        self.wind: Vector = (0.0, 0.0, 0.0)

    def reset(self, position: Vector, yaw: float) -> None:
        """Hover in still air at a position, looking along `yaw` (counted from x towards y)."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:3] = position
        self.data.qpos[3:7] = (math.cos(yaw / 2), 0, 0, math.sin(yaw / 2))
        self.data.act[0] = MASS * GRAVITY
        self.collided = False
        self.set_wind((0.0, 0.0, 0.0))

    def set_wind(self, wind: Vector) -> None:
        """Set the velocity of the air; drag is linear, so the wind is one force more."""
        self.wind = wind
        self.data.xfrc_applied[self._body, :3] = [DRAG * part for part in wind]

    @property
    def position(self) -> NDArray[np.float64]:
        """Give a copy of (x, y, z)."""
        return np.array(self.data.qpos[:3])

    @property
    def velocity(self) -> NDArray[np.float64]:
        """Give a copy of the velocity in the world."""
        return np.array(self.data.qvel[:3])

    @property
    def rates(self) -> NDArray[np.float64]:
        """Give a copy of the angular velocity about the body's axes."""
        return np.array(self.data.qvel[3:6])

    @property
    def rotation(self) -> NDArray[np.float64]:
        """Give the matrix from the body to the world; its columns are the body's axes."""
        return np.array(rotate_by(*self.data.qpos[3:7].tolist())).reshape(3, 3)

    def advance(self, thrust: float, rates: Vector, num_steps: int = CONTROL_STEPS) -> bool:
        """Hold a command for some time steps; stop at the first touch and give whether there was one.

        Args:
            thrust: in newtons; the motors follow with `THRUST_LAG`, within [0, MAX_THRUST].
            rates: body rates in rad/s, followed with `RATE_LAG`, within `MAX_RATES`.
            num_steps: of `TIMESTEP` each.
        """
        self.data.ctrl[:] = (thrust, *rates)
        for _ in range(num_steps):
            mujoco.mj_step(self.model, self.data)
            if self.data.ncon:
                self.collided = True
                break
        return self.collided

    def fly(self, forward: float, climb: float, yaw_rate: float, num_periods: int) -> bool:
        """Follow a velocity for some control periods; give whether something was touched.

        Args:
            forward: speed along the heading, in m/s; there is none wanted sideways.
            climb: vertical speed, in m/s.
            yaw_rate: in rad/s, towards the left.
            num_periods: of `CONTROL_PERIOD` each.
        """
        for _ in range(num_periods):
            thrust, rates = self._control(forward, climb, yaw_rate)
            if self.advance(thrust, rates):
                break
        return self.collided

    def _control(self, forward: float, climb: float, yaw_rate: float) -> tuple[float, Vector]:
        """Give thrust and rates that bring the velocity to the wanted one: feedback on speed, then on the tilt."""
        vx, vy, vz = self.data.qvel[:3].tolist()
        r = rotate_by(*self.data.qpos[3:7].tolist())
        heading = math.hypot(r[0], r[3])
        cosine, sine = (r[0] / heading, r[3] / heading) if heading > 1e-9 else (1.0, 0.0)
        ax = VELOCITY_GAIN * (forward * cosine - vx) + DRAG / MASS * vx
        ay = VELOCITY_GAIN * (forward * sine - vy) + DRAG / MASS * vy
        az = VELOCITY_GAIN * (climb - vz) + DRAG / MASS * vz
        if (size := math.hypot(ax, ay)) > MAX_TILT_ACCELERATION:
            ax, ay = ax * MAX_TILT_ACCELERATION / size, ay * MAX_TILT_ACCELERATION / size
        az = min(max(az, -MAX_CLIMB_ACCELERATION), MAX_CLIMB_ACCELERATION)
        return point_thrust(r, (ax, ay, az + GRAVITY), yaw_rate)

    def read_state(self) -> dict[str, Any]:
        """Give all that the next steps depend on; the obstacles are part of the construction."""
        integration = np.empty(mujoco.mj_stateSize(self.model, FULL_STATE))
        mujoco.mj_getState(self.model, self.data, integration, FULL_STATE)
        return {"integration": integration, "collided": self.collided, "wind": self.wind}

    def write_state(self, state: dict[str, Any]) -> None:
        """Take over what `read_state` gave, among the same obstacles.

        Raises:
            ValueError: the state is of another model.
        """
        size = mujoco.mj_stateSize(self.model, FULL_STATE)
        if len(state["integration"]) != size:
            raise ValueError(f"the quadrotor's state has {len(state['integration'])} numbers; {size} fit here")
        mujoco.mj_setState(self.model, self.data, state["integration"], FULL_STATE)
        self.collided, self.wind = state["collided"], state["wind"]


def rotate_by(w: float, x: float, y: float, z: float) -> tuple[float, ...]:
    """Give the nine entries, row by row, of the rotation matrix of a unit quaternion."""
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )


def point_thrust(r: tuple[float, ...], force: Vector, yaw_rate: float) -> tuple[float, Vector]:
    """Give thrust and body rates that turn the thrust towards a specific force, which counts gravity, in m/s^2.

    Args:
        r: the body's rotation, as from `rotate_by`.
        force: wanted acceleration plus gravity's counterpart, in the world.
        yaw_rate: about the world's vertical, in rad/s.
    """
    fx, fy, fz = force
    size = math.sqrt(fx * fx + fy * fy + fz * fz)
    # The wanted direction, seen from the body: its x and y say how far to tilt about y and -x.
    dx = (r[0] * fx + r[3] * fy + r[6] * fz) / size
    dy = (r[1] * fx + r[4] * fy + r[7] * fz) / size
    dz = (r[2] * fx + r[5] * fy + r[8] * fz) / size
    if dz < 0:  # upside down: turn as fast as from the side
        scale = 1 / max(math.hypot(dx, dy), 1e-9)
        dx, dy = dx * scale, dy * scale
    rates = (-ATTITUDE_GAIN * dy, ATTITUDE_GAIN * dx, yaw_rate * r[8])
    return MASS * size * max(dz, 0.0), rates
