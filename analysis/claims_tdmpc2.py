"""What the document says of TD-MPC2's sizes, each number beside what is counted.

It is called `TD-MPC2价值函数架构与参数量分析报告`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.dims_tdmpc2 import DOCUMENT, LARGEST_DIM, count_parts
from analysis.tables import DASH, Cell, Table, show_count, show_number
from rl.tdmpc2.sizes import ModelSizes


@dataclass(frozen=True)
class Claim:
    """One of the document's numbers, beside what is counted.

    Attributes:
        unit: what the claim is rounded to; 1 for an exact one.
        needs: what the claim would be right with.
    """

    part: str
    claimed: int
    unit: int
    counted: int
    needs: str

    @property
    def holds(self) -> bool:
        """Whether the count is what is claimed, to as many digits as the claim has."""
        return round(self.counted / self.unit) * self.unit == self.claimed


CLAIMED: Mapping[str, tuple[int, int]] = {
    "encoder": (800_000, 100_000),
    "dynamics": (680_000, 10_000),
    "reward": (680_000, 10_000),
    "policy": (630_000, 10_000),
    "one_q": (659_557, 1),
    "q": (3_297_785, 1),
    "target_q": (3_297_785, 1),
    "q_and_targets": (6_595_570, 1),
    "with_targets": (9_386_000, 1_000),
}
"""What the document's sum is made of, each with what it is rounded to."""
CLAIMED_OTHERS, CLAIMED_WHOLE, CLAIMED_HEADS, CLAIMED_PREFERENCES = 2_800_000, 9_400_000, 6_600_000, 1_240_000


def show_claim(claimed: int, unit: int) -> str:
    """Write a claim as the document does: exact, in thousands or in millions."""
    if unit == 1:
        return f"{claimed:,}"
    return f"~{claimed / 1e6:g}M" if claimed >= 10**6 and unit >= 10_000 else f"~{claimed // 1000:,}K"


def list_claims() -> list[Claim]:
    """Give what the document claims of counts, and with what each wrong claim would be right."""
    sizes = DOCUMENT.plan()
    parts = count_parts(sizes)
    claims = [
        _judge("inputs of a Q head", 669, 1, lambda sizes: sizes.joint_dim),
        _judge("outputs of the policy", 122, 1, lambda sizes: sizes.policy_dim),
        *(
            _judge(name, claimed, 100_000, _counter("encoder"), "obs_dim", "enc_dim")
            for name, claimed in (
                ("encoder, at least", 500_000),
                ("encoder, in the sum", CLAIMED["encoder"][0]),
                ("encoder, at most", 1_000_000),
            )
        ),
    ]
    keys = {"dynamics": ("mlp_dim",), "reward": ("num_bins", "mlp_dim"), "policy": ("action_dim", "mlp_dim")}
    claims += [_judge(part, *CLAIMED[part], _counter(part), *keys[part]) for part in keys]
    names = {"one_q": "one Q head", "q": "5 Q heads", "target_q": "target Q heads", "q_and_targets": "Q heads, targets"}
    claims += [_judge(name, *CLAIMED[part], _counter(part)) for part, name in names.items()]
    return [
        *claims,
        _judge("all but Q heads, targets", CLAIMED_OTHERS, 100_000, _count_others, "obs_dim"),
        _judge("whole, as summed", *CLAIMED["with_targets"], _counter("with_targets"), "obs_dim"),
        _judge("whole, as rounded", CLAIMED_WHOLE, 100_000, _counter("with_targets"), "obs_dim"),
        Claim(
            "memory of Q heads, targets",
            CLAIMED_HEADS,
            100_000,
            parts["target_q"] + parts["q"] * (1 + 1 + 2),
            "no gradients and no moments: acting alone",
        ),
    ]


def _judge(part: str, claimed: int, unit: int, count: Callable[[ModelSizes], int], *keys: str) -> Claim:
    claim = Claim(part, claimed, unit, count(DOCUMENT.plan()), "")
    assert claim.holds == (not keys), part
    return replace(claim, needs=" or ".join(_find_need(key, count, claimed) for key in keys))


def _find_need(key: str, count: Callable[[ModelSizes], int], claimed: int) -> str:
    """Say with which value of one key, the others left alone, the count comes closest to the claim."""
    sizes = DOCUMENT.plan()

    def count_with(value: int) -> int:
        changes: dict[str, Any] = {"obs_shape": (value,)} if key == "obs_dim" else {key: value}
        return count(replace(sizes, **changes))

    values = range(1, LARGEST_DIM)
    place = bisect_left(values, claimed, key=count_with)
    closest = min(values[place - 1 : place + 1], key=lambda value: abs(count_with(value) - claimed))
    return f"{key} {closest:,}"


