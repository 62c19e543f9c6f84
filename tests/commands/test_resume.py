"""Straight equals resumed: training killed at random moments ends in the bits of the training left alone."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiment.progress import read_progress
from experiment.run import Run, State, find_runs
from training.checkpoint import load_checkpoint
from training.resources import hash_state

ROOT = Path(__file__).parents[2]
SIZES = "--hidden_dims 32 32 --batch_size 32"
DDPG = f"--algorithm_name ddpg --noise_type ou {SIZES}"
TD3, SAC = f"--algorithm_name td3 --noise_type ou {SIZES}", f"--algorithm_name sac {SIZES}"
EVERYTHING = "--num_envs 3 --n_step 3 --normalize_obs true --normalize_reward true"


def start(folder: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, str(ROOT / "train.py"), *settings, "--log-root", "logs"]
    console = (folder / "console.txt").open("ab")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with console:
        return subprocess.Popen(words, cwd=folder, stdout=console, stderr=console, env=environment)


def find_run(folder: Path) -> Run:
    (run,) = find_runs(next((folder / "logs").iterdir()))
    return run


def train_straight(folder: Path, settings: Sequence[str]) -> Run:
    folder.mkdir()
    assert start(folder, settings).wait(900) == 0, (folder / "console.txt").read_text()
    return find_run(folder)


def train_with_kills(folder: Path, settings: Sequence[str], kills: int, steps: int) -> Run:
    """Train to the end, killed on the way: each time shortly after a random step, those of all parts of the run."""
    folder.mkdir()
    generator = random.Random(kills)
    for target in sorted(generator.uniform(0, 0.95 * steps) for _ in range(kills)):
        process = start(folder, settings)
        wait_for_step(folder, process, target)
        try:
            process.wait(generator.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() == -9, (folder / "console.txt").read_text()
    assert start(folder, settings).wait(900) == 0, (folder / "console.txt").read_text()
    return find_run(folder)


def wait_for_step(folder: Path, process: subprocess.Popen[bytes], target: float) -> None:
    """Wait until this attempt has written a row of a later step."""
    wait_for_training(folder, process)
    deadline = time.monotonic() + 300
    while process.poll() is None and read_progress(find_run(folder)).step < target:
        assert time.monotonic() < deadline
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue


def wait_for_training(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the attempt has written something: a row, a checkpoint, or that it resumed."""
    before = measure(folder)
    deadline = time.monotonic() + 120
    while process.poll() is None and measure(folder) == before:
        assert time.monotonic() < deadline
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue


def measure(folder: Path) -> tuple[int, int]:
    rows = sum(path.stat().st_size for path in folder.glob("logs/*/*/metrics.jsonl"))
    return rows, (folder / "console.txt").stat().st_size


def read_rows(run: Run) -> list[dict[str, Any]]:
    """Give the metrics without what the clock on the wall decides."""
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not is_clock(key)} for row in rows]


def is_clock(key: str) -> bool:
    return key == "wall_time" or key.startswith("time/")


def read_state(run: Run) -> Mapping[str, Any]:
    """Give what the last checkpoint says of the trainer: networks, optimizers, buffer, generators, environment."""
    newest = max(run.checkpoints_dir.glob("step_*.pt"))
    state = load_checkpoint(newest).state["trainer"]
    assert isinstance(state, dict)
    return state


def check_equal(straight: Run, resumed: Run) -> None:
    assert resumed.status().state is State.DONE
    first, second = read_state(straight), read_state(resumed)
    assert first.keys() == second.keys()
    differing = [key for key in first if hash_state({key: first[key]}) != hash_state({key: second[key]})]
    assert differing == []
    assert read_rows(straight) == read_rows(resumed)
    summaries = [json.loads(run.summary_path.read_text()) for run in (straight, resumed)]
    for key in ("final_eval", "best_eval", "state_hash", "parameters", "steps", "updates", "resume"):
        assert summaries[0][key] == summaries[1][key], key
    assert summaries[1]["resume"] == "exact"


