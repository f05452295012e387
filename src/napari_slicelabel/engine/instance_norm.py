"""Instance norm, which keeps no running statistics: as sound for one painted slice as for a thousand."""

from torch import Tensor, nn
from torch.nn import functional


class InstanceNorm(nn.Module):
    """Instance norm in 2D and 3D: on a GPU torch's, on CPUs group norm with each channel as a group, which is the same.

    On CPUs torch's repeats its weights for every image, and copies images whose channels lie next to each other, which
    convolutions are fastest with.

    Parameters
    ----------
    like : InstanceNorm2d or InstanceNorm3d
        Whose weights it has.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, like: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.register_parameter("weight", like.weight)
        self.register_parameter("bias", like.bias)
        self._epsilon = like.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (b, c, h, w) or (b, c, d, h, w), with mean 0 and deviation 1 of every channel, then scaled."""
        if x.is_cuda:
            return functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self._epsilon)
        return functional.group_norm(x, x.shape[1], self.weight, self.bias, self._epsilon)


def with_instance_norm(network: nn.Module) -> nn.Module:
    """Put `InstanceNorm` in the place of torch's, everywhere in a network, and return the network."""
    for name, child in network.named_children():
        if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
            setattr(network, name, InstanceNorm(child))
        else:
            with_instance_norm(child)
    return network
