#!/usr/bin/env python3
"""Checks an exported model against transformers' Llama4ForCausalLM and writes its golden reference.

Float32 arithmetic on the bfloat16 weights; one prompt is longer than two attention chunks.
golden.safetensors: for short and long: input_ids, logits_last (the last 16 positions) and greedy_ids (48).
"""

import argparse
import os

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Llama4ForCausalLM

from checkpoint import load, logits

SHORT = "-- returns the sum of the squares of the even numbers in the list\nlocal function sum_even_squares(numbers)\n"
LONG = """-- returns true if n is even
local function is_even(n)
  return n % 2 == 0
end

-- returns a list of the even numbers in the list, using is_even
local function list_even(numbers)
  local result = {}
  for _, v in ipairs(numbers) do
    if is_even(v) then
      result[#result + 1] = v
    end
  end
  return result
end

-- counts the vowels in the string
local function count_vowels(s)
  local count = 0
  for c in s:gmatch(".") do
    if c:match("[aeiouAEIOU]") then
      count = count + 1
    end
  end
  return count
end

-- returns the largest of the cubes of the positive numbers in the list, or nil
local function max_positive_cubes(list)
  local best = nil
  for _, v in ipairs(list) do
    if v > 0 then
      local x = v * v * v
      if best == nil or x > best then
        best = x
      end
    end
  end
  return best
end

-- returns the squares of the odd numbers in the list joined with commas
local function join_odd_squares(values)
  local result = {}
  for _, v in ipairs(values) do
    if v % 2 ~= 0 then
      result[#result + 1] = v * v
    end
  end
  return table.concat(result, ", ")
end

-- returns the sum of the squares of the numbers from 1 to n
local function sum_squares(n)
"""


def chat_agrees(folder, tok):
    """The chat template and the tokenizer load in transformers and give the same ids."""
    hf = AutoTokenizer.from_pretrained(folder)
    messages = [
        dict(role="system", content=" You write Lua code. "),
        dict(role="user", content="Write a Lua function that reverses the string."),
    ]
    text = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    want = (
        "<|begin_of_text|><|header_start|>system<|header_end|>\n\nYou write Lua code.<|eot|><|header_start|>user<|header_end|>\n\n"
        "Write a Lua function that reverses the string.<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )
    return text == want and hf(LONG)["input_ids"] == tok.encode(LONG).ids and tok.decode(tok.encode(LONG).ids) == LONG


@torch.no_grad()
def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="exported model folder")
    ap.add_argument("--golden", help="file to write (default: golden.safetensors in the model folder)")
    ap.add_argument("--tolerance", type=float, default=1e-3)
    a = ap.parse_args()
    torch.set_num_threads(1)
    ours, tok = load(a.model)
    ref = Llama4ForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="eager").eval()
    full = lambda ids: ref(torch.tensor([ids]), use_cache=False).logits[0]
    golden, worst = {}, 0.0
    for name, text in (("short", SHORT), ("long", LONG)):
        ids = tok.encode(text).ids
        want = full(ids)
        worst = max(worst, float((want - logits(ours, ids)).abs().max()))
        seq = list(ids)
        for _ in range(48):
            seq.append(int(full(seq)[-1].argmax()))
        same = ours.generate(ids, 48, lambda out: False) == seq[len(ids) :]
        print(
            f"{name}: {len(ids)} tokens, largest logit difference so far {worst:.1e}, greedy ids with KV cache {'equal' if same else 'DIFFER'}"
        )
        if not same:
            worst = float("inf")
        golden[f"{name}.input_ids"] = torch.tensor(ids, dtype=torch.int64)
        golden[f"{name}.logits_last"] = want[-16:].contiguous()
        golden[f"{name}.greedy_ids"] = torch.tensor(seq[len(ids) :], dtype=torch.int64)
    chat = chat_agrees(a.model, tok)
    print("tokenizer and chat template:", "ok" if chat else "WRONG")
    if worst > a.tolerance or not chat:
        raise SystemExit("the export disagrees with transformers")
    save_file(
        golden,
        a.golden or os.path.join(a.model, "golden.safetensors"),
        metadata={"about": "float32 on the bfloat16 weights; logits of the last 16 prompt positions; 48 greedy ids"},
    )


if __name__ == "__main__":
    main()
