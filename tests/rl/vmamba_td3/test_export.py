"""The policy as a module of its own: the same actions, in a file that holds torch's operations alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from playing.formats import FORMATS, quiet_torch
from rl.scan.selective import selective_scan
from rl.vmamba_td3.trainer import VMambaTD3Trainer

Build = Callable[..., VMambaTD3Trainer]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"env_kwargs": {"height": 21, "width": 18, "num_obstacles": 5}, "encoder_sharing": "shared", "seq_len": 3},
    {"temporal_scan": "causal", "use_checkpointing": True, "vmamba_layer_scale_init": None, "use_input_adapter": True},
    {"encoder": "cnn", "env_kwargs": {"height": 16, "width": 16, "num_obstacles": 5}},
]


@pytest.fixture(params=FORMATS)
def format_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    return name


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_file_acts_as_the_policy_on_any_number_of_windows(
    small_vmamba: Build, settings: dict[str, Any], format_name: str, tmp_path: Path
) -> None:
    trainer = small_vmamba(**settings)
    for _ in range(12):
        trainer.train_step()
    env = trainer._make_evaluation_env()
    space = env.observation_space
    env.close()
    space.seed(3)
    seen = [space.sample() for _ in range(5)]
    act = trainer.begin_acting()
    acted = np.stack([act(obs) for obs in seen])
    observed = {name: np.stack([obs[name] for obs in seen]) for name in ("base", "depth")}
    module = trainer.build_policy_module()
    before = {name: tensor.clone() for name, tensor in trainer.agent.networks.state_dict().items()}
    path = tmp_path / "policy"
    path.write_bytes(FORMATS[format_name].write(module, {name: part.shape[1:] for name, part in observed.items()}))
    for count in (1, 2, 5):
        action = FORMATS[format_name].load(path)({name: part[:count] for name, part in observed.items()})
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, acted[:count], atol=1e-6)
    assert np.ptp(acted, axis=0).max() > 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.agent.networks.state_dict().items())


def test_raw_images_are_divided_by_their_largest_value(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    module = trainer.build_policy_module()
    base, depth = torch.rand(3, 2, 10), torch.rand(3, 2, 1, 8, 8)
    wanted = module(base, depth)
    module.depth_scale = 255.0
    torch.testing.assert_close(module(base, 255 * depth), wanted)


def test_the_module_is_a_copy_that_learning_leaves_alone(small_vmamba: Build) -> None:
    trainer = small_vmamba()
    module = trainer.build_policy_module()
    base, depth = torch.rand(3, 2, 10), torch.rand(3, 2, 1, 8, 8)
    before = module(base, depth)
    for _ in range(14):
        trainer.train_step()
    assert torch.equal(module(base, depth), before)
    assert not torch.equal(trainer.build_policy_module()(base, depth), before)


@pytest.mark.parametrize("extras", [True, False])
def test_a_scan_that_is_written_down_gives_the_same_for_batches_of_any_size(extras: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def make(batch: int) -> tuple[torch.Tensor, ...]:
        return draw(batch, 6, 7), draw(batch, 6, 7), draw(batch, 2, 4, 7), draw(batch, 2, 4, 7)

    decay, skip, bias = -draw(6, 4).exp(), draw(6) if extras else None, draw(6) if extras else None

    class Scan(torch.nn.Module):
        def forward(self, u: Any, delta: Any, B: Any, C: Any) -> Any:  # noqa: N803
            return selective_scan(u, delta, decay, B, C, skip, bias, delta_softplus=True)

    shapes = {name: part.shape[1:] for name, part in zip("udBC", make(1), strict=True)}
    content = FORMATS["torchscript"].write(Scan(), shapes)
    with quiet_torch():
        written = torch.jit.load(io.BytesIO(content))
    for batch in (1, 2, 5):
        parts = make(batch)
        torch.testing.assert_close(written(*parts), Scan()(*parts), atol=1e-5, rtol=1e-5)
