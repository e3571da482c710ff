"""A llama that fits in a megabyte: random weights and a vocabulary of bytes, so that llama.cpp really generates.

Rule: the same seed gives the same file, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

_LAYERS, _WIDTH, _HIDDEN, _HEADS, _CONTEXT = 2, 128, 256, 4, 256


def write_tiny_llama(path: Path, seed: int = 7) -> None:
    tokens, scores, types = _vocabulary()
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in _weights(np.random.default_rng(seed), len(tokens)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """<unk>, <s>, </s>, every byte, and the printable characters as tokens of their own."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    tokens += [letter.encode() for letter in letters]
    types += [TokenType.NORMAL] * len(letters)
    return tokens, [-float(index) for index in range(len(tokens))], [int(each) for each in types]


def _weights(random: np.random.Generator, tokens: int) -> dict[str, np.ndarray]:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, 0.3, (rows, columns)).astype(np.float16)

    ones = np.ones(_WIDTH, np.float32)
    weights = {"token_embd.weight": matrix(tokens, _WIDTH), "output_norm.weight": ones,
               "output.weight": matrix(tokens, _WIDTH)}
    for layer in range(_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights[f"blk.{layer}.{name}.weight"] = matrix(_WIDTH, _WIDTH)
        weights[f"blk.{layer}.ffn_gate.weight"] = matrix(_HIDDEN, _WIDTH)
        weights[f"blk.{layer}.ffn_up.weight"] = matrix(_HIDDEN, _WIDTH)
        weights[f"blk.{layer}.ffn_down.weight"] = matrix(_WIDTH, _HIDDEN)
        weights[f"blk.{layer}.attn_norm.weight"] = ones
        weights[f"blk.{layer}.ffn_norm.weight"] = ones
    return weights
