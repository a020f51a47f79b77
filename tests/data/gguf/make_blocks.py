#!/usr/bin/env python3
"""Makes blocks.json: blocks of every weight type with the values that they decode to.

The values come from llama.cpp's Python package `gguf` (`pip install gguf`), which decodes in float32
independently of this crate. Blocks are of two sources: random bytes (with scales of ordinary size, as
values of other sizes say nothing more), and rows of real models.

    make_blocks.py MODEL.gguf ... > blocks.json

Types with codebooks have random blocks only, from a seed of their own, and come last.

The file in the repository was made from SmolLM2-135M-Instruct.Q4_1.gguf and gemma-3-270m.Q4_K_M.gguf
with gguf 0.19.0.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Name of the weight type, and the byte offsets of the f16 scales of a block (MXFP4: of the exponent).
TYPES = {
    "F32": [],
    "F16": [],
    "BF16": [],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
}
# Types with codebooks; the byte offsets of the f16 scales, or where its four parts are the highest four bits
# of 16, the lowest first.
CODEBOOK_TYPES = {
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ1_S": [0],
    "IQ1_M": [48, 50, 52, 54],
}
LLAMA_NAMES = {"Q4_K": "q4_K", "Q5_K": "q5_K", "Q6_K": "q6_K", "Q2_K": "q2_K", "Q3_K": "q3_K"}
BLOCKS_OF_A_TYPE = 6
BLOCKS_WITH_CODEBOOK = 3
# Floats are blocks of one; this many make a case.
FLOATS_OF_A_CASE = 32


def case(type_name, blocks):
    """One case from consecutive blocks, `[n_blocks, block_bytes]` u8."""
    values = dequantize(blocks.reshape(-1), GGMLQuantizationType[type_name])
    values = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    assert np.isfinite(values).all()
    return {
        "type": LLAMA_NAMES.get(type_name, type_name.lower()),
        "bytes": blocks.tobytes().hex(),
        "values": values.tobytes().hex(),
    }


def random_floats(type_name, rng):
    # Over the whole range of exponents, in both signs.
    exponents = rng.uniform(-24, 15, FLOATS_OF_A_CASE)
    floats = (rng.choice([-1.0, 1.0], FLOATS_OF_A_CASE) * 2.0**exponents).astype("<f4")
    match type_name:
        case "F32":
            return floats.view(np.uint8)
        case "F16":
            return floats.astype("<f2").view(np.uint8)
        case "BF16":
            return (floats.view("<u4") >> 16).astype("<u2").view(np.uint8)


def random_cases(type_name, scale_offsets, rng):
    block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][1]
    if not scale_offsets:
        return [case(type_name, random_floats(type_name, rng).reshape(-1, block_bytes))]
    blocks = rng.integers(0, 256, (BLOCKS_OF_A_TYPE, block_bytes), dtype=np.uint8)
    if type_name == "MXFP4":
        blocks[:, 0] = rng.integers(110, 140, BLOCKS_OF_A_TYPE)
        return [case(type_name, block[None]) for block in blocks]
    for offset in scale_offsets:
        scales = rng.uniform(-0.1, 0.1, (BLOCKS_OF_A_TYPE, 1)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return [case(type_name, block[None]) for block in blocks]


def codebook_cases(type_name, scale_offsets):
    type_id = GGMLQuantizationType[type_name]
    rng = np.random.default_rng([1, type_id])
    block_bytes = GGML_QUANT_SIZES[type_id][1]
    blocks = rng.integers(0, 256, (BLOCKS_WITH_CODEBOOK, block_bytes), dtype=np.uint8)
    scales = rng.uniform(-0.1, 0.1, BLOCKS_WITH_CODEBOOK).astype("<f2").view("<u2")
    for part, offset in enumerate(scale_offsets):
        if len(scale_offsets) == 1:
            halves = scales
        else:
            low = blocks[:, offset : offset + 2].copy().view("<u2").reshape(-1) & 0xFFF
            halves = low | (scales >> (4 * part) & 15) << 12
        blocks[:, offset : offset + 2] = halves.astype("<u2").reshape(-1, 1).view(np.uint8)
    return [case(type_name, block[None]) for block in blocks]


def model_cases(path):
    """The first, a middle and the last block of some tensors of each weight type."""
    by_type = {}
    for tensor in GGUFReader(path).tensors:
        by_type.setdefault(tensor.tensor_type.name, []).append(tensor)
    for type_name, tensors in by_type.items():
        block_len, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
        n_blocks = FLOATS_OF_A_CASE if block_len == 1 else 1
        for tensor, place in zip((tensors[0], tensors[len(tensors) // 2], tensors[-1]), (0, 0.5, 1)):
            rows = np.asarray(tensor.data).view(np.uint8).reshape(-1, block_bytes)
            blocks_a_row = int(tensor.shape[0]) // block_len
            first = int(place * (len(rows) - n_blocks))
            yield case(type_name, rows[first : first + n_blocks]) | {
                "model": Path(path).name,
                "tensor": str(tensor.name),
                "row": first // blocks_a_row,
                "block": first % blocks_a_row,
            }


def main():
    shared = np.random.default_rng(1)
    cases = []
    for index, (name, offsets) in enumerate(TYPES.items()):
        # The first types share a seed. A type that is added changes no other's blocks.
        rng = shared if index < 11 else np.random.default_rng(GGMLQuantizationType[name].value)
        cases += random_cases(name, offsets, rng)
    cases += [c for path in sys.argv[1:] for c in model_cases(path)]
    cases += [c for name, offsets in CODEBOOK_TYPES.items() for c in codebook_cases(name, offsets)]
    print("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]")


if __name__ == "__main__":
    main()
