"""Every source of randomness: seeded from one number, saved, restored, and kept undisturbed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CUDA too), for libraries that draw from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  environments of others may draw from it
    torch.manual_seed(seed)


def derive_seed(seed: int, purpose: str) -> int:
    """Give a seed of 63 bits for one purpose of a run; purposes never share a stream."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_reset_seed(seed: int, purpose: str) -> int:
    """Give a seed below 2**31, which generators of the old kind and simulators with 32-bit seeds take too."""
    return derive_seed(seed, purpose) >> 32


def spawn_generator(seed: int, purpose: str) -> np.random.Generator:
    """Give a NumPy generator of its own to one purpose of a run (`"noise"`, `"replay"`, ...)."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose)))


def read_global_generators() -> dict[str, Any]:
    """Give the state of the global generators as tensors and plain values, for a checkpoint."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.uint32).astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def write_global_generators(state: dict[str, Any]) -> None:
    """Put the global generators back to a state that `read_global_generators` gave."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    # A checkpoint may come from a machine with more GPUs than this process sees.
    for device, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(generator, device)


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Let code draw from the global generators without training noticing: they are put back at the end."""
    state = read_global_generators()
    try:
        yield
    finally:
        write_global_generators(state)
