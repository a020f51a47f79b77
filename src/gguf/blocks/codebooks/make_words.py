#!/usr/bin/env python3
"""Makes words.rs: the codewords of the IQ types, as llama.cpp's Python package `gguf` has them.

They are the tables `iq3xxs_grid`, `iq3s_grid`, `iq2xxs_grid`, `iq2xs_grid`, `iq2s_grid` and `iq1s_grid` of
ggml-common.h. Each value is its index among the levels of its table: 2 bits where these are three, 3 where
they are eight, the first value lowest.

    make_words.py > words.rs

The file in the repository was made with gguf 0.19.0.
"""

import numpy as np
from gguf import quants

TYPES = ["IQ3_XXS", "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S"]
A_LINE = 13


def main():
    print("//! Made by `make_words.py`.")
    for name in TYPES:
        table = getattr(quants, name)
        table.init_grid()
        levels = np.array(table.grid_map, dtype=np.float32)
        bits = (len(levels) - 1).bit_length()
        indices = np.searchsorted(levels, table.grid.reshape(table.grid_shape))
        words = (indices << (bits * np.arange(table.grid_shape[1]))).sum(axis=1)
        hexes = [f"{word:#06x}," for word in words]
        lines = [" ".join(hexes[at : at + A_LINE]) for at in range(0, len(hexes), A_LINE)]
        print("\n#[rustfmt::skip]")
        print(f"pub(crate) const {name}: [u16; {len(words)}] = [")
        print("\n".join(f"    {line}" for line in lines))
        print("];")


if __name__ == "__main__":
    main()
