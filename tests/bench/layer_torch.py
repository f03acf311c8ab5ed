#!/usr/bin/env python3
"""The peer of `mav bench --shape`: the same stack of layers in PyTorch, as one of several ranks would run it, without communication.

torch.compile for a layer of each kind (dense, with experts), then the whole stack in one CUDA graph, replayed. BF16, and FP8 (e4m3, one
scale a tensor) through torch._scaled_mm; the chosen experts' weights are gathered in the same compiled kernel that multiplies them, which
is how gpt-fast does it. No embedding, no head: times of a layer are what compares.

    python3 tests/bench/layer_torch.py --out peer.json
    python3 tests/bench/layer_torch.py --shape tiny --tp 8 --layers 2 --rows 1,2 --device cpu --eager      # that it runs at all
"""
import argparse
import json
import math
import time

import torch
import torch.nn.functional as F

SHAPES = {  # as scripts/bench/shape.lua
    "maverick": dict(hidden=5120, layers=48, heads=40, kv_heads=8, head_dim=128, expert_size=8192, dense_size=16384, moe_every=2, qk_norm=False),
    "scout": dict(hidden=5120, layers=48, heads=40, kv_heads=8, head_dim=128, expert_size=8192, dense_size=16384, moe_every=1, qk_norm=True),
    "tiny": dict(hidden=128, layers=4, heads=8, kv_heads=8, head_dim=32, expert_size=256, dense_size=512, moe_every=2, qk_norm=False),
}
ROPE_EVERY = 4
F8_MAX = 448.0
PAD = 16  # rows that _scaled_mm is given at least


def rms_norm(x, weight):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(torch.bfloat16) * weight


def linear(x, w, scale):
    """x (T, K) bf16; w (N, K) bf16, or f8 with its scale. scale: (of activations, of the weight)"""
    if w.dtype == torch.bfloat16:
        return F.linear(x, w)
    rows = x.shape[0]
    x = F.pad(x, (0, 0, 0, max(PAD - rows, 0)))
    q = (x.float() / scale[0]).clamp(-F8_MAX, F8_MAX).to(torch.float8_e4m3fn)
    return torch._scaled_mm(q, w.t(), scale_a=scale[0], scale_b=scale[1], out_dtype=torch.bfloat16)[:rows]


