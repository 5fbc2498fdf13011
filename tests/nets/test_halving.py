"""Halving and doubling convolutions against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normalcy.nets.halving import AT_ONCE, DoublingConv2d, HalvingConv2d, double, halve


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_values_are_those_of_torch(numbers):
    x = torch.randn(3, 5, 6, 4, generator=numbers).double()
    weight = torch.randn(7, 5, 4, 4, generator=numbers).double()
    torch.testing.assert_close(halve(x, weight), F.conv2d(x, weight, stride=2, padding=1))
    torch.testing.assert_close(
        double(x, weight.transpose(0, 1)), F.conv_transpose2d(x, weight.transpose(0, 1), None, 2, 1)
    )


def in_bfloat16(net, x):
    """Output, and gradients of inputs, weight and bias."""
    inputs = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(inputs)
    y.float().square().sum().backward()
    return y, inputs.grad, net.weight.grad, net.bias.grad


@pytest.mark.parametrize("convolve", [halve, double])
def test_gradients_and_gradients_of_gradients(convolve, numbers):
    x = torch.randn(2, 3, 4, 2, generator=numbers).double().requires_grad_()
    weight = (
        torch.randn((2, 3, 4, 4) if convolve is halve else (3, 2, 4, 4), generator=numbers).double().requires_grad_()
    )
    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


@pytest.mark.parametrize("layer", [HalvingConv2d, DoublingConv2d])
@pytest.mark.parametrize("side", [8, 7])
def test_layers_train_as_those_of_torch(layer, side, numbers):
    """In bfloat16, to its precision, whatever the side; in 32 bits to the bit."""
    ours = layer(128, 3)
    kind = nn.Conv2d if layer is HalvingConv2d else nn.ConvTranspose2d
    theirs = kind(128, 3, 4, 2, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(AT_ONCE + 2, 128, side, side, generator=numbers).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours(x), theirs(x))
    for here, there in zip(in_bfloat16(ours, x), in_bfloat16(theirs, x)):
        assert here.dtype == there.dtype
        assert (here.float() - there.float()).norm() < 0.02 * there.float().norm()


@pytest.mark.parametrize(("layer", "channels"), [(HalvingConv2d, 64), (DoublingConv2d, 32)])
def test_few_channels_are_left_to_torch(layer, channels, numbers):
    """In bfloat16 to the bit, values and gradients; twice as many channels are multiplied as one matrix."""
    x = torch.randn(4, channels, 8, 8, generator=numbers)
    ours = layer(channels, 8)
    theirs = (nn.Conv2d if layer is HalvingConv2d else nn.ConvTranspose2d)(channels, 8, 4, 2, 1)
    theirs.load_state_dict(ours.state_dict())
    for here, there in zip(in_bfloat16(ours, x), in_bfloat16(theirs, x)):
        assert torch.equal(here, there)
    with torch.autocast("cpu", torch.bfloat16):
        graph = layer(2 * channels, 8)(x.repeat(1, 2, 1, 1)).grad_fn
    names = set()
    while graph is not None:
        names.add(type(graph).__name__)
        graph = graph.next_functions[0][0] if graph.next_functions else None
    assert names & {"_HalveBackward", "_DoubleBackward"}
