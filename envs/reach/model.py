"""The body of the two-handed reaching task as MJCF text: a fixed pelvis, a torso, two arms, two five-fingered hands.

Frames: x points forward, y left, z up, in metres. At angle 0 of all joints the arms hang down with the palms towards
each other. A positive angle raises an arm, bends an elbow or a finger, on both sides alike.

61 hinges: 3 of the waist, and on each side 2 of the clavicle, 3 of the shoulder, 1 of the elbow, 3 of the wrist and 4
of each finger. Each has a position servo, critically damped at rest: what a policy says is where a joint should go,
so gravity is held by the servo, and an action can be read as a pose. Nothing collides.
"""

from __future__ import annotations

from dataclasses import dataclass

SIDES = ("left", "right")
FINGERS = ("thumb", "index", "middle", "ring", "little")
CHEST_HEIGHT = 1.35
"""Of the point between the shoulders at rest, over the ground."""
STRENGTH = 0.4
"""Error of an angle, in radians, from which on a servo pushes no harder."""
_PELVIS_HEIGHT = 0.95
_TORSO = CHEST_HEIGHT - _PELVIS_HEIGHT
_UPPER_ARM, _FOREARM, _PALM = 0.28, 0.25, 0.095
_PHALANGES = (0.042, 0.026, 0.022)
_THUMB_PHALANGES = (0.04, 0.032, 0.026)


@dataclass(frozen=True)
class Hinge:
    """One actuated joint.

    Attributes:
        axis: in the frame of its body, of the left side; the right side is its mirror image.
        low, high: limits of the angle, in radians.
        stiffness: of the servo, in N m/rad.
    """

    name: str
    axis: tuple[float, float, float]
    low: float
    high: float
    stiffness: float


_WAIST = (
    Hinge("waist_turn", (0, 0, 1), -0.8, 0.8, 1000),
    Hinge("waist_lean", (1, 0, 0), -0.3, 0.3, 1000),
    Hinge("waist_bend", (0, 1, 0), -0.2, 0.6, 1000),
)
_CLAVICLE = (Hinge("protract", (0, 0, -1), -0.3, 0.4, 200), Hinge("shrug", (1, 0, 0), -0.2, 0.4, 200))
_SHOULDER = (
    Hinge("raise", (0, -1, 0), -0.4, 2.0, 150),
    Hinge("spread", (1, 0, 0), -0.3, 1.3, 150),
    Hinge("twist", (0, 0, 1), -0.9, 0.9, 80),
)
_ELBOW = (Hinge("elbow", (0, -1, 0), 0.0, 2.3, 80),)
_WRIST = (
    Hinge("pronate", (0, 0, 1), -1.3, 1.3, 20),
    Hinge("flex", (-1, 0, 0), -1.0, 1.0, 20),
    Hinge("deviate", (0, 1, 0), -0.5, 0.5, 20),
)
_FINGER = (
    Hinge("spread", (0, 1, 0), -0.3, 0.3, 1),
    Hinge("knuckle", (-1, 0, 0), -0.2, 1.5, 1),
    Hinge("middle", (-1, 0, 0), 0.0, 1.6, 1),
    Hinge("tip", (-1, 0, 0), 0.0, 1.2, 1),
)
_THUMB = (
    Hinge("oppose", (0, 0, 1), -0.3, 1.2, 1),
    Hinge("spread", (0, 1, 0), -0.4, 0.4, 1),
    Hinge("knuckle", (-1, 0, 0), -0.2, 1.0, 1),
    Hinge("tip", (-1, 0, 0), 0.0, 1.3, 1),
)


def write_model(timestep: float) -> str:
    """Give the MJCF text; its joints, actuators and angles are in one order: waist, left side, right side."""
    arms = "".join(_write_arm(side) for side in SIDES)
    targets = "".join(
        f'<body name="{side}_target" mocap="true"><site name="{side}_target" size="0.03" rgba="{colour} 0.6"/></body>'
        for side, colour in zip(SIDES, ("0.1 0.6 0.2", "0.8 0.4 0.1"), strict=True)
    )
    hinges = [("", hinge) for hinge in _WAIST]
    hinges += [(f"{side}_", hinge) for side in SIDES for hinge in _list_side_hinges()]
    servos = "".join(
        f'<position name="{prefix}{hinge.name}" joint="{prefix}{hinge.name}" kp="{hinge.stiffness}" dampratio="1" '
        f'inheritrange="1" forcerange="{-STRENGTH * hinge.stiffness} {STRENGTH * hinge.stiffness}"/>'
        for prefix, hinge in hinges
    )
    sensors = "".join(f'<framelinvel objtype="site" objname="{side}_palm"/>' for side in SIDES)
    return f"""<mujoco model="two_hand_reach">
      <compiler angle="radian" autolimits="true"/>
      <option timestep="{timestep}" integrator="implicitfast"><flag contact="disable"/></option>
      <default><joint type="hinge" damping="0.01"/><geom type="capsule" rgba="0.7 0.7 0.75 1"/></default>
      <worldbody>
        <light pos="1 0 3" dir="-0.4 0 -1"/>
        <geom type="plane" size="2 2 0.1" rgba="0.9 0.9 0.9 1"/>
        <camera name="front" pos="2.2 0 1.7" xyaxes="0 1 0 -0.25 0 1"/>
        <geom type="cylinder" fromto="0 0 0 0 0 {_PELVIS_HEIGHT}" size="0.08"/>
        <body name="torso" pos="0 0 {_PELVIS_HEIGHT}">
          {_write_hinges(_WAIST, "", 1)}
          <geom type="box" pos="0 0 {_TORSO / 2}" size="0.09 0.12 {_TORSO / 2}" mass="18"/>
          <geom type="sphere" pos="0 0 {_TORSO + 0.17}" size="0.1" mass="4"/>
          {arms}
        </body>
        {targets}
      </worldbody>
      <actuator>{servos}</actuator>
      <sensor>{sensors}</sensor>
    </mujoco>"""