def rotate(x, cos, sin):
    """Interleaved pairs of x (T, heads, C); cos, sin (T, 1, C/2)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def attention(x, L, keys, values, mask, first, heads, kv_heads, qk_norm):
    rows, dim = x.shape[0], keys.shape[-1]
    qkv = linear(rms_norm(x, L["attn_norm"]), L["qkv"], L["qkv_scale"]).view(rows, heads + 2 * kv_heads, dim)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
    q, k = rotate(q, L["cos"], L["sin"]), rotate(k, L["cos"], L["sin"])
    if qk_norm:
        q, k = (t * torch.rsqrt(t.float().pow(2).mean(-1, keepdim=True) + 1e-5).to(t.dtype) for t in (q, k))
    q = q * L["temperature"]
    keys.narrow(1, first, rows).copy_(k.transpose(0, 1))
    values.narrow(1, first, rows).copy_(v.transpose(0, 1))
    groups = heads // kv_heads
    K, V = (t.repeat_interleave(groups, 0) if groups > 1 and kv_heads > 1 else t.expand(heads, -1, -1) for t in (keys, values))
    y = F.scaled_dot_product_attention(q.transpose(0, 1)[None], K[None], V[None], attn_mask=mask)
    return x + linear(y[0].transpose(0, 1).reshape(rows, heads * dim), L["o"], L["o_scale"])


def swiglu(h):
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def feed_forward(x, h, L):
    return x + linear(swiglu(linear(h, L["gate_up"], L["gate_up_scale"])), L["down"], L["down_scale"])


def dense_layer(x, L, keys, values, mask, first, heads, kv_heads, qk_norm):
    x = attention(x, L, keys, values, mask, first, heads, kv_heads, qk_norm)
    return feed_forward(x, rms_norm(x, L["ffn_norm"]), L)


def chosen(x, w, index, scale):
    """x (T, K) times the chosen weights w[index] (T, N, K)."""
    y = (x.float().unsqueeze(1) * w[index].to(torch.bfloat16).float()).sum(-1)
    return (y * scale).to(torch.bfloat16)


def moe_layer(x, L, keys, values, mask, first, heads, kv_heads, qk_norm):
    x = attention(x, L, keys, values, mask, first, heads, kv_heads, qk_norm)
    h = rms_norm(x, L["ffn_norm"])
    best, index = F.linear(h, L["router"]).max(-1)
    scaled = h * torch.sigmoid(best.float()).to(h.dtype).unsqueeze(-1)
    y = chosen(swiglu(chosen(scaled, L["expert_gate_up"], index, L["expert_scale"])), L["expert_down"], index, L["expert_scale"])
    return feed_forward(x, h, L) + y


class Stack:
    """Weights of all layers, and their caches."""

    def __init__(self, a, dtype):
        s = SHAPES[a.shape]
        self.device, self.context = a.device, a.context
        self.hidden, self.count = s["hidden"], a.layers or s["layers"]
        self.heads, self.kv_heads, self.dim = s["heads"] // a.tp, s["kv_heads"] // a.tp, s["head_dim"]
        self.qk_norm, self.dtype, self.layers = s["qk_norm"], dtype, []
        room = a.context + max(a.rows)
        for i in range(1, self.count + 1):
            is_moe = i % s["moe_every"] == 0
            size = (s["expert_size"] if is_moe else s["dense_size"]) // a.tp
            D, L = self.hidden, {"is_moe": is_moe, "is_rope": i % ROPE_EVERY != 0}
            ones = torch.ones(D, dtype=torch.bfloat16, device=self.device)
            L["attn_norm"], L["ffn_norm"] = ones, ones.clone()
            self.weight(L, "qkv", (self.heads + 2 * self.kv_heads) * self.dim, D)
            self.weight(L, "o", D, self.heads * self.dim)
            self.weight(L, "gate_up", 2 * size, D)
            self.weight(L, "down", D, size)
            if is_moe:
                L["router"] = self.random(a.experts, D).to(torch.bfloat16)
                L["expert_gate_up"] = torch.stack([self.codes(2 * size, D) for _ in range(a.experts)])
                L["expert_down"] = torch.stack([self.codes(D, size) for _ in range(a.experts)])
                L["expert_scale"] = torch.tensor(1.0 if dtype == "bf16" else 1 / 64, device=self.device)
            for name in ("keys", "values"):
                L[name] = torch.randn(self.kv_heads, room, self.dim, device=self.device).to(torch.bfloat16)
            self.layers.append(L)

    def random(self, n, k):
        return torch.randn(n, k, device=self.device, dtype=torch.float32) / math.sqrt(k)

    def codes(self, n, k):
        w = self.random(n, k)
        return w.to(torch.bfloat16) if self.dtype == "bf16" else (64 * w).to(torch.float8_e4m3fn)

    def weight(self, L, name, n, k):
        L[name] = self.codes(n, k)
        L[name + "_scale"] = tuple(torch.tensor(v, device=self.device) for v in (4 / F8_MAX, 1 / 64))

    def prepare(self, rows):
        """What depends on the number of rows: angles (NoPE: of 0), mask, views of the caches."""
        pos = torch.arange(self.context, self.context + rows, device=self.device, dtype=torch.float32)
        rate = 500000.0 ** (-torch.arange(0, self.dim, 2, device=self.device, dtype=torch.float32) / self.dim)
        angle = (pos[:, None] * rate)[:, None]
        end = self.context + rows
        self.mask = torch.arange(end, device=self.device)[None] <= pos[:, None]
        for L in self.layers:
            own = angle if L["is_rope"] else torch.zeros_like(angle)
            L["cos"], L["sin"] = own.cos(), own.sin()
            L["temperature"] = torch.ones((), device=self.device, dtype=torch.bfloat16)
        return end

    def run(self, x, kinds, end):
        for L in self.layers:
            weights = {k: v for k, v in L.items() if k not in ("is_moe", "is_rope", "keys", "values")}
            x = kinds[L["is_moe"]](x, weights, L["keys"][:, :end], L["values"][:, :end], self.mask, self.context, self.heads, self.kv_heads,
                                   self.qk_norm)
        return x

    def bytes_per_step(self, rows):
        """Weights, of experts as many as there are rows (at most), and the cache."""
        total = 0
        for L in self.layers:
            for name, t in L.items():
                if isinstance(t, torch.Tensor) and name not in ("keys", "values", "cos", "sin"):
                    size = t.numel() * t.element_size()
                    total += size * min(rows, t.shape[0]) // t.shape[0] if name in ("expert_gate_up", "expert_down") else size
            total += 2 * self.kv_heads * (self.context + rows) * self.dim * 2
        return total


def median(values):
    return sorted(values)[len(values) // 2]


def measure(stack, rows, a):
    end = stack.prepare(rows)
    kinds = {False: dense_layer, True: moe_layer}
    if not a.eager:
        kinds = {k: torch.compile(f, fullgraph=True, dynamic=False) for k, f in kinds.items()}
    x = torch.randn(rows, stack.hidden, device=a.device).to(torch.bfloat16)
    times = []
    if a.device == "cpu":
        started = time.monotonic()
        while not times or time.monotonic() - started < a.seconds:
            t = time.monotonic()
            y = stack.run(x, kinds, end)
            times.append((time.monotonic() - t) * 1e6)
    else:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                stack.run(x, kinds, end)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = stack.run(x, kinds, end)
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        started = time.monotonic()
        while len(times) < 10 or time.monotonic() - started < a.seconds:
            begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            finish.record()
            finish.synchronize()
            times.append(begin.elapsed_time(finish) * 1e3)
    assert bool(torch.isfinite(y.float()).all()), "a result is not finite"
    us = median(times)
    size = stack.bytes_per_step(rows)
    return dict(rows=rows, us_per_step=us, us_per_layer=us / stack.count, bytes_per_step=size, gb_per_s=size / us / 1e3)


def list_of(convert):
    return lambda text: [convert(word) for word in text.split(",")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=sorted(SHAPES), default="maverick")
    p.add_argument("--tp", type=int, default=8)
    p.add_argument("--layers", type=int)
    p.add_argument("--experts", type=int, default=16, help="a rank of Maverick has 128; those that no row chose are not read")
    p.add_argument("--rows", type=list_of(int), default=[1, 2, 4, 8])
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--dtypes", type=list_of(str), default=["bf16", "fp8"])
    p.add_argument("--seconds", type=float, default=0.3)
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--eager", action="store_true", help="without torch.compile")
    p.add_argument("--out")
    a = p.parse_args()
    torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch._dynamo.config.cache_size_limit = 64
    name = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    result = dict(shape=a.shape, tp=a.tp, experts=a.experts, context=a.context, torch=torch.__version__, device=name, compiled=not a.eager,
                  dtypes={})
    print(f"{a.shape}, one of {a.tp} ranks, {a.experts} experts, torch {torch.__version__}, {name}", flush=True)
    print(f"{'dtype':6} {'rows':>5} {'us a step':>10} {'us a layer':>11} {'GB/s':>8}", flush=True)

    def save():
        if a.out:
            with open(a.out, "w", encoding="utf-8") as f:
                json.dump(result, f)

    for dtype in a.dtypes:
        steps = result["dtypes"][dtype] = []
        stack = Stack(a, dtype)
        for rows in a.rows:
            try:
                m = measure(stack, rows, a)
                print(f"{dtype:6} {rows:5d} {m['us_per_step']:10.1f} {m['us_per_layer']:11.2f} {m['gb_per_s']:8.1f}", flush=True)
            except Exception as e:  # one that does not run is a line of the table
                m = dict(rows=rows, reason=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:300])
                print(f"{dtype:6} {rows:5d} not run: {m['reason']}", flush=True)
            steps.append(m)
            save()  # so that a limit on the time leaves what there is
        del stack
        if a.device == "cuda":
            torch.cuda.empty_cache()
    save()


if __name__ == "__main__":
    main()
