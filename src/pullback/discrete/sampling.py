"""Samples of a discrete distribution with a gradient: straight-through, Gumbel-softmax, Gumbel top-k, concrete
Bernoulli."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_integer, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.softness import is_hard, quotient, softmax, widen

__all__ = [
    "bernoulli",
    "check_binary_outcome",
    "check_outcome",
    "check_rows",
    "draw",
    "gumbel_noise",
    "gumbel_softmax",
    "multinomial",
    "noise_given",
    "noise_like",
    "straight_through",
    "undrawn",
]


def straight_through(hard: Shaped[Tensor, "*shape"], soft: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the values of ``hard``, bit for bit, in the dtype of ``soft`` and with its gradient.

    Args:
        hard: ``[*shape]`` any dtype; no gradient flows into it.
        soft: ``[*shape]`` floating.

    Returns:
        ``[*shape]`` of the dtype of ``soft``.

    Raises:
        TypeError: ``soft`` is not a floating tensor.
        ValueError: the shapes differ.

    Example:
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> straight_through(x > 0.5, x).sum().backward()
        >>> x.grad
        tensor([1., 1.])

    References:
        Bengio, Leonard, Courville (2013), Estimating or propagating gradients through stochastic neurons, section 4.
    """
    return replace_gradient(check_tensor("hard", hard).to(check_floating("soft", soft).dtype), soft)


