// Tiles of slots that have one expert, as expert_tiles.wgsl makes them: word 0 is their number, words 4 + 4t on are the
// expert of tile t, its first place in the order and the place behind its last; the order, slots by expert, begins at
// p.order_start. The kernel's parameters have also `n_out` and `slots_per_src`, its binding is `tiles: array<u32>`.

// The expert of the tile, and its first row seen from the first row of the shard: it may be before that.
var<private> tile_expert: u32;
var<private> first_weight: i32;

// The places of a tile that this shard has weights for, where outputs begin with `first_j` and are `n_tile` at most.
fn expert_tile(tile: u32, first_j: u32, n_tile: u32) -> TileRows {
    if tile >= tiles[0] {
        return TileRows(0u, 0u);
    }
    let expert = tiles[4u + 4u * tile];
    let first = i32(expert * p.n_out) - i32(p.matrix.first_row);
    let end = first + i32(min(first_j + n_tile, p.n_out));
    if end <= 0 || first + i32(first_j) >= i32(p.matrix.n_rows) {
        return TileRows(0u, 0u);
    }
    tile_expert = expert;
    first_weight = first;
    return TileRows(tiles[5u + 4u * tile], tiles[6u + 4u * tile]);
}

fn n_outputs() -> u32 {
    return p.n_out;
}

// Rows outside the shard repeat one of it, unused.
fn weight_row(output: u32) -> u32 {
    return u32(clamp(first_weight + i32(output), 0, i32(p.matrix.n_rows) - 1));
}

fn slot_at(place: u32) -> u32 {
    return tiles[p.order_start + place];
}