def check_straight_equals_resumed(folder: Path, settings: str, kills: int, steps: int) -> None:
    words = [*settings.split(), "--max_timesteps", str(steps), "--keep_replay", "true"]
    straight = train_straight(folder / "straight", words)
    resumed = train_with_kills(folder / "resumed", words, kills, steps)
    assert resumed.last_attempt() == kills + 1
    check_equal(straight, resumed)


@pytest.mark.parametrize("schedule", ["", "--schedule fixed_samples --reference_batch_size 27 --lr_rule sqrt"])
def test_a_pendulum_run_killed_twice_ends_in_the_same_bits(tmp_path: Path, schedule: str) -> None:
    """Checkpoints are 130 steps apart, each of which owes 27 samples of a batch of 32: in the midst of an update."""
    settings = f"{DDPG} --env_name Pendulum-v1 --learning_starts 200 --save_freq 130 {schedule}"
    more = "--eval_freq 400 --num_eval 2 --log_freq 90"
    check_straight_equals_resumed(tmp_path, f"{settings} {more}", kills=2, steps=2500)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["Pendulum-v1", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5"])
def test_a_run_killed_twenty_times_ends_in_the_same_bits(tmp_path: Path, environment: str) -> None:
    settings = f"{DDPG} --env_name {environment} --learning_starts 500 --save_freq 100"
    more = "--eval_freq 700 --num_eval 3 --log_freq 60"
    check_straight_equals_resumed(tmp_path, f"{settings} {more}", kills=20, steps=6000)


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["Pendulum-v1", "HalfCheetah-v5"])
@pytest.mark.parametrize("algorithm", [TD3, SAC], ids=["td3", "sac"])
def test_a_run_with_everything_switched_on_ends_in_the_same_bits(
    tmp_path: Path, algorithm: str, environment: str
) -> None:
    settings = f"{algorithm} {EVERYTHING} --env_name {environment} --learning_starts 500 --save_freq 99"
    more = "--eval_freq 700 --num_eval 3 --log_freq 60"
    check_straight_equals_resumed(tmp_path, f"{settings} {more}", kills=20, steps=6000)


@pytest.mark.parametrize("environment", ["Pendulum-v1", pytest.param("Humanoid-v5", marks=pytest.mark.slow)])
def test_evaluating_changes_no_bit_of_training(tmp_path: Path, environment: str) -> None:
    words = f"{DDPG} --env_name {environment} --max_timesteps 900 --learning_starts 200 --keep_replay true"
    settings = words.split()
    often = train_straight(tmp_path / "often", [*settings, "--eval_freq", "100", "--num_eval", "2"])
    never = train_straight(tmp_path / "never", [*settings, "--eval_freq", "0"])
    assert hash_state(dict(read_state(often))) == hash_state(dict(read_state(never)))


def test_training_stopped_by_sigterm_checkpoints_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = f"{DDPG} --env_name Pendulum-v1 --max_timesteps 1500 --learning_starts 200 --save_freq 0"
    words = [*settings.split(), "--keep_replay", "true", "--log_freq", "100", "--eval_freq", "0"]
    straight = train_straight(tmp_path / "straight", words)
    folder = tmp_path / "stopped"
    folder.mkdir()
    process = start(folder, words)
    wait_for_training(folder, process)
    process.terminate()
    assert process.wait(60) == 75
    assert find_run(folder).status().state is State.STOPPED
    assert start(folder, words).wait(300) == 0
    check_equal(straight, find_run(folder))


ONLINE = (
    "--online_training true --rl_warmup_steps 150 --rl_collect_freq 20 --rl_collect_steps 40 --rl_update_freq 5 "
    "--rl_batch_size 64 --rl_tuned_steps 5 --num_envs 2 --guard repair"
)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["--gradient_accumulation 2", ONLINE], ids=["offline", "online"])
def test_a_diffusion_run_killed_eight_times_ends_in_the_same_bits(tmp_path: Path, phase: str) -> None:
    """Checkpoints are 15 steps apart: in the midst of an epoch, and of the passes over what was collected."""
    record = "record --env Pendulum-v1 --policy scripted:pendulum_energy --noise 1 --episodes 5 -o some.h5"
    subprocess.run(
        [sys.executable, str(ROOT / "play.py"), *record.split()], cwd=tmp_path, check=True, capture_output=True
    )
    settings = f"--algorithm_name vae_diffusion_rl --env_name Pendulum-v1 --dataset {tmp_path / 'some.h5'}"
    sizes = (
        f"{SIZES} --vae_latent_dim 8 --trajectory_latent_dim 16 --denoiser_hidden_dims 32 32 --num_diffusion_steps 20"
    )
    more = "--save_freq 15 --log_freq 5 --eval_freq 100 --num_eval 2 --num_final_eval 3"
    check_straight_equals_resumed(tmp_path, f"{settings} {sizes} {more} {phase}", kills=8, steps=400)


