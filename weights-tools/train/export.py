#!/usr/bin/env python3
"""Writes a checkpoint as a Hugging Face repository of a Llama4ForCausalLM in bfloat16."""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

from model import Config
from train_tokenizer import SPECIALS

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def config_json(c):
    """Every field of the published text configurations."""
    ids = {s: c.vocab_size - len(SPECIALS) + i for i, s in enumerate(SPECIALS)}
    bos, pad = ids["<|begin_of_text|>"], ids["<|finetune_right_pad|>"]
    eos = [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]]
    config = dict(
        architectures=["Llama4ForCausalLM"],
        attention_bias=False,
        attention_chunk_size=c.attention_chunk_size,
        attention_dropout=0.0,
        attn_scale=c.attn_scale,
        attn_temperature_tuning=True,
        bos_token_id=bos,
        eos_token_id=eos,
        floor_scale=c.floor_scale,
        for_llm_compressor=False,
        head_dim=c.head_dim,
        hidden_act="silu",
        hidden_size=c.hidden_size,
        initializer_range=0.02,
        interleave_moe_layer_step=c.interleave_moe_layer_step,
        intermediate_size=c.intermediate_size,
        intermediate_size_mlp=c.intermediate_size_mlp,
        max_position_embeddings=4096,
        model_type="llama4_text",
        no_rope_layers=[int(c.is_rope(i)) for i in range(c.num_hidden_layers)],
        num_attention_heads=c.num_attention_heads,
        num_experts_per_tok=1,
        num_hidden_layers=c.num_hidden_layers,
        num_key_value_heads=c.num_key_value_heads,
        num_local_experts=c.num_local_experts,
        output_router_logits=False,
        pad_token_id=pad,
        rms_norm_eps=c.rms_norm_eps,
        rope_scaling=None,
        rope_theta=c.rope_theta,
        router_aux_loss_coef=0.001,
        router_jitter_noise=0.0,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        transformers_version="4.51.0",
        use_cache=True,
        use_qk_norm=False,
        vocab_size=c.vocab_size,
    )
    generation = dict(
        bos_token_id=bos,
        do_sample=True,
        eos_token_id=eos,
        pad_token_id=pad,
        temperature=0.6,
        top_p=0.9,
        transformers_version="4.51.0",
    )
    return config, generation


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", required=True, help="checkpoint.pt of train.py")
    ap.add_argument("--tokenizer", required=True, help="folder of the tokenizer files")
    ap.add_argument("--out", required=True, help="model folder to write")
    a = ap.parse_args()
    ck = torch.load(a.checkpoint, weights_only=True)
    c = Config(**ck["config"])
    os.makedirs(a.out, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in sorted(ck["model"].items())}
    save_file(tensors, os.path.join(a.out, "model.safetensors"), metadata={"format": "pt"})
    config, generation = config_json(c)
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            f.write(json.dumps(value, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(os.path.join(a.tokenizer, name), os.path.join(a.out, name))
    size = os.path.getsize(os.path.join(a.out, "model.safetensors"))
    print(f"step {ck['step']}: {len(tensors)} tensors, {size:,} bytes in {a.out}")


if __name__ == "__main__":
    main()
