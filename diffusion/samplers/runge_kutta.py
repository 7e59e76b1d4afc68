"""The probability flow ODE to high accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.samplers.sampler import Draws, OneStep


@dataclass(frozen=True, kw_only=True)
class RungeKutta(OneStep):
    """Fourth order, four calls a step (Kutta, 1901), of dy / du = (y - x̂) / u on the straight path,
    y = x_t / (alpha + sigma) over u = sigma / (alpha + sigma).

    For references and likelihoods rather than for pictures. The last step, whose end has no slope that could
    be asked for, is Heun's of third order with three calls: the whole is still of fourth order.
    """

    def step(
        self,
        denoiser: AnyDenoiser,
        x_t: Float[Tensor, "b c h w"],
        t: float,
        s: float,
        conditioning: Conditioning,
        draws: Draws | None = None,
        number: int = 0,
    ) -> Float[Tensor, "b c h w"]:
        schedule = denoiser.schedule
        u, v = schedule.place(t), schedule.place(s)
        h = v - u

        def slope(y: Tensor, place: float, time: float | None = None) -> Tensor:
            time = schedule.time_at(place) if time is None else time
            return (y - denoiser(sum(schedule.at(time)) * y, time, conditioning)) / place

        y = x_t / sum(schedule.at(t))
        first = slope(y, u, t)
        if v == 0:
            second = slope(y + h / 3 * first, u + h / 3)
            third = slope(y + 2 * h / 3 * second, u + 2 * h / 3)
            y = y + h / 4 * (first + 3 * third)
        else:
            second = slope(y + h / 2 * first, u + h / 2)
            third = slope(y + h / 2 * second, u + h / 2)
            fourth = slope(y + h * third, v, s)
            y = y + h / 6 * (first + 2 * second + 2 * third + fourth)
        return sum(schedule.at(s)) * y
