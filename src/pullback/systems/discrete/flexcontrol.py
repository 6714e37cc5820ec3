"""Control of a frozen diffusion model by copies of all its blocks, of which a router opens few, by sample and step.

ControlNet copies the first half of a frozen network and trains the copy to steer it; FlexControl copies every block and
gives each copy a router that says from its features and the time whether it is active. Gates are noisy and straight
through in training, and a budget holds the mean share of multiply-adds of the copies; a closed copy is not run (Fang,
Xiang, Cai, Zhou, Wen, ICML 2025). Formulas are reconstructed from the paper; no code was found.

Smaller than in the paper: a residual network of 6 blocks on real digits of 14 x 14 pixels (MNIST; paper: Stable
Diffusion 1.5 and 3), trained here and frozen, controlled by the digits' own Sobel edges. The budget holds the gates of
inference. At this size copies chosen by hand, the first half or the second, do better at the same cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss, silu
from torch.nn.utils import convert_conv2d_weight_memory_format as convert

from pullback import data
from pullback.discrete import ControlledNet, budget_loss, gate, opening_rates
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    pretrain: Annotated[int, at_least(1)] = 350
    """Adam steps of the model that is frozen then."""
    steps: Annotated[int, at_least(1)] = 240
    """Adam steps of each control."""
    batch: Annotated[int, at_least(1)] = 24
    """Digits a step."""
    width: Annotated[int, at_least(4)] = 16
    """Channels of a block."""
    blocks: Annotated[int, at_least(2)] = 6
    """Of the frozen model."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of Adam, which falls to 0; three times that for routers, ten times with the firm price."""
    target: Annotated[float, above(0), at_most(1)] = 0.5
    """Share of the multiply-adds of all copies."""
    held: Annotated[int, at_least(1)] = 400
    """Digits of the test."""
    samples: Annotated[int, at_least(1)] = 64
    """Digits that are drawn under their edges."""
    ddim: Annotated[int, at_least(1)] = 20
    """Steps of the sampler."""


TIMES, WAVES = 100, 8
OURS, FIRM = "FlexControl", "FlexControl, firm"
WEIGHT, RATE = {OURS: 1.0, FIRM: 4.0}, {OURS: 3, FIRM: 10}
DIFFERENCE = "largest difference of opening, early and late"
FIXED = ("first half", "second half", "all copies", "random")


@system(
    "flexcontrol",
    family="discrete",
    title="FlexControl: Computation-Aware ControlNet with Differentiable Router for Text-to-Image Generation",
    paper="Fang, Xiang, Cai, Zhou, Wen, ICML 2025, arXiv 2502.10451",
    config=Config,
    smoke={"pretrain": 2, "steps": 2, "batch": 4, "width": 8, "blocks": 2, "held": 8, "samples": 2, "ddim": 2},
    full={"pretrain": 20_000, "steps": 5_000, "width": 64, "blocks": 12},
    data=("mnist",),
    blocks=tuple(f"discrete.{b}" for b in ("gate", "GateRouter", "ControlledNet", "budget_loss", "opening_rates")),
)
def run(lab: Lab, config: Config) -> None:
    """Train the model, freeze it, train one control after the other, draw digits under edges."""
    halves = [nn.functional.avg_pool2d(data.mnist(part).images[:, None], 2) for part in ("train", "test")]
    train, test = (2 * half.to(lab.device) - 1 for half in halves)
    lab.data("MNIST digits at half their size, and their own edges", origin="real")
    plain = lab.arm("no control", baseline=True)
    with plain.weights():
        base = convert(_Denoiser(config.width, config.blocks).to(lab.device), torch.channels_last)
    optimizer = torch.optim.Adam(base.parameters(), config.lr, fused=True)
    batches = lab.fork("batches of the model")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, config.pretrain)
    for _ in plain.steps(config.pretrain, base, optimizer, schedule, batches):
        _, noisy, times, noise = _noised(train, config.batch, batches)
        plain.descend(mse_loss(base(noisy, times), noise), optimizer, name="loss of the model")
        schedule.step()
    _measure(lab, config, plain, base.requires_grad_(False), None, test)
    controls = {}
    for name in (*WEIGHT, *FIXED):
        arm = lab.arm(name, baseline=name in FIXED)
        with arm.weights():
            hint = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.Conv2d(12, config.width, 3, padding=1))
            net = ControlledNet(base, hint, config.width, 2 * WAVES, routed=name in WEIGHT)
        controls[name] = net = convert(net.to(lab.device), torch.channels_last)
        if name == OURS:
            _start(lab, config, net, train)
        _train(lab, config, arm, net, train)
        _measure(lab, config, arm, base, net, test)
    _judge(lab, config, base, controls, test)


