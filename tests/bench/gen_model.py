#!/usr/bin/env python3
"""Make a benchmark model: Llama 4 Maverick's architecture, small, with random weights.

One seed gives the same weights in every format:

    DIR/NAME-bf16.gguf   for llama.cpp
    DIR/NAME-q8_0.gguf   the same, quantized by llama.cpp's own llama_model_quantize
    DIR/NAME-hf/         for Mav: config.json, model.safetensors, tokenizer.json, ...
                         as in a Hugging Face repository of Llama 4

What exists is kept; a file appears under its name only when it is complete.
Needs numpy, gguf and (for q8_0) llama-cpp-python: see setup_peer.sh.
"""
import argparse
import contextlib
import json
import os
import shutil
import struct
import sys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model, in the letters used all over Mav."""
    D: int        # hidden
    L: int        # layers; every second one is MoE
    H: int        # query heads
    K: int        # kv heads
    C: int        # head dim
    E: int        # experts, one routed per token beside the shared one
    F: int        # intermediate size of an expert and of the shared expert
    F_dense: int  # intermediate size of a dense layer
    V: int        # vocabulary


PRESETS = {
    "mid":  Shape(D=1024, L=16, H=16, K=4, C=64, E=16, F=2048, F_dense=4096, V=32768),
    "tiny": Shape(D=256,  L=8,  H=8,  K=2, C=32, E=8,  F=96,   F_dense=192,  V=2048),
    "nano": Shape(D=64,   L=8,  H=2,  K=1, C=32, E=8,  F=32,   F_dense=64,   V=512),
}
FORMATS = ("bf16", "q8_0", "hf")

# What llama.cpp fixes for this architecture (chunk 8192, temperature floor 8192 and
# scale 0.1, NoPE every 4th layer, qk norm unless E is 128) is the same in config.json.
MOE_STEP, NOPE_STEP = 2, 4
ROPE_THETA, RMS_EPS, CONTEXT = 500000.0, 1e-5, 32768


# ---------------------------------------------------------------- weights

def bf16_bits(x):
    """float32 -> bfloat16, round to nearest even, as uint16."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def make_weights(s, seed):
    """All tensors by GGUF name: matrices (out, in) as bf16 bits; norms and routers float32.

    Gains keep activations near unit size, so that routing is spread over the experts.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    out = {}

    def matrix(name, *shape, gain=1.0):
        w = rng.standard_normal(shape, dtype=np.float32)
        w *= np.float32(gain / np.sqrt(shape[-1]))
        out[name] = bf16_bits(w)

    def ones(name):
        out[name] = np.ones(s.D, np.float32)

    residual = 1 / np.sqrt(2 * s.L)
    matrix("token_embd.weight", s.V, s.D, gain=np.sqrt(s.D))
    ones("output_norm.weight")
    matrix("output.weight", s.V, s.D, gain=2.0)
    for i in range(s.L):
        b = f"blk.{i}."
        ones(b + "attn_norm.weight")
        ones(b + "ffn_norm.weight")
        matrix(b + "attn_q.weight", s.H * s.C, s.D)
        matrix(b + "attn_k.weight", s.K * s.C, s.D)
        matrix(b + "attn_v.weight", s.K * s.C, s.D)
        matrix(b + "attn_output.weight", s.D, s.H * s.C, gain=residual)
        if is_moe(i):
            router = b + "ffn_gate_inp.weight"
            matrix(router, s.E, s.D, gain=2.0)
            out[router] = bf16_to_f32(out[router])  # llama.cpp wants f32; values stay bf16
            matrix(b + "ffn_gate_exps.weight", s.E, s.F, s.D)
            matrix(b + "ffn_up_exps.weight", s.E, s.F, s.D)
            matrix(b + "ffn_down_exps.weight", s.E, s.D, s.F, gain=2 * residual)
            suffix, F = "_shexp", s.F
        else:
            suffix, F = "", s.F_dense
        matrix(b + f"ffn_gate{suffix}.weight", F, s.D)
        matrix(b + f"ffn_up{suffix}.weight", F, s.D)
        matrix(b + f"ffn_down{suffix}.weight", s.D, F, gain=2 * residual)
    return out


def is_moe(layer):
    return (layer + 1) % MOE_STEP == 0


# ---------------------------------------------------------------- tokenizer

SPECIAL = ("begin_of_text end_of_text fim_prefix fim_middle fim_suffix header_start header_end "
           "eom eot step "
           + " ".join(f"text_post_train_reserved_special_token_{i}" for i in range(6))
           + " python_start python_end finetune_right_pad image_start image_end "
           "tile_x_separator tile_y_separator image patch "
           "reasoning_thinking_start reasoning_thinking_end "
           + " ".join(f"reserved_special_token_{i}" for i in range(5))).split()
SPECIAL = [f"<|{name}|>" for name in SPECIAL]

SPLIT_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' + message['content'] + '<|eot|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}\n"
    "{%- endif %}\n")


def byte_alphabet():
    """The 256 characters that stand for bytes in byte-level BPE, in token id order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def make_vocab(V):
    """(ordinary tokens, merges): bytes, frequent letter pairs, then filler up to V.

    The last len(SPECIAL) ids are left to the special tokens.
    """
    n = V - len(SPECIAL)
    tokens, merges = byte_alphabet(), []
    for a in "\u0120etaoinshrdlu":  # \u0120 is the space
        for b in "etaoinshrdlu":
            if len(tokens) < n:
                tokens.append(a + b)
                merges.append((a, b))
    tokens += [f"<tok_{i}>" for i in range(len(tokens), n)]
    return tokens, merges


