#!/usr/bin/env python3
"""Writes a checkpoint of train_eagle3.py as an EAGLE-3 repository in the layout of the published Maverick head, in bfloat16."""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

from eagle3 import HeadConfig
from eagle3_features import feature_layers


def config_json(c, target):
    """The fields of the published head; the ids and the number of positions are the target's."""
    return dict(
        architectures=["LlamaForCausalLMEagle3"],
        attention_bias=False,
        attention_dropout=0.0,
        bos_token_id=target["bos_token_id"],
        draft_vocab_size=c.draft_vocab_size,
        eagle_config=dict(
            eagle_aux_hidden_state_layer_ids=list(feature_layers(target["num_hidden_layers"])),
            use_aux_hidden_state=True,
            use_input_layernorm_in_first_layer=True,
            use_last_layernorm=True,
            use_mtp_layernorm=False,
        ),
        eos_token_id=target["eos_token_id"],
        head_dim=c.head_dim,
        hidden_act="silu",
        hidden_size=c.hidden_size,
        initializer_range=0.02,
        intermediate_size=c.intermediate_size_mlp,
        intermediate_size_mlp=c.intermediate_size_mlp,
        max_position_embeddings=target["max_position_embeddings"],
        mlp_bias=False,
        model_type="llama4_text",
        num_attention_heads=c.num_attention_heads,
        num_hidden_layers=1,
        num_key_value_heads=c.num_key_value_heads,
        rms_norm_eps=c.rms_norm_eps,
        rope_scaling=None,
        rope_theta=c.rope_theta,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        transformers_version="4.51.0",
        use_cache=True,
        vocab_size=c.vocab_size,
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", required=True, help="checkpoint.pt of train_eagle3.py")
    ap.add_argument("--model", required=True, help="exported target model")
    ap.add_argument("--out", required=True, help="folder to write")
    a = ap.parse_args()
    ck = torch.load(a.checkpoint, weights_only=True)
    with open(os.path.join(a.model, "config.json"), encoding="utf-8") as f:
        target = json.load(f)
    os.makedirs(a.out, exist_ok=True)
    tensors = {k: (v.bfloat16() if v.is_floating_point() else v).contiguous() for k, v in sorted(ck["model"].items())}
    path = os.path.join(a.out, "model.safetensors")
    save_file(tensors, path, metadata={"format": "pt"})
    quantization = dict(
        producer=dict(name="mav", version="1"), quantization=dict(quant_algo=None, kv_cache_quant_algo=None)
    )
    config = config_json(HeadConfig(**ck["config"]), target)
    for name, value in (("config.json", config), ("hf_quant_config.json", quantization)):
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            f.write(json.dumps(value, indent=2) + "\n")
    print(f"step {ck['step']}: {len(tensors)} tensors, {os.path.getsize(path):,} bytes in {a.out}")


if __name__ == "__main__":
    main()