def _list_side_hinges() -> list[Hinge]:
    """Give the hinges of one side with names that are unique in it, in the order of the bodies."""
    hinges = [*_CLAVICLE, *_rename("shoulder", _SHOULDER), *_ELBOW, *_rename("wrist", _WRIST)]
    for finger in FINGERS:
        hinges += _rename(finger, _THUMB if finger == "thumb" else _FINGER)
    return hinges


def _rename(part: str, hinges: tuple[Hinge, ...]) -> tuple[Hinge, ...]:
    return tuple(Hinge(f"{part}_{hinge.name}", hinge.axis, hinge.low, hinge.high, hinge.stiffness) for hinge in hinges)


def _write_arm(side: str) -> str:
    """Give the bodies from the clavicle to the fingertips."""
    sign = 1 if side == "left" else -1
    prefix = f"{side}_"
    shoulder, wrist = _rename("shoulder", _SHOULDER), _rename("wrist", _WRIST)
    fingers = "".join(_write_finger(prefix, sign, number) for number in range(len(FINGERS)))
    return f"""
      <body name="{prefix}girdle" pos="0 {sign * 0.04} {_TORSO}">
        {_write_hinges(_CLAVICLE, prefix, sign)}
        <geom fromto="0 0 0 0 {sign * 0.15} 0" size="0.03" mass="1.5"/>
        <body name="{prefix}upper_arm" pos="0 {sign * 0.17} 0">
          {_write_hinges(shoulder, prefix, sign)}
          <geom fromto="0 0 0 0 0 {-_UPPER_ARM}" size="0.04" mass="1.8"/>
          <body name="{prefix}forearm" pos="0 0 {-_UPPER_ARM}">
            {_write_hinges(_ELBOW, prefix, sign)}
            <geom fromto="0 0 0 0 0 {-_FOREARM}" size="0.03" mass="1.1"/>
            <body name="{prefix}hand" pos="0 0 {-_FOREARM}">
              {_write_hinges(wrist, prefix, sign)}
              <geom type="box" pos="0 0 {-_PALM / 2}" size="0.042 0.012 {_PALM / 2}" mass="0.4"/>
              <site name="{prefix}palm" pos="0 {-sign * 0.045} {-_PALM}" size="0.008" rgba="0.2 0.2 0.8 1"/>
              {fingers}
            </body>
          </body>
        </body>
      </body>"""


def _write_finger(prefix: str, sign: int, number: int) -> str:
    """Give one finger: two hinges at its root, one at the beginning of each phalanx that follows."""
    name = FINGERS[number]
    thumb = name == "thumb"
    hinges = _rename(name, _THUMB if thumb else _FINGER)
    lengths = _THUMB_PHALANGES if thumb else _PHALANGES
    place = (
        f'pos="0.035 {-sign * 0.012} -0.03" axisangle="0 1 0 -0.9"'
        if thumb
        else f'pos="{0.051 - 0.022 * number} 0 {-_PALM}"'
    )
    tip = f'<site name="{prefix}{name}_tip" pos="0 0 {-lengths[2]}" size="0.006"/>'
    inner = ""
    for part in (2, 1, 0):
        # The thumb's second root hinge bends it, as its last two do.
        own = hinges[:2] if part == 0 else hinges[part + 1 : part + 2]
        where = place if part == 0 else f'pos="0 0 {-lengths[part - 1]}"'
        inner = f"""
          <body name="{prefix}{name}_{part}" {where}>
            {_write_hinges(own, prefix, sign)}
            <geom fromto="0 0 0 0 0 {-lengths[part]}" size="0.008" mass="0.015"/>{tip if part == 2 else ""}{inner}
          </body>"""
    return inner


def _write_hinges(hinges: tuple[Hinge, ...], prefix: str, sign: int) -> str:
    """Give the joints of one body. Mirroring at the plane y = 0 keeps turns about y and turns the others round."""
    return "".join(
        f'<joint name="{prefix}{hinge.name}" axis="{sign * hinge.axis[0]} {hinge.axis[1]} {sign * hinge.axis[2]}" '
        f'range="{hinge.low} {hinge.high}" armature="{hinge.stiffness * 1e-3}"/>'
        for hinge in hinges
    )
