"""Contracts of blocks that read and write sequences of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.discrete.modality_tokenizer import ModalityTokenizer
from pullback.discrete.sequence_to_sequence import Decoded, SequenceDecoder, SequenceToSequence
from tests.contracts.contract import Bad, Call, Exempt, Module

_TOKENS = torch.tensor([[0, 3, 1], [0, 2, 4]])
_MASK = torch.tensor([[True, True, False], [True, False, True]])


def _decoder(generator: torch.Generator) -> SequenceDecoder:
    return SequenceDecoder(5, 4, 2, 1, positions=3, generator=generator)


def _writer(generator: torch.Generator) -> SequenceToSequence:
    return SequenceToSequence(5, 4, 2, 1, positions=3, generator=generator)


def _decode(module: nn.Module, memory: Tensor) -> Decoded:
    decoded: Decoded = module(_TOKENS.to(memory.device), memory, mask=_MASK.to(memory.device))
    return decoded


def _loss(module: Any, inputs: Tensor) -> Tensor:
    loss: Tensor = module.loss(inputs, torch.tensor([[3, 1, -100], [2, 4, 1]]).to(inputs.device))
    return loss


def _torch_layer(w: dict[str, Tensor], at: str, *, cross: bool) -> nn.Module:
    """torch's own layer with the weights of ours, which normalises before each part too."""
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    layer = kind(4, 2, 16, 0.0, batch_first=True, norm_first=True).double()
    names = {"self_attn.in_proj_": "project.", "self_attn.out_proj.": "combine.", "norm1.": "norm."}
    names |= {"linear1.": "feed.1.", "linear2.": "feed.3.", ("norm3." if cross else "norm2."): "feed.0."}
    if cross:
        names |= {"multihead_attn.out_proj.": "cross_combine.", "norm2.": "cross_norm."}
    state = {theirs + kind: w[f"{at}{ours}{kind}"] for theirs, ours in names.items() for kind in ("weight", "bias")}
    if cross:
        for kind in ("weight", "bias"):
            state[f"multihead_attn.in_proj_{kind}"] = torch.cat([w[f"{at}ask.{kind}"], w[f"{at}offer.{kind}"]])
    layer.load_state_dict(state)
    return layer


def _normed(x: Tensor, w: dict[str, Tensor], at: str) -> Tensor:
    return nn.functional.layer_norm(x, (4,), w[f"{at}norm.weight"], w[f"{at}norm.bias"])


def _decoded_by_torch(memory: Tensor, tokens: Tensor = _TOKENS, mask: Tensor | None = _MASK) -> tuple[Tensor, Tensor]:
    return _read_by_torch(_decoder(torch.Generator().manual_seed(0)), "", memory, tokens, mask)


