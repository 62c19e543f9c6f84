import pytest
import torch
from torch import nn

from training.adam import Adam, clip_gradients


def make_pair(dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    nets = nn.Linear(5, 3, dtype=dtype), nn.Linear(5, 3, dtype=dtype)
    with torch.no_grad():
        for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            ours.copy_(torch.randn(ours.shape, generator=generator))
            theirs.copy_(ours)
    return nets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_the_optimizer_of_torch_to_the_bit(dtype: torch.dtype) -> None:
    ours, theirs = make_pair(dtype)
    adam = Adam(list(ours.parameters()), 3e-3)
    reference = torch.optim.Adam(theirs.parameters(), lr=3e-3, fused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        gradients = [torch.randn(p.shape, generator=generator, dtype=dtype) for p in ours.parameters()]
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        adam.step(gradients)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_restored_optimizer_goes_on_as_if_never_stopped() -> None:
    ours, copy = make_pair(torch.float32)
    adam, restored = Adam(list(ours.parameters()), 1e-2), Adam(list(copy.parameters()), 1e-2)
    gradients = [torch.ones_like(parameter) for parameter in ours.parameters()]
    adam.step(gradients)
    copy.load_state_dict(ours.state_dict())
    restored.load_state_dict(adam.state_dict())
    adam.step(gradients)
    restored.step(gradients)
    for mine, other in zip(ours.parameters(), copy.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_torch(max_norm: float) -> None:
    ours, theirs = make_pair(torch.float64)
    gradients = tuple(parameter.detach().clone() for parameter in ours.parameters())
    for parameter in theirs.parameters():
        parameter.grad = parameter.detach().clone()
    norm = clip_gradients(gradients, max_norm)
    reference = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    assert norm.item() == pytest.approx(reference.item(), rel=1e-12)
    for mine, other in zip(gradients, theirs.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(mine, other.grad, rtol=1e-12, atol=0)
