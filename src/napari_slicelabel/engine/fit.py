"""Training a network on crops: one step at a time, so that the caller decides when to look up."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from napari_slicelabel.engine.losses import masked_losses
from napari_slicelabel.engine.sampling import Batch
from napari_slicelabel.errors import DeviceError, InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NetworkT = TypeVar("NetworkT", bound=nn.Module)

_CLIP_NORM = 1.0


def working_dtype(device: torch.device) -> torch.dtype:
    """Return the number format that convolutions are fastest in on a device: bfloat16, float16 or float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001 - torch offers no public question
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which a network runs on a device."""
    dtype = working_dtype(device)
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    return context


def memory_format(device: torch.device, dimensions: int = 2, *, predicting: bool = False) -> torch.memory_format:
    """Return the layout of images, or of volumes, that networks are fastest with on a device.

    Channels last for images on a GPU, and on CPUs for what is predicted: 1.5 times as fast in 2D and 1.2 times in 3D.
    Training on CPUs is no faster with it, nor are volumes on a GPU, with small crops 1.2 times as slow.
    """
    if device.type == "cuda":
        return torch.channels_last if dimensions == 2 else torch.contiguous_format
    if predicting:
        return torch.channels_last if dimensions == 2 else torch.channels_last_3d
    return torch.contiguous_format


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How a network is trained.

    Attributes
    ----------
    steps : int
        Steps of the whole schedule.
    learning_rate : float
        Highest learning rate.
    weight_decay : float
        Of AdamW; 0 makes it Adam.
    schedule : {"cosine", "poly", "constant"}
        How the learning rate falls after the warm-up: half a cosine, power 0.9, or not at all.
    warmup : float
        Share of the steps in which the learning rate rises.
    ema : float
        Decay of the running mean of the weights that predicts; 0 = predict with the weights themselves.
    dice_weight : float
        Of soft Dice beside cross-entropy.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = 0.15
    ema: float = 0.99
    dice_weight: float = 1.0

    def rate(self, step: int) -> float:
        """Return the share of the highest learning rate at a step."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm and self.warmup > 0:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        gone = min(1.0, (step - warm) / max(1, self.steps - warm))
        return 0.5 * (1 + math.cos(math.pi * gone)) if self.schedule == "cosine" else (1 - gone) ** 0.9


class Crops(Protocol):
    """Where a trainer gets its batches from."""

    @property
    def crop(self) -> tuple[int, ...]:
        """Size of the crops, for messages."""

    def draw(self, count: int) -> Batch:
        """Return a new batch of `count` crops on the device."""