def gumbel_noise(
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "..."]:
    r"""Draw standard Gumbel noise, ``-log E`` with ``E`` exponential; finite for every draw.

    A draw ``E`` of 0 or of infinity (a uniform at an end of its range) is moved to the smallest normal or the largest
    number, so the noise lies in ``[-88.8, 87.4]``. Half-precision noise is drawn in float32 and rounded.

    Args:
        shape: of the result.
        dtype: floating.
        device: of the result.
        generator: of the same device; torch's default one if ``None``.

    Returns:
        Noise with mean 0.5772 and variance ``pi**2 / 6``.

    Raises:
        TypeError: ``dtype`` is not floating.

    Example:
        >>> noise = gumbel_noise([100_000], generator=torch.Generator().manual_seed(0))
        >>> abs(noise.mean().item() - 0.5772) < 0.01
        True
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return _negative_log(torch.empty(tuple(shape), dtype=wide, device=device).exponential_(generator=generator)).to(
        dtype
    )


def gumbel_softmax(
    logits: Float[Tensor, "..."],
    *,
    temperature: Scalar = 1.0,
    hard: bool = False,
    dim: int = -1,
    generator: torch.Generator | None = None,
    outcome: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    r"""Sample a relaxed one-hot vector: ``softmax((logits + g) / temperature)`` with Gumbel noise ``g``.

    Its largest entry is that of an exact sample of ``softmax(logits)``, at every temperature. Given the ``outcome`` k,
    the noise is drawn from its law where k is the largest: with ``p = softmax(logits)`` and exponential ``E_i``,
    ``g_k = -log(p_k E_k)``, ``g_i = -log(p_i E_k + E_i)``. The mean of several hard samples of one outcome is that
    outcome, with a gradient of less variance (Rao-Blackwell).

    Args:
        logits: ``[..., n, ...]`` unnormalised log probabilities; ``-inf`` is never drawn and gets gradient 0.
        temperature: >= 0, a number or a differentiable tensor without dimensions. Small: little bias, much variance; 0
            is the hard sample with gradient 0.
        hard: return the exact one-hot sample, with the gradient of the relaxation (straight-through Gumbel).
        dim: the dimension of the classes.
        generator: torch's default one if ``None``.
        outcome: the class that each row drew, an integer tensor of the shape of ``logits`` without ``dim``; drawn if
            ``None``.

    Returns:
        The shape of ``logits``; sums to 1 along ``dim``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor, ``outcome`` holds no integers.
        ValueError: ``temperature`` is negative or not finite; a row of logits is all ``-inf`` or has NaN or ``inf``;
            ``outcome`` has another shape, or names no class or one of probability 0 (values are not checked under
            ``torch.func`` transforms and ``torch.compile``).

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, -torch.inf]])
        >>> gumbel_softmax(logits, hard=True, generator=torch.Generator().manual_seed(0))
        tensor([[0., 1., 0.]])

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, equations 1-2.
        Maddison, Mnih, Teh (2017), The concrete distribution, equation 10. Paulus, Maddison, Krause (2021),
        Rao-Blackwellizing the straight-through Gumbel-softmax gradient estimator, section 3, for a given outcome.
    """
    dim = check_dim(check_floating("logits", logits), dim)
    frozen = is_hard(temperature, widen(logits).dtype)
    check_rows("logits", logits, dim)
    given = None if outcome is None else check_outcome(outcome, logits, dim)
    noise = noise_like(logits, generator) if given is None else noise_given(logits, given, dim, generator)
    perturbed = widen(logits) + noise
    exact = (_one_hot_max(perturbed, dim) if given is None else given).to(logits.dtype)
    if frozen:
        return replace_gradient(exact, torch.sign(logits))
    soft = softmax(perturbed, dim, temperature).to(logits.dtype)
    return replace_gradient(exact, soft) if hard else soft


def multinomial(
    p: Float[Tensor, "*batch n"],
    num_samples: int,
    replacement: bool = False,
    *,
    temperature: Scalar = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch m n"]:
    r"""Draw ``num_samples`` classes; like ``torch.multinomial``, but one (relaxed) one-hot row a draw.

    With replacement the rows are independent Gumbel-softmax samples. Without it they are the Gumbel top-k: the classes
    in decreasing order of ``log p + g``, row ``j`` relaxed as a softmax over those not drawn before it.

    Args:
        p: ``[*batch, n]`` weights >= 0, not all 0; they need not sum to 1. A class of weight 0 is never drawn.
        num_samples: draws per row of ``p``, >= 1; without replacement at most the number of positive weights.
        replacement: whether a class may be drawn twice.
        temperature: as in :func:`gumbel_softmax`.
        hard: return exact one-hot rows, with the gradient of the relaxation.
        generator: torch's default one if ``None``.

    Returns:
        ``[*batch, num_samples, n]``; rows sum to 1. ``result.argmax(-1)`` are the indices that torch returns.

    Raises:
        TypeError: ``p`` is not a floating tensor.
        ValueError: ``num_samples`` or ``temperature`` is out of range, a weight is negative, or too few are positive
            (not checked under ``torch.func`` transforms and ``torch.compile``).

    Example:
        >>> p = torch.tensor([0.0, 1.0, 3.0])
        >>> rows = multinomial(p, 2, hard=True, generator=torch.Generator().manual_seed(0))
        >>> rows.sum(0)
        tensor([0., 1., 1.])

    References:
        Kool, van Hoof, Welling (2019), Stochastic beams and where to find them, section 2. Xie, Ermon (2019),
        Reparameterizable subset sampling via continuous relaxations.
    """
    n = p.shape[-1] if check_floating("p", p).ndim else 0
    check_integer("num_samples", num_samples, 1)
    if n < (1 if replacement else num_samples):
        raise ValueError(f"num_samples must be at most the number of classes {n}, got {num_samples}")
    frozen = is_hard(temperature, widen(p).dtype)
    if can_look(p):
        positive = (p > 0).sum(-1)
        if bool((~(p >= 0) | p.isinf()).any()):
            raise ValueError(f"p must be >= 0 and finite, got minimum {p.min().item()} and maximum {p.max().item()}")
        if bool((positive < (1 if replacement else num_samples)).any()):
            raise ValueError(f"num_samples must be at most the number of positive weights {int(positive.min())}")
    wide = widen(p)
    logits = torch.where(wide > 0, torch.log(torch.where(wide > 0, wide, 1.0)), -torch.inf)
    if replacement:
        logits = logits.unsqueeze(-2).expand(*p.shape[:-1], num_samples, n)
        perturbed = widen(logits) + noise_like(logits, generator)
    else:
        noisy = widen(logits) + noise_like(logits, generator)
        order = noisy.topk(num_samples, -1).indices
        perturbed = undrawn(noisy, order)
    exact = _one_hot_max(perturbed, -1).to(p.dtype)
    if frozen:
        return replace_gradient(exact, torch.sign(p).unsqueeze(-2).expand(exact.shape))
    soft = softmax(perturbed, -1, temperature).to(p.dtype)
    return replace_gradient(exact, soft) if hard else soft


def bernoulli(
    p: Float[Tensor, "*shape"],
    *,
    method: str = "concrete",
    temperature: Scalar = 0.5,
    hard: bool = False,
    generator: torch.Generator | None = None,
    outcome: Shaped[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Sample 0 or 1 with probability ``p`` of 1, with a gradient for ``p``.

    ``"concrete"`` is ``sigmoid((logit(p) - logit(u)) / temperature)`` of a uniform ``u``, above 1/2 exactly where
    ``u < p``. ``"straight_through"`` is the exact sample with gradient 1, unbiased for what is linear in the sample.

    Args:
        p: ``[*shape]`` probabilities; at exactly 0 and 1 the sample is certain and the concrete gradient 0.
        method: ``"concrete"`` or ``"straight_through"`` (always hard, has no temperature).
        temperature: as in :func:`gumbel_softmax`.
        hard: return the exact sample, with the gradient of the relaxation.
        generator: torch's default one if ``None``.
        outcome: ``[*shape]`` the exact sample, booleans or integers 0 and 1, for which the uniform is then drawn from
            its law given it; drawn if ``None``.

    Returns:
        ``[*shape]`` in ``[0, 1]``.

    Raises:
        TypeError: ``p`` is not a floating tensor, ``outcome`` is neither boolean nor integer.
        ValueError: ``p`` is outside ``[0, 1]``, ``outcome`` has another shape or other values or cannot be (values are
            not checked under ``torch.func`` transforms and ``torch.compile``), ``temperature`` is negative or not
            finite, ``method`` is unknown.

    Example:
        >>> bernoulli(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])

    References:
        Maddison, Mnih, Teh (2017), The concrete distribution, appendix B. Bengio, Leonard, Courville (2013).
    """
    check_floating("p", p)
    check_choice("method", method, ("concrete", "straight_through"))
    frozen = is_hard(temperature, widen(p).dtype)
    if can_look(p) and bool((~((p >= 0) & (p <= 1))).any()):
        raise ValueError(f"p must be in [0, 1], got minimum {p.min().item()} and maximum {p.max().item()}")
    wide = widen(p)
    uniform = _unfilled(wide, generator).uniform_(generator=generator).to(wide.device)
    exact = None
    if outcome is not None:
        exact = check_binary_outcome(outcome, p)
        fixed = wide.detach()
        uniform = torch.where(exact, fixed * uniform, fixed + (1 - fixed) * uniform)
    return _bernoulli(p, uniform, method, temperature, hard, frozen, exact)


