import random

import numpy as np
import pytest
import torch

from training.seeding import (
    derive_seed,
    read_global_generators,
    seed_everything,
    spawn_generator,
    undisturbed_generators,
    write_global_generators,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def test_global_generators_go_on_where_they_were_read() -> None:
    seed_everything(3)
    draw()
    state = read_global_generators()
    expected = [draw() for _ in range(3)]
    seed_everything(4)
    write_global_generators(state)
    assert [draw() for _ in range(3)] == expected


def test_code_that_draws_can_be_kept_from_being_noticed() -> None:
    seed_everything(5)
    expected = [draw() for _ in range(2)]
    seed_everything(5)
    seen = [draw()]
    with undisturbed_generators():
        draw()
        seed_everything(99)
    assert [*seen, draw()] == expected


def test_purposes_never_share_a_stream() -> None:
    seeds = {derive_seed(seed, purpose) for seed in range(50) for purpose in ("env", "noise", "replay", "networks")}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert spawn_generator(1, "noise").random() == spawn_generator(1, "noise").random()
    assert spawn_generator(1, "noise").random() != spawn_generator(1, "replay").random()


def test_a_state_of_more_gpus_than_there_are_is_taken_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: written.append((int(state[0]), device)))
    state = read_global_generators() | {"cuda": [torch.tensor([7]), torch.tensor([8])]}
    write_global_generators(state)
    assert written == [(7, 0)]
