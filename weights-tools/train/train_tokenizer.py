#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer and writes the tokenizer files of a Llama 4 repository."""

import argparse
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 2048
SPECIALS = (
    [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eom|>",
        "<|eot|>",
        "<|step|>",
    ]
    + [f"<|text_post_train_reserved_special_token_{i}|>" for i in range(6)]
    + [
        "<|python_start|>",
        "<|python_end|>",
        "<|finetune_right_pad|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
        "<|image|>",
        "<|patch|>",
        "<|reasoning_thinking_start|>",
        "<|reasoning_thinking_end|>",
    ]
    + [f"<|reserved_special_token_{i}|>" for i in range(5)]
)
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPLIT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['content'] is string %}
        {%- set text = message['content'] %}
    {%- else %}
        {%- set ns = namespace(text='') %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {%- set ns.text = ns.text + part['text'] %}
            {%- endif %}
        {%- endfor %}
        {%- set text = ns.text %}
    {%- endif %}
    {%- if loop.first and message['role'] == 'system' %}
        {%- set text = text | trim %}
    {%- endif %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' + text + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""


def pre_tokenizer():
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(texts, vocab=VOCAB):
    """Returns a tokenizer of exactly `vocab` ids; the special tokens are the last of them."""
    base = vocab - len(SPECIALS)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizer()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=base, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    if raw.get_vocab_size() != base:
        raise SystemExit(f"the text gives only {raw.get_vocab_size()} of {base} tokens")
    model = json.loads(raw.to_str())["model"]
    tok = Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]], ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizer()
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    bos = SPECIALS[0]
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tok.token_to_id(bos))]
            ),
        ]
    )
    return tok


def save(tok, out):
    """tokenizer.json and its companions"""
    os.makedirs(out, exist_ok=True)
    tok.save(os.path.join(out, "tokenizer.json"))
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|eot|>", pad_token="<|finetune_right_pad|>")
    added = {
        str(tok.token_to_id(s)): dict(
            content=s, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True
        )
        for s in SPECIALS
    }
    config = dict(
        added_tokens_decoder=added,
        **names,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={},
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=4096,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=CHAT_TEMPLATE,
    )
    for name, value in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            f.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    with open(os.path.join(out, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(CHAT_TEMPLATE)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--docs", required=True, help="docs.jsonl of gen_functions.py")
    ap.add_argument("--out", required=True, help="folder for the tokenizer files")
    ap.add_argument("--limit", type=int, default=60000, help="documents to train on")
    a = ap.parse_args()
    texts = []
    with open(a.docs, encoding="utf-8") as f:
        for line, _ in zip(f, range(a.limit)):
            text = "".join(s for s, _ in json.loads(line)[1])
            for s in SPECIALS:
                text = text.replace(s, "\n")
            texts.append(text)
    tok = train(texts)
    save(tok, a.out)
    n = sum(len(e.ids) for e in tok.encode_batch(texts[:2000]))
    print(
        f"{tok.get_vocab_size()} tokens; {sum(map(len, texts[:2000])) / n:.2f} characters per token, {n / 2000:.0f} tokens per document"
    )


if __name__ == "__main__":
    main()
