"""The documents' four sizes of the agent, and the published image classifiers, as closed tables. Imports no torch.

The claims are the documents' or the papers' own words; what is counted stands beside them in docs/vmamba_td3.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rl.vmamba_td3.architecture import StreamConfig, TrunkConfig


@dataclass(frozen=True)
class Preset:
    """One of the documents' sizes of the agent.

    Attributes:
        trunk: of the visual encoder.
        feature_dim: numbers that a frame becomes.
        state_feature_dim: numbers that a state becomes.
        hidden_dim: numbers that a window becomes, and width of actor and critic.
        temporal_layers: scans over time.
        batch_size: windows in a batch.
        seq_len: frames in a window.
        claimed_parameters: what the documents say it has; of what, they don't say.
        claimed_gpu_gb: GPU memory that the documents say it takes.
    """

    trunk: TrunkConfig
    feature_dim: int
    state_feature_dim: int
    hidden_dim: int
    temporal_layers: int
    batch_size: int
    seq_len: int
    claimed_parameters: int
    claimed_gpu_gb: int

    def list_settings(self) -> dict[str, Any]:
        """Give the settings of `vmamba_td3` that make an agent of this size."""
        return {
            "vmamba_hidden_dim": self.trunk.hidden_dim,
            "vmamba_num_vss_blocks": list(self.trunk.num_vss_blocks),
            "vmamba_patch_size": self.trunk.patch_size,
            "vmamba_layer_scale_init": self.trunk.layer_scale_init,
            "vmamba_temporal_layers": self.temporal_layers,
            "feature_dim": self.feature_dim,
            "state_feature_dim": self.state_feature_dim,
            "hidden_dim": self.hidden_dim,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
        }

    def plan_stream(self, frame_shape: tuple[int, int, int], state_dim: int) -> StreamConfig:
        """Give the sizes of one of its streams for an environment."""
        return StreamConfig(
            frame_shape,
            state_dim,
            trunk=self.trunk,
            feature_dim=self.feature_dim,
            state_feature_dim=self.state_feature_dim,
            hidden_dim=self.hidden_dim,
            temporal_layers=self.temporal_layers,
        )


PRESETS = MappingProxyType(
    {
        "ultra_light": Preset(TrunkConfig(32, (2, 2, 2, 2)), 64, 64, 128, 1, 256, 4, 500_000, 2),
        "light": Preset(TrunkConfig(64, (2, 2, 4, 2)), 128, 128, 256, 1, 128, 4, 2_000_000, 4),
        "standard": Preset(TrunkConfig(96, (2, 2, 6, 2)), 256, 256, 512, 1, 64, 4, 8_000_000, 8),
        "heavy": Preset(TrunkConfig(128, (2, 2, 9, 2)), 512, 512, 1024, 2, 32, 8, 20_000_000, 16),
    }
)
"""The documents' sizes, at their patch size of 16 and with their factors on what blocks add."""


@dataclass(frozen=True)
class PublishedModel:
    """An image classifier that VMamba's authors published.

    Attributes:
        trunk: before the head.
        published_millions: parameters in their table, with a head of 1,000 classes.
        documents_millions: parameters that the documents of `vmamba_td3` name for it; None where they don't.
    """

    trunk: TrunkConfig
    published_millions: int
    documents_millions: int | None = None


def _make_vanilla(dim: int, third_stage: int) -> TrunkConfig:
    blocks = (2, 2, third_stage, 2)
    return TrunkConfig(dim, blocks, patch_size=4, mlp_ratio=0.0, layer_scale_init=None, downsample="v1")


def _make_later(dim: int, third_stage: int, ssm_ratio: float) -> TrunkConfig:
    return TrunkConfig(
        dim,
        (2, 2, third_stage, 2),
        patch_size=4,
        ssm_d_state=1,
        ssm_ratio=ssm_ratio,
        layer_scale_init=None,
        gate=False,
        conv_bias=False,
        stem="v2",
    )


PUBLISHED_MODELS = MappingProxyType(
    {
        "vanilla_tiny": PublishedModel(_make_vanilla(96, 9), 23, 22),
        "vanilla_small": PublishedModel(_make_vanilla(96, 27), 44, 44),
        "vanilla_base": PublishedModel(_make_vanilla(128, 27), 76, 75),
        "s2l5_tiny": PublishedModel(_make_later(96, 5, 2.0), 31),
        "s2l15_small": PublishedModel(_make_later(96, 15, 2.0), 50),
        "s2l15_base": PublishedModel(_make_later(128, 15, 2.0), 89),
        "s1l8_tiny": PublishedModel(_make_later(96, 8, 1.0), 30),
        "s1l20_small": PublishedModel(_make_later(96, 20, 1.0), 49),
        "s1l20_base": PublishedModel(_make_later(128, 20, 1.0), 87),
    }
)
"""Liu et al. 2024, arXiv:2401.10166, and its code's table of models: first version (`vanilla`), and two later ones."""
