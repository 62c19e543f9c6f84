"""What is seen -> one vector: of windows of frames, or of what a simulator knows; features of frames are kept."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rl.vmamba_td3.architecture import StreamConfig
from rl.vmamba_td3.encoders import CNNVisualEncoder, StateMLP, VMambaVisualEncoder, build_visual_encoder
from rl.vmamba_td3.sequence import MambaSequenceEncoder, build_sequence_encoder


class Stream(nn.Module):
    """A window of frames and states -> one vector.

    Args:
        sizes: of its parts.
        use_amp: let products and convolutions take bfloat16.
        use_checkpointing: compute blocks again on the way back instead of keeping what they gave.
    """

    def __init__(self, sizes: StreamConfig, *, use_amp: bool = False, use_checkpointing: bool = False) -> None:
        super().__init__()
        self.visual_encoder: VMambaVisualEncoder | CNNVisualEncoder = build_visual_encoder(
            sizes, use_amp=use_amp, use_checkpointing=use_checkpointing
        )
        self.state_encoder = StateMLP(sizes.state_dim, sizes.state_feature_dim)
        self.mamba: MambaSequenceEncoder = build_sequence_encoder(sizes, use_amp=use_amp)

    def forward(self, base: Tensor, depth: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give (batch, hidden_dim) for windows of states and frames.

        Args:
            base: (batch, steps, base_dim).
            depth: (batch, steps, 1, height, width), in [0, 1].
            generator: draws, in training, which paths of blocks are dropped.
        """
        features: Tensor = self.visual_encoder(depth.flatten(0, 1), generator)
        return self.gather(features.view(*depth.shape[:2], -1), base)

    def gather(self, features: Tensor, base: Tensor) -> Tensor:
        """Give (batch, hidden_dim) for windows whose frames are encoded already: (batch, steps, feature_dim)."""
        context: Tensor = self.mamba(features, self.state_encoder(base))
        return context

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters."""
        self.visual_encoder.initialise(generator)
        self.state_encoder.initialise(generator)
        self.mamba.initialise(generator)


class PrivilegedStream(nn.Module):
    """The newest state and what the simulator knows of that moment -> one vector: what a critic needs no images for.

    Args:
        base_dim: numbers of a state.
        privileged_dim: numbers that the simulator tells.
        hidden_dim: of the vector.
    """

    def __init__(self, base_dim: int, privileged_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_encoder = StateMLP(base_dim + privileged_dim, hidden_dim)

    def forward(self, base: Tensor, privileged: Tensor) -> Tensor:
        """Give (batch, hidden_dim) for windows of states (batch, steps, base_dim) and (batch, privileged_dim)."""
        context: Tensor = self.state_encoder(torch.cat([base[:, -1], privileged], dim=1))
        return context

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all parameters."""
        self.state_encoder.initialise(generator)


class FrameFeatures:
    """Features of one window's frames: each different frame is encoded once, and again when the weights have changed.

    Frames are encoded one at a time, so that what comes out doesn't depend on which were known.

    Attributes:
        num_encoded: frames that were encoded so far.
    """

    def __init__(self) -> None:
        self.num_encoded = 0
        self._frames: list[NDArray[np.float32]] = []
        self._features: list[Tensor] = []
        self._version = -1

    def find(self, stream: Stream, version: int, depth: NDArray[np.float32], device: torch.device) -> Tensor:
        """Give (1, steps, feature_dim) for the frames (steps, 1, height, width) of a window, without gradient.

        Args:
            stream: in eval mode.
            version: of its weights; features are kept as long as it stays.
            depth: in [0, 1].
            device: of the stream.
        """
        if version != self._version:
            self._frames, self._features, self._version = [], [], version
        features = [self._find_one(stream, frame, device) for frame in depth]
        self._frames, self._features = list(depth), features
        return torch.cat(features)[None]

    def _find_one(self, stream: Stream, frame: NDArray[np.float32], device: torch.device) -> Tensor:
        for known, features in zip(self._frames, self._features, strict=True):
            if np.array_equal(known, frame):
                return features
        self.num_encoded += 1
        with torch.no_grad():
            found: Tensor = stream.visual_encoder(torch.from_numpy(np.ascontiguousarray(frame))[None].to(device))
        self._frames.append(frame)
        self._features.append(found)
        return found
