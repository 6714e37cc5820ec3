"""DiBS and BaCaDI: posteriors over graphs, and over unknown intervention targets, by particles of latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pullback.causal import latent_priors
from pullback.causal.graphs import is_acyclic
from pullback.causal.interventional import InterventionalGaussian
from pullback.causal.latent_graphs import (
    edge_probabilities,
    latent_graph,
    latent_targets,
    logistic_noise,
    score_ratio_gradient,
)
from pullback.causal.posterior import GraphPosterior
from pullback.causal.svgd import SVGD, SquaredExponential
from pullback.core.checks import check_choice, check_integer, check_range, check_scalar, check_shape, check_tensor
from pullback.core.errors import ConvergenceError
from pullback.core.random import drawing_device
from pullback.core.shapes import Shaped, Tensor

__all__ = ["BaCaDI", "bacadi", "dibs"]


class BaCaDI:
    r"""Approximate the posterior over graphs, weights, targets and values of interventions, step by step from outside.

    Latents ``z = (u, v)`` give arcs the probability :math:`\sigma(\alpha_t\, u_i \cdot v_j)`, latents ``gamma`` give
    targets :math:`\sigma(\alpha_t \gamma_{ej} / 2)`. Their priors are

    .. math:: \log p(z) = -\tfrac d2 \|z\|^2 - \beta_t\, E\big[\mathrm{tr}\,(I + G/d)^d - d\big] + \log f(G_\alpha(z)),
        \qquad \log p(\gamma) = \textstyle\sum \log \mathrm{Beta}\big(\sigma(\alpha_t\gamma/2); \tfrac1d, 1 - \tfrac1d
        \big) + \log N(\gamma; 0, 0.1) - \lambda E[\sum I]

    and the scores of the density of :class:`InterventionalGaussian` are ratios of Monte Carlo means
    (:func:`score_ratio_gradient`), one for each node, over which density and samples factorise: over soft graphs and
    hard targets for ``z``, hard graphs and soft targets for ``gamma``, hard ones of both for the parameters.
    :class:`SVGD` moves the particles while ``alpha_t`` and ``beta_t`` grow linearly. At the end arcs are where ``u.v >
    0`` and targets where ``gamma > 0``. All problems of a batch and all particles are one tensor.

    With ``marginal`` the parameters are integrated out (:meth:`InterventionalGaussian.log_evidence`). An environment is
    then explained by an intervention only if that is more probable under the best weights of the graph, not under those
    of the moment: particles with weights call most targets wrongly until the weights fit, and then learn from few
    environments.

    Args:
        x: ``[*batch, n, d]`` samples, not centred.
        environments: ``[n]`` whole numbers, 0 the observational one, 1 to ``e`` the others; ``None``: all are 0.
        targets: ``[*batch, e, d]`` booleans, where it is known which environment sets which node; ``None``: unknown,
            and to be found, unless there is one environment alone.
        particles: ``m >= 1``.
        steps: of SVGD.
        samples: graphs and targets drawn for an estimate of a score.
        acyclicity_samples: graphs drawn for the expected acyclicity penalty.
        alpha, beta: where ``alpha_t`` and ``beta_t`` end, > 0.
        noise, intervention_noise, weight_scale, intervention_scale: of :class:`InterventionalGaussian`.
        graph_prior: ``"er"``, arcs with ``edge_probability``, or ``"scale-free"``, :math:`f \propto \prod_j (1 +
            |pa(j)|)^{-3}`.
        edge_probability: in (0, 1); ``None`` for two arcs a node, :math:`2 / (d - 1)`, at most 1/2.
        sparsity: ``lambda >= 0``, of targets.
        marginal: move graphs and targets only, with weights and means of interventions integrated out.
        mixture: weight the particles by their joint density, instead of equally.
        kernel, lr, optimizer: of :class:`SVGD`; the default kernel is a sum of bandwidths 5 (``z``), 500 (parameters)
            and 5 (``gamma``).
        generator: source of all draws.

    Attributes:
        steps, taken: steps at most, and so far.
        model: the joint density.
        history: ``"effective samples of graphs"`` and ``"update"``, each ``[steps, b]`` of ``b`` problems.

    Raises:
        TypeError: not floating samples, options that are no numbers.
        ValueError: environments that are not 0 to ``e`` or have fewer than two rows, targets of another shape,
            ``particles < 1``, options out of range.

    References:
        Lorch, Rothfuss, Schoelkopf, Krause (2021), DiBS; Haegele, Rothfuss, Lorch, Somnath, Schoelkopf, Krause (2023),
        BaCaDI, sections 4 and 5.
    """

    def __init__(
        self,
        x: Shaped[Tensor, "*batch n d"],
        environments: Shaped[Tensor, " n"] | None = None,
        *,
        targets: Shaped[Tensor, "*batch e d"] | None = None,
        particles: int = 20,
        steps: int = 2000,
        samples: int = 128,
        acyclicity_samples: int = 32,
        alpha: float = 30.0,
        beta: float = 3000.0,
        noise: float = 1.0,
        intervention_noise: float = 1.0,
        weight_scale: float = 1.0,
        intervention_scale: float = 10.0,
        graph_prior: str = "er",
        edge_probability: float | None = None,
        sparsity: float = 1.0,
        marginal: bool = False,
        mixture: bool = True,
        kernel: SquaredExponential | None = None,
        lr: Any = 5e-3,
        optimizer: str = "rmsprop",
        generator: torch.Generator | None = None,
    ) -> None:
        check_integer("particles", particles, 1)
        check_integer("samples", samples, 1)
        check_integer("acyclicity_samples", acyclicity_samples, 1)
        check_choice("graph_prior", graph_prior, list(latent_priors.GRAPH_PRIORS))
        check_scalar("alpha", alpha)
        check_scalar("beta", beta)
        check_scalar("sparsity", sparsity, zero=True)
        scales = {"noise": noise, "intervention_noise": intervention_noise}
        scales |= {"weight_scale": weight_scale, "intervention_scale": intervention_scale}
        check_shape("x", check_tensor("x", x), (None, None))
        self._batch = x.shape[:-2]
        self.model = InterventionalGaussian(x.reshape(-1, *x.shape[-2:]), environments, **scales)
        nodes, others = self.model.nodes, self.model.environments
        if edge_probability is None:
            edge_probability = min(0.5, 2 / max(nodes - 1, 1))
        check_range("edge_probability", edge_probability, 1e-6, 1 - 1e-6)
        self._targets = None
        if targets is not None:
            check_shape("targets", check_tensor("targets", targets), (others, nodes))
            self._targets = targets.expand(*self._batch, others, nodes).reshape(-1, others, nodes).to(self.model.x)
        self._unknown = targets is None and others > 0
        self._samples, self._acyclicity_samples = samples, acyclicity_samples
        self._alpha, self._beta, self._sparsity = float(alpha), float(beta), float(sparsity)
        self._edge_probability, self._graph_prior = edge_probability, graph_prior
        self._marginal, self._mixture, self._generator = bool(marginal), bool(mixture), generator

        lead = (len(self.model.x), particles)
        spread = math.sqrt(latent_priors.SPREAD)
        start = {"z": self._normal(*lead, 2, nodes, nodes) / math.sqrt(nodes)}
        if not self._marginal:
            start["parameters"] = 0.3 * self._normal(*lead, nodes, nodes)
        if self._unknown:
            if not self._marginal:
                means = spread * self._normal(*lead, others, nodes)
                start["parameters"] = torch.cat([start["parameters"], means], -2)
            start["gamma"] = spread * self._normal(*lead, others, nodes)
        widths = {name: 500.0 if name == "parameters" else 5.0 for name in start}
        kernel = SquaredExponential(widths) if kernel is None else kernel
        self._svgd = SVGD(self._score, start, batch_ndim=1, kernel=kernel, lr=lr, steps=steps, optimizer=optimizer)
        self.steps = steps
        self._effective: list[Tensor] = []

    @property
    def taken(self) -> int:
        """Steps so far."""
        return self._svgd.taken

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self._svgd.finished

    @property
    def latents(self) -> dict[str, Tensor]:
        """The particles: ``z`` ``[*batch, m, 2, d, d]``, ``parameters`` ``[*batch, m, d + e, d]``, ``gamma`` ``[*batch,
        m, e, d]``; the first ``d`` rows of the parameters are weights, the others the means of interventions, and with
        ``marginal`` there are none."""
        return {name: leaf.reshape(*self._batch, *leaf.shape[1:]) for name, leaf in self._svgd.particles.items()}

    @property
    def history(self) -> dict[str, Tensor]:
        """Curves over the steps."""
        curves = dict(self._svgd.result().history)
        return curves | ({"effective samples of graphs": torch.stack(self._effective)} if self._effective else {})

    def step(self) -> None:
        """Take a step; nothing happens once all were taken.

        Raises:
            ConvergenceError: the numbers are no longer finite.
        """
        self._svgd.step()

    def run(self) -> GraphPosterior:
        """Take all steps that are left and return the posterior."""
        while not self.finished:
            self.step()
        return self.result()

    @torch.no_grad()
    def result(self) -> GraphPosterior:
        """Return the particles of the moment as graphs and targets: cyclic ones are named and left out.

        Raises:
            ConvergenceError: all particles of a problem have cycles.
        """
        particles = self._svgd.particles
        graphs = edge_probabilities(particles["z"]) > 0.5
        cyclic = ~is_acyclic(graphs)
        if bool(cyclic.all(-1).any()):
            raise ConvergenceError(
                f"all {cyclic.shape[-1]} particles of problem {int(cyclic.all(-1).nonzero()[0])} have cycles: "
                "take more steps, or end at a larger beta",
                particles,
            )
        graphs = graphs & ~cyclic[..., None, None]
        targets = (particles["gamma"] > 0).to(particles["z"]) if self._unknown else None
        log_weights = torch.zeros(cyclic.shape, dtype=torch.float64, device=cyclic.device)
        if self._mixture:
            held = targets if self._targets is None else self._targets.unsqueeze(1)
            log_weights = self._density(graphs.to(particles["z"]), held, particles.get("parameters")).sum(-1).double()
            log_weights = log_weights + self._log_graph_prior(graphs)
            if targets is not None:
                odds = math.log(1 / max(self.model.nodes - 1, 1))  # one target expected an environment
                log_weights = log_weights + odds * targets.sum((-2, -1))
        log_weights = log_weights.masked_fill(cyclic, -math.inf).log_softmax(-1)
        shape = self._batch
        return GraphPosterior(
            graphs.reshape(*shape, *graphs.shape[1:]),
            log_weights.reshape(*shape, -1),
            None if targets is None else targets.reshape(*shape, *targets.shape[1:]),
            cyclic=cyclic.reshape(*shape, -1),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change."""
        generator = None if self._generator is None else self._generator.get_state()
        return {"svgd": self._svgd.state_dict(), "effective": list(self._effective), "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a learner of the same data and options.

        Raises:
            ValueError: the state is of other particles.
        """
        self._svgd.load_state_dict(state["svgd"])
        self._effective = list(state["effective"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])

    def _score(self, particles: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Estimate the gradient of the log-posterior of all latents."""
        progress = step / self.steps
        alpha, beta = self._alpha * progress, self._beta * progress
        latents = {name: leaf.unsqueeze(2) for name, leaf in particles.items()}  # before the samples
        z, parameters, gamma = (latents.get(name) for name in ("z", "parameters", "gamma"))
        assert z is not None

        # The same noise makes soft samples and hard ones.
        arcs = self._logistic(*z.shape[:2], self._samples, self.model.nodes, self.model.nodes)
        graphs = latent_graph(z, noise=arcs, alpha=alpha, hard=True)
        targets = None if self._targets is None else self._targets[:, None, None]
        if gamma is not None:
            chosen = self._logistic(*gamma.shape[:2], self._samples, *gamma.shape[3:])
            targets = latent_targets(gamma, noise=chosen, alpha=alpha, hard=True)

        def of_graphs(latent: Tensor, noise: Tensor) -> Tensor:
            return self._density(latent_graph(latent, noise=noise, alpha=alpha), targets, parameters).mT  # samples last

        def of_targets(latent: Tensor, noise: Tensor) -> Tensor:
            return self._density(graphs, latent_targets(latent, noise=noise, alpha=alpha), parameters).mT

        def of_parameters(latent: Tensor, _: None) -> Tensor:
            return self._density(graphs, targets, latent).mT

        estimates = {"z": score_ratio_gradient(of_graphs, z, arcs)}
        if parameters is not None:
            estimates["parameters"] = score_ratio_gradient(of_parameters, parameters, None)
        if gamma is not None:
            estimates["gamma"] = score_ratio_gradient(of_targets, gamma, chosen)
        self._effective.append(estimates["z"].effective_samples.mean((-2, -1)))
        priors = torch.func.grad(self._log_prior)(particles, alpha, beta)
        return {name: estimates[name].gradient.squeeze(2) + priors[name] for name in particles}

    def _density(self, graphs: Tensor, targets: Tensor | None, parameters: Tensor | None) -> Tensor:
        """Log-density of the samples, and of the parameters unless these are integrated out, node by node."""
        if parameters is None:
            if targets is not None:
                targets = targets.expand(*graphs.shape[:-2], *targets.shape[-2:])
            return self.model.log_evidence(graphs, targets, per_node=True)
        weights, means = self._parts(parameters)
        return self.model.log_joint(graphs, weights, targets, means, per_node=True)

    def _log_prior(self, particles: dict[str, Tensor], alpha: float, beta: float) -> Tensor:
        """Of the latents, up to terms without gradient."""
        z, gamma, parameters = (particles.get(name) for name in ("z", "gamma", "parameters"))
        assert z is not None
        noise = self._logistic(*z.shape[:2], self._acyclicity_samples, self.model.nodes, self.model.nodes)
        graph_prior: dict[str, Any] = {"prior": self._graph_prior, "edge_probability": self._edge_probability}
        value = latent_priors.of_graphs(z, noise, alpha=alpha, beta=beta, **graph_prior)
        if gamma is not None:
            noise = self._logistic(*gamma.shape[:2], self._acyclicity_samples, *gamma.shape[2:])
            value = value + latent_priors.of_targets(gamma, noise, alpha=alpha, sparsity=self._sparsity)
        if parameters is None:
            return value
        # Parameters that a graph does not use have no gradient but the kernel's, which RMSprop scales up until they are
        # far away: here they keep their prior, which changes no posterior of graphs.
        weights, means = self._parts(parameters)
        idle = 1 - edge_probabilities(z, alpha).detach()
        value = value - (idle * weights.square()).sum() / (2 * self.model.weight_scale**2)
        if means is not None and gamma is not None:
            idle = 1 - (alpha * gamma / 2).sigmoid().detach()
            value = value - (idle * means.square()).sum() / (2 * self.model.intervention_scale**2)
        return value

    def _log_graph_prior(self, graph: Tensor) -> Tensor:
        return latent_priors.GRAPH_PRIORS[self._graph_prior](graph.double(), self._edge_probability)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights, and the means of interventions where these are not known."""
        nodes = self.model.nodes
        return parameters[..., :nodes, :], parameters[..., nodes:, :] if self._unknown else None

    def _normal(self, *shape: int) -> Tensor:
        like, generator = self.model.x, self._generator
        return torch.randn(shape, generator=generator, device=drawing_device(generator, like)).to(like)

    def _logistic(self, *shape: int) -> Tensor:
        return logistic_noise(shape, like=self.model.x, generator=self._generator)


def bacadi(x: Shaped[Tensor, "*batch n d"], environments: Shaped[Tensor, " n"], **options: Any) -> GraphPosterior:
    """Return a posterior over graphs and unknown intervention targets: :class:`BaCaDI` run to its end.

    Args:
        x: ``[*batch, n, d]`` samples, not centred.
        environments: ``[n]`` whole numbers, 0 the observational environment, 1 to ``e`` the others.
        options: of :class:`BaCaDI`.

    Returns:
        :class:`GraphPosterior` of ``m`` particles with ``targets`` and ``cyclic``.

    Raises:
        ConvergenceError: all particles have cycles.
        TypeError: not floating samples.
        ValueError: no environment with interventions, options of :class:`BaCaDI` out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 2, generator=g)
        >>> x[:, 1] += 2 * x[:, 0]
        >>> x[40:, 1] = torch.randn(20, generator=g) + 6
        >>> environments = torch.tensor([0] * 40 + [1] * 20)
        >>> found = bacadi(x, environments, particles=5, steps=60, samples=8, lr=0.1, generator=g)
        >>> found.edge_probabilities().round().tolist(), found.target_probabilities().round().tolist()
        ([[0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0]])

    References:
        Haegele, Rothfuss, Lorch, Somnath, Schoelkopf, Krause (2023), BaCaDI: Bayesian Causal Discovery with Unknown
        Interventions.
    """
    return BaCaDI(x, environments, **options).run()


def dibs(
    x: Shaped[Tensor, "*batch n d"],
    environments: Shaped[Tensor, " n"] | None = None,
    *,
    targets: Shaped[Tensor, "*batch e d"] | None = None,
    **options: Any,
) -> GraphPosterior:
    """Return a posterior over graphs, with known intervention targets or none: :class:`BaCaDI` without latent targets.

    Args:
        x: ``[*batch, n, d]`` samples, not centred.
        environments: ``[n]`` whole numbers, 0 the observational environment; needs ``targets``.
        targets: ``[*batch, e, d]`` booleans, which environment sets which node.
        options: of :class:`BaCaDI`.

    Returns:
        :class:`GraphPosterior` of ``m`` particles with ``cyclic``.

    Raises:
        ConvergenceError: all particles have cycles.
        TypeError: not floating samples.
        ValueError: environments without targets or the reverse, options of :class:`BaCaDI` out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = 2 * torch.randn(50, 1, generator=g)
        >>> x = torch.cat([cause, cause + torch.randn(50, 1, generator=g)], 1)
        >>> found = dibs(x, particles=5, steps=60, samples=8, lr=0.1, generator=g)
        >>> found.graphs.shape, found.targets is None
        (torch.Size([5, 2, 2]), True)

    References:
        Lorch, Rothfuss, Schoelkopf, Krause (2021), DiBS: Differentiable Bayesian Structure Learning.
    """
    if (environments is None) != (targets is None):
        raise ValueError("environments and targets must be given together; bacadi finds targets that are unknown")
    return BaCaDI(x, environments, targets=targets, **options).run()
