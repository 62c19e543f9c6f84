"""The parts that a spec may name, as a closed table, and the trainers that are built of them."""

from __future__ import annotations

import torch

from diffuser.config import DiffusionRLConfig
from diffuser.datasets.sequence import VAESequenceDataset
from diffuser.models.diffusion_rl import DiffusionRL, count_model_parameters
from diffuser.utils.evaluator import MADEvaluator
from diffuser.utils.rl_trainer import OfflineRLTrainer
from diffuser.utils.training import Trainer, describe_sizes
from envs.datasets import describe_dataset
from envs.make import describe_spaces

COMPONENTS = {
    "models.DiffusionRL": DiffusionRL,
    "datasets.VAESequenceDataset": VAESequenceDataset,
    "utils.Trainer": Trainer,
    "utils.OfflineRLTrainer": OfflineRLTrainer,
    "utils.MADEvaluator": MADEvaluator,
}
"""What the strings of the keys `diffusion`, `loader` and `evaluator` stand for, and the two trainers."""


def build_trainer(config: DiffusionRLConfig, device: torch.device) -> Trainer:
    """Give the trainer of a config: `utils.OfflineRLTrainer` where `online_training`, else `utils.Trainer`.

    Raises:
        SettingsError: the data set can't be learnt from.
    """
    return OfflineRLTrainer(config, device) if config.online_training else Trainer(config, device)


def count_parameters(config: DiffusionRLConfig) -> dict[str, int]:
    """Count the learnable parameters of each network, on the meta device. The average is a copy and doesn't count.

    Sizes are the data set's; of one that is still to be made, the environment's.

    Raises:
        SettingsError: the environment can't be made.
        EpisodeError: the data set can't be used.
    """
    episodes = describe_dataset(config.dataset).episodes
    sizes = episodes if episodes is not None else describe_spaces(config.env_name, config.env_kwargs)
    return count_model_parameters(describe_sizes(config, sizes.obs_dim, sizes.action_dim))
