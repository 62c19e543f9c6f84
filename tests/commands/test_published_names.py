"""What users type, and what they read by name, is an interface: taking a name away or renaming it fails here."""

import json
import os
import subprocess
import sys
from argparse import _SubParsersAction
from pathlib import Path

import numpy as np
import pytest

import play
from diffuser.config import DiffusionRLConfig
from envs.episodes import Header, RecordedEpisode, gather_episodes, write_episodes
from envs.recipes import RECIPES
from experiment.arguments import build_parser
from rl.ddpg_config import DDPGConfig
from rl.offline.bc_config import BCConfig
from rl.offline.iql_config import IQLConfig
from rl.offline.td3_bc_config import TD3BCConfig
from rl.sac_config import SACConfig
from rl.td3_config import TD3Config
from training.config import TrainerConfig

ROOT = Path(__file__).parents[2]
COMMON_KEYS = {
    "algorithm_name", "env_name", "env_kwargs", "eval_env_kwargs", "imports", "seed", "max_timesteps", "wall_budget_s",
    "learning_starts",
    "batch_size", "buffer_size", "num_envs", "eval_freq", "num_eval", "num_final_eval", "save_freq", "keep_last",
    "keep_replay", "log_freq", "continue_training", "device", "guard", "guard_max_critic_loss",
    "guard_max_actor_loss", "guard_min_episode_length", "init_from", "init_weights_from",
}  # fmt: skip
DDPG_KEYS = {
    "learning_rate", "actor_learning_rate", "critic_learning_rate", "discount", "tau", "hidden_dims", "noise_type",
    "noise_std", "ou_theta", "max_grad_norm", "updates_per_step", "n_step", "normalize_obs", "normalize_reward",
    "base_controller", "delta_scale_max", "schedule", "lr_rule", "reference_batch_size",
}  # fmt: skip
TD3_KEYS = DDPG_KEYS | {"target_noise_std", "target_noise_clip", "policy_delay"}
SAC_KEYS = DDPG_KEYS - {"noise_type", "noise_std", "ou_theta"} | {
    "temperature", "temperature_learning_rate", "target_entropy",
}  # fmt: skip
BC_KEYS = {"dataset", "learning_rate", "hidden_dims", "normalize_obs"}
TD3_BC_KEYS = BC_KEYS | {"discount", "tau", "q_weight", "target_noise_std", "target_noise_clip", "policy_delay"}
IQL_KEYS = BC_KEYS | {"discount", "tau", "expectile", "temperature", "normalize_reward"}
DIFFUSION_KEYS = {
    "diffusion", "loader", "evaluator", "dataset", "horizon", "history_horizon", "obs_normalizer", "vae_latent_dim",
    "trajectory_latent_dim", "vae_weight", "vae_kl_weight", "hidden_dims", "denoiser", "denoiser_hidden_dims",
    "unet_channels", "num_diffusion_steps", "num_sampling_steps", "sampler", "beta_schedule", "prediction_type", "eta",
    "clip_range", "learning_rate", "max_grad_norm", "ema_decay", "gradient_accumulation", "q_weight", "num_candidates",
    "expectile", "sampling_temperature", "online_training",
    "use_value_function", "rl_learning_rate", "policy_gradient_weight", "value_function_weight", "entropy_weight",
    "offline_loss_weight", "rl_warmup_steps", "rl_collect_freq", "rl_collect_steps", "rl_update_freq", "rl_batch_size",
    "rl_clip_range", "rl_target_kl", "rl_tuned_steps", "discount", "gae_lambda", "denoising_discount",
}  # fmt: skip
FLAGS = {
    "-h", "--help", "-e", "-g", "-j", "-o", "--only", "-n", "--dry-run", "--json", "--yes", "--no-count", "--rerun",
    "--retry", "--timeout", "--log-root", "--plain", "--no-report", "--detach", "--no-warm", "--chaos",
    "--verify-resume", "--with-current-code",
    "--jobs-per-gpu", "--smoke",
}  # fmt: skip
PLAY_FLAGS = {
    "record": {
        "-h", "--help", "--checkpoint", "--device", "--env", "--env-kwargs", "--policy", "--episodes", "--steps",
        "--noise", "--seed", "-o", "--out", "--overwrite", "--imports",
    },
    "evaluate": {
        "-h", "--help", "--checkpoint", "--device", "--policy", "--env", "--env-kwargs", "--episodes", "--workers",
        "--json", "--imports",
    },
    "share": {"-h", "--help"},
    "trace": {
        "-h", "--help", "--checkpoint", "--device", "--episodes", "--env-kwargs", "-o", "--out", "--overwrite",
    },
    "render": {
        "-h", "--help", "--checkpoint", "--device", "--policy", "--env", "--env-kwargs", "--imports", "-o", "--out",
        "--strips", "--video", "--episodes", "--seeds",
    },
    "export": {"-h", "--help", "--checkpoint", "--device", "--format", "-o", "--out", "--overwrite"},
    "samples": {"-h", "--help", "--checkpoint", "--device", "-o", "--out", "--windows"},
    "info": {"-h", "--help"},
    "list": {"-h", "--help"},
    "make": {"-h", "--help"},
}  # fmt: skip
REFERENCE_SETS = {
    "pendulum-noisy", "pendulum-expert", "pendulum-random", "hopper-medium", "hopper-random", "halfcheetah-medium",
    "halfcheetah-random",
}  # fmt: skip
METRICS = {
    "step", "env_step", "wall_time", "train/critic_loss", "train/actor_loss", "train/n_updates", "rollout/ep_rew_mean",
    "rollout/ep_len_mean", "rollout/return_per_step", "time/fps", "eval/mean_reward", "eval/std_reward",
    "eval/mean_ep_length",
}  # fmt: skip


