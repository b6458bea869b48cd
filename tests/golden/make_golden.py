#!/usr/bin/env python3
"""make_golden.py FOLDER: write mixtral.bin and options.bin, which test_golden.c compares with.

mixtral.bin: loss and every gradient of Hugging Face's own MixtralForCausalLM, in f32.
options.bin: the same for what goes beyond it (dense first layer, shared experts, sigmoid gate with
selection bias and scale, choice limited to the best groups, per-sequence balancing loss, z-loss, tied
embeddings), from the plain model below, in f64.
Needs torch 2.11 and transformers 5.17. The files are committed; run this again only to change them.

Format, little-endian: entries one after another, each
    char name[96] (zero padded), i32 kind (0 f32, 1 i32, 2 f64), i32 zero, i64 count, data[count].
Names: tokens [B, S+1] i32, loss f64, aux_loss f64, router_bias [L, E] f32 (options.bin),
weight/NAME and gradient/NAME f32.
"""
import math
import os
import struct
import sys

import torch
import torch.nn.functional as F
from transformers import MixtralConfig, MixtralForCausalLM

KINDS = {torch.float32: 0, torch.int32: 1, torch.float64: 2}


def write(path, entries):
    with open(path, "wb") as f:
        for name, tensor in entries:
            data = tensor.detach().contiguous()
            f.write(struct.pack("<96siiq", name.encode(), KINDS[data.dtype], 0, data.numel()))
            f.write(data.numpy().tobytes())


def check_margin(scores, top_k):
    """Rounding must not decide which experts are chosen."""
    ordered = scores.sort(dim=-1, descending=True).values
    margin = (ordered[..., :top_k] - ordered[..., 1:top_k + 1]).min().item()
    assert margin > 1e-4, f"margin {margin}: choose another seed"


def scatter(parameters):
    """Weights large enough that every path matters; norms away from one."""
    with torch.no_grad():
        for name, p in parameters:
            noise = torch.randn(p.shape, dtype=torch.float32)
            p.copy_(1 + 0.2 * noise if p.dim() == 1 else noise * (0.5 if "gate.weight" in name else 0.15))


def mixtral(path):
    torch.manual_seed(7)
    batch, seq = 3, 12
    config = MixtralConfig(
        vocab_size=48, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=5, num_experts_per_tok=2, rms_norm_eps=1e-5,
        max_position_embeddings=seq, sliding_window=None, use_cache=False, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=None, eos_token_id=None,
        pad_token_id=None, attn_implementation="eager", router_jitter_noise=0.0, output_router_logits=False)
    model = MixtralForCausalLM(config).float()
    scatter(model.named_parameters())
    for block in model.model.layers:
        block.mlp.gate.register_forward_hook(lambda m, i, o: check_margin(o[0].softmax(-1), 2))
    tokens = torch.randint(0, 48, (batch, seq + 1))
    logits = model(input_ids=tokens[:, :-1]).logits
    loss = F.cross_entropy(logits.reshape(-1, 48), tokens[:, 1:].reshape(-1))
    loss.backward()
    entries = [("tokens", tokens.int()), ("loss", loss.double()), ("aux_loss", torch.zeros(1, dtype=torch.float64))]
    for name, p in model.named_parameters():
        entries += [("weight/" + name, p), ("gradient/" + name, p.grad)]
    write(path, entries)