def _read_by_torch(
    module: nn.Module, at: str, memory: Tensor, tokens: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    w = module.double().state_dict()
    hidden = w[f"{at}embedding.weight"][tokens] + w[f"{at}positions"][: tokens.shape[-1]]
    causal = torch.ones(tokens.shape[-1], tokens.shape[-1], dtype=torch.bool).triu(1)
    layer = _torch_layer(w, f"{at}layers.0.", cross=True)
    hidden = layer(hidden, memory, tgt_mask=causal, memory_key_padding_mask=None if mask is None else ~mask)
    features = _normed(hidden, w, at)
    return features @ w[f"{at}readout.weight"].T, features


def _loss_by_torch(inputs: Tensor) -> Tensor:
    module = _writer(torch.Generator().manual_seed(0)).double()
    w = module.state_dict()
    hidden = _torch_layer(w, "layers.0.", cross=False)(inputs + w["positions"])
    logits, _ = _read_by_torch(module, "decoder.", _normed(hidden, w, ""), torch.tensor([[0, 3, 1], [0, 2, 4]]), None)
    right = logits.log_softmax(-1).gather(-1, torch.tensor([[3, 1, 0], [2, 4, 1]])[..., None])[..., 0]
    return -torch.stack([right[0, 0], right[0, 1], *right[1]]).mean()


_WHY = (
    "torch's LayerNorm is wrong in nested forward mode; tokens and mask are those of a batch of two; products of the "
    "largest numbers overflow"
)

_NAMES = ((1,), (2, 3), (0, 4, 4))


class _Fixed(nn.Module):
    """Logits are the inputs; an embedding stands beside, as that of a language model."""

    def __init__(self, generator: torch.Generator, *, hard: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 2)
        nn.init.normal_(self.words.weight, generator=generator)
        options = {"noise": 0.0, "temperature": 0.5, "hard": hard}
        self.tokenizer = ModalityTokenizer(nn.Identity(), _NAMES, self.words, k=2, **options)  # type: ignore[arg-type]

    def forward(self, logits: Tensor) -> Tensor:
        embeddings: Tensor = self.tokenizer(logits).embeddings
        return embeddings


def _names_by_hand(logits: Tensor, *, hard: bool) -> Tensor:
    words = _Fixed(torch.Generator().manual_seed(0), hard=hard).double().words.weight.detach()
    names = torch.stack([words[1], (words[2] + words[3]) / 2, (words[0] + 2 * words[4]) / 3])
    rows = []
    for row in logits:
        weights, order = (row / 0.5).exp(), row.argsort(descending=True)
        left = torch.where(torch.arange(3) == order[0], 0.0, weights)
        soft = torch.stack([weights / weights.sum(), left / left.sum()])
        rows.append(names[order[:2]] if hard else soft @ names)
    return torch.stack(rows)


CONTRACTS = [
    Module(
        "discrete.ModalityTokenizer",
        lambda module, logits: module(logits),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=lambda logits: _names_by_hand(logits, hard=False),
        build=lambda g: _Fixed(g, hard=False),
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2, 4),), {}, ValueError, r"classifier must return 3 logits, got shape \(2, 4\)"),
        ],
        why="logarithms of probabilities of the largest numbers overflow",
    ),
    Module(
        "discrete.ModalityTokenizer[hard]",
        lambda module, logits: module(logits),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=lambda logits: _names_by_hand(logits, hard=True),
        build=lambda g: _Fixed(g, hard=True),
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        large_limit=1e8,
        why="value and gradient belong to different functions, by design",
    ),
    Exempt("discrete.embed_names", "takes a module", "discrete/test_modality_tokenizer.py"),
    Module(
        "discrete.SequenceDecoder",
        _decode,
        lambda g: [Call((torch.randn(2, 3, 4, generator=g, dtype=torch.float64),))],
        reference=_decoded_by_torch,
        outputs=lambda decoded: (decoded[0], decoded[1]),
        build=_decoder,
        forward_mode=False,
        batched=False,
        vmap=False,
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2, 3, 5),), {}, ValueError, r"memory must have shape \(\.\.\., any, 4\)"),
            Bad((torch.zeros(2, 0, 4),), {}, ValueError, r"memory must hold at least one row for each of tokens"),
            Bad((torch.zeros(2, 2, 4),), {}, ValueError, r"mask must have shape \(2, 2\), got \(2, 3\)"),
        ],
        why=_WHY,
    ),
    Module(
        "discrete.SequenceToSequence",
        _loss,
        lambda g: [Call((torch.randn(2, 3, 4, generator=g, dtype=torch.float64),))],
        reference=_loss_by_torch,
        build=_writer,
        forward_mode=False,
        batched=False,
        vmap=False,
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2, 3, 5),), {}, ValueError, r"inputs must have shape \(\.\.\., any, 4\)"),
            Bad((torch.zeros(2, 0, 4),), {}, ValueError, r"inputs must hold 1\.\.3 vectors, got 0"),
            Bad((torch.zeros(3, 3, 4),), {}, ValueError, r"targets must have the batch of inputs \(3, 3, 4\)"),
            Bad((torch.zeros(2, 4, 4),), {}, ValueError, r"inputs must hold 1\.\.3 vectors, got 4"),
        ],
        why=_WHY,
    ),
]
