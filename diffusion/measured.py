"""Linear inverse problems: a denoiser that knows a measurement, so that any sampler draws what agrees.

Given y = A x + noise n, the posterior of x given x_t is taken to be Gaussian, with the mean x̂ that the
denoiser gives and the covariance that its derivative gives by Tweedie's second formula,

    C = Cov[x | x_t] = (sigma^2 / alpha) d x̂ / d x_t,
    E[x | x_t, y] = x̂ + C A^T (A C A^T + noise^2 I)^-1 (y - A x̂)

(Finzi et al., 2023, "User-defined event sampling"; Boys et al., 2023, "Tweedie moment projected diffusions";
Rozet et al., 2024, "Moment matching posterior sampling"). It is exact where the data are Gaussian. C is never
written out: its products are vector-Jacobian products, and the system is solved by conjugate gradients.

The derivative of a network is a covariance only by and large: of a DiT that draws emoji well, at u = 0.8 the
eigenvalues went from -1.1 to 5, and half of it was not even symmetric. Undamped, latents explode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import AnyDenoiser
from diffusion.noise import Schedule, Time, broadcast
from diffusion.operators import Operator


@dataclass(frozen=True, eq=False)
class Measured:
    """E[x | x_t, y] for y = A x + noise n: wraps a denoiser, and is one.

    It costs one call and `steps` backward passes, never more or fewer, and waits for no device: a row that is
    solved, or in whose direction there is no covariance (v^T C v <= 0), stands still. Its answers carry no
    gradient. Guidance goes around it, not inside, where it would multiply the derivative's errors: a batch
    may be that of `measured` several times over.
    """

    denoiser: AnyDenoiser
    operator: Operator
    measured: Float[Tensor, "b ..."]
    """y, one a row, in whitened latents; of a `Mask`, what it gives of an image: 0 where nothing is known."""
    noise: float = 0.0
    """Standard deviation of the measurement's noise."""
    steps: int = 3
    """Of conjugate gradients. As many as there are different eigenvalues of A C A^T solve the system; fewer
    leave alone what the posterior holds for unlikely. One is cheap, and agrees to a few hundredths."""
    damping: float = 0.25
    """Added to d x̂ / d x_t, and so a multiple of the identity to C: what is unknown then moves less, and what
    is known still comes out. 0 is exact on Gaussians; networks need 0.1 to 0.5."""
    last: float = 0.99
    """The place u that is asked instead of those nearer to pure noise. There C is the covariance of the data,
    and the derivative, alpha / sigma^2 of it, tells nothing: at this place it is short of C by about
    ((1 - u) / u)^2 C^2, while an error of the network's derivative counts 1 / (1 - u) times."""

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def __call__(
        self, x_t: Float[Tensor, "b c h w"], t: Time, conditioning: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        x_t, t = self._asked(x_t, t)
        alpha, sigma = self.schedule.spread(t, x_t)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            clean = self.denoiser(x_t, t, conditioning)
        # C and noise^2 both divided by sigma^2 / alpha + noise^2: neither a small sigma nor a small alpha
        # then makes the system small or large.
        total = sigma**2 + alpha * self.noise**2

        def covariance(v: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
            (product,) = torch.autograd.grad(clean, x_t, v, retain_graph=True)
            return sigma**2 / total * (product + self.damping * v)

        def apply(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
            return torch.cat([self.operator.apply(part) for part in x.split(len(self.measured))])

        def transpose(y: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
            return torch.cat([self.operator.transpose(part) for part in y.split(len(self.measured))])

        answer = clean.detach()
        times = len(x_t) // len(self.measured)
        residual = torch.cat([self.measured] * times) - apply(answer)
        rest = alpha * self.noise**2 / total
        if isinstance(rest, Tensor):
            rest = broadcast(rest.flatten(), residual)
        square = _dot(residual, residual)
        solved = torch.finfo(square.dtype).eps ** 2 * square
        direction = residual
        for _ in range(self.steps):
            moved = covariance(transpose(direction))
            image = apply(moved) + rest * direction
            curvature = _dot(direction, image)
            going = (curvature > 0) & (square > solved)
            step = torch.where(going, square / curvature, 0)
            # The answer moves by C A^T direction, which is there already: the solution itself is not needed.
            answer = answer + broadcast(step, answer) * moved
            residual = residual - broadcast(step, residual) * image
            before, square = square, _dot(residual, residual)
            direction = residual + broadcast(torch.where(going, square / before, 0), residual) * direction
        return answer

    def _asked(self, x_t: Float[Tensor, "b c h w"], t: Time) -> tuple[Float[Tensor, "b c h w"], Time]:
        """x_t and its time, or those at the last place that is asked."""
        schedule = self.schedule
        if isinstance(t, Tensor):
            alpha, sigma = schedule(t)
            place = sigma / (alpha + sigma)
            its = torch.where(place > self.last, schedule.time(place.clamp(max=self.last)), t)
            a, s = schedule(its)
            return broadcast((a + s) / (alpha + sigma), x_t) * x_t, its
        if schedule.place(t) <= self.last:
            return x_t, t
        its = schedule.time_at(self.last)
        return sum(schedule.at(its)) / sum(schedule.at(t)) * x_t, its


def _dot(x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    return (x * y).flatten(1).sum(1)
