"""An EAGLE-3 draft head in plain torch: one decoder layer that reads the target's features.

Position j pairs the target's features at token j with token j + 1, and proposes token j + 2. While drafting, the
head's own output takes the place of the features. Parameter names are those of the published heads.
"""

import json
import os
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from model import Norm, SwiGLU


@dataclass
class HeadConfig:
    """Shapes; the field names are those of config.json."""

    vocab_size: int = 2048
    draft_vocab_size: int = 640
    hidden_size: int = 256
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size_mlp: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def dict(self):
        return asdict(self)

    @classmethod
    def load(cls, path):
        with open(path, encoding="utf-8") as f:
            d = json.load(f)
        return cls(**{k: d[k] for k in cls.__dataclass_fields__ if k in d})


def rotate_halves(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def later(x, n):
    """Rows moved n positions towards the end; zeros come in."""
    return F.pad(x, (0, 0) * (x.dim() - 2) + (n, 0))[:, : x.shape[1]] if n else x


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(2 * c.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(2 * c.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(2 * c.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(width, c.hidden_size, bias=False)


class MidLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), SwiGLU(c.hidden_size, c.intermediate_size_mlp)
        for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
            setattr(self, name, Norm(c.hidden_size, c.rms_norm_eps))


class Head(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, D = c, c.hidden_size
        self.fc, self.midlayer, self.norm = nn.Linear(3 * D, D, bias=False), MidLayer(c), Norm(D, c.rms_norm_eps)
        self.lm_head = nn.Linear(D, c.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(c.draft_vocab_size, dtype=torch.int64))
        self.register_buffer("t2d", torch.zeros(c.vocab_size, dtype=torch.bool))

    @torch.no_grad()
    def start_from(self, target, draft_ids):
        """The features of the high layer pass through to the target's own norm and head."""
        ids = torch.tensor(sorted(draft_ids))
        self.d2t.copy_(ids - torch.arange(len(ids)))
        self.t2d[ids] = True
        D = self.c.hidden_size
        for name, p in self.named_parameters():
            if p.dim() > 1:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=(0.1 if out else 1.0) * p.shape[1] ** -0.5)
        self.fc.weight.mul_(0.1)[:, 2 * D :] += torch.eye(D)
        self.norm.weight.copy_(target.model.norm.weight)
        self.lm_head.weight.copy_(target.lm_head.weight[ids])

    def draft_ids(self):
        """Target id of every row of lm_head."""
        return self.d2t + torch.arange(len(self.d2t))

    def context(self, pos, doc=None):
        """Angles, and who sees whom: rows [B, T] of packed documents, each with its own positions."""
        inv = self.c.rope_theta ** (-torch.arange(0, self.c.head_dim, 2).float() / self.c.head_dim)
        ang = (pos.float()[..., None] * inv)[:, :, None]
        see = torch.ones(pos.shape[1], pos.shape[1], dtype=torch.bool).tril().expand(len(pos), -1, -1)
        if doc is not None:
            see = see & (doc[:, :, None] == doc[:, None, :])
        return ang.cos(), ang.sin(), see

    def chains(self, features, embedded, ctx, steps):
        """The outputs [B, T, D] of every step of all chains at once.

        Output s at position j belongs to the chain that starts at j - s: up to there it sees keys made of the target's
        features, after that the keys of the chain's own steps. features: [B, T, 3 D] (low, middle, high); embedded:
        the target's embedding of the next token; ctx: of context()."""
        c, m, (cos, sin, see) = self.c, self.midlayer, ctx
        att, D, (B, T, _) = m.self_attn, c.hidden_size, embedded.shape
        groups = c.num_key_value_heads, c.num_attention_heads // c.num_key_value_heads
        projections = att.q_proj, att.k_proj, att.v_proj
        e = m.input_layernorm(embedded)
        of_token = [F.linear(e, p.weight[:, :D]) for p in projections]  # the same in every step
        h, keys, values = self.fc(features), [], []
        for s in range(steps):
            n = m.hidden_norm(h)
            q, k, v = (
                (t + F.linear(n, p.weight[:, D:])).view(B, T, -1, c.head_dim) for t, p in zip(of_token, projections)
            )
            q = rotate_halves(q, cos, sin).unflatten(2, groups) * c.head_dim**-0.5
            keys.append(rotate_halves(k, cos, sin))
            values.append(v)
            scores = torch.einsum("btgrd,bkgd->btgrk", q, keys[0])
            scores = scores.masked_fill(~see.tril(-s)[:, :, None, None], float("-inf"))
            own = [(q * later(keys[r], s - r).unsqueeze(3)).sum(-1, keepdim=True) for r in range(1, s + 1)]
            p = torch.softmax(torch.cat([scores, *own], -1), -1)
            y = torch.einsum("btgrk,bkgd->btgrd", p[..., :T], values[0])
            for r in range(1, s + 1):
                y = y + p[..., T + r - 1, None] * later(values[r], s - r).unsqueeze(3)
            h = h + att.o_proj(y.reshape(B, T, -1))
            h = h + m.mlp(m.post_attention_layernorm(h))
            yield h
            h = later(h, 1)

    def logits(self, out):
        """Over the draft vocabulary."""
        return self.lm_head(self.norm(out))

    @torch.no_grad()
    def draft(self, features, ids, embed, steps):
        """A greedy chain, one token at a time, as an engine would do it: features [n, 3 D] of the first n of n + 1 ids.

        Returns target ids, logits [steps, draft vocabulary] and outputs [steps, D]."""
        c, m = self.c, self.midlayer
        att, split = m.self_attn, lambda x: x.view(len(x), -1, c.head_dim)
        h, tokens, ids_out, logits, outs = self.fc(features), list(ids[1:]), [], [], []
        for _ in range(steps):
            x = torch.cat((m.input_layernorm(embed[tokens]), m.hidden_norm(h)), -1)
            cos, sin, see = self.context(torch.arange(len(h))[None])
            q, k = (rotate_halves(split(p(x)), cos[0], sin[0]) for p in (att.q_proj, att.k_proj))
            rep = c.num_attention_heads // c.num_key_value_heads
            k, v = k.repeat_interleave(rep, 1), split(att.v_proj(x)).repeat_interleave(rep, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * c.head_dim**-0.5
            p = torch.softmax(scores.masked_fill(~see, float("-inf")), -1)
            r = h + att.o_proj(torch.einsum("hqk,khd->qhd", p, v).flatten(1))
            out = (r + m.mlp(m.post_attention_layernorm(r)))[-1]
            outs.append(out)
            logits.append(self.logits(out))
            ids_out.append(int(self.draft_ids()[logits[-1].argmax()]))
            tokens.append(ids_out[-1])
            h = torch.cat((h, out[None]))
        return ids_out, torch.stack(logits), torch.stack(outs)


def load_head(folder):
    """An exported head, in float32."""
    head = Head(HeadConfig.load(os.path.join(folder, "config.json")))
    head.load_state_dict(
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in load_file(os.path.join(folder, "model.safetensors")).items()
        }
    )
    return head.eval()
