"""Decision trees with a gradient: soft splits give every leaf a weight, and leaves hold responses in a memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.memory import memory_read, memory_write
from pullback.discrete.sparse import entmax15

__all__ = ["HardForest", "ResponseForest", "SoftTree"]

ATTENTIONS = ("entmax", "softmax", "dense")
GATES = ("sigmoid", "entmoid")
HEADS = ("none", "linear", "mlp")


class SoftTree(nn.Module):
    r"""Trees whose inner nodes send a sample both ways, by a gate on a weighted sum of its features.

    Node i of a tree sends ``g_i = s((a_i . x - b_i) / t_i)`` of a sample to the left, the rest to the right, with the
    attention ``a_i`` over the features, a threshold ``b_i``, and ``t_i > 0``. The weight of a leaf is the product of
    the shares on the way to it:

    .. math:: w_j(x) = \prod_{i \in \mathrm{left}(j)} g_i(x) \prod_{i \in \mathrm{right}(j)} (1 - g_i(x)),
              \qquad \sum_j w_j(x) = 1

    Nodes are numbered level by level, leaves from left to right: the first level is the highest bit of a leaf.

    Args:
        features: number of features, best of similar scale.
        depth: of the trees, 1 to 16.
        trees: number of trees.
        oblivious: one gate a level, shared by all its nodes.
        attention: ``"entmax"`` (1.5-entmax of learned scores, most of it exactly 0), ``"softmax"``, or ``"dense"``
            (any weights).
        gate: ``"sigmoid"``, or ``"entmoid"`` (1.5-entmax of two classes, exactly 0 and 1 beyond 2).
        generator: draws the first scores and thresholds.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is out of range, ``attention`` or ``gate`` is unknown.

    Example:
        >>> tree = SoftTree(3, 2, trees=4, generator=torch.Generator().manual_seed(0))
        >>> weights = tree(torch.randn(5, 3))
        >>> weights.shape, bool(torch.allclose(weights.sum(-1), torch.ones(5, 4)))
        (torch.Size([5, 4, 4]), True)

    References:
        Kontschieder, Fiterau, Criminisi, Rota Bulo (2015), Deep neural decision forests, equation 2.
        Popov, Morozov, Babenko (2020), Neural oblivious decision ensembles, section 3. Chen (2020), Attention augmented
        differentiable forest for tabular data.
    """

    def __init__(
        self,
        features: int,
        depth: int,
        *,
        trees: int = 1,
        oblivious: bool = False,
        attention: str = "entmax",
        gate: str = "sigmoid",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features = check_integer("features", features, 1)
        self.depth = check_integer("depth", depth, 1, 16)
        self.trees = check_integer("trees", trees, 1)
        check_choice("attention", attention, ATTENTIONS)
        check_choice("gate", gate, GATES)
        self.oblivious, self.attention, self.gate = oblivious, attention, gate
        self.nodes = depth if oblivious else 2**depth - 1
        scores = torch.randn(trees, self.nodes, features, generator=generator)
        self.scores = nn.Parameter(scores / math.sqrt(features) if attention == "dense" else scores)
        self.threshold = nn.Parameter(0.5 * torch.randn(trees, self.nodes, generator=generator))
        self.log_temperature = nn.Parameter(torch.zeros(trees, self.nodes))

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch trees leaves"]:
        """Return the weights of the leaves.

        Args:
            x: ``[*batch, features]``, finite.

        Returns:
            ``[*batch, trees, 2^depth]`` >= 0, sums to 1 along the last dimension.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: its last dimension is not ``features``, or it has NaN.
        """
        left = self._shares(self._margins(x))
        weights = torch.ones_like(left[..., :1])
        for level in range(self.depth):
            gates = self._of_level(left, level)
            weights = torch.stack([weights * gates, weights * (1 - gates)], -1).flatten(-2)
        return weights

    def log_weights(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch trees leaves"]:
        """Return the logarithms of the weights: sums of log-sigmoids, which do not underflow.

        Args:
            x: as in :meth:`forward`.

        Returns:
            ``[*batch, trees, 2^depth]``; ``-inf``, with gradient 0, where an entmoid gate is closed.

        Raises:
            TypeError, ValueError: as in :meth:`forward`.
        """
        margins = self._margins(x)
        if self.gate == "sigmoid":
            both = [nn.functional.logsigmoid(margins), nn.functional.logsigmoid(-margins)]
        else:
            shares = self._shares(margins), self._shares(-margins)
            both = [torch.where(s > 0, torch.where(s > 0, s, 1.0).log(), -torch.inf) for s in shares]
        total = torch.zeros_like(margins[..., :1])
        for level in range(self.depth):
            left, right = (self._of_level(one, level) for one in both)
            total = torch.stack([total + left, total + right], -1).flatten(-2)
        return total

    def weights_of_features(self) -> Float[Tensor, "trees nodes features"]:
        """Return the attention ``a`` of every node over the features."""
        if self.attention == "entmax":
            return entmax15(self.scores)
        return torch.softmax(self.scores, -1) if self.attention == "softmax" else self.scores

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n features"], *, generator: torch.Generator | None = None) -> None:
        """Set every threshold to a random quantile of data, and temperatures to the mean distance from it.

        Args:
            x: ``[n, features]`` at least one sample.
            generator: draws the quantiles.

        Raises:
            TypeError, ValueError: as in :meth:`forward`, or there is no sample.
        """
        self._check(x)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"x must be samples [n, features], got shape {tuple(x.shape)}")
        seen = torch.einsum("nf,tkf->tkn", x, self.weights_of_features())
        shape = (*seen.shape[:2], 1)
        device = drawing_device(generator, seen)
        place = torch.randint(len(x), shape, generator=generator, device=device).to(seen.device)
        self.threshold.copy_(seen.gather(-1, place).squeeze(-1))
        spread = (seen - self.threshold.unsqueeze(-1)).abs().mean(-1)
        self.log_temperature.copy_(torch.where(spread > 0, spread, 1.0).log())

    def leaf(self, x: Float[Tensor, "*batch features"]) -> Int[Tensor, "*batch trees"]:
        """Return the leaf that a sample reaches by going left where ``a . x > b``: the limit of sharp gates.

        Args:
            x: as in :meth:`forward`.

        Raises:
            TypeError, ValueError: as in :meth:`forward`.
        """
        self._check(x)
        goes_left = torch.einsum("...f,tkf->...tk", x, self.weights_of_features()) > self.threshold
        leaf = torch.zeros_like(goes_left[..., 0], dtype=torch.int64)
        for level in range(self.depth):
            node = leaf * 0 + level if self.oblivious else 2**level - 1 + leaf
            left = goes_left.gather(-1, node.unsqueeze(-1)).squeeze(-1)
            leaf = 2 * leaf + (~left).long()
        return leaf

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"features={self.features}, depth={self.depth}, trees={self.trees}, oblivious={self.oblivious}, "
            f"attention={self.attention!r}, gate={self.gate!r}"
        )

    def _check(self, x: Tensor) -> None:
        check_floating("x", x)
        if not x.ndim or x.shape[-1] != self.features:
            raise ValueError(f"x must have {self.features} features, got shape {tuple(x.shape)}")
        if can_look(x) and bool(x.isnan().any()):
            raise ValueError("x must not be NaN")

    def _margins(self, x: Tensor) -> Tensor:
        self._check(x)
        seen = torch.einsum("...f,tkf->...tk", x, self.weights_of_features())
        return (seen - self.threshold) * (-self.log_temperature).exp()

    def _shares(self, margins: Tensor) -> Tensor:
        if self.gate == "sigmoid":
            return torch.sigmoid(margins)
        z = (margins / 2).clamp(-1, 1)  # entmax15 of (margin, 0) in closed form
        return ((z + (2 - z.square()).sqrt()) / 2).square()

    def _of_level(self, of_nodes: Tensor, level: int) -> Tensor:
        if self.oblivious:
            return of_nodes[..., level : level + 1]
        return of_nodes[..., 2**level - 1 : 2 ** (level + 1) - 1]


@dataclass(frozen=True)
class HardForest:
    """Ordinary trees: every node asks one question, every leaf holds a response.

    Attributes:
        attention: ``[trees, nodes, features]`` weights of the features in each question.
        threshold: ``[trees, nodes]``; a sample goes left where ``attention . x > threshold``.
        response: ``[trees, 2^depth, width]`` of the leaves.
        depth: of the trees.
        oblivious: whether a level has one question.
        head: maps the mean response of the trees to outputs; ``None`` is the identity.
    """

    attention: Tensor
    threshold: Tensor
    response: Tensor
    depth: int
    oblivious: bool = False
    head: nn.Module | None = None

    def leaves(self, x: Float[Tensor, "n features"]) -> Int[Tensor, "n trees"]:
        """Return the leaf of each sample in each tree, question by question."""
        check_floating("x", x)
        leaf = torch.zeros(len(x), len(self.threshold), dtype=torch.int64, device=x.device)
        every = torch.arange(len(self.threshold), device=x.device)
        for level in range(self.depth):
            node = torch.full_like(leaf, level) if self.oblivious else 2**level - 1 + leaf
            asked = (x.unsqueeze(1) * self.attention[every, node]).sum(-1)
            leaf = 2 * leaf + (asked <= self.threshold[every, node]).long()
        return leaf

    def predict(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n outputs"]:
        """Return the output of each sample: the mean response of its leaves, through the head."""
        every = torch.arange(len(self.threshold), device=x.device)
        mean = self.response[every, self.leaves(x)].mean(1)
        return mean if self.head is None else self.head(mean)


class ResponseForest(nn.Module):
    r"""A forest whose leaves hold response vectors in an external memory, read by leaf weights.

    With the weights ``w_tj(x)`` of a :class:`SoftTree` and a row ``M_tj`` for each leaf, the forest reads
    :math:`r = \frac1K \sum_t \sum_j w_{tj} M_{tj}` and a head maps ``r`` to the outputs. With a linear head ``H`` it
    is the forest of responses ``H M``: what vectors change is the training. Plain responses want far larger steps than
    the gates (some 60 times, with Adam and 8 trees).

    With ``write`` the memory is no parameter: :meth:`write` moves each row towards the mean of the targets at its
    leaf, and rests where classical trees are, at that mean.

    Args:
        features, depth, trees, oblivious, attention, gate, generator: as in :class:`SoftTree`.
        outputs: number of outputs.
        memory: width of a row. With ``head="none"`` a row is a response: it must be ``outputs`` or ``None``.
        head: ``"none"``, ``"linear"`` or ``"mlp"`` (one hidden layer of twice the width).
        write: the memory is written, not learned.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is out of range, a choice is unknown.

    Example:
        >>> forest = ResponseForest(3, 2, depth=2, trees=4, memory=8, generator=torch.Generator().manual_seed(0))
        >>> x = torch.randn(5, 3)
        >>> forest.initialise(x)
        >>> forest(x).shape, forest.harden().predict(x).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))

    References:
        Chen (2020), A short note on the decision tree based neural Turing machine.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        depth: int,
        trees: int = 1,
        memory: int | None = 16,
        head: str = "linear",
        write: bool = False,
        oblivious: bool = False,
        attention: str = "entmax",
        gate: str = "sigmoid",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("outputs", outputs, 1)
        check_choice("head", head, HEADS)
        if head == "none" and memory not in (None, outputs):
            raise ValueError(f"memory must be outputs ({outputs}) or None without a head, got {memory}")
        width = outputs if memory is None else check_integer("memory", memory, 1)
        options = {"oblivious": oblivious, "attention": attention, "gate": gate}
        self.tree = SoftTree(features, depth, trees=trees, generator=generator, **options)  # type: ignore[arg-type]
        rows = 0.1 * torch.randn(trees, 2**depth, width, generator=generator)
        if write:
            self.register_buffer("memory", torch.zeros_like(rows))
        else:
            self.memory = nn.Parameter(rows)
        self.written = write
        self.head: nn.Module = nn.Identity()
        if head == "linear":
            self.head = _linear(width, outputs, generator)
        elif head == "mlp":
            hidden = _linear(width, 2 * width, generator)
            self.head = nn.Sequential(hidden, nn.ReLU(), _linear(2 * width, outputs, generator))

    def read(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch width"]:
        """Return the mean of what the trees read.

        Args:
            x: as in :meth:`SoftTree.forward`.
        """
        return memory_read(self.memory, self.tree(x)).mean(-2)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        """Return the outputs.

        Args:
            x: as in :meth:`SoftTree.forward`.

        Returns:
            ``[*batch, outputs]``.
        """
        outputs: Tensor = self.head(self.read(x))
        return outputs

    @torch.no_grad()
    def write(self, x: Float[Tensor, "n features"], target: Float[Tensor, "n width"], *, rate: float = 1.0) -> None:
        r"""Move each row towards the mean target at its leaf, by the share ``rate W / (W + 1)``, W the weight there.

        Args:
            x: ``[n, features]``.
            target: ``[n, width]`` what samples leave behind, such as one-hot classes.
            rate: in (0, 1].

        Raises:
            TypeError: an argument is not a floating tensor.
            ValueError: the forest was not made to be written, shapes do not fit, ``rate`` is out of range.
        """
        check_floating("target", target)
        check_positive("rate", rate)
        if not self.written or rate > 1:
            raise ValueError(
                f"the forest must be made with write=True and rate be at most 1, got {self.written}, {rate}"
            )
        if target.ndim != 2 or target.shape != (len(x), self.memory.shape[-1]):
            raise ValueError(f"target must have shape {(len(x), self.memory.shape[-1])}, got {tuple(target.shape)}")
        weights = self.tree(x)
        mass = weights.sum(0)  # [trees, leaves]
        mean = torch.einsum("ntl,nw->tlw", weights, target) / mass.clamp(min=1e-30).unsqueeze(-1)
        share = (rate * mass / (mass + 1)).unsqueeze(-1)  # every leaf is a memory of one row
        rows = memory_write(self.memory.unsqueeze(-2), share, torch.ones_like(mean), mean)
        self.memory.copy_(rows.squeeze(-2))

    def initialise(self, x: Float[Tensor, "n features"], *, generator: torch.Generator | None = None) -> None:
        """Set the thresholds from data: see :meth:`SoftTree.initialise`."""
        self.tree.initialise(x, generator=generator)

    @torch.no_grad()
    def harden(self) -> HardForest:
        """Return the ordinary trees that sharp gates tend to; a linear head goes into their responses."""
        response, head = self.memory.detach().clone(), self.head
        if isinstance(head, nn.Linear):
            response, head = head(response), nn.Identity()
        attention = self.tree.weights_of_features().detach()
        threshold = self.tree.threshold.detach().clone()
        return HardForest(attention, threshold, response, self.tree.depth, self.tree.oblivious, head)


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty_like(parameter).uniform_(-bound, bound, generator=generator))
    return layer
