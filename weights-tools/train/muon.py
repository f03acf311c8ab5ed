"""Muon: momentum whose update of each matrix is orthogonalised by a Newton-Schulz iteration."""

import torch


def orthogonalise(g, steps=5, dtype=torch.bfloat16):
    """Nearest semi-orthogonal matrix, approximately; the last two dimensions are the matrix."""
    x = g.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if flip else x).float()


class Muon(torch.optim.Optimizer):
    """For hidden matrices [rows, columns] and stacks of them; use AdamW for embeddings, norms and heads."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, dtype=torch.bfloat16):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype  # of the iteration

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                buf = self.state[p].setdefault("buf", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - group["momentum"])
                shapes.setdefault(p.shape[-2:], []).append((p, p.grad.lerp(buf, group["momentum"])))
            for shape, pairs in shapes.items():
                flat = orthogonalise(torch.cat([u.reshape(-1, *shape) for _, u in pairs]), dtype=self.dtype)
                scale = 0.2 * max(shape) ** 0.5  # the size of an AdamW update
                for (p, _), u in zip(pairs, flat.split([p.numel() // (shape[0] * shape[1]) for p, _ in pairs])):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u.view_as(p), alpha=-group["lr"] * scale)
