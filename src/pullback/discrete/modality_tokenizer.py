"""What a network sees or hears as words: the names of the categories that it chooses, as embeddings of a language
model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_tensor
from pullback.core.shapes import Float, Int
from pullback.discrete.subset import SUBSET_METHODS, subset_sample

__all__ = ["ModalityTokenizer", "Tokens", "embed_names"]


class Tokens(NamedTuple):
    """Categories that stand for an input, as words.

    Attributes:
        embeddings: ``[*batch, k, width]`` of the names, the category of the highest score first.
        rows: ``[*batch, k, categories]`` by which they were mixed: one-hot where the choice is hard.
        index: ``[*batch, k]`` the categories.
        log_prob: ``[*batch, categories]`` of the classifier.
    """

    embeddings: Float[Tensor, "*batch k width"]
    rows: Float[Tensor, "*batch k categories"]
    index: Int[Tensor, "*batch k"]  # type: ignore[assignment]
    log_prob: Float[Tensor, "*batch categories"]


class ModalityTokenizer(nn.Module):
    r"""Turn an input into the names of its k likeliest categories, with a gradient to the classifier.

    With ``p`` the classifier's probabilities, ``z`` Gumbel noise (in training) and ``E`` the embeddings of the names,

    .. math:: s_c = \log p_c + \mathrm{noise} \cdot z_c, \qquad e_j = r_j^T E,

    where the rows ``r`` are the k largest scores without replacement (:func:`~pullback.discrete.subset_sample`),
    one-hot in the forward pass and soft in the backward pass. In evaluation mode there is no noise.

    Args:
        classifier: takes inputs to logits ``[*batch, categories]``.
        names: of each category, the tokens of its words.
        embedding: of a language model, shared with it, not a part of this module's parameters.
        k: categories that are chosen, in 1..categories.
        temperature: > 0 of the soft rows.
        noise: >= 0, of the training; 0 takes the k likeliest.
        hard: one-hot rows; otherwise mixtures of names, which are no words.
        method: of :func:`~pullback.discrete.subset_sample`.

    Raises:
        TypeError: ``classifier`` or ``embedding`` is no module of its kind, or a size no integer.
        ValueError: a number is out of range, a name has no token, or one that the embedding does not have.

    Example:
        >>> words = nn.Embedding(10, 8)
        >>> tokenizer = ModalityTokenizer(nn.Linear(6, 3), [[4], [5, 6], [7]], words, k=2).eval()
        >>> tokens = tokenizer(torch.zeros(2, 6))
        >>> tokens.embeddings.shape, tokens.rows.sum(-1).tolist()
        (torch.Size([2, 2, 8]), [[1.0, 1.0], [1.0, 1.0]])

    References:
        Lin, Bertasius, Wang, Chang, Parikh, Torresani (2021), VX2TEXT, section 3.2. Kool, van Hoof, Welling (2019) for
        the draw without replacement.
    """

    def __init__(
        self,
        classifier: nn.Module,
        names: Sequence[Sequence[int]],
        embedding: nn.Embedding,
        *,
        k: int,
        temperature: float = 1.0,
        noise: float = 1.0,
        hard: bool = True,
        method: str = "gumbel_topk",
    ) -> None:
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a module, got {type(classifier).__name__}")
        _check_names(names, embedding)
        check_choice("method", method, SUBSET_METHODS)
        check_positive("temperature", temperature)
        check_positive("noise", noise, zero=True)
        self.k = check_integer("k", k, 1, len(names))
        self.classifier, self.names = classifier, tuple(map(tuple, names))
        self.options: dict[str, Any] = {"temperature": temperature, "hard": hard, "method": method}
        self.noise = noise
        self._embedding = (embedding,)  # beside the modules: its parameters are the language model's

    def forward(self, inputs: Tensor, *, generator: torch.Generator | None = None) -> Tokens:
        """Choose and embed the categories of inputs.

        Args:
            inputs: as the classifier takes them.
            generator: of the noise; torch's default one if ``None``.

        Returns:
            :class:`Tokens`.

        Raises:
            TypeError: ``inputs`` is no tensor.
            ValueError: the classifier does not return one logit a name, or it does for inputs that hold nothing.
        """
        logits = check_floating("result of classifier", self.classifier(check_tensor("inputs", inputs)))
        if not logits.ndim or logits.shape[-1] != len(self.names):
            raise ValueError(f"classifier must return {len(self.names)} logits, got shape {tuple(logits.shape)}")
        if logits.numel() and not inputs.numel():  # a clip without frames, not a batch without clips
            raise ValueError(f"inputs must not be empty, got shape {tuple(inputs.shape)}")
        log_prob = logits.log_softmax(-1)
        noise = self.noise if self.training else 0.0
        subset = subset_sample(log_prob, self.k, noise=noise, generator=generator, **self.options)
        embeddings = subset.rows @ embed_names(self.names, self._embedding[0]).to(subset.rows.dtype)
        return Tokens(embeddings, subset.rows, subset.index, log_prob)


def embed_names(names: Sequence[Sequence[int]], embedding: nn.Embedding) -> Float[Tensor, "n width"]:
    """Return the mean of the embeddings of the tokens of each name, with its gradient.

    Args:
        names: of each category, the tokens of its words.
        embedding: ``[vocabulary, width]``.

    Raises:
        TypeError: ``embedding`` is no ``nn.Embedding``, or a token no integer.
        ValueError: there is no name, one has no token, or one that the embedding does not have.

    Example:
        >>> words = nn.Embedding.from_pretrained(torch.tensor([[0.0], [2.0], [6.0]]))
        >>> embed_names([[1], [1, 2]], words)
        tensor([[2.],
                [4.]])
    """
    _check_names(names, embedding)
    longest = max(map(len, names))
    tokens = torch.tensor([[*name, *[0] * (longest - len(name))] for name in names], device=embedding.weight.device)
    lengths = torch.tensor([[len(name)] for name in names], device=tokens.device)
    there = torch.arange(longest, device=tokens.device) < lengths
    rows = torch.where(there.unsqueeze(-1), embedding(tokens), 0.0)
    return rows.sum(-2) / lengths


def _check_names(names: Sequence[Sequence[int]], embedding: nn.Embedding) -> None:
    if not isinstance(embedding, nn.Embedding):
        raise TypeError(f"embedding must be an nn.Embedding, got {type(embedding).__name__}")
    if not names or not all(map(len, names)):
        raise ValueError("names must have at least one name, and each at least one token")
    for name in names:
        for token in name:
            check_integer("names", token, 0, embedding.num_embeddings - 1)