class Options:
    vocab, width, layers, heads, kv_heads, head_dim = 40, 16, 3, 4, 1, 4
    dense, expert, experts, top_k, shared = 20, 12, 6, 2, 2
    groups, kept_groups = 3, 2
    aux_coef, z_coef, scale, eps, theta = 0.05, 0.01, 1.5, 1e-5, 10000.0

    def shapes(self):
        d, q, kv = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, d)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (d,)
            yield at + "self_attn.q_proj.weight", (q, d)
            yield at + "self_attn.k_proj.weight", (kv, d)
            yield at + "self_attn.v_proj.weight", (kv, d)
            yield at + "self_attn.o_proj.weight", (d, q)
            yield at + "post_attention_layernorm.weight", (d,)
            if layer == 0:
                yield from self.feed_forward(at + "mlp.", self.dense)
                continue
            yield at + "mlp.gate.weight", (self.experts, d)
            yield at + "mlp.experts.gate_up_proj", (self.experts, 2 * self.expert, d)
            yield at + "mlp.experts.down_proj", (self.experts, d, self.expert)
            yield from self.feed_forward(at + "mlp.shared_experts.", self.shared * self.expert)
        yield "model.norm.weight", (d,)

    def feed_forward(self, prefix, hidden):
        yield prefix + "gate_proj.weight", (hidden, self.width)
        yield prefix + "up_proj.weight", (hidden, self.width)
        yield prefix + "down_proj.weight", (self.width, hidden)


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, theta):
    """x [B,H,S,hd]; element i pairs with element i + hd/2."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * theta ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention(o, w, x):
    b, s, _ = x.shape
    q, k, v = (F.linear(x, w(f"self_attn.{n}_proj.weight")).view(b, s, -1, o.head_dim).transpose(1, 2) for n in "qkv")
    q, k = rotate(q, o.theta), rotate(k, o.theta)
    k, v = (t.repeat_interleave(o.heads // o.kv_heads, dim=1) for t in (k, v))
    score = q @ k.transpose(-1, -2) / math.sqrt(o.head_dim)
    score = score.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), -math.inf)
    return F.linear((score.softmax(-1) @ v).transpose(1, 2).reshape(b, s, -1), w("self_attn.o_proj.weight"))


def feed_forward(w, prefix, x):
    hidden = F.silu(F.linear(x, w(prefix + "gate_proj.weight"))) * F.linear(x, w(prefix + "up_proj.weight"))
    return F.linear(hidden, w(prefix + "down_proj.weight"))


def limit_groups(o, keys):
    """keys [.., E], -inf outside the groups whose two best add up to most (DeepSeek-V3)"""
    grouped = keys.unflatten(-1, (o.groups, -1))
    worth = grouped.topk(2, dim=-1).values.sum(-1)
    check_margin(worth, o.kept_groups)
    kept = torch.zeros_like(worth).scatter(-1, worth.topk(o.kept_groups, dim=-1).indices, 1)
    return grouped.masked_fill(kept[..., None] == 0, -math.inf).flatten(-2)


def experts(o, w, x, bias):
    """-> output, balancing loss (mean over sequences), z-loss (mean over tokens)"""
    logits = F.linear(x, w("mlp.gate.weight"))
    scores = logits.sigmoid()
    keys = limit_groups(o, (scores + bias).detach())
    check_margin(keys, o.top_k)
    index = keys.topk(o.top_k, dim=-1).indices
    chosen = scores.gather(-1, index)
    weight = chosen / chosen.sum(-1, keepdim=True) * o.scale
    out = feed_forward(w, "mlp.shared_experts.", x)
    for e in range(o.experts):
        gate, up = F.linear(x, w("mlp.experts.gate_up_proj")[e]).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, w("mlp.experts.down_proj")[e])
        out = out + y * torch.where(index == e, weight, 0).sum(-1, keepdim=True)
    share = F.one_hot(index, o.experts).to(x.dtype).mean(dim=(1, 2))
    mean = (scores / scores.sum(-1, keepdim=True)).mean(dim=1)
    return out, (o.experts * (share * mean).sum(-1)).mean(), logits.logsumexp(-1).pow(2).mean()


def options(path):
    torch.manual_seed(11)
    o, batch, seq = Options(), 3, 11
    params = {n: torch.zeros(s, dtype=torch.float32) for n, s in o.shapes()}
    scatter(params.items())
    params = {n: p.double().requires_grad_() for n, p in params.items()}
    bias = (0.1 * torch.randn(o.layers, o.experts)).float()
    tokens = torch.randint(0, o.vocab, (batch, seq + 1))
    h, aux = params["model.embed_tokens.weight"][tokens[:, :-1]], 0
    for layer in range(o.layers):
        w = lambda name: params[f"model.layers.{layer}.{name}"]
        h = h + attention(o, w, norm(h, w("input_layernorm.weight"), o.eps))
        x = norm(h, w("post_attention_layernorm.weight"), o.eps)
        if layer == 0:
            h = h + feed_forward(w, "mlp.", x)
            continue
        y, balance, z = experts(o, w, x, bias[layer].double())
        h, aux = h + y, aux + (o.aux_coef * balance + o.z_coef * z) / (o.layers - 1)
    logits = F.linear(norm(h, params["model.norm.weight"], o.eps), params["model.embed_tokens.weight"])
    loss = F.cross_entropy(logits.reshape(-1, o.vocab), tokens[:, 1:].reshape(-1))
    (loss + aux).backward()
    entries = [("tokens", tokens.int()), ("loss", loss), ("aux_loss", aux), ("router_bias", bias)]
    for name, p in params.items():
        entries += [("weight/" + name, p.float()), ("gradient/" + name, p.grad.float())]
    write(path, entries)


if __name__ == "__main__":
    mixtral(os.path.join(sys.argv[1], "mixtral.bin"))
    options(os.path.join(sys.argv[1], "options.bin"))
