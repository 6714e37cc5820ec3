"""Programs whose gradient is lost where Python decides, where gradients are switched off for a helper, where a draw is
shown to a critic, where two gradients cancel; and their healthy twins, `right_*`.

A marked line is the one to find. Each function makes (program, *inputs).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal
from torch.nn import functional as F


def _param(*shape):
    return torch.randn(*shape).mul(0.5).requires_grad_()


def _features(x, w):
    h = torch.tanh(x @ w)
    return h / h.norm(dim=1, keepdim=True)


# Draws


def soft_actor_without_rsample():
    def program(state, policy, spread, first, second):
        mean = torch.tanh(state @ policy)
        action = Normal(mean, spread.exp())
        drawn = action.sample()  # <- cut.sampling
        value = F.relu(torch.cat((state, drawn), 1) @ first) @ second
        return (0.1 * action.log_prob(drawn).sum(1) - value.squeeze(1)).mean()

    return program, torch.randn(9, 5), _param(5, 2), _param(2), _param(7, 6), _param(6, 1)


def right_soft_actor():
    def program(state, policy, spread, first, second):
        mean = torch.tanh(state @ policy)
        action = Normal(mean, spread.exp())
        drawn = action.rsample()
        value = F.relu(torch.cat((state, drawn), 1) @ first) @ second
        return (0.1 * action.log_prob(drawn).sum(1) - value.squeeze(1)).mean()

    return program, torch.randn(9, 5), _param(5, 2), _param(2), _param(7, 6), _param(6, 1)


def autoencoder_with_sampled_code():
    def program(image, encode, spread, decode):
        posterior = Normal(image @ encode, spread.exp())
        code = posterior.sample()  # <- cut.sampling
        prior = Normal(torch.zeros(3), torch.ones(3))
        divergence = (posterior.log_prob(code) - prior.log_prob(code)).sum(1).mean()
        return F.mse_loss(code @ decode, image) + 0.01 * divergence

    return program, torch.rand(12, 8), _param(8, 3), _param(3), _param(3, 8)


def right_policy_gradient_with_learned_return():
    def program(state, policy, critic):
        choice = Categorical(logits=state @ policy)
        action = choice.sample()
        gain = torch.cos(action.float() + state[:, 0])
        predicted = (torch.cat((state, F.one_hot(action, 3).float()), 1) @ critic).squeeze(1)
        advantage = (gain - predicted).detach()
        return -(choice.log_prob(action) * advantage).mean() + F.mse_loss(predicted, gain)

    return program, torch.randn(10, 4), _param(4, 3), _param(7, 1)


def right_hard_attention():
    def program(image, where, glimpse, label):
        gate = Bernoulli(logits=image @ where)
        seen = gate.sample()
        scores = (image * seen) @ glimpse
        hit = (scores.argmax(1) == label).float()
        return F.cross_entropy(scores, label) - (gate.log_prob(seen).sum(1) * (hit - 0.5)).mean()

    return program, torch.rand(10, 6), _param(6, 6), _param(6, 4), torch.randint(4, (10,))


# Gradients that cancel


def residual_codes_of_images():
    def program(image, encode, book, decode):
        code = F.conv2d(image, encode)
        rows = code.permute(0, 2, 3, 1)
        nearest = torch.cdist(rows.reshape(-1, 4), book).argmin(1)
        picked = F.embedding(nearest, book).reshape(rows.shape)
        through = (rows + (picked - rows).detach()).permute(0, 3, 1, 2)
        rest = code - through  # <- zero.cancels
        return F.mse_loss(F.conv2d(through, decode), image) + rest.square().mean() + F.mse_loss(picked, rows.detach())

    return program, torch.rand(2, 3, 5, 6), _param(4, 3, 1, 1), _param(7, 4), _param(3, 4, 1, 1)


def right_residual_codes_of_images():
    def program(image, encode, book, decode):
        code = F.conv2d(image, encode)
        rows = code.permute(0, 2, 3, 1)
        nearest = torch.cdist(rows.reshape(-1, 4), book).argmin(1)
        picked = F.embedding(nearest, book).reshape(rows.shape)
        through = (rows + (picked - rows).detach()).permute(0, 3, 1, 2)
        rest = code - through.detach()
        return F.mse_loss(F.conv2d(through, decode), image) + rest.square().mean() + F.mse_loss(picked, rows.detach())

    return program, torch.rand(2, 3, 5, 6), _param(4, 3, 1, 1), _param(7, 4), _param(3, 4, 1, 1)


def commitment_to_the_sum_itself():
    def program(x, encode, decode):
        z = x @ encode
        hard = (z * 4).round() / 4
        z_hard = z + (hard - z).detach()
        commitment = F.mse_loss(z_hard, z)  # <- zero.cancels
        return F.mse_loss(z_hard @ decode, x) + commitment

    return program, torch.randn(8, 5), _param(5, 3), _param(3, 5)


def right_antisymmetric_coupling():
    def program(x, coupling):
        return (x @ (coupling - coupling.T)).square().mean() + (coupling - coupling.detach().mean()).square().mean()

    return program, torch.randn(6, 4), _param(4, 4)


# Guards and rotations


def right_angle_at_the_pole():
    def program(edges):
        n = F.normalize(edges, dim=1)
        flat = n[:, :2].square().sum(1) < 1e-8
        longitude = torch.atan2(n[:, 0].masked_fill(flat, 0.0), n[:, 1].masked_fill(flat, 1.0))
        return longitude.sin().sum() + n[:, 2].clamp(-0.999, 0.999).acos().sum()

    return program, torch.tensor([[0.0, 0.0, 2.0], [0.3, 0.4, 0.1], [1.0, 0.2, 0.3]]).requires_grad_()


def right_rotation_vector():
    def program(w, points):
        angle = w.square().sum()
        small = angle < 1e-10
        safe = torch.where(small, torch.ones(()), angle).sqrt()
        axis = torch.where(small, torch.zeros(3), w / safe)
        turned = points * safe.cos() + torch.linalg.cross(axis.expand_as(points), points) * safe.sin()
        return (turned - points.roll(1, 1)).square().mean()

    return program, torch.tensor([0.4, -0.2, 0.7]).requires_grad_(), torch.randn(7, 3)


def likelihood_above_a_threshold():
    def program(x, w):
        p = (x @ w).sigmoid()
        sure = p > 0.6  # <- cut.comparison
        return torch.where(sure, p.log(), torch.full_like(p, -3.0)).mean()

    return program, torch.randn(40, 3), _param(3)


def right_rotated_code():
    def program(x, encode, book, decode):
        e = x @ encode
        q = book[torch.cdist(e, book).argmin(1)]
        u, v = F.normalize(e, dim=1).detach(), F.normalize(q, dim=1).detach()
        w = F.normalize(u + v, dim=1)
        row = e.unsqueeze(1)
        turned = row - 2 * row @ w.unsqueeze(2) @ w.unsqueeze(1) + 2 * row @ u.unsqueeze(2) @ v.unsqueeze(1)
        z = turned.squeeze(1) * (q.norm(dim=1) / e.norm(dim=1)).detach()[:, None]
        return F.mse_loss(z @ decode, x) + F.mse_loss(q, e.detach()) + 0.25 * F.mse_loss(e, q.detach())

    return program, torch.randn(10, 6), _param(6, 4), _param(7, 4), _param(4, 6)


# Gradients switched off


def helper_in_a_block_without_gradients():
    def program(x, w, v):
        with torch.no_grad():  # <- cut.no_grad
            h = _features(x, w)
        return (h @ v).square().mean()

    return program, torch.randn(8, 5), _param(5, 4), _param(4, 2)


def helper_in_inference_mode():
    @torch.inference_mode()  # <- cut.inference
    def features(x, w):
        return _features(x, w)

    def program(x, w, v):
        return (features(x, w).clone() @ v).square().mean()

    return program, torch.randn(8, 5), _param(5, 4), _param(4, 2)


def helper_after_the_switch():
    def program(x, w, v):
        torch.set_grad_enabled(False)  # <- cut.no_grad
        h = _features(x, w)
        torch.set_grad_enabled(True)
        return (h @ v).square().mean()

    return program, torch.randn(8, 5), _param(5, 4), _param(4, 2)


def right_teacher_by_a_helper():
    def program(x, w, teacher):
        with torch.no_grad():
            wanted = _features(x, teacher)
        return (_features(x, w) - wanted).square().mean()

    return program, torch.randn(8, 5), _param(5, 4), torch.randn(5, 4)


# Decisions of Python


def side_chosen_by_if():
    def program(x, w, v):
        h = x @ w
        if h.mean() > 0.0:  # <- control-flow.branch
            return (h @ v).exp().mean()
        return (h @ v).square().mean() + 2.0

    return program, torch.randn(8, 5), _param(5, 3), _param(3)


def suppressed_boxes():
    def program(boxes, w):
        scores = boxes @ w
        keep = torch.ones(len(boxes))
        for i in range(len(boxes)):
            keep[i] = not bool((scores[:i] > scores[i] + 0.5).any())  # <- control-flow.branch
        return (torch.sigmoid(scores) * keep).sum()

    return program, torch.randn(7, 4), _param(4)


def frames_cut_to_length():
    def program(sound, w):
        length = (sound @ w).sigmoid().sum()
        frames = sound[: int(length)]  # <- control-flow.number
        return frames.square().sum() + (sound @ w).square().mean()

    return program, torch.randn(12, 3), _param(3)


def halved_until_small():
    def program(x, w):
        h = x @ w
        while h.norm() > 1.0:  # <- control-flow.branch
            h = h / 2
        return (h - 0.3).square().sum()

    return program, torch.randn(6, 4), _param(4)


def right_solver_that_converges():
    def program(b, w):
        matrix = 0.2 * torch.tanh(w)
        x = torch.zeros(5)
        for _ in range(200):
            new = torch.cos(matrix @ x + b)
            if (new - x).norm() < 1e-6:
                break
            x = new
        return x.square().sum()

    return program, torch.randn(5), _param(5, 5)


def right_program_that_counts_and_logs():
    seen = {"large": 0, "best": math.inf}
    net = nn.Linear(5, 3)

    def program(x, y):
        out = net(x)
        loss = F.mse_loss(out, y)
        if loss.item() < seen["best"]:
            seen["best"] = loss.item()
        if out.abs().max() > 1:
            seen["large"] += 1
        if not torch.isfinite(loss):
            raise ValueError("loss is not finite")
        return loss

    return program, torch.randn(8, 5), torch.randn(8, 3)
