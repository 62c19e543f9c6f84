"""An evaluation that is asked to stop leaves the trainer as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from rl.off_policy import OffPolicyTrainer
from training.protocol import EvaluationStopped
from training.resources import hash_state


def test_an_evaluation_is_abandoned_in_mid_episode(small_trainer: Callable[..., OffPolicyTrainer]) -> None:
    trainer = small_trainer()
    for _ in range(50):
        trainer.train_step()
    before, answers = hash_state(trainer.state_dict()), itertools.count()
    with pytest.raises(EvaluationStopped):
        trainer.evaluate([1, 2], lambda: next(answers) == 250)  # an episode has 200 steps
    assert next(answers) == 251
    assert hash_state(trainer.state_dict()) == before