class _Block(nn.Module):
    """A residual block that knows the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(4, width), nn.GroupNorm(4, width)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.shift = nn.Linear(2 * WAVES, width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.convolutions[0](silu(self.norms[0](h))) + self.shift(time)[:, :, None, None]
        return h + self.convolutions[1](silu(self.norms[1](inner)))


class _Denoiser(nn.Module):
    """The noise in digits of 14 x 14 pixels."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(blocks)])
        self.head = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def embed(self, times: Tensor) -> Tensor:
        """Sines and cosines of the time, of periods up to the whole."""
        phases = times[:, None] / TIMES * math.pi * 2.0 ** torch.arange(-1, WAVES - 1, device=times.device)
        return torch.cat([phases.sin(), phases.cos()], 1)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        h, time = self.stem(x), self.embed(times)
        for block in self.blocks:
            h = block(h, time)
        return self.head(h)


def _kept(times: Tensor) -> Tensor:
    """How much of the digit's variance is left at a time: a squared cosine."""
    return torch.cos((times + 1) / (TIMES + 1) * math.pi / 2).square().clamp(min=1e-4)[:, None, None, None]


def _noised(digits: Tensor, count: int, stream: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits, the same with noise, at which times, and the noise."""
    x = digits[torch.randint(len(digits), (count,), generator=stream).to(digits.device)]
    times = torch.randint(TIMES, (count,), generator=stream).to(x)
    noise = torch.randn(x.shape, generator=stream).to(x)
    kept = _kept(times)
    return x, kept.sqrt() * x + (1 - kept).sqrt() * noise, times, noise


def _edges(x: Tensor) -> Tensor:
    """Where the Sobel slope of a digit in [0, 1] is steep."""
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=x.device)
    slopes = nn.functional.conv2d((x + 1) / 2, torch.stack([across, across.T])[:, None], padding=1)
    return (slopes.square().sum(1, keepdim=True).sqrt() > 2.5).to(x)


def _gates(config: Config, name: str, count: int, stream: Generator) -> Tensor | None:
    """Which copies are open where nobody learns it; in the same share of the multiply-adds but for all of them."""
    place = torch.arange(config.blocks).expand(count, -1)
    if name == "random":
        return (torch.rand(count, config.blocks, generator=stream) < config.target).float()
    half = round(config.target * config.blocks)
    chosen = {"first half": place < half, "second half": place >= config.blocks - half, "all copies": place >= 0}
    return chosen[name].float() if name in chosen else None


def _train(lab: Lab, config: Config, arm: Arm, net: ControlledNet, train: Tensor) -> None:
    trained = [(".router." in name, p) for name, p in net.named_parameters() if p.requires_grad]
    rates = {False: config.lr, True: RATE.get(arm.name, 1) * config.lr}
    groups = [{"params": [p for routed, p in trained if routed == of], "lr": rate} for of, rate in rates.items()]
    optimizer = torch.optim.Adam(groups, fused=True)
    batches, noise_of_gates = lab.fork("batches"), lab.fork("gates")
    costs = net.costs(train[:1], torch.zeros(1, device=lab.device)).float().to(lab.device)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, config.steps)
    for step in arm.steps(config.steps, net, optimizer, schedule, batches, noise_of_gates):
        x, noisy, times, noise = _noised(train, config.batch, batches)
        fixed = _gates(config, arm.name, len(x), noise_of_gates)
        temperature = 1 - 0.5 * step / config.steps
        found = net(noisy, _edges(x), times, gates=fixed, temperature=temperature, generator=noise_of_gates)
        gates = found.gates if found.logits is None else gate(found.logits, temperature=temperature, noise=None)
        share = (gates @ costs).mean() / costs.sum()  # of what is run when it has learned
        loss = mse_loss(found.output, noise)
        arm.record("share of the copies", share)
        arm.descend(loss + WEIGHT.get(arm.name, 0.0) * budget_loss(share, config.target), optimizer)
        schedule.step()
    net.eval()


def _start(lab: Lab, config: Config, net: ControlledNet, train: Tensor) -> None:
    """Before the first step: equal to the frozen model, and who gets a gradient from what."""
    x, noisy, times, noise = _noised(train, 32, stream := lab.fork("start"))
    found = net(noisy, _edges(x), times, generator=stream)
    controls = cast(Any, net.controls)
    routers, zeros = [c.router.logit.weight for c in controls], [c.zero.weight for c in controls]
    of_budget = torch.autograd.grad(
        budget_loss(gate(found.logits, noise=None).mean(), config.target), routers, retain_graph=True
    )
    of_error = torch.autograd.grad(mse_loss(found.output, noise), zeros, allow_unused=True)
    lab.claim(
        "before the first step the controlled model equals the frozen one bit for bit, each router gets a gradient "
        "from the budget and each zero convolution one from the error",
        torch.equal(found.output, net.base(noisy, times)),
        all(bool(g.any()) for g in of_budget),
        all(g is not None and bool(g.any()) for g in of_error),
        scale="smoke",
    )


@torch.no_grad()
def _sampled(
    config: Config, base: nn.Module, net: ControlledNet | None, name: str, edges: Tensor, stream: Generator
) -> Tensor:
    """Digits under their edges, by DDIM."""
    x = torch.randn(edges.shape, generator=stream).to(edges)
    times = torch.linspace(TIMES - 1, 0, config.ddim).round()
    for now, after in zip(times, [*times[1:], torch.tensor(-1.0)], strict=True):
        at = now.expand(len(x)).to(x)
        gates = _gates(config, name, len(x), stream)
        noise = base(x, at) if net is None else net(x, edges, at, gates=gates).output
        kept, next_kept = _kept(at), _kept(after.expand(len(x)).to(x))
        clean = ((x - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
        noise = (x - kept.sqrt() * clean) / (1 - kept).sqrt()
        x = next_kept.sqrt() * clean + (1 - next_kept).sqrt() * noise if after >= 0 else clean
    return x


@torch.no_grad()
def _measure(lab: Lab, config: Config, arm: Arm, base: nn.Module, net: ControlledNet | None, test: Tensor) -> None:
    x, noisy, times, noise = _noised(test, config.held, lab.fork("test"))
    if net is None:
        output = base(noisy, times)
    else:
        found = net(noisy, _edges(x), times, gates=_gates(config, arm.name, len(x), lab.fork("gates of the test")))
        output, costs = found.output, net.costs(test[:1], torch.zeros(1, device=lab.device)).float()
        share = 100 * (found.gates.cpu() @ costs).mean() / costs.sum()
        arm.metric("multiply-adds of the copies", share, better="lower", unit="%")
        early, late = opening_rates(found.gates.cpu(), times.cpu(), 2, largest=TIMES)
        arm.metric(DIFFERENCE, (early - late).abs().max(), better="higher")
    arm.metric("error", mse_loss(output, noise), better="lower")
    edges = _edges(test[: config.samples])
    drawn = _edges(_sampled(config, base, net, arm.name, edges, lab.fork("samples")))
    arm.metric("F1 of edges", 2 * (drawn * edges).sum() / (drawn.sum() + edges.sum()), better="higher")


def _judge(lab: Lab, config: Config, base: nn.Module, controls: dict[str, ControlledNet], test: Tensor) -> None:
    share, f1, error, difference = "multiply-adds of the copies", "F1 of edges", "error", DIFFERENCE
    ours, firm, plain, full, chance = (lab.arms[n] for n in (OURS, FIRM, "no control", "all copies", "random"))
    x, noisy, times, _ = _noised(test, config.held, lab.fork("test"))
    seen = dict.fromkeys(range(config.blocks), 0.0)
    for number, control in enumerate(cast(Any, controls[OURS].controls)):
        control.copy.register_forward_hook(lambda _, given, __, n=number: seen.update({n: seen[n] + len(given[0])}))
    with torch.no_grad():
        opened = {name: controls[name](noisy, _edges(x), times).gates.cpu() for name in WEIGHT}
    run = list(seen.values()) == opened[OURS].sum(0).tolist()
    lab.claim("a copy is run for as many samples as its gate is open for", run, scale="smoke")
    lab.claim(
        "the copies that are open cost the budget to 1 point with the firm price, to 6 points with the other",
        abs(firm[share] - 100 * config.target) <= 1,
        abs(ours[share] - 100 * config.target) <= 6,
    )
    lab.claim(
        "every control draws edges better than none by an F1 of at least 0.2, at an error of at most 0.85 of it",
        *(lab.arms[name][f1] >= plain[f1] + 0.2 for name in controls),
        *(lab.arms[name][error] <= 0.85 * plain[error] for name in controls),
    )
    lab.claim(
        "a learned choice has a smaller error than a random one at the same cost, and a larger F1",
        ours[error] <= chance[error],
        ours[f1] >= chance[f1],
    )
    lab.claim("it draws edges with an F1 at most 0.05 below that of all copies", ours[f1] >= full[f1] - 0.05)
    lab.claim(
        "a gate opens at another rate early than late, by at least 0.3, where with random gates none does by 0.2",
        ours[difference] >= 0.3,
        chance[difference] <= 0.2,
    )
    lab.claim("with the firm price no gate's rates differ early and late by over 0.3", firm[difference] <= 0.3)
    if lab.scale != "smoke":
        short, edges, both = replace(config, ddim=5), _edges(test[:64]), (OURS, "all copies")
        race = lab.race(
            {n: partial(_sampled, short, base, controls[n], n, edges, lab.fork("race")) for n in both}, rounds=15
        )
        lab.claim("drawing is at least 1.2 times as fast as with all copies", race.ratio("all copies", OURS) >= 1.2)
    figure, axes = lab.subplots(1, 2, figsize=(8, 3.2))
    for axis, (name, gates) in zip(axes, opened.items(), strict=True):
        rates = opening_rates(gates, times.cpu(), min(10, config.held), largest=TIMES)
        axis.imshow(rates.T, vmin=0, vmax=1, cmap="viridis", aspect="auto", extent=(0, TIMES, config.blocks, 0))
        axis.set(title=name, xlabel="time (noise grows)", ylabel="block")
    lab.figure("gates", figure, "How often each copy is open, from never (dark) to always, by block and time.")
    edges = _edges(test[: config.samples])
    rows = {"digits": test[:8, 0], "their edges": 2 * edges[:8, 0] - 1}
    for name in ("no control", OURS, "first half", "all copies"):
        rows[name] = _sampled(config, base, controls.get(name), name, edges, lab.fork("samples"))[:8, 0]
    images = {name: list((row.clamp(-1, 1).cpu() + 1) / 2) for name, row in rows.items()}
    lab.images(images, caption="Digits drawn under the edges of digits of the test.")
    lab.bars(error, f1)