def check_binary_outcome(outcome: Tensor, p: Tensor, name: str = "p") -> Tensor:
    """Return which entries of ``outcome`` are 1; refuse what is no outcome of probability ``p``.

    Example:
        >>> check_binary_outcome(torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
        tensor([False,  True])
    """
    if check_tensor("outcome", outcome).dtype not in (torch.bool, torch.int64, torch.int32):
        raise TypeError(f"outcome must hold booleans or integers, got {outcome.dtype}")
    if outcome.shape != p.shape:
        raise ValueError(f"outcome must have the shape of {name}, {tuple(p.shape)}, got {tuple(outcome.shape)}")
    if can_look(outcome) and bool(((outcome != 0) & (outcome != 1)).any()):
        raise ValueError("outcome must be 0 or 1")
    if can_look(outcome) and can_look(p) and bool(torch.where(outcome != 0, p <= 0, p >= 1).any()):
        raise ValueError("outcome must not be of probability 0")
    return outcome != 0


def _bernoulli(
    p: Tensor,
    uniform: Tensor,
    method: str,
    temperature: Scalar,
    hard: bool,
    frozen: bool,
    outcome: Tensor | None = None,
) -> Tensor:
    wide = widen(p)
    exact = (uniform < wide if outcome is None else outcome).to(p.dtype)
    if frozen or method == "straight_through":
        return replace_gradient(exact, torch.sign(p) if frozen else p)
    info = torch.finfo(wide.dtype)
    certain = (wide <= 0) | (wide >= 1)
    inner = torch.where(certain, 0.5, wide).clamp(info.tiny, 1 - info.eps / 2)
    noise = torch.logit(uniform.clamp(info.tiny, 1 - info.eps / 2))
    soft = torch.where(certain, wide.detach(), torch.sigmoid(quotient(torch.logit(inner) - noise, temperature))).to(
        p.dtype
    )
    return replace_gradient(exact, soft) if hard else soft


def _negative_log(exponential: Tensor) -> Tensor:
    info = torch.finfo(exponential.dtype)
    return exponential.clamp(info.tiny, info.max).log_().neg_()


def undrawn(scores: Float[Tensor, "*batch n"], order: Int[Tensor, "*batch k"]) -> Float[Tensor, "*batch k n"]:
    """Return, for each place of an order, the scores of what was not drawn at an earlier one, ``-inf`` elsewhere.

    Example:
        >>> undrawn(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]))
        tensor([[1., 2., 3.],
                [1., 2., -inf]])
    """
    drawn = torch.zeros_like(scores, dtype=torch.bool)
    rows = []
    for j in range(order.shape[-1]):
        rows.append(torch.where(drawn, -torch.inf, scores))
        drawn = drawn.scatter(-1, order[..., j : j + 1], True)
    return torch.stack(rows, -2)


