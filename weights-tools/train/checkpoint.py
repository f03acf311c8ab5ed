"""Loads an exported model folder into the training module, in float32."""

import os

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from model import Config, Model


def load(folder):
    """(model, tokenizer)"""
    model = Model(Config.load(os.path.join(folder, "config.json")))
    model.load_state_dict({k: v.float() for k, v in load_file(os.path.join(folder, "model.safetensors")).items()})
    return model.eval(), Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


@torch.no_grad()
def logits(model, ids, hidden=None):
    """Logits [tokens, vocabulary] of one sequence."""
    return model(torch.tensor([ids]), model.context(torch.arange(len(ids))[None]), hidden=hidden)[0]
