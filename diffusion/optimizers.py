"""Muon, for the matrices inside a network's blocks; all else is AdamW's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion import sharding

SCALE = 0.2
"""Root mean square of an update over its learning rate: AdamW's, as measured by Liu et al., 2025."""


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Weights of the linear and convolution layers in its repeated blocks: those of an `nn.ModuleList`, and
    modules that say so themselves (`repeated = True`).

    Not those named `modulation`: adaLN maps a condition to scales, gates and shifts, and starts at zero.
    """
    found: dict[int, Tensor] = {}
    repeated = (m for m in module.modules() if isinstance(m, nn.ModuleList) or getattr(m, "repeated", False))
    for blocks in repeated:
        for name, layer in blocks.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and "modulation" not in name.split("."):
                found[id(layer.weight)] = layer.weight
    return [weight for weight in found.values() if weight.requires_grad]


def orthogonalised(matrices: Float[Tensor, "n r c"], *, steps: int = 5) -> Float[Tensor, "n r c"]:
    """Roughly U V^T for each U S V^T, singular values in 0.7 to 1.2, by a quintic Newton-Schulz iteration
    (Jordan et al., 2024). In bf16 on a GPU, in fp32 on a CPU, where bf16 is slow."""
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al., 2024) with updates of AdamW's size (Liu et al., 2025).

    m = mu m + (1 - mu) g;  W = (1 - lr decay) W - lr 0.2 sqrt(max(r, c)) orthogonalised(mu m + (1 - mu) g).

    The scale is that of Liu et al., Equation 4, and not sqrt(max(1, r/c)): learning rate and weight decay
    are then AdamW's own, one schedule serves both, and no shape needs another. A convolution is a matrix of
    output channels. Rows that are a multiple of the columns are independent squares, as query, key and value
    in one matrix are. `torch.optim.Muon` takes neither, nor does it skip a step on the device.

    With FSDP2 each rank gathers a matrix's momentum, orthogonalises all of it and keeps its own rows.
    """

    found_inf: Tensor | None = None
    """1 where this step's gradient is not finite: then nothing changes. Read on the device."""

    def __init__(
        self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of equal shapes, so that all of them are one call of each operation."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        weights = [sharding.local(parameter) for parameter in parameters]
        momenta = [sharding.local(self.state[parameter]["momentum"]) for parameter in parameters]
        weight, old = torch.stack(weights), torch.stack(momenta)
        gradient = torch.stack([sharding.local(parameter.grad) for parameter in parameters])

        new = old.lerp(gradient, 1 - group["momentum"])
        update = self._update(gradient.lerp(new, group["momentum"]), parameters[0])
        moved = (weight * (1 - group["lr"] * group["weight_decay"])).add_(update, alpha=-group["lr"])

        if self.found_inf is not None:
            skip = self.found_inf.bool()
            new, moved = torch.where(skip, old, new), torch.where(skip, weight, moved)
        torch._foreach_copy_(momenta, new.unbind())  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_copy_(weights, moved.unbind())  # pyright: ignore[reportPrivateImportUsage]

    def _update(self, directions: Tensor, like: Tensor) -> Tensor:
        if sharding.sharded(like):
            directions = torch.stack([sharding.joined(part, like) for part in directions])
        matrices = directions.flatten(2)
        rows, columns = matrices.shape[1:]
        if rows % columns == 0:
            matrices = matrices.reshape(-1, columns, columns)
        scale = SCALE * max(matrices.shape[1:]) ** 0.5
        update = (orthogonalised(matrices) * scale).to(like.dtype).reshape(directions.shape)
        if sharding.sharded(like):
            update = torch.stack([sharding.local(sharding.spread(one, like)) for one in update])
        return update
