"""The Gumbel-softmax (concrete) law as a distribution of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import Distribution, constraints

from pullback.core.checks import check_broadcast, check_floating, check_scalar, check_shape
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.sampling import check_rows, gumbel_noise
from pullback.discrete.softness import is_hard, quotient, widen

__all__ = ["RelaxedOneHot"]


class RelaxedOneHot(Distribution):
    r"""The law of ``softmax((logits + g) / temperature)`` with Gumbel noise ``g``, on the inside of the simplex.

    With ``pi = softmax(logits)`` of k classes and temperature :math:`\tau` its density is

    .. math:: p(y) = \Gamma(k)\, \tau^{k-1} \Big(\sum_i \pi_i / y_i^\tau\Big)^{-k} \prod_i \pi_i / y_i^{\tau+1}.

    The largest entry of a sample is that of a sample of ``softmax(logits)``; small temperatures give samples near the
    corners, whose small entries are 0 in floating point: :meth:`rsample_log` and ``log_prob(..., log=True)`` keep
    their logarithms.

    Args:
        logits: ``[*batch, k]`` finite, unnormalised log probabilities.
        temperature: > 0, a number or a differentiable tensor without dimensions.
        validate_args: whether ``log_prob`` checks that values lie in the simplex (default: torch's).

    Raises:
        TypeError: ``logits`` is not a floating tensor.
        ValueError: ``logits`` has no classes or is not finite, ``temperature`` is not positive.

    Example:
        >>> law = RelaxedOneHot(torch.zeros(3), 0.5)
        >>> y = law.rsample((2,), generator=torch.Generator().manual_seed(0))
        >>> y.shape, law.log_prob(y).shape
        (torch.Size([2, 3]), torch.Size([2]))

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, equation 3. Maddison, Mnih, Teh
        (2017), The concrete distribution, definition 1.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = constraints.simplex
    has_rsample = True

    def __init__(
        self, logits: Float[Tensor, "*batch k"], temperature: Scalar, *, validate_args: bool | None = None
    ) -> None:
        if check_floating("logits", logits).ndim == 0:
            raise ValueError("logits must have a dimension of classes, got shape ()")
        number = check_scalar("temperature", temperature)
        if is_hard(temperature):
            raise ValueError(f"temperature must be > 0, got {number}")
        check_rows("logits", logits, -1)
        if can_look(logits) and bool((logits == -torch.inf).any()):
            raise ValueError("logits must be finite: a class of probability 0 leaves no density on the simplex")
        self.logits, self.temperature = logits, temperature
        # The arguments are checked: torch's own checks would look at values under transforms too.
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)
        self._validate_args = Distribution._validate_args if validate_args is None else validate_args

    @property
    def probs(self) -> Float[Tensor, "*batch k"]:
        """``softmax(logits)``: how often each class is the largest."""
        return torch.softmax(self.logits, -1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> RelaxedOneHot:
        """Return the law with another batch shape, as torch's distributions do."""
        shape = torch.Size(batch_shape)
        return RelaxedOneHot(
            self.logits.expand(*shape, *self.event_shape), self.temperature, validate_args=self._validate_args
        )

    def rsample(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*sample_batch k"]:
        """Draw ``[*sample, *batch, k]`` with the gradients of logits and temperature."""
        return self.rsample_log(sample_shape, generator=generator).exp()

    @torch.no_grad()
    def sample(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*sample_batch k"]:
        """Draw ``[*sample, *batch, k]`` without a gradient."""
        return self.rsample(sample_shape, generator=generator)

    def rsample_log(
        self, sample_shape: Sequence[int] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*sample_batch k"]:
        """Draw the logarithm of a sample, ``[*sample, *batch, k]``: finite at every temperature."""
        logits = widen(self.logits)
        device = logits.device if generator is None else generator.device
        shape = [*sample_shape, *logits.shape]
        noise = gumbel_noise(shape, dtype=logits.dtype, device=device, generator=generator).to(logits.device)
        perturbed = logits + noise
        scaled = quotient(perturbed - perturbed.detach().amax(-1, keepdim=True), self.temperature)
        return torch.log_softmax(scaled, -1).to(self.logits.dtype)

    def log_prob(self, value: Float[Tensor, "*any k"], *, log: bool = False) -> Float[Tensor, "..."]:
        r"""Return the logarithm of the density on the simplex, with respect to its first ``k - 1`` entries.

        Args:
            value: ``[*any, k]`` in the simplex, with positive entries, broadcast against the batch; its logarithm if
                ``log`` is set.
            log: ``value`` holds logarithms. The density is still that of the sample and not of its logarithm.

        Returns:
            The broadcast batch shape.

        Raises:
            TypeError: ``value`` is not a floating tensor.
            ValueError: the shape does not fit, or a value lies outside the simplex (where arguments are validated).
        """
        check_shape("value", check_floating("value", value), tuple(self.event_shape))
        check_broadcast(value=tuple(value.shape[:-1]), logits=tuple(self.batch_shape))
        logits = torch.log_softmax(widen(self.logits), -1)
        log_y = widen(value) if log else widen(value).log()
        if self._validate_args and can_look(value):
            _check_simplex((log_y.exp() if log else widen(value)).detach(), value.dtype)
        t = self.temperature.to(logits) if isinstance(self.temperature, Tensor) else logits.new_tensor(self.temperature)
        k = logits.shape[-1]
        # tau^(k-1) (sum_i pi_i y_i^-tau)^-k prod_i pi_i y_i^-(tau+1), the scores shifted by their largest.
        score = logits - t * log_y
        constant = torch.lgamma(logits.new_tensor(float(k))) + (k - 1) * t.log()
        density = constant + (score - torch.logsumexp(score, -1, keepdim=True)).sum(-1) - log_y.sum(-1)
        return density.to(self.logits.dtype)


def _check_simplex(y: Tensor, dtype: torch.dtype) -> None:
    """Refuse rows that are not positive or do not sum to 1 as far as numbers of that dtype can."""
    off = (y.sum(-1) - 1).abs()
    tolerance = max(1e-6, 2 * y.shape[-1] * torch.finfo(dtype).eps)
    if bool(((y < 0).any(-1) | ~(off <= tolerance)).any()):
        raise ValueError(f"value must be in the simplex, got rows whose sum is off by {off.max().item():.3g}")
