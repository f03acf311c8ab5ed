"""Llama 4 text decoder in plain torch, for training and for generation with a KV cache.

Parameter names are those of the published checkpoints, so the state dict is the export.
"""

import json
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    """Shapes; the field names are those of config.json."""

    vocab_size: int = 2048
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 128
    intermediate_size_mlp: int = 512
    num_local_experts: int = 8
    interleave_moe_layer_step: int = 2
    no_rope_layer_interval: int = 4
    attention_chunk_size: int = 128
    floor_scale: int = 128
    attn_scale: float = 0.1
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5

    def is_moe(self, i):
        return (i + 1) % self.interleave_moe_layer_step == 0

    def is_rope(self, i):
        return (i + 1) % self.no_rope_layer_interval != 0

    def dict(self):
        return asdict(self)

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as f:
            d = json.load(f)
        return cls(**{k: d[k] for k in cls.__dataclass_fields__ if k in d})


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        self.c, self.rope = c, c.is_rope(layer)
        lin = lambda i, o: nn.Linear(i, o, bias=False)
        width, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            lin(c.hidden_size, width),
            lin(c.hidden_size, kv),
            lin(c.hidden_size, kv),
            lin(width, c.hidden_size),
        )

    def forward(self, x, ctx, cache=None):
        c, (B, T, _) = self.c, x.shape
        q = self.q_proj(x).view(B, T, -1, c.head_dim)
        k = self.k_proj(x).view(B, T, -1, c.head_dim)
        v = self.v_proj(x).view(B, T, -1, c.head_dim)
        if self.rope:  # adjacent pairs are rotated
            q, k = rotate(q, *ctx["angle"]), rotate(k, *ctx["angle"])
        else:
            q = q * ctx["temperature"]
        q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (q, k, v))
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
            cache["k"], cache["v"] = k, v
        rep = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
        mask = ctx["local"] if self.rope else ctx["causal"]
        scores = ((q * c.head_dim**-0.5) @ k.mT).float() + mask  # on a CPU three times as fast as the fused kernel
        y = torch.softmax(scores, -1).to(v.dtype) @ v
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


def rotate(x, cos, sin):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class SwiGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Routed experts, stored input-major: y = x W."""

    def __init__(self, E, D, I):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.empty(E, D, 2 * I)), nn.Parameter(torch.empty(E, I, D))

    def forward(self, x, sizes):
        """x: rows sorted by expert; sizes: rows of each expert"""
        out = []
        for e, rows in enumerate(x.split(sizes)):
            g, u = (rows @ self.gate_up_proj[e]).chunk(2, -1)
            out.append((F.silu(g) * u) @ self.down_proj[e])
        return torch.cat(out)


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.router = nn.Linear(c.hidden_size, c.num_local_experts, bias=False)
        self.experts = Experts(c.num_local_experts, c.hidden_size, c.intermediate_size)
        self.shared_expert = SwiGLU(c.hidden_size, c.intermediate_size)
        self.aux, self.load = None, None

    def forward(self, x):
        h = x.flatten(0, -2)
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(h.float(), self.router.weight)
        top, choice = logits.max(-1)
        order = torch.argsort(choice, stable=True)
        counts = torch.bincount(choice, minlength=logits.shape[-1])
        if self.training:  # balances the use of the experts
            self.load = counts / len(h)
            self.aux = len(counts) * (self.load * logits.softmax(-1).mean(0)).sum()
        scaled = (h * torch.sigmoid(top)[:, None])[order]  # the score scales the expert's input
        routed = self.experts(scaled, counts.tolist())
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return self.shared_expert(x) + routed[back].view_as(x)


class Layer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        self.self_attn = Attention(c, i)
        self.feed_forward = MoE(c) if c.is_moe(i) else SwiGLU(c.hidden_size, c.intermediate_size_mlp)
        self.input_layernorm, self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps), Norm(
            c.hidden_size, c.rms_norm_eps
        )

    def forward(self, x, ctx, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), ctx, cache)
        return x + self.feed_forward(self.post_attention_layernorm(x))


class Stack(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.model = c, Stack(c)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                small = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                nn.init.normal_(p, std=0.02 / (2 * c.num_hidden_layers) ** 0.5 if small else 0.02)

    def context(self, pos, doc=None, past=None):
        """Angles, temperatures and additive masks of rows [B, T].

        pos: positions inside each document; doc: document number of each token (packed rows see only their own);
        past: positions of the cached keys, then of the new ones (generation)."""
        c = self.c
        inv = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        ang = (pos.float()[..., None] * inv)[:, :, None]
        temp = 1 + c.attn_scale * torch.log1p(torch.floor((pos.float() + 1) / c.floor_scale))
        key = pos if past is None else past
        see = key[:, None, :] <= pos[:, :, None]
        if doc is not None:
            see &= doc[:, :, None] == doc[:, None, :]
        near = see & (key[:, None, :] // c.attention_chunk_size == pos[:, :, None] // c.attention_chunk_size)
        add = lambda m: torch.zeros(m.shape).masked_fill(~m, float("-inf"))[:, None]
        return dict(angle=(ang.cos(), ang.sin()), temperature=temp[:, :, None, None], causal=add(see), local=add(near))

    def forward(self, ids, ctx, caches=None, hidden=None):
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, ctx, caches[i] if caches else None)
            if hidden is not None:
                hidden.append(x)
        return self.lm_head(self.model.norm(x))

    @torch.no_grad()
    def generate(self, ids, limit, stop):
        """Greedy ids after the prompt, up to `limit` or until stop(list of new ids) is true."""
        caches, out, pos = [{} for _ in self.model.layers], [], torch.arange(len(ids))[None]
        step, past = torch.tensor([ids]), pos
        while True:
            logits = self(step, self.context(pos, past=past), caches)
            out.append(int(logits[0, -1].argmax()))
            if len(out) >= limit or stop(out):
                return out
            pos = past[:, -1:] + 1
            past, step = torch.cat((past, pos), 1), torch.tensor([out[-1:]])