def special_id(s, name):
    return s.V - len(SPECIAL) + SPECIAL.index(f"<|{name}|>")


def tokenizer_json(s):
    """tokenizer.json in the layout of a Llama 4 repository."""
    tokens, merges = make_vocab(s.V)
    bos, bos_id = SPECIAL[0], len(tokens)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": bos_id + i, "content": t, **flags} for i, t in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT_REGEX}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing", "single": first, "pair": first + second,
             "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": True, "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": [list(m) for m in merges]},
    }


# ---------------------------------------------------------------- GGUF

def write_gguf(path, name, s, weights):
    import gguf
    w = gguf.GGUFWriter(path, "llama4")
    w.add_name(f"random-llama4-{name}")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    w.add_vocab_size(s.V)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(s.D)
    w.add_block_count(s.L)
    w.add_feed_forward_length(s.F_dense)
    w.add_head_count(s.H)
    w.add_head_count_kv(s.K)
    w.add_key_length(s.C)
    w.add_value_length(s.C)
    w.add_rope_dimension_count(s.C)
    w.add_rope_freq_base(ROPE_THETA)
    w.add_layer_norm_rms_eps(RMS_EPS)
    w.add_expert_count(s.E)
    w.add_expert_used_count(1)
    w.add_expert_feed_forward_length(s.F)
    w.add_interleave_moe_layer_step(MOE_STEP)

    tokens, merges = make_vocab(s.V)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama4")
    w.add_token_list(tokens + SPECIAL)
    w.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(SPECIAL))
    w.add_token_merges([f"{a} {b}" for a, b in merges])
    w.add_bos_token_id(special_id(s, "begin_of_text"))
    w.add_eos_token_id(special_id(s, "end_of_text"))
    w.add_eot_token_id(special_id(s, "eot"))
    w.add_add_bos_token(True)

    for key, x in weights.items():
        if x.dtype == np.float32:
            w.add_tensor(key, x)
        else:
            w.add_tensor(key, x.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def quantize_q8_0(source, path):
    """Quantize a GGUF with llama.cpp's own function and its defaults."""
    import llama_cpp
    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = os.cpu_count()
    with contextlib.redirect_stdout(sys.stderr):
        status = llama_cpp.llama_model_quantize(source.encode(), path.encode(), params)
    if status != 0:
        raise SystemExit(f"llama_model_quantize failed on {source}")


# ---------------------------------------------------------------- Hugging Face

def hf_tensors(s, weights):
    """(Hugging Face name, bf16 bits) in file order; experts are stored (E, in, out)."""
    def get(key):
        x = weights[key + ".weight"]
        return x if x.dtype == np.uint16 else bf16_bits(x)

    def turned(key):
        return get(key).transpose(0, 2, 1)

    yield "model.embed_tokens.weight", get("token_embd")
    for i in range(s.L):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        yield h + "input_layernorm.weight", get(b + "attn_norm")
        yield h + "post_attention_layernorm.weight", get(b + "ffn_norm")
        for x in ("q", "k", "v"):
            yield h + f"self_attn.{x}_proj.weight", get(b + f"attn_{x}")
        yield h + "self_attn.o_proj.weight", get(b + "attn_output")
        f, suffix = h + "feed_forward.", ""
        if is_moe(i):
            yield f + "router.weight", get(b + "ffn_gate_inp")
            yield f + "experts.gate_up_proj", np.concatenate(
                [turned(b + "ffn_gate_exps"), turned(b + "ffn_up_exps")], axis=2)
            yield f + "experts.down_proj", turned(b + "ffn_down_exps")
            f, suffix = f + "shared_expert.", "_shexp"
        for x in ("gate", "up", "down"):
            yield f + f"{x}_proj.weight", get(b + f"ffn_{x}{suffix}")
    yield "model.norm.weight", get("output_norm")
    yield "lm_head.weight", get("output")


def write_safetensors(path, s, weights):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, x in hf_tensors(s, weights):
        header[key] = dict(dtype="BF16", shape=list(x.shape), data_offsets=[offset, offset + x.nbytes])
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)))
        out.write(text)
        for _, x in hf_tensors(s, weights):
            np.ascontiguousarray(x).tofile(out)


