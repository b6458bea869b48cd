#!/usr/bin/env python3
"""Trained checkpoints in Hugging Face's own MixtralForCausalLM: the same loss, for several shapes and ranks.

Run by a Python with torch, transformers >= 5 and h5py; TESSERA names the program:
    TESSERA=build/release/tessera python3 tests/long/hf_parity.py
"""
import configparser
import json
import os
import sys

import h5py
import torch
from transformers import MixtralConfig, MixtralForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, main, run, train

# Both sides compute in f32; losses near 3 nats differ by the order of sums: a few 1e-6. The bound is
# that of the acceptance test of the format.
BOUND = 2e-4

SHAPES = {
    "base": {},
    "experts 6, top 3": {"model.num_experts": 6, "model.num_experts_per_tok": 3},
    "one kv head": {"model.num_key_value_heads": 1},
    "kv heads as heads": {"model.num_key_value_heads": 4},
    "tied": {"model.tie_word_embeddings": "true"},
    "wide head, long": {"model.head_dim": 20, "data.seq_len": 65},
    "one expert": {"model.num_experts": 1, "model.num_experts_per_tok": 1},
    "vocabulary 300": {"model.vocab_size": 300, "model.rope_theta": 1e6},
}


def reference_loss(path, text):
    with h5py.File(os.path.join(path, "manifest.h5"), "r") as file:
        config = file.attrs["config"]
        ini = configparser.ConfigParser(inline_comment_prefixes=(";", "#"))
        ini.read_string(config.decode() if isinstance(config, bytes) else config)
        m, seq = ini["model"], ini.getint("data", "seq_len")
        tied = m["tie_word_embeddings"] in ("true", "yes", "on", "1")
        model = MixtralForCausalLM(MixtralConfig(
            vocab_size=int(m["vocab_size"]), hidden_size=int(m["hidden_size"]),
            intermediate_size=int(m["moe_intermediate_size"]),
            num_hidden_layers=int(m["num_hidden_layers"]),
            num_attention_heads=int(m["num_attention_heads"]),
            num_key_value_heads=int(m["num_key_value_heads"]), head_dim=int(m["head_dim"]),
            num_local_experts=int(m["num_experts"]), num_experts_per_tok=int(m["num_experts_per_tok"]),
            rms_norm_eps=float(m["rms_norm_eps"]), max_position_embeddings=seq, sliding_window=None,
            use_cache=False, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
            pad_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": float(m["rope_theta"])})).float().eval()
        state = {name: torch.from_numpy(data[...]) for name, data in file["master"].items()}
        if tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, strict=True)
    tokens = torch.tensor(list(text))
    windows = (len(tokens) - 1) // seq
    x, y = tokens[:windows * seq].view(windows, seq), tokens[1:windows * seq + 1].view(windows, seq)
    with torch.no_grad():
        logits = model(input_ids=x).logits.float()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1)).item()


def parity(name, ranks):
    settings = [word for key, value in SHAPES[name].items() for word in ("--set", f"{key}={value}")]
    with Folder() as folder:
        train(folder, ranks, "--set", "train.steps=30", *settings)
        done = run(folder, 0, "eval", "run", "--data", "valid.txt", "--precision", "f32", "--json")
        ours = json.loads(done.stdout)
        with open(folder.at("valid.txt"), "rb") as file:
            theirs = reference_loss(folder.at(ours["checkpoint"]), file.read())
        print(f"{name}, {ranks} ranks: {ours['loss']:.7f} against {theirs:.7f}", flush=True)
        check(abs(ours["loss"] - theirs) <= BOUND, f"{name}: {ours['loss']} against {theirs}")


def make(name, ranks):
    def test():
        parity(name, ranks)
    test.__name__ = f"{name}, {ranks} ranks"
    return test


main([make(name, ranks) for name in SHAPES for ranks in (1, 2, 3)])