def _counter(part: str) -> Callable[[ModelSizes], int]:
    return lambda sizes: count_parts(sizes)[part]


def _count_others(sizes: ModelSizes) -> int:
    parts = count_parts(sizes)
    return parts["with_targets"] - parts["q_and_targets"]


def tabulate_claims() -> Table:
    """Give the table of the document's numbers, right and wrong ones."""
    rows, records = [], []
    for claim in list_claims():
        ratio = claim.counted / claim.claimed
        verdict = "right" if claim.holds else claim.needs
        texts = (claim.part, show_claim(claim.claimed, claim.unit), show_count(claim.counted), show_number(ratio, 3))
        rows.append((*(Cell(text) for text in texts), Cell(verdict)))
        record = {"part": claim.part, "claimed": claim.claimed, "counted": claim.counted}
        records.append(record | {"holds": claim.holds, "right_with": None if claim.holds else claim.needs})
    notes = (
        "At the document's sizes, whatever sizes were asked for. A wrong claim would be right with the one key that "
        "its row names, all others left alone.",
        "The document gives dynamics what it gives the reward. They differ in their third layer: for dynamics it is "
        "512 wide and normed. What it calls 6.6M of memory are numbers, not bytes, of heads and targets; training "
        "keeps a gradient and Adam's two moments beside each number that learns.",
    )
    columns = ("The document's", "Claimed", "Counted", "Counted / claimed", "Right, or would be with")
    return Table("claims", "The document's claims", columns, tuple(rows), pd.DataFrame(records), notes)


def count_preference_model(input_dim: int) -> int:
    """Count the document's preference reward model, in the one reading of it that rounds to 1.24M.

    Given are the input, a width of 256, two layers of a transformer, four heads (which change no count) and two
    outputs, a reward and how sure it is. Of the rest this takes feed-forward layers of 512, a last norm, 100 learned
    positions and a head of 64 hidden units.
    """
    width, hidden, positions, head = 256, 512, 100, 64
    attention = 4 * (width + 1) * width
    forward = (width + 1) * hidden + (hidden + 1) * width
    layer = attention + forward + 2 * 2 * width
    outputs = (width + 1) * head + (head + 1) * 2
    return (input_dim + 1) * width + 2 * layer + 2 * width + positions * width + outputs


def tabulate_shares() -> Table:
    """Give the table of what parts take of the whole, with the preference reward model beside."""
    sizes, alone = DOCUMENT.plan(), DOCUMENT.leave_tasks_out().plan()
    several, single = count_parts(sizes), count_parts(alone)
    preferences = count_preference_model(alone.joint_dim)
    whole, whole_alone = several["with_targets"], single["with_targets"]
    content: tuple[tuple[str, int, int | None, int, int], ...] = (
        ("Q heads and targets", CLAIMED_HEADS, 70, several["q_and_targets"], single["q_and_targets"]),
        ("all else", CLAIMED_OTHERS, None, _count_others(sizes), _count_others(alone)),
        ("whole", CLAIMED_WHOLE, 100, whole, whole_alone),
        ("preference reward model, beside it", CLAIMED_PREFERENCES, 13, preferences, preferences),
    )
    rows, records = [], []
    for part, claimed, percent, counted, counted_alone in content:
        shares = (100 * counted / whole, 100 * counted_alone / whole_alone)
        texts = [part, show_claim(claimed, 10_000), f"{percent} %" if percent else DASH]
        texts += [show_count(counted), f"{shares[0]:.1f} %", show_count(counted_alone), f"{shares[1]:.1f} %"]
        rows.append(tuple(Cell(text) for text in texts))
        record = {"part": part, "claimed": claimed, "claimed_percent": percent, "counted": counted}
        record |= {"percent": shares[0], "single_task": counted_alone, "single_task_percent": shares[1]}
        records.append(record)
    ratio = several["q_and_targets"] / preferences
    notes = (
        "The claimed shares are right of the claimed whole, and only of that. The preference reward model is a fifth "
        f"of the Q heads and targets, says the document: 1 / {ratio:.1f} is counted, in the reading that gives 1.24M.",
    )
    columns = ("Part", "Claimed", "Share", "Several tasks", "Share, counted", "Single task", "Share, single task")
    frame = pd.DataFrame(records).astype({"claimed_percent": "Int64"})
    return Table("shares", "Shares of the whole", columns, tuple(rows), frame, notes)