def hf_config(s):
    return dict(
        architectures=["Llama4ForCausalLM"], model_type="llama4_text", torch_dtype="bfloat16",
        vocab_size=s.V, hidden_size=s.D, num_hidden_layers=s.L,
        num_attention_heads=s.H, num_key_value_heads=s.K, head_dim=s.C,
        intermediate_size=s.F, intermediate_size_mlp=s.F_dense,
        num_local_experts=s.E, num_experts_per_tok=1, interleave_moe_layer_step=MOE_STEP,
        no_rope_layers=[int((i + 1) % NOPE_STEP != 0) for i in range(s.L)],
        attention_chunk_size=8192, attn_temperature_tuning=True, floor_scale=8192, attn_scale=0.1,
        use_qk_norm=s.E != 128, rope_theta=ROPE_THETA, rope_scaling=None, rms_norm_eps=RMS_EPS,
        max_position_embeddings=CONTEXT, hidden_act="silu", attention_bias=False,
        tie_word_embeddings=False, router_aux_loss_coef=0.0,
        bos_token_id=special_id(s, "begin_of_text"),
        eos_token_id=[special_id(s, t) for t in ("end_of_text", "eom", "eot")],
        pad_token_id=special_id(s, "finetune_right_pad"))


def write_hf(path, s, weights):
    os.makedirs(path)
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|eot|>", pad_token="<|finetune_right_pad|>")
    config = hf_config(s)
    files = {
        "config.json": config,
        "generation_config.json": {k: v for k, v in config.items() if k.endswith("_token_id")},
        "tokenizer.json": tokenizer_json(s),
        "tokenizer_config.json": dict(names, tokenizer_class="PreTrainedTokenizerFast",
                                      model_input_names=["input_ids", "attention_mask"],
                                      clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE),
        "special_tokens_map.json": names,
    }
    for name, content in files.items():
        with open(os.path.join(path, name), "w", encoding="utf-8") as out:
            json.dump(content, out, indent=2, ensure_ascii=False)
            out.write("\n")
    with open(os.path.join(path, "chat_template.jinja"), "w", encoding="utf-8") as out:
        out.write(CHAT_TEMPLATE)
    write_safetensors(os.path.join(path, "model.safetensors"), s, weights)


# ---------------------------------------------------------------- command

def model_paths(directory, name):
    """Where each format of a model lies, by format."""
    return {f: os.path.join(directory, f"{name}-hf" if f == "hf" else f"{name}-{f}.gguf") for f in FORMATS}


def generate(directory, name, formats, seed):
    s, paths = PRESETS[name], model_paths(directory, name)
    missing = [f for f in formats if not os.path.exists(paths[f])]
    if "q8_0" in missing and "bf16" not in missing and not os.path.exists(paths["bf16"]):
        missing.insert(0, "bf16")  # q8_0 is made from it
    os.makedirs(directory, exist_ok=True)
    weights = make_weights(s, seed) if {"bf16", "hf"} & set(missing) else None
    for f in sorted(missing, key=FORMATS.index):
        part = paths[f] + ".part"
        shutil.rmtree(part, ignore_errors=True)
        if f == "bf16":
            write_gguf(part, name, s, weights)
        elif f == "q8_0":
            quantize_q8_0(paths["bf16"], part)
        else:
            write_hf(part, s, weights)
        os.rename(part, paths[f])
        print(paths[f])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("name", choices=PRESETS, help="which shape to make")
    ap.add_argument("--dir", default="build/bench", help="where to write (default %(default)s)")
    ap.add_argument("--formats", default=",".join(FORMATS), help="comma list (default %(default)s)")
    ap.add_argument("--seed", type=int, default=1, help="of the weights (default %(default)s)")
    a = ap.parse_args()
    formats = a.formats.split(",")
    if not set(formats) <= set(FORMATS):
        ap.error(f"--formats: choose from {','.join(FORMATS)}")
    generate(a.dir, a.name, formats, a.seed)


if __name__ == "__main__":
    main()