def test_keys_that_every_trainer_reads_are_there() -> None:
    assert set(TrainerConfig.model_fields) == COMMON_KEYS


def test_keys_of_ddpg_td3_and_sac_are_there() -> None:
    assert set(DDPGConfig.model_fields) - COMMON_KEYS == DDPG_KEYS
    assert set(TD3Config.model_fields) - COMMON_KEYS == TD3_KEYS
    assert set(SACConfig.model_fields) - COMMON_KEYS == SAC_KEYS


def test_keys_of_the_offline_baselines_are_there() -> None:
    assert set(BCConfig.model_fields) - COMMON_KEYS == BC_KEYS
    assert set(TD3BCConfig.model_fields) - COMMON_KEYS == TD3_BC_KEYS
    assert set(IQLConfig.model_fields) - COMMON_KEYS == IQL_KEYS


def test_keys_of_the_diffusion_agent_are_there_and_explained() -> None:
    assert set(DiffusionRLConfig.model_fields) - COMMON_KEYS == DIFFUSION_KEYS
    page = (ROOT / "docs/diffusion.md").read_text()
    assert [key for key in DIFFUSION_KEYS if f"| `{key}`" not in page] == []


def test_names_of_the_guide_to_diffusion_agents_can_be_imported() -> None:
    from diffuser.datasets.sequence import VAESequenceDataset
    from diffuser.models.diffusion_rl import DiffusionRL
    from diffuser.utils.evaluator import MADEvaluator
    from diffuser.utils.rl_trainer import OfflineRLTrainer
    from diffuser.utils.training import Trainer

    assert {part.__name__ for part in (VAESequenceDataset, DiffusionRL, MADEvaluator, Trainer)} == {
        "VAESequenceDataset", "DiffusionRL", "MADEvaluator", "Trainer",
    }  # fmt: skip
    assert issubclass(OfflineRLTrainer, Trainer)


def test_flags_of_the_runner_are_there() -> None:
    assert {flag for action in build_parser()._actions for flag in action.option_strings} == FLAGS


def test_commands_and_flags_of_play_are_there() -> None:
    (commands,) = (action for action in play.build_parser()._actions if isinstance(action, _SubParsersAction))
    flags = {
        name: {flag for action in command._actions for flag in action.option_strings}
        for name, command in commands.choices.items()
    }
    assert flags == PLAY_FLAGS
    page = (ROOT / "docs/episodes.md").read_text()
    assert [flag for flag in flags["record"] - {"-h", "--help", "--out"} if f"`{flag}`" not in page] == []
    page = (ROOT / "docs/play.md").read_text()
    explained = (flags["evaluate"] | flags["export"] | flags["render"] | flags["trace"]) - {"-h", "--help", "--out"}
    assert [flag for flag in explained if f"`{flag}`" not in page] == []