class Trainer(Generic[NetworkT]):
    """A network, its optimiser, and the running mean of its weights.

    Parameters
    ----------
    network : Module
        What to train, 2D or 3D; its weights are the start.
    config : FitConfig
        How.
    batch : int
        Crops per step; halved for good when the GPU's memory is full.
    device : torch.device
        Where.
    loss : callable
        Takes the network's output and the batch; by default `masked_losses` with the config's weight of Dice.
    """

    def __init__(
        self,
        network: NetworkT,
        config: FitConfig,
        batch: int,
        device: torch.device,
        loss: Callable[[Any, Batch], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.batch = batch
        self.device = device
        self.step_number = 0
        self._own_loss = loss
        self._loss = loss or self._masked_losses
        self._format = memory_format(device, _dimensions(network))
        self.network: NetworkT = network.to(device=device, memory_format=self._format)  # type: ignore[call-overload]
        # who trains with others calls the network through what averages the gradients
        self._shared: nn.Module = self.network
        self._backward: Callable[[Tensor], object] = Tensor.backward
        self._alone = True
        # collected once: walking through the modules takes longer than the GPU takes for what is done with them
        self._weights = [*self.network.parameters()]
        self._mean = _RunningMean(self.network, config.ema)
        self._optimizer = self._new_optimizer()
        self._scaler = torch.amp.GradScaler(device.type, enabled=working_dtype(device) == torch.float16)

    @property
    def predictor(self) -> NetworkT:
        """The network that predicts, in evaluation mode."""
        network = self._mean.module if self.config.ema > 0 and self.step_number > 0 else self.network
        assert isinstance(network, type(self.network))
        return network.eval()

    def steps(self, pool: Crops, count: int) -> Iterator[Tensor]:
        """Train for `count` steps, yielding the loss after each, as a tensor on the device.

        Raises
        ------
        DeviceError
            The GPU's memory is full even with one crop.
        InputError
            The loss is no number.
        """
        for _ in range(count):
            yield self._step_that_fits(pool)

    def _step_that_fits(self, pool: Crops) -> Tensor:
        while True:
            try:
                return self._step(pool.draw(self.batch))
            except torch.OutOfMemoryError as error:
                if not self._alone:
                    raise DeviceError(
                        f"the memory of {self.device} is full with {self.batch} crops of {pool.crop} pixels; set a"
                        " smaller batch or crop: processes that train together cannot change it under way"
                    ) from error
                if self.batch == 1:
                    raise DeviceError(
                        f"the memory of {self.device} is full even with one crop of {pool.crop} pixels; set a"
                        " smaller crop, close other programs that use the GPU, or use device=cpu"
                    ) from error
            self._optimizer.zero_grad()
            torch.cuda.empty_cache()
            self.batch //= 2

    def _step(self, batch: Batch) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.config.rate(self.step_number)
        if not self.network.training:
            self.network.train()
        with autocast(self.device):
            output = self._shared(batch.x.contiguous(memory_format=self._format))
        loss = self._loss(output, batch)
        self._optimizer.zero_grad()
        self._backward(self._scaler.scale(loss))
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._weights, _CLIP_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._mean.update(self.step_number)
        self.step_number += 1
        return loss.detach()

    def _masked_losses(self, logits: Tensor, batch: Batch) -> Tensor:
        return masked_losses(logits, batch.target, batch.weight, dice_weight=self.config.dice_weight)

    def restart(self, config: FitConfig) -> None:
        """Begin a new schedule with a fresh optimiser; the weights stay."""
        self.config = config
        self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.AdamW(
            self._weights,
            config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def parts(self) -> dict[str, Any]:
        """Return what another process makes the same trainer of; see `of_parts`."""
        return {
            "network": self.network,
            "config": self.config,
            "batch": self.batch,
            "loss": self._own_loss,
            "state": self.state(),
        }

    @classmethod
    def of_parts(cls, parts: Mapping[str, Any], device: torch.device) -> Self:
        """Return a trainer like the one whose `parts` these are, on another device."""
        made = cls(parts["network"], parts["config"], parts["batch"], device, parts["loss"])
        made.load_state(parts["state"])
        return made

    def share(self, fabric: "Fabric") -> None:
        """Train on with the other processes of a launched Fabric: gradients are those of all batches, averaged."""
        self._shared, self._backward, self._alone = fabric.setup_module(self.network), fabric.backward, False

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on, as CPU tensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"mean.{name}": value for name, value in self._mean.state_dict().items()}
        for number, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        tensors["step_number"] = torch.tensor(self.step_number)
        tensors["batch"] = torch.tensor(self.batch)
        return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set everything to what `state` gave."""
        self.network.load_state_dict(_under("network.", tensors))
        self._mean.load_state_dict(_under("mean.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer.", tensors).items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self.step_number = int(tensors["step_number"])
        self.batch = int(tensors["batch"])


def check_loss(value: float) -> float:
    """Return the loss, or raise InputError when it is no number."""
    if not math.isfinite(value):
        raise InputError(
            f"training went astray: the loss is {value}; lower the learning rate, and look for corrupt planes in the"
            " image"
        )
    return value


def _dimensions(network: nn.Module) -> int:
    return 3 if any(isinstance(module, nn.Conv3d) for module in network.modules()) else 2


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class _RunningMean(nn.Module):
    """A network whose weights are a running mean of another one's; its buffers are the other's.

    torch's AveragedModel does the same, but asks the device for its count, and so waits for a GPU at every step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(network)
        self._decay = decay
        self._means: list[Tensor] = [*self.module.parameters()]
        self._values: list[Tensor] = [*network.parameters()]
        self._buffers_of_both = [*zip(self.module.buffers(), network.buffers(), strict=True)]

    @torch.no_grad()
    def update(self, seen: int) -> None:
        """Take in the network's weights, after `seen` others: the decay is at most t / (9 + t) after t of them."""
        # the random start is forgotten
        share = 1.0 if seen == 0 else 1 - min(self._decay, (seen + 1) / (10 + seen))
        torch._foreach_lerp_(self._means, self._values, share)
        for mean, value in self._buffers_of_both:
            mean.copy_(value)
