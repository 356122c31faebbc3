"""The optimizer that makes training the demonstration model an affair of hours: Muon for matrices, AdamW for the rest.

On one CPU thread the VAE reached 22.8 dB after 200 steps with it, and 17.2 dB with AdamW alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: every direction of a layer's weights learns at the same pace.

    Takes convolutions too, as matrices of (out, in * kernel). Source: https://kellerjordan.github.io/posts/muon/
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody asks it to compute the loss again
        """Take one step; `closure` is not used."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                update = (parameter.grad + group["momentum"] * momentum).flatten(1)
                alike[tuple(update.shape)].append((parameter, update))
            for (out, into), several in alike.items():
                updates = orthogonal(torch.stack([update for _parameter, update in several]))
                stretch = max(1.0, out / into) ** 0.5
                for (parameter, _update), update in zip(several, updates, strict=True):
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * stretch)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return nearly the nearest orthogonal matrices, by five Newton-Schulz iterations in bfloat16; (n, out, in)."""
    x: torch.Tensor = matrices.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    x = x.mT if tall else x
    return x.to(matrices.dtype).contiguous()


class Optimizers:
    """Muon and AdamW over one module's parameters, with one schedule.

    The rate rises over `warm_up` steps, stays, and falls to nothing over the last part of `steps`.

    Args:
        muon, adam: highest learning rates.
        falling: the part of `steps` over which the rates fall, 0..1.
        matrices: False leaves everything to AdamW.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, torch.Tensor]],
        *,
        steps: int,
        muon: float,
        adam: float,
        warm_up: int = 50,
        falling: float = 0.4,
        matrices: bool = True,
    ) -> None:
        straight: list[torch.Tensor] = []
        rest: list[torch.Tensor] = []
        for name, parameter in named:
            is_matrix = parameter.ndim >= 2 and min(parameter.flatten(1).shape) > 1
            is_table = "embed_tokens" in name or "shared" in name  # one row per word, each seen now and then
            (straight if matrices and is_matrix and not is_table else rest).append(parameter)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(rest, adam, betas=(0.9, 0.95), weight_decay=0.0), adam)
        ]
        if straight:
            self._optimizers.insert(0, (Muon(straight, muon), muon))
        self._parameters = straight + rest
        self._steps, self._warm_up, self._falling = steps, warm_up, falling

    def step(self, number: int) -> None:
        """Take step `number`, from 0, along the gradients, and clear them."""
        part = min(1.0, (number + 1) / self._warm_up, (self._steps - number) / (self._steps * self._falling))
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * part
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, _rate in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer, _rate in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for (optimizer, _rate), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
