"""Transformers that write tokens: a causal decoder that looks at a memory, and an encoder-decoder of embeddings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_shape, check_tensor
from pullback.core.shapes import Bool, Float, Int
from pullback.core.transforms import can_look

__all__ = ["Decoded", "Generated", "SequenceDecoder", "SequenceToSequence"]

Cache = tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]


class Decoded(NamedTuple):
    """What a decoder says at each token that it was given.

    Attributes:
        logits: ``[*batch, t, vocabulary]`` of the token that follows.
        features: ``[*batch, t, width]`` from which the logits were computed.
        cache: keys and values of each layer, to go on from here.
    """

    logits: Float[Tensor, "*batch t vocabulary"]
    features: Float[Tensor, "*batch t width"]
    cache: Cache


class Generated(NamedTuple):
    """What a decoder wrote.

    Attributes:
        tokens: ``[*batch, t]`` without the start; after a stop there are only stops.
        log_prob: ``[*batch]`` of the tokens up to the stop, the stop included.
    """

    tokens: Int[Tensor, "*batch t"]
    log_prob: Float[Tensor, "*batch"]


class SequenceDecoder(nn.Module):
    r"""Predict each token from those before it and from a memory: a causal transformer with cross-attention.

    .. math::
        h_t = E_{x_t} + P_t, \qquad
        h \leftarrow h + \mathrm{SelfAttention}(\mathrm{LN}\,h), \quad
        h \leftarrow h + \mathrm{CrossAttention}(\mathrm{LN}\,h, m), \quad
        h \leftarrow h + \mathrm{MLP}(\mathrm{LN}\,h), \qquad
        \mathrm{logits} = W\,\mathrm{LN}(h)

    Token t attends to tokens 0..t. The order of the memory's rows does not matter: add positions to it where it has
    some.

    Args:
        vocabulary: number of tokens.
        width: of tokens and memory, a multiple of ``heads``.
        heads: of each attention.
        layers: >= 1.
        positions: the longest sequence.
        embedding: of tokens, ``[vocabulary, width]``; shared where it is given, new otherwise.
        tied: take the embedding for ``W`` too.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range, ``width`` no multiple of ``heads``, ``embedding`` of another shape.

    Example:
        >>> decoder = SequenceDecoder(vocabulary=10, width=8, heads=2, layers=1)
        >>> memory = torch.zeros(3, 5, 8)
        >>> decoder(torch.zeros(3, 4, dtype=torch.long), memory).logits.shape
        torch.Size([3, 4, 10])
        >>> decoder.generate(memory, start=0, stop=1, max_tokens=6).tokens.shape[0]
        3

    References:
        Vaswani et al. (2017), Attention is all you need. Xiong et al. (2020), On layer normalization in the
        transformer architecture: the norm before each part.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        *,
        positions: int = 256,
        embedding: nn.Embedding | None = None,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(vocabulary=vocabulary, width=width, heads=heads, layers=layers, positions=positions)
        if embedding is not None and embedding.weight.shape != (vocabulary, width):
            raise ValueError(f"embedding must be [{vocabulary}, {width}], got {list(embedding.weight.shape)}")
        self.vocabulary, self.width = vocabulary, width
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.layers = nn.ModuleList(_Layer(width, heads, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        _initialise(self, generator)
        self.embedding = embedding or _embedding(vocabulary, width, generator)
        self.readout = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.readout.weight = self.embedding.weight
        else:
            nn.init.normal_(self.readout.weight, std=width**-0.5, generator=generator)

    def forward(
        self,
        tokens: Int[Tensor, "*batch t"],
        memory: Float[Tensor, "*batch m width"],
        *,
        mask: Bool[Tensor, "*batch m"] | None = None,
        cache: Cache | None = None,
    ) -> Decoded:
        """Read tokens beside a memory.

        Args:
            tokens: ``[*batch, t]`` that come one after the other, after those of the cache.
            memory: ``[*batch, m, width]`` to look at; with a cache, what it holds of the memory counts.
            mask: ``[*batch, m]`` which rows of the memory are there; all by default.
            cache: that of the tokens before.

        Returns:
            Logits, features and the cache with these tokens added.

        Raises:
            TypeError: ``tokens`` are no integers or ``memory`` no floating tensor.
            ValueError: a shape does not fit; a token is not in the vocabulary; the sequence is longer than
                ``positions``; no row of a memory is there (values are not checked under transforms).
        """
        check_shape("memory", check_floating("memory", memory), (None, self.width))
        _check_tokens("tokens", tokens, self.vocabulary)
        if tokens.shape[:-1] != memory.shape[:-2] or not memory.shape[-2]:
            raise ValueError(
                f"memory must hold at least one row for each of tokens {tuple(tokens.shape)}, got {tuple(memory.shape)}"
            )
        bias = _bias(mask, memory)
        before = 0 if cache is None else cache[0][0].shape[-2]
        after = before + tokens.shape[-1]
        if after > len(self.positions):
            raise ValueError(f"tokens must be at most {len(self.positions)} in a sequence, got {after}")
        hidden = self.embedding(tokens) + self.positions[before:after]
        rows = torch.arange(after, device=hidden.device)
        unseen = rows > rows[before:, None]
        causal = torch.zeros_like(unseen, dtype=hidden.dtype).masked_fill(unseen, -torch.inf)
        kept = []
        for number, layer in enumerate(self.layers):
            hidden, entry = layer(hidden, causal, memory, bias, None if cache is None else cache[number])
            kept.append(entry)
        features = self.norm(hidden)
        return Decoded(self.readout(features), features, tuple(kept))

    @torch.no_grad()
    def generate(
        self,
        memory: Float[Tensor, "*batch m width"],
        *,
        start: int,
        stop: int,
        max_tokens: int,
        beam: int = 1,
        mask: Bool[Tensor, "*batch m"] | None = None,
    ) -> Generated:
        """Write the likeliest continuation of ``start`` that is found: greedily, or the best of a beam.

        Args:
            memory: ``[*batch, m, width]``.
            start: the first token, not returned.
            stop: the token that ends a sequence.
            max_tokens: longest answer, in 1..positions.
            beam: continuations that are kept at each token, in 1..vocabulary; 1 takes the likeliest token each time.
            mask: ``[*batch, m]`` which rows of the memory are there.

        Returns:
            Tokens and the logarithms of their probabilities.

        Raises:
            TypeError: a token, ``max_tokens`` or ``beam`` is no integer.
            ValueError: one of these is out of range, or as in the call.
        """
        for name, token in (("start", start), ("stop", stop)):
            check_integer(name, token, 0, self.vocabulary - 1)
        check_integer("max_tokens", max_tokens, 1, len(self.positions))
        check_integer("beam", beam, 1, self.vocabulary)
        check_shape("memory", check_floating("memory", memory), (None, self.width))
        if not memory.numel():
            raise ValueError(f"memory must not be empty, got shape {tuple(memory.shape)}")
        batch = memory.shape[:-2]
        if mask is not None:
            _bias(mask, memory)
            mask = mask.reshape(-1, memory.shape[-2]).repeat_interleave(beam, 0)
        rows = memory.reshape(-1, *memory.shape[-2:]).repeat_interleave(beam, 0)
        count = len(rows) // beam
        log_prob = rows.new_full((count, beam), -torch.inf)
        log_prob[:, 0] = 0  # the beam begins with one sequence
        tokens = torch.full((count, beam, 1), start, device=rows.device)
        ended, cache = torch.zeros(count, beam, dtype=torch.bool, device=rows.device), None
        for _ in range(max_tokens):
            logits, _, cache = self(tokens[..., -1:].flatten(0, 1), rows, mask=mask, cache=cache)
            steps = logits[:, 0].log_softmax(-1).view(count, beam, -1)
            only_stop = torch.full_like(steps, -torch.inf)
            only_stop[..., stop] = 0
            steps = log_prob.unsqueeze(-1) + torch.where(ended.unsqueeze(-1), only_stop, steps)
            log_prob, best = steps.flatten(1).topk(beam)
            parents, chosen = best // self.vocabulary, best % self.vocabulary
            tokens = torch.cat([tokens.gather(1, parents[..., None].expand_as(tokens)), chosen[..., None]], -1)
            ended = ended.gather(1, parents) | (chosen == stop)
            if bool(ended.all()):
                break
            if beam > 1:
                picked = (parents + beam * torch.arange(count, device=rows.device)[:, None]).flatten()
                cache = tuple((k[picked], v[picked], mk, mv) for k, v, mk, mv in cache)
        return Generated(tokens[:, 0, 1:].reshape(*batch, -1), log_prob[:, 0].reshape(batch))


class SequenceToSequence(nn.Module):
    r"""Read embeddings, write tokens: a transformer encoder and a :class:`SequenceDecoder` with one embedding.

    The input is a sequence of vectors, so that anything with an embedding can stand among words; words enter as
    ``model.embedding(tokens)``. The encoder adds learned positions and lets every vector attend to every other; encoder
    and decoder share the embedding, which is also the decoder's last layer.

    .. math:: \mathrm{loss} = -\frac{1}{T} \sum_t \log p(y_t \mid y_{<t}, x)

    Args:
        vocabulary: number of tokens.
        width: of embeddings, a multiple of ``heads``.
        heads: of each attention.
        layers: of the encoder, and of the decoder, >= 1.
        start: the token before the first; 0.
        stop: the token that ends an answer; 1.
        positions: the longest input, and the longest answer.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range, or ``width`` no multiple of ``heads``.

    Example:
        >>> model = SequenceToSequence(vocabulary=10, width=8, heads=2, layers=1)
        >>> inputs = model.embedding(torch.tensor([[4, 5, 6]]))
        >>> model.loss(inputs, torch.tensor([[6, 5, 4, 1]])).shape
        torch.Size([])

    References:
        Vaswani et al. (2017), Attention is all you need. Raffel et al. (2020), Exploring the limits of transfer
        learning with a unified text-to-text transformer, for one embedding.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        *,
        start: int = 0,
        stop: int = 1,
        positions: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(vocabulary=vocabulary, width=width, heads=heads, layers=layers, positions=positions)
        self.start = check_integer("start", start, 0, vocabulary - 1)
        self.stop = check_integer("stop", stop, 0, vocabulary - 1)
        self.width = width
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.layers = nn.ModuleList(_Layer(width, heads, cross=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        _initialise(self, generator)
        self.embedding = _embedding(vocabulary, width, generator)
        self.decoder = SequenceDecoder(
            vocabulary,
            width,
            heads,
            layers,
            positions=positions,
            embedding=self.embedding,
            tied=True,
            generator=generator,
        )

    def encode(
        self, inputs: Float[Tensor, "*batch m width"], mask: Bool[Tensor, "*batch m"] | None = None
    ) -> Float[Tensor, "*batch m width"]:
        """Return the memory of input vectors; ``mask`` says which of them are there."""
        check_shape("inputs", check_floating("inputs", inputs), (None, self.width))
        if not 0 < inputs.shape[-2] <= len(self.positions):
            raise ValueError(f"inputs must hold 1..{len(self.positions)} vectors, got {inputs.shape[-2]}")
        bias = _bias(mask, inputs)
        hidden = inputs + self.positions[: inputs.shape[-2]]
        for layer in self.layers:
            hidden = layer(hidden, bias)[0]
        memory: Tensor = self.norm(hidden)
        return memory

    def forward(
        self,
        inputs: Float[Tensor, "*batch m width"],
        targets: Int[Tensor, "*batch t"],
        mask: Bool[Tensor, "*batch m"] | None = None,
    ) -> Float[Tensor, "*batch t vocabulary"]:
        """Return the logits of every target given those before it; negative targets count as ``stop`` there."""
        check_tensor("targets", targets)
        if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim == 0 or targets.shape[-1] == 0:
            raise TypeError(f"targets must be a sequence of integers, got {targets.dtype} of {tuple(targets.shape)}")
        if check_floating("inputs", inputs).shape[:-2] != targets.shape[:-1]:
            raise ValueError(f"targets must have the batch of inputs {tuple(inputs.shape)}, got {tuple(targets.shape)}")
        before = torch.cat([torch.full_like(targets[..., :1], self.start), targets[..., :-1]], -1)
        decoded: Decoded = self.decoder(before.where(before >= 0, self.stop), self.encode(inputs, mask), mask=mask)
        return decoded.logits

    def loss(
        self,
        inputs: Float[Tensor, "*batch m width"],
        targets: Int[Tensor, "*batch t"],
        mask: Bool[Tensor, "*batch m"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the targets in nats, each given those before it.

        Args:
            inputs: ``[*batch, m, width]`` vectors.
            targets: ``[*batch, t]`` tokens that end with ``stop``; -100 fills up what is not counted.
            mask: ``[*batch, m]`` which of the inputs are there.

        Raises:
            TypeError: ``inputs`` is no floating tensor, or ``targets`` hold no integers.
            ValueError: a shape does not fit, or a target is neither in the vocabulary nor -100.
        """
        logits = self(inputs, targets, mask)
        return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100)

    def generate(
        self,
        inputs: Float[Tensor, "*batch m width"],
        max_tokens: int,
        *,
        beam: int = 1,
        mask: Bool[Tensor, "*batch m"] | None = None,
    ) -> Generated:
        """Write an answer of at most ``max_tokens``, greedily or with a beam: :meth:`SequenceDecoder.generate`."""
        with torch.no_grad():
            memory = self.encode(inputs, mask)
        return self.decoder.generate(
            memory, start=self.start, stop=self.stop, max_tokens=max_tokens, beam=beam, mask=mask
        )


class _Layer(nn.Module):
    """A layer of a transformer, normalised before each part: attention, to a memory too, and a network."""

    def __init__(self, width: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.norm, self.project, self.combine = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        if cross:
            self.cross_norm, self.ask = nn.LayerNorm(width), nn.Linear(width, width)
            self.offer, self.cross_combine = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
        cache: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        queries, keys, values = self._split(self.project(self.norm(x)), 3)
        if cache is not None:
            keys, values = torch.cat([cache[0], keys], -2), torch.cat([cache[1], values], -2)
        kept: tuple[Tensor, ...] = (keys, values)
        x = x + self.combine(_attend(queries, keys, values, bias))
        if memory is not None:
            (queries,) = self._split(self.ask(self.cross_norm(x)), 1)
            keys, values = self._split(self.offer(memory), 2) if cache is None else cache[2:]
            x, kept = x + self.cross_combine(_attend(queries, keys, values, memory_bias)), (*kept, keys, values)
        return x + self.feed(x), kept

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return ``parts`` tensors ``[*batch, heads, t, width / heads]`` of ``[*batch, t, parts * width]``."""
        return x.unflatten(-1, (parts, self.heads, -1)).movedim(-3, 0).transpose(-3, -2).unbind(0)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``[*batch, t, width]``; written out, for torch's fused attention has no second derivative."""
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    shares = (scores if bias is None else scores + bias).softmax(-1)
    return (shares @ values).transpose(-3, -2).flatten(-2)


def _bias(mask: Tensor | None, memory: Tensor) -> Tensor | None:
    """Return what is added to scores ``[*batch, heads, t, m]``: -inf where a row is not there."""
    if mask is None:
        return None
    if check_tensor("mask", mask).dtype != torch.bool:
        raise TypeError(f"mask must hold booleans, got {mask.dtype}")
    if mask.shape != memory.shape[:-1]:
        raise ValueError(f"mask must have shape {tuple(memory.shape[:-1])}, got {tuple(mask.shape)}")
    if can_look(mask) and not bool(mask.any(-1).all()):
        raise ValueError("mask must leave at least one row in each sample")
    return torch.zeros_like(mask, dtype=memory.dtype).masked_fill(~mask, -torch.inf)[..., None, None, :]


def _check_tokens(name: str, tokens: Tensor, vocabulary: int) -> None:
    if check_tensor(name, tokens).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must hold integers, got {tokens.dtype}")
    if tokens.ndim == 0 or tokens.shape[-1] == 0:
        raise ValueError(f"{name} must be a sequence of at least one, got shape {tuple(tokens.shape)}")
    if can_look(tokens) and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"{name} must be in 0..{vocabulary - 1}, got {int(tokens.min())}..{int(tokens.max())}")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        check_integer(name, value, 1)
    if sizes["width"] % sizes["heads"]:
        raise ValueError(f"width must be a multiple of heads, got {sizes['width']} and {sizes['heads']}")


def _embedding(vocabulary: int, width: int, generator: torch.Generator | None) -> nn.Embedding:
    embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(embedding.weight, std=width**-0.5, generator=generator)
    return embedding


def _initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            nn.init.zeros_(part.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name == "positions":
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