VMAMBA = (
    "--algorithm_name vmamba_td3 --env_name DepthNav-v0 --seq_len 3 --batch_size 8 --vmamba_patch_size 8 "
    "--vmamba_hidden_dim 8 --vmamba_num_vss_blocks 1 1 1 1 --vmamba_ssm_d_state 4 --feature_dim 16 "
    "--state_feature_dim 16 --hidden_dim 16"
)
VMAMBA_OPTIONS = (
    "--num_envs 2 --n_step 3 --random_shift 2 --encoder_sharing shared --temporal_scan causal --exploration gaussian "
    "--random_steps 60 --buffer_size 300 --critic_loss huber"
)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", VMAMBA_OPTIONS], ids=["documented", "options"])
def test_a_run_that_sees_depth_killed_ten_times_in_mid_episode_ends_in_the_same_bits(
    tmp_path: Path, options: str
) -> None:
    """Episodes end after 20 to 300 steps, checkpoints are 17 apart; the small buffer goes round."""
    world = ["--env_kwargs", "{height: 16, width: 16, wind: 2.0, moving: 0.5, depth_noise: 0.5}"]
    words = [*VMAMBA.split(), *options.split(), *world]
    more = "--learning_starts 100 --save_freq 17 --eval_freq 200 --num_eval 2 --log_freq 20 --num_final_eval 3"
    words += [*more.split(), "--max_timesteps", "600", "--keep_replay", "true"]
    straight = train_straight(tmp_path / "straight", words)
    resumed = train_with_kills(tmp_path / "resumed", words, 10, 600)
    assert resumed.last_attempt() == 11
    check_equal(straight, resumed)


TDMPC2 = (
    "--algorithm_name tdmpc2 --model_size 1 --mlp_dim 32 --enc_dim 32 --latent_dim 16 --num_bins 21 --num_samples 32 "
    "--num_elites 8 --num_pi_trajs 4 --iterations 2 --batch_size 16 --dropout 0.1"
)
TDMPC2_WORLDS = {
    "pendulum": "--env_name Pendulum-v1",
    "ends": "--env_name InvertedPendulum-v5 --episodic true --num_envs 2 --train_freq 3 --guard repair "
    "--buffer_size 150 --action_repeat 2 --value_uncertainty_weight 0.5",
    "tasks": "--env_name MultiTask-v0 --task_dim 8 --plan_bf16 true",
}


@pytest.mark.slow
@pytest.mark.parametrize("world", TDMPC2_WORLDS)
def test_a_run_that_plans_killed_four_times_ends_in_the_same_bits(tmp_path: Path, world: str) -> None:
    """Checkpoints are 17 steps apart: in the midst of episodes, and of 45 updates that are made at once."""
    tasks = "{tasks: [{env_name: Pendulum-v1, env_kwargs: {max_episode_steps: 25}}, Reacher-v5]}"
    words = [*TDMPC2.split(), *TDMPC2_WORLDS[world].split()]
    words += ["--env_kwargs", tasks] if world == "tasks" else []
    more = "--learning_starts 60 --pretrain_updates 45 --save_freq 17 --log_freq 20 --eval_freq 120 --num_eval 1"
    words += [*more.split(), "--num_final_eval", "2", "--max_timesteps", "240", "--keep_replay", "true"]
    straight = train_straight(tmp_path / "straight", words)
    resumed = train_with_kills(tmp_path / "resumed", words, 4, 240)
    assert resumed.last_attempt() == 5
    check_equal(straight, resumed)
