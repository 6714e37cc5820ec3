"""Programs whose gradients are right, or stopped on purpose: audit must report no error and no warning."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from tests.audit.zoo.faults_cut import X, Y, _net


def mlp():
    model = _net(4, 8, 3)
    return lambda x: F.cross_entropy(model(x), Y), X


def relu_mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    return lambda x: F.cross_entropy(model(x), Y), X


def metrics_on_the_side():
    model = _net(4, 3)
    log = []

    def program(x):
        out = model(x)
        loss = F.cross_entropy(out, Y)
        accuracy = (out.argmax(1) == Y).float().mean().item()
        log.append((loss.item(), accuracy, out.detach().numpy().max()))
        return loss

    return program, X


def metrics_under_no_grad():
    model = _net(4, 3)

    def program(x):
        out = model(x)
        with torch.no_grad():
            correct = (out.argmax(1) == Y).sum()
            print(f"{int(correct)}", end="")
        return F.cross_entropy(out, Y)

    return program, X


def returns_metrics_too():
    model = _net(4, 3)

    def program(x):
        out = model(x)
        return F.cross_entropy(out, Y), (out.argmax(1) == Y).float().mean()

    return program, X


def labels_from_argmax():
    model = _net(4, 3)
    soft = torch.rand(12, 3)
    return lambda x: F.cross_entropy(model(x), soft.argmax(1)), X


def pseudo_labels():
    model = _net(4, 3)

    def program(x):
        weak = model(x)
        labels = weak.argmax(dim=1)
        confident = (weak.softmax(1).max(1).values > 0.3).float()
        strong = model(x + 0.1 * torch.randn_like(x))
        return (F.cross_entropy(strong, labels, reduction="none") * confident).mean() + F.cross_entropy(weak, Y)

    return program, X


def teacher_trains_elsewhere():
    student, teacher = _net(4, 3), _net(4, 3)

    def program(x):
        with torch.no_grad():
            target = teacher(x).softmax(1)
        return F.kl_div(student(x).log_softmax(1), target, reduction="batchmean")

    return program, X


def ema_teacher():
    student = _net(4, 3)
    teacher = copy.deepcopy(student)

    def program(x):
        target = teacher(x).detach()
        loss = F.mse_loss(student(x), target)
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.99).add_(fast, alpha=0.01)
        return loss

    return program, X


def q_learning():
    online, frozen = _net(4, 3), _net(4, 3)

    def program(x):
        value = online(x).gather(1, Y[:, None]).squeeze(1)
        with torch.no_grad():
            best = frozen(x.flip(0)).max(1).values
            target = 0.1 + 0.99 * best
        return F.smooth_l1_loss(value, target)

    return program, X


def double_q_learning():
    online, slow = _net(4, 3), _net(4, 3)

    def program(x):
        value = online(x).gather(1, Y[:, None]).squeeze(1)
        action = online(x.flip(0)).argmax(1, keepdim=True)
        target = 0.1 + 0.99 * slow(x.flip(0)).gather(1, action).squeeze(1)
        return (value - target.detach()).pow(2).mean()

    return program, X


def reinforce():
    policy = _net(4, 3)

    def program(x):
        dist = torch.distributions.Categorical(logits=policy(x))
        action = dist.sample()
        reward = (action == Y).float()
        return -(dist.log_prob(action) * (reward - reward.mean())).mean()

    return program, X


def gaussian_policy():
    policy = _net(4, 2)

    def program(x):
        mean, log_std = policy(x).chunk(2, 1)
        dist = torch.distributions.Normal(mean, log_std.exp())
        action = dist.sample()
        return -(dist.log_prob(action) * -(action - 1).pow(2)).mean()

    return program, X


def actor_critic():
    policy, critic = _net(4, 3), _net(4, 1)

    def program(x):
        dist = torch.distributions.Categorical(logits=policy(x))
        action = dist.sample()
        value = critic(x).squeeze(1)
        returns = (action == Y).float()
        advantage = (returns - value).detach()
        return -(dist.log_prob(action) * advantage).mean() + F.mse_loss(value, returns) - 0.01 * dist.entropy().mean()

    return program, X


def clipped_policy():
    policy = _net(4, 3)
    old, advantage = torch.randn(12), torch.randn(12)

    def program(x):
        log_prob = policy(x).log_softmax(1).gather(1, Y[:, None]).squeeze(1)
        ratio = (log_prob - old).exp()
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    return program, X


def gan_discriminator_step():
    maker, judge = _net(4, 4), _net(4, 1)

    def program(noise, real):
        fake = maker(noise).detach()
        ones, zeros = torch.ones(12, 1), torch.zeros(12, 1)
        real_loss = F.binary_cross_entropy_with_logits(judge(real), ones)
        return real_loss + F.binary_cross_entropy_with_logits(judge(fake), zeros)

    return program, X, X.flip(0)


def gan_both_steps():
    maker, judge = _net(4, 4), _net(4, 1)
    make = torch.optim.SGD(maker.parameters(), 0.1)
    tell = torch.optim.SGD(judge.parameters(), 0.1)

    def program(noise, real):
        fake = maker(noise)
        tell.zero_grad()
        (F.softplus(-judge(real)).mean() + F.softplus(judge(fake.detach())).mean()).backward()
        tell.step()
        make.zero_grad()
        F.softplus(-judge(fake)).mean().backward()
        make.step()

    return program, X, X.flip(0)


def straight_through_round():
    encoder, head = _net(4, 3), _net(3, 1)

    def program(x):
        h = encoder(x)
        h = h + (h.round() - h).detach()
        return head(h).square().mean()

    return program, X


def straight_through_argmax():
    scorer, table = _net(4, 5), nn.Parameter(torch.randn(5, 2))

    def program(x):
        soft = scorer(x).softmax(1)
        hard = F.one_hot(soft.argmax(1), 5).float()
        y = hard - soft.detach() + soft
        return (y @ table).square().mean()

    return program, X


def straight_through_no_grad():
    encoder, head = _net(4, 3), _net(3, 1)

    def program(x):
        h = encoder(x)
        with torch.no_grad():
            error = torch.sign(h) - h
        return head(h + error).square().mean()

    return program, X


def gumbel_hard():
    scorer, table = _net(4, 5), nn.Parameter(torch.randn(5, 2))
    return lambda x: (F.gumbel_softmax(scorer(x), hard=True) @ table).square().mean(), X


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gradient * (s + x * s * (1 - s))


def straight_through_function():
    encoder, head = _net(4, 3), _net(3, 1)
    ste = _Round.apply
    return lambda x: head(ste(encoder(x))).square().mean(), X


def gradient_reversal():
    encoder, head, domain = _net(4, 3), _net(3, 3), _net(3, 1)

    def program(x):
        h = encoder(x)
        return F.cross_entropy(head(h), Y) + domain(_Reverse.apply(h)).square().mean()

    return program, X


def custom_function():
    encoder, head = _net(4, 3), _net(3, 1)
    return lambda x: head(_Swish.apply(encoder(x))).square().mean(), X


def vq_vae():
    encoder, book, decoder = _net(4, 3), nn.Embedding(6, 3), _net(3, 4)

    def program(x):
        z = encoder(x)
        nearest = torch.cdist(z, book.weight).argmin(1)
        q = book(nearest)
        commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        q = z + (q - z).detach()
        return F.mse_loss(decoder(q), x) + commit

    return program, X


def frozen_backbone():
    backbone, head = _net(4, 8), _net(8, 3)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)

    def program(x):
        with torch.no_grad():
            h = backbone(x)
        return F.cross_entropy(head(h), Y)

    return program, X


def frozen_by_eval():
    backbone, head = _net(4, 8).eval(), _net(8, 3)

    def program(x):
        with torch.no_grad():
            h = backbone(x)
        return F.cross_entropy(head(h), Y)

    return program, X


def dropout_and_norms():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.GELU(),
        nn.Linear(8, 3),
    )
    return lambda x: F.cross_entropy(model(x), Y), X


def embedding_of_data():
    table, head = nn.Embedding(10, 4), _net(4, 3)
    return lambda i: F.cross_entropy(head(table(i)), Y), torch.arange(12) % 10


def mask_from_data():
    model = _net(4, 3)

    def program(x):
        mask = (x[:, :1] > 0).float()
        return (model(x) * mask).pow(2).sum() / mask.sum().clamp(min=1)

    return program, X


def attention_with_infinite_mask():
    q, k, v, head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def program(x):
        scores = q(x) @ k(x).T / 2
        causal = torch.triu(torch.ones(12, 12, dtype=torch.bool), 1)
        weights = scores.masked_fill(causal, float("-inf")).softmax(-1)
        return F.cross_entropy(head(weights @ v(x)), Y)

    return program, X


def transformer_layer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    table, head = nn.Embedding(7, 8), nn.Linear(8, 7)
    tokens = torch.arange(24).reshape(2, 12) % 7

    def program(tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(11)
        h = layer(table(tokens[:, :-1]), src_mask=mask, is_causal=True)
        return F.cross_entropy(head(h).flatten(0, 1), tokens[:, 1:].flatten())

    return program, tokens


def lstm_language_model():
    torch.manual_seed(0)
    table, lstm, head = nn.Embedding(7, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 7)
    tokens = torch.arange(60).reshape(2, 30) % 7
    return lambda t: F.cross_entropy(head(lstm(table(t[:, :-1]))[0]).flatten(0, 1), t[:, 1:].flatten()), tokens


def truncated_backpropagation():
    torch.manual_seed(0)
    cell, head = nn.GRUCell(4, 6), nn.Linear(6, 1)

    def program(x):
        h = torch.zeros(1, 6)
        loss = 0.0
        for t, row in enumerate(x):
            if t % 4 == 0:
                h = h.detach()
            h = cell(row[None], h)
            loss = loss + head(h).square().mean()
        return loss

    return program, X


def variational_autoencoder():
    encoder, decoder = _net(4, 6), _net(3, 4)

    def program(x):
        mean, log_std = encoder(x).chunk(2, 1)
        z = torch.distributions.Normal(mean, log_std.exp()).rsample()
        kl = 0.5 * (mean.pow(2) + (2 * log_std).exp() - 2 * log_std - 1).sum(1).mean()
        return F.mse_loss(decoder(z), x) + kl

    return program, X


def convolution_with_padding():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    image = torch.zeros(5, 1, 8, 8)
    image[:, :, 2:5, 3:6] = torch.rand(5, 1, 3, 3)
    return lambda i: F.cross_entropy(model(i), Y[:5]), image


def detection_loss():
    torch.manual_seed(0)
    boxes_of, class_of = _net(4, 4), _net(4, 2)
    truth = torch.rand(12, 4)

    def program(x):
        boxes, logits = boxes_of(x).sigmoid(), class_of(x)
        with torch.no_grad():
            overlap = 1 - torch.cdist(boxes, truth)
            best, match = overlap.max(1)
            positive = best > best.median()
        labels = positive.long()
        box_loss = F.smooth_l1_loss(boxes[positive], truth[match[positive]])
        keep = logits[:, 1].argsort(descending=True)[:8]
        return F.cross_entropy(logits[keep], labels[keep]) + F.cross_entropy(logits, labels) + box_loss

    return program, X


def graph_attention():
    torch.manual_seed(0)
    project, score = nn.Linear(4, 6, bias=False), nn.Linear(12, 1, bias=False)
    adjacency = (torch.rand(12, 12) > 0.6) | torch.eye(12, dtype=torch.bool)

    def program(x):
        h = project(x)
        pairs = torch.cat([h[:, None].expand(-1, 12, -1), h[None].expand(12, -1, -1)], -1)
        e = F.leaky_relu(score(pairs).squeeze(-1), 0.2)
        a = torch.where(adjacency, e, torch.full_like(e, -1e9)).softmax(1)
        return F.cross_entropy((a @ h)[:, :3], Y)

    return program, X


def hard_negatives():
    model = _net(4, 3)

    def program(x):
        each = F.cross_entropy(model(x), Y, reduction="none")
        worst = each.topk(6).indices
        return each[worst].mean()

    return program, X


def triplet_with_mining():
    model = _net(4, 3)

    def program(x):
        h = F.normalize(model(x), dim=1)
        distance = 1 - h @ h.T
        same = Y[:, None] == Y[None]
        far = (distance - 10.0 * ~same).max(1).values
        near = (distance + 10.0 * same).min(1).values
        return F.relu(far - near + 0.2).mean()

    return program, X


def handmade_relu_and_huber():
    model = _net(4, 3)

    def program(x):
        h = model(x)
        h = h * (h > 0)
        error = h - 0.3
        small = error.abs() < 0.5
        return torch.where(small, 0.5 * error.square(), 0.5 * (error.abs() - 0.25)).mean()

    return program, X


def stable_logsumexp():
    model = _net(4, 3)

    def program(x):
        out = model(x)
        top = out.max(1, keepdim=True).values.detach()
        return ((out - top).exp().sum(1).log() + top.squeeze(1) - out[:, 0]).mean()

    return program, X


def bilinear_sampling():
    where, image = _net(4, 1), nn.Parameter(torch.rand(20))

    def program(x):
        position = where(x).squeeze(1).sigmoid() * 18
        low = position.floor()
        weight = position - low
        i = low.long()
        return ((1 - weight) * image[i] + weight * image[i + 1]).square().mean()

    return program, X


def partly_saturated():
    model = _net(4, 3)
    return lambda x: (model(x).clamp(-0.2, 0.2) + F.relu(model(x))).square().mean(), X


def in_place_operations():
    model = _net(4, 3)

    def program(x):
        out = torch.zeros(12, 3)
        h = model(x)
        out[:, 0] = h[:, 0]
        out[:, 1:].add_(h[:, 1:])
        out += 1
        return out.mul_(2).square().mean()

    return program, X


def checkpointed():
    encoder, head = _net(4, 6, 3), _net(3, 1)

    def program(x):
        h = torch.utils.checkpoint.checkpoint(encoder, x, use_reentrant=False)
        h = h + torch.utils.checkpoint.checkpoint(encoder, x.clone().requires_grad_(), use_reentrant=True)
        return head(h).square().mean()

    return program, X


def two_backward_passes():
    model = _net(4, 3)

    def program(x):
        out = model(x)
        F.cross_entropy(out, Y).backward(retain_graph=True)
        out.square().mean().backward()
        model.zero_grad()

    return program, X


def functional_gradients():
    model = _net(4, 3)
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def loss(parameters, x, y):
        out = torch.func.functional_call(model, parameters, (x[None],))
        return F.cross_entropy(out, y[None])

    def program(x):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, Y)
        return sum(g.square().sum() for g in each.values())

    return program, X


def gradient_penalty():
    critic = _net(4, 1)

    def program(x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return critic(x).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()

    return program, X


def early_stop_and_assertions():
    model = _net(4, 4)
    best = [float("inf")]

    def program(x):
        for _ in range(50):
            new = 0.3 * torch.tanh(model(x)) + 0.1
            if (new - x).abs().max() < 1e-7:
                break
            x = new
        loss = x.square().mean()
        assert loss > -1
        if torch.isnan(loss):
            raise RuntimeError("diverged")
        if loss.item() < best[0]:
            best[0] = loss.item()
        return loss

    return program, X


def clipped_training_steps():
    model = _net(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def program(x):
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), Y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return program, X


def low_rank_adapter():
    torch.manual_seed(0)
    base = nn.Linear(4, 3)
    base.weight.requires_grad_(False)
    down, up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)
    nn.init.zeros_(up.weight)
    return lambda x: F.cross_entropy(base(x) + up(down(x)), Y), X


def contrastive_with_momentum():
    online, momentum = _net(4, 3), _net(4, 3).requires_grad_(False)
    queue = F.normalize(torch.randn(16, 3), dim=1)

    def program(x):
        q = F.normalize(online(x), dim=1)
        with torch.no_grad():
            k = F.normalize(momentum(x + 0.1), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue.T], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(12, dtype=torch.long))

    return program, X


def simple_siamese():
    encoder, predictor = _net(4, 6, 3), _net(3, 3)

    def program(x):
        a, b = encoder(x), encoder(x + 0.1)
        p, q = predictor(a), predictor(b)
        return -(F.cosine_similarity(p, b.detach()).mean() + F.cosine_similarity(q, a.detach()).mean()) / 2

    return program, X


def normalised_by_detached_scale():
    model = _net(4, 3)

    def program(x):
        out = model(x)
        return (out / out.detach().abs().max()).pow(2).mean() + F.cross_entropy(out, Y)

    return program, X


def weight_decay_on_zero_bias():
    model = _net(4, 3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)

    def program(x):
        return F.cross_entropy(model(x), Y) + 1e-3 * sum(p.abs().sum() for p in model.parameters())

    return program, X


def super_resolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))
    low, high = torch.rand(2, 1, 6, 6), torch.rand(2, 1, 12, 12)
    return lambda low: F.l1_loss(model(low).clamp(0, 1), high), low


def safe_where():
    model = _net(4, 3)

    def program(x):
        h = model(x)
        positive = h > 0
        return torch.where(
            positive, torch.sqrt(torch.where(positive, h, torch.ones_like(h))), torch.zeros_like(h)
        ).sum()

    return program, X


def mixture_of_experts():
    torch.manual_seed(0)
    gate, experts = nn.Linear(4, 3), nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

    def program(x):
        weights, chosen = gate(x).softmax(1).topk(2, dim=1)
        weights = weights / weights.sum(1, keepdim=True)
        every = torch.stack([e(x) for e in experts], 1)
        picked = every.gather(1, chosen[..., None].expand(-1, -1, 2))
        return (weights[..., None] * picked).sum(1).square().mean()

    return program, X


def input_gradient():
    model = _net(4, 3).requires_grad_(False)
    return lambda x: F.cross_entropy(model(x), Y), X.clone().requires_grad_()


def plain_function():
    return lambda x: (x.sin() * x).sum(), torch.tensor([0.3, 0.4])


def probe_on_detached_features():
    body, head, probe = _net(4, 6), _net(6, 3), _net(6, 3)

    def program(x):
        h = body(x)
        return F.cross_entropy(head(h), Y) + F.cross_entropy(probe(h.detach()), Y)

    return program, X


def continuous_where():
    net = _net(4, 8, 3)

    def program(x):
        error = net(x) - 0.3
        huber = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
        return (huber + torch.where(error > 0, error, error.exp() - 1)).mean()

    return program, X


def hardest_half():
    net = _net(4, 8, 3)

    def program(x):
        losses = net(x).square().sum(1)
        return (losses * (losses > losses.median()).float()).mean()

    return program, X


def clipped_ratio_at_one():
    policy = _net(4, 3)

    def program(x):
        probability = policy(x).softmax(1)[:, 0]
        ratio = probability / probability.detach()
        advantage = x[:, 0]
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    return program, X


def moved_module():
    net = _net(4, 8, 1).to("cpu").float()
    return lambda x: net(x).square().mean(), X


def parameter_from_a_parameter():
    first = nn.Linear(4, 4)
    second = nn.Parameter(first.weight.clone())
    return lambda x: (first(x) @ second).square().mean(), X


def velocity_clipped_by_hand():
    """Both sides of the threshold give the same value there."""
    torch.manual_seed(3)
    force = torch.randn(3, 3).mul(0.9).requires_grad_()

    def program(position):
        for _ in range(3):
            velocity = torch.tanh(position @ force)
            speed = velocity.norm()
            if speed > 0.6:
                velocity = velocity * (0.6 / speed)
            position = position + 0.1 * velocity
        return position.square().sum()

    return program, torch.randn(3)


def embedding_shortened_by_a_number():
    torch.manual_seed(4)
    weight = torch.randn(5, 4, requires_grad=True)

    def program(x):
        code = x @ weight
        length = code.norm()
        if length.item() > 0.5:
            code = 0.5 * code / length
        return (code - 1).square().sum()

    return program, torch.randn(5)


def semi_hard_negatives():
    torch.manual_seed(5)
    weight, kind = torch.randn(6, 4, requires_grad=True), torch.arange(15) % 3

    def program(x):
        code = F.normalize(x @ weight, dim=1)
        apart = torch.cdist(code, code) + torch.eye(15)
        same = kind[:, None] == kind
        near = (apart * same.float() * (1 - torch.eye(15))).amax(1)
        others = apart.masked_fill(same, 1e6)
        harder = others > near[:, None]
        picked = torch.where(harder, others, torch.full_like(others, 1e6)).amin(1)
        return F.relu(near - picked + 0.3).mean()

    return program, torch.randn(15, 6)


def confident_pseudo_labels():
    torch.manual_seed(6)
    weight, y = torch.randn(5, 3, requires_grad=True), torch.randint(0, 3, (14,))

    def program(x):
        logits = x @ weight
        sure, label = logits.softmax(1).max(1)
        kept = (sure > 0.7).float()
        unlabelled = (F.cross_entropy(logits, label, reduction="none") * kept).sum() / kept.sum().clamp(min=1)
        return F.cross_entropy(logits, y) + unlabelled

    return program, torch.randn(14, 5)


def no_object_in_this_batch():
    torch.manual_seed(7)
    weight, boxes, found = torch.randn(5, 4, requires_grad=True), torch.rand(6, 4), torch.zeros(6, 1)

    def program(x):
        predicted = x @ weight
        missed = F.binary_cross_entropy_with_logits(predicted.mean(1, keepdim=True), found)
        return missed + ((predicted - boxes).abs() * found).sum() / found.sum().clamp(min=1)

    return program, torch.randn(6, 5)


def weight_by_norms_of_gradients():
    torch.manual_seed(8)
    last = torch.randn(4, requires_grad=True)

    def program(x):
        h = x * last
        near, real = h.square().mean(), F.softplus(-h.sum(1)).mean()
        by_near = torch.autograd.grad(near, last, retain_graph=True)[0]
        by_real = torch.autograd.grad(real, last, retain_graph=True)[0]
        return near + by_near.norm() / (by_real.norm() + 1e-4) * real

    return program, torch.randn(6, 4)


def adversarial_example():
    torch.manual_seed(9)
    model = _net(4, 3)

    def program(x):
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), Y), at)
        return F.cross_entropy(model(x + 0.1 * slope.sign()), Y)

    return program, X