def test_reference_sets_are_there_and_explained() -> None:
    assert set(RECIPES) == REFERENCE_SETS
    page = (ROOT / "docs/episodes.md").read_text()
    assert [name for name in RECIPES if f"`{name}`" not in page] == []


def test_a_run_writes_its_metrics_and_lines_under_the_names_that_users_know(tmp_path: Path) -> None:
    settings = "--algorithm_name ddpg --env_name Pendulum-v1 --batch_size 8 --hidden_dims 8 8 --max_timesteps 500"
    more = "--learning_starts 50 --eval_freq 250 --num_eval 2 --num_final_eval 3 --log_freq 100"
    answer = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *settings.split(), *more.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (run,) = tmp_path.glob("logs/ddpg_Pendulum-v1/ddpg__*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set().union(*rows) >= METRICS
    lines = answer.stdout.splitlines()
    told = next(
        index for index, line in enumerate(lines) if line.startswith("Eval num_timesteps=250, episode_reward=-")
    )
    assert " +/- " in lines[told]
    assert lines[told + 1] == "Episode length: 200.0 +/- 0.0"
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["final_eval"]["returns"]) == 3
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((run / "exit.json").read_text()) == {"ok": True, "returncode": 0, "reason": "ok", "attempt": 1}
    again = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-e", str(run / "config.yaml")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "finished before" in again.stdout


def test_a_run_on_a_reference_set_writes_its_scores_under_names_that_are_explained(tmp_path: Path) -> None:
    bound, generator = np.full((1, 1), 2, dtype=np.float32), np.random.default_rng(0)
    episode = RecordedEpisode(
        observations=generator.standard_normal((41, 1, 3)).astype(np.float32),
        actions=generator.uniform(-2, 2, (40, 1, 1)).astype(np.float32),
        rewards=np.zeros((40, 1), dtype=np.float32),
        terminated=False,
    )
    facts = {"kind": "recipe", "references": {"random": -1200.0, "expert": -130.0}}
    header = Header("Pendulum-v1", {}, -bound, bound, facts)
    write_episodes(tmp_path / "some.h5", gather_episodes(header, [episode]))
    settings = "--algorithm_name bc --env_name Pendulum-v1 --dataset some.h5 --batch_size 8 --hidden_dims 8 8"
    more = "--max_timesteps 4 --eval_freq 2 --num_eval 1 --num_final_eval 1"
    command = [sys.executable, str(ROOT / "train.py"), *settings.split(), *more.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=environment)
    (run,) = tmp_path.glob("logs/bc_Pendulum-v1/bc__*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/normalized_score" in row for row in rows) == 2
    final = json.loads((run / "summary.json").read_text())["final_eval"]
    assert final["references"] == {"random": -1200.0, "expert": -130.0}
    assert final["normalized_score"] == pytest.approx(100 * (final["mean"] + 1200) / 1070)
    said = subprocess.run(
        [sys.executable, str(ROOT / "play.py"), "evaluate", str(run), "--episodes", "1"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
        env=environment,
    )
    assert f"normalised score {final['normalized_score']:.1f}" in said.stdout
    for name in ("eval/normalized_score", "normalized_score", "references"):
        for page in ("offline", "diffusion", "run_folder"):
            assert f"`{name}`" in (ROOT / f"docs/{page}.md").read_text(), (name, page)


def test_every_key_is_explained() -> None:
    spec, ddpg = (ROOT / "docs/spec.md").read_text(), (ROOT / "docs/ddpg.md").read_text()
    assert [key for key in COMMON_KEYS if f"| `{key}`" not in spec] == []
    assert [key for key in DDPG_KEYS if f"`{key}`" not in ddpg] == []
    for name, keys in (("td3", TD3_KEYS), ("sac", SAC_KEYS)):
        page = (ROOT / f"docs/{name}.md").read_text()
        assert [key for key in keys - DDPG_KEYS if f"| `{key}`" not in page] == []
    page = (ROOT / "docs/offline.md").read_text()
    assert [key for key in BC_KEYS | TD3_BC_KEYS | IQL_KEYS if f"| `{key}`" not in page] == []