def noise_like(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return Gumbel noise for logits, in float32 or wider.

    Example:
        >>> noise_like(torch.zeros(2, dtype=torch.float16), None).dtype
        torch.float32
    """
    wide = widen(logits)
    return _negative_log(_unfilled(wide, generator).exponential_(generator=generator)).to(wide.device)


def noise_given(logits: Tensor, onehot: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return Gumbel noise from its law where ``logits + noise`` is largest at the class of ``onehot``.

    Example:
        >>> (torch.zeros(3) + noise_given(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]), 0, None)).argmax().item()
        1
    """
    log_p = torch.log_softmax(widen(logits.detach()), dim)
    gumbel = noise_like(logits, generator)
    top = (onehot * gumbel).sum(dim, keepdim=True)
    # exp(-noise) is p_i E_k + E_i, without the second term for the outcome k.
    return -torch.logaddexp(log_p - top, torch.where(onehot > 0, -torch.inf, -gumbel))


def _unfilled(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a tensor to be drawn into, on the generator's device: like ``x``, so that under vmap with
    randomness="different" each sample gets a draw of its own, and contiguous, so that the draw does not depend on how
    ``x`` lies in memory."""
    device = drawing_device(generator, x)
    return torch.empty_like(x.detach(), memory_format=torch.contiguous_format, device=device)


def _one_hot_max(x: Tensor, dim: int) -> Tensor:
    index = x.detach().argmax(dim, keepdim=True)
    return torch.zeros_like(x, requires_grad=False).scatter(dim, index, 1.0)


def draw(probabilities: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return an exact one-hot sample by inverting the cumulative distribution, with one uniform a row.

    Example:
        >>> draw(torch.tensor([0.0, 1.0, 0.0]), 0, None).tolist()
        [0.0, 1.0, 0.0]
    """
    if probabilities.ndim == 0:
        return torch.ones_like(probabilities)
    rows = probabilities.movedim(dim, -1)
    total = rows.cumsum(-1, dtype=torch.float64)
    end = total[..., -1:]
    uniform = torch.rand(
        end.shape, dtype=torch.float64, device=drawing_device(generator, rows), generator=generator
    ).to(rows.device)
    # Class i is drawn where total[i-1] <= u < total[i]: an empty interval, of probability 0, never.
    u = torch.minimum(uniform * end, torch.nextafter(end, torch.zeros_like(end)))
    index = torch.searchsorted(total, u, right=True)
    return torch.zeros_like(rows).scatter(-1, index, 1.0).movedim(-1, dim)


def check_outcome(outcome: Tensor, logits: Tensor, dim: int) -> Tensor:
    """Return a given outcome as one-hot vectors in float32 or wider; refuse what no draw from ``logits`` gives.

    Example:
        >>> check_outcome(torch.tensor(1), torch.zeros(3), 0)
        tensor([0., 1., 0.])
    """
    if check_tensor("outcome", outcome).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"outcome must hold integers, got {outcome.dtype}")
    expected = tuple(size for i, size in enumerate(logits.shape) if i != dim)
    if tuple(outcome.shape) != expected:
        raise ValueError(f"outcome must have the shape of logits without dim, {expected}, got {tuple(outcome.shape)}")
    wide = widen(logits.detach())
    if not logits.ndim:
        if can_look(outcome) and int(outcome) != 0:
            raise ValueError(f"outcome must be in 0..0, got {int(outcome)}")
        return torch.ones_like(wide)
    index = outcome.long().unsqueeze(dim)
    n = logits.shape[dim]
    if can_look(outcome) and outcome.numel() and not bool(((outcome >= 0) & (outcome < n)).all()):
        raise ValueError(f"outcome must be in 0..{n - 1}, got {int(outcome.min())}..{int(outcome.max())}")
    if can_look(outcome) and can_look(logits) and bool((wide.gather(dim, index) == -torch.inf).any()):
        raise ValueError("outcome must not be a class of probability 0")
    return torch.zeros_like(wide).scatter(dim, index, 1.0)


def check_rows(name: str, logits: Tensor, dim: int) -> None:
    """Raise ``ValueError`` unless each row along ``dim`` has a finite largest entry, as a distribution's logits have.

    Example:
        >>> check_rows("logits", torch.full((2,), -torch.inf), 0)
        Traceback (most recent call last):
        ValueError: logits must have a finite largest entry in each row, got -inf in row ()
    """
    if logits.ndim and logits.shape[dim] == 0:
        raise ValueError(f"{name} must have at least one class along dimension {dim}, got shape {tuple(logits.shape)}")
    if not can_look(logits) or not logits.numel():
        return
    top = logits.detach().amax(dim)
    if not bool(torch.isfinite(top).all()):
        index = tuple(int(i) for i in (~torch.isfinite(top)).nonzero()[0])
        raise ValueError(f"{name} must have a finite largest entry in each row, got {top[index].item()} in row {index}")
