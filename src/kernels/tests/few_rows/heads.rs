//! Projections to heads with what follows them.

use super::{Activations, EPS, N_ROWS, POSITION, SOURCES, Weights, judge, run, together};
use crate::device::wgpu::context::Context;
use crate::gguf::WeightType;
use crate::kernels::matvec_heads::{self, KEPT_ROWS, Params, Projection, kept_len};
use crate::kernels::repack::Shard;
use crate::kernels::teams::{FewRows, Of, Teams};
use crate::kernels::tests::attention::encode_cache;
use crate::kernels::tests::{Random, altered, gpu, unpadded, unwritten, unwritten_words};
use crate::kernels::{Src, Variant, rope, row_stride, store_kv};
use crate::kv_cache::KvType;
use crate::plan::{RopePairing, RopeTable};

const CAPACITY: usize = POSITION + N_ROWS + 2;

/// One of the projections.
#[derive(Clone, Copy, Debug)]
struct Part {
    n_head: usize,
    rope: bool,
    cache: bool,
    bias: bool,
}

/// Projections to heads.
#[derive(Clone, Copy, Debug)]
struct Heads<'a> {
    ty: WeightType,
    src: Src,
    n_cols: usize,
    head_dim: usize,
    parts: &'a [Part],
    rope: (RopePairing, usize),
    kv: KvType,
    teams: Teams,
}

/// Weights, and what `kept` and the last result are in the end.
struct Ran {
    weights: Weights,
    bias: Option<Vec<f32>>,
    kept: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Part {
    /// Results that go to `kept`.
    fn n_kept(&self) -> usize {
        usize::from(self.rope) + usize::from(self.cache)
    }

    fn nothing_written(&self, width: usize, kv: KvType) -> Vec<u8> {
        match self.cache {
            true => unwritten_words(CAPACITY * width * kv.bytes() / 4),
            false => unwritten(N_ROWS + 1, width),
        }
    }

    /// Judges each result by what the kernel made of the step before.
    fn judge(&self, case: &Heads, table: &RopeTable, seen: &[f32], ran: Ran) -> Result<(), String> {
        let width = self.n_head * case.head_dim;
        let mut results = ran.kept;
        if !self.cache {
            results.push(ran.last.clone());
        }
        let row_bytes = row_stride(width) * 4;
        let dense = |result: &Vec<u8>| {
            let (rows, behind) = result.split_at(N_ROWS * row_bytes);
            match unwritten_words(behind.len() / 4) == behind {
                true => Ok(unpadded(rows, width)),
                false => Err("a row behind the last was written".to_owned()),
            }
        };
        let product = dense(&results[0])?;
        let (want, bounds) = ran.weights.product(seen, ran.bias.as_deref());
        judge("product", &product, &want, |i| bounds[i])?;
        let mut result = product;
        if self.rope {
            let mut want = result.clone();
            rope::twin(table, POSITION, width, case.head_dim, &result, &mut want);
            let largest = result.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let turned = dense(&results[1])?;
            judge("rope", &turned, &want, |_| 4e-7 * f64::from(largest))?;
            result = turned;
        }
        if self.cache {
            let mut cache = self.nothing_written(width, case.kv);
            let mut rounded = vec![0.0; result.len()];
            store_kv::twin(case.kv, &result, &mut rounded);
            let row_bytes = width * case.kv.bytes();
            let stored = encode_cache(case.kv, &rounded);
            cache[POSITION * row_bytes..][..stored.len()].copy_from_slice(&stored);
            if ran.last != cache {
                return Err("the cache has other rows".to_owned());
            }
        }
        Ok(())
    }
}

fn run_heads(context: &Context, case: &Heads, mistake: Option<(&str, &str)>) -> Result<(), String> {
    let Heads {
        ty, src, n_cols, ..
    } = *case;
    let mut random = Random::new(n_cols as u64);
    let widths: Vec<usize> = case
        .parts
        .iter()
        .map(|part| part.n_head * case.head_dim)
        .collect();
    let matrices: Vec<Weights> = widths
        .iter()
        .map(|&width| Weights::new(&mut random, ty, width, n_cols))
        .collect();
    let activations = Activations::new(&mut random, n_cols, src);
    let biases: Vec<Vec<f32>> = widths
        .iter()
        .map(|&width| (0..width).map(|_| random.signed()).collect())
        .collect();
    let of_biases = biases.iter().map(|bias| {
        let shard = Shard {
            ty: WeightType::F32,
            first_row: 0,
            n_rows: 1,
            n_cols: bias.len(),
        };
        let mut words = vec![0; shard.words()];
        let file = bytemuck::cast_slice(bias);
        shard.repack_rows(0..1, file, &mut Vec::new(), |offset, part| {
            words[offset..][..part.len()].copy_from_slice(part);
        });
        words
    });
    let bias_words: Vec<Vec<u32>> = of_biases.collect();
    // Biases lie between the matrices.
    let in_order: Vec<&[u32]> = (matrices.iter().zip(&bias_words))
        .flat_map(|(matrix, bias)| [&matrix.words[..], &bias[..]])
        .collect();
    let (words, starts) = together(&in_order);

    const GAP: usize = 32;
    let mut kept_end = GAP;
    let mut kept_places = Vec::new();
    let mut projections = Vec::new();
    for (index, part) in case.parts.iter().enumerate() {
        let matrix = matrices[index].shard.matrix();
        projections.push(Projection {
            bias_at: part.bias.then_some(starts[2 * index + 1]),
            has_rope: part.rope,
            has_cache: part.cache,
            kept_at: kept_end as u32,
            ..Projection::new(matrix.behind(starts[2 * index]))
        });
        let len = kept_len(widths[index]);
        kept_places.push(
            (0..part.n_kept())
                .map(|i| (kept_end + i * len) * 4..(kept_end + (i + 1) * len) * 4)
                .collect::<Vec<_>>(),
        );
        kept_end += part.n_kept() * len + GAP;
    }
    let (pairing, n_dims) = case.rope;
    let table = RopeTable {
        pairing,
        inverse_frequency: (0..n_dims / 2).map(|i| 0.7_f64.powi(i as i32)).collect(),
        magnitude: 1.1,
        temperature: None,
    };
    let table_rows: Vec<[f32; 2]> = (0..CAPACITY)
        .flat_map(|position| table.row(position))
        .collect();
    let mut params = Params::new(&projections, &case.teams, row_stride(n_cols));
    if case.parts.iter().any(|part| part.rope) {
        params = params.with_rope(&rope::Params::new(widths[0], case.head_dim, &table));
    }
    (params.eps, params.writes_norm) = (EPS, 1);
    let variant = case.teams.put_into(Variant {
        weight: ty,
        src,
        kv: case.kv,
        ..Variant::PLAIN
    });
    let kernel = match mistake {
        Some((from, to)) => &altered(&matvec_heads::KERNEL, &variant, from, to),
        None => &matvec_heads::KERNEL,
    };
    let mut results: Vec<Vec<u8>> = (case.parts.iter().zip(&widths))
        .map(|(part, &width)| part.nothing_written(width, case.kv))
        .collect();
    results.resize(matvec_heads::MOST_PROJECTIONS, unwritten_words(4));
    let nothing_kept = unwritten_words(kept_end);
    let mut storage: Vec<&[u8]> = vec![
        bytemuck::cast_slice(&words),
        &activations.bytes,
        bytemuck::cast_slice(&table_rows),
        &nothing_kept,
    ];
    storage.extend(results.iter().map(|result| &result[..]));
    let buffers = run(
        context,
        kernel,
        &variant,
        bytemuck::bytes_of(&params),
        matvec_heads::grid(&params, N_ROWS),
        &activations,
        storage,
    );

    let normed = (src == Src::Norm).then(|| &buffers[8][..]);
    let seen = activations.seen(src, normed)?;
    let kept = &buffers[3];
    let inside = |at: usize| {
        kept_places
            .iter()
            .flatten()
            .any(|place| place.contains(&at))
    };
    if (0..kept.len()).any(|at| !inside(at) && kept[at] != nothing_kept[at]) {
        return Err("what is not kept was written".to_owned());
    }
    let unused = case.parts.len()..matvec_heads::MOST_PROJECTIONS;
    if unused.into_iter().any(|i| buffers[4 + i] != results[i]) {
        return Err("the result of no projection was written".to_owned());
    }
    for (index, weights) in matrices.into_iter().enumerate() {
        let part = &case.parts[index];
        let places = kept_places[index].iter().cloned();
        let ran = Ran {
            weights,
            bias: part.bias.then(|| biases[index].clone()),
            kept: places.map(|place| kept[place].to_vec()).collect(),
            last: buffers[4 + index].clone(),
        };
        let judged = part.judge(case, &table, &seen, ran);
        judged.map_err(|error| format!("projection {index}: {error}"))?;
    }
    Ok(())
}

const Q: Part = Part {
    n_head: 6,
    rope: true,
    cache: false,
    bias: true,
};
const K: Part = Part {
    n_head: 3,
    cache: true,
    ..Q
};
const V: Part = Part { rope: false, ..K };
const PLAIN: Part = Part {
    rope: false,
    cache: false,
    bias: false,
    n_head: 5,
};

const HEADS: Heads = Heads {
    ty: WeightType::Q4_K,
    src: Src::Norm,
    n_cols: 256,
    head_dim: 20,
    parts: &[Q, K, V],
    rope: (RopePairing::Halves, 12),
    kv: KvType::F16,
    teams: Teams {
        size: 8,
        workgroup: 128,
        pairs: 1,
    },
};

/// Teams of a size as they are by rule: F32 is multiplied with two pairs of rows at a time.
fn teams_of(size: u32, src: Src) -> Teams {
    Teams {
        size,
        pairs: if src == Src::F32 { 2 } else { 1 },
        ..HEADS.teams
    }
}

#[test]
fn rows_kept_are_as_many_as_the_kernel_says() {
    let text = format!("const KEPT_ROWS = {KEPT_ROWS}u;");
    assert!(matvec_heads::KERNEL.wgsl.contains(&text));
}

#[test]
fn matvec_heads_matches_the_twins_of_its_steps() {
    let Some(context) = gpu() else { return };
    let ropes = [
        (RopePairing::Halves, 20),
        (RopePairing::Adjacent, 20),
        (RopePairing::Halves, 12),
        (RopePairing::Adjacent, 8),
    ];
    let groups: [&[Part]; 8] = [
        &[Q, K, V],
        &[K, V],
        &[Q, K],
        &[Q, V],
        &[Q],
        &[K],
        &[V, PLAIN],
        &[PLAIN, Part { n_head: 1, ..PLAIN }, PLAIN],
    ];
    let check = |case: &Heads| {
        run_heads(context, case, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    };
    for src in SOURCES {
        for kv in [KvType::F32, KvType::F16] {
            for rope in ropes {
                check(&Heads {
                    rope,
                    kv,
                    src,
                    teams: teams_of(8, src),
                    ..HEADS
                });
            }
        }
        for parts in groups {
            check(&Heads {
                parts,
                src,
                teams: teams_of(8, src),
                ..HEADS
            });
        }
        // Of q, and of k and v: workgroups of the first end in the middle of a head of the second, and they do not.
        for (n_cols, n_heads, head_dim, team_size) in [
            (64, [9, 3], 64, 8),
            (576, [3, 1], 4, 16),
            (32, [1, 1], 128, 64),
            (96, [2, 2], 80, 32),
            (64, [1, 7], 4, 8),
        ] {
            let of = |part: Part, n_head| Part {
                n_head,
                bias: false,
                ..part
            };
            let [n_q, n_kv] = n_heads;
            check(&Heads {
                ty: WeightType::Q4_1,
                src,
                n_cols,
                head_dim,
                parts: &[of(Q, n_q), of(K, n_kv), of(V, n_kv)],
                rope: (RopePairing::Halves, head_dim),
                teams: teams_of(team_size, src),
                ..HEADS
            });
        }
    }
    check(&Heads {
        ty: WeightType::BF16,
        src: Src::F32,
        n_cols: 33,
        teams: teams_of(8, Src::F32),
        ..HEADS
    });
    // A table of codewords behind the planes.
    check(&Heads {
        ty: WeightType::IQ2_XS,
        ..HEADS
    });
}

#[test]
fn joint_projections_match_their_twins_with_all_teams() {
    let Some(context) = gpu() else { return };
    let parts = [
        Part { n_head: 2, ..Q },
        Part { n_head: 3, ..K },
        Part { n_head: 1, ..V },
    ];
    for src in SOURCES {
        let product = FewRows {
            of: Of::Heads,
            weight: WeightType::Q4_1,
            src,
            n_out: 6 * HEADS.head_dim,
            units_per_row: 3,
        };
        for teams in product.all() {
            let case = Heads {
                ty: product.weight,
                src,
                n_cols: 96,
                parts: &parts,
                teams,
                ..HEADS
            };
            run_heads(context, &case, None).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        }
    }
}

#[test]
fn mistakes_in_matvec_heads_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("mean + p.eps", "mean"),
        (
            "select(vec4(0.0), squares, quads < vec4(n_quads))",
            "squares",
        ),
        ("unit_inverses[quad / 8u]", "unit_inverses[0u]"),
        (
            "row_quants[quad / 4u][quad & 3u]",
            "row_quants[quad / 4u][0u]",
        ),
        (
            "p.writes_norm == 1u && projection.index == 0u && first_pair == 0u",
            "false",
        ),
        (
            "word(projection.bias_at + column)",
            "word(projection.bias_at + lane)",
        ),
        ("position * (p.n_dims / 2u)", "row * (p.n_dims / 2u)"),
        ("select(-other, other, is_second)", "other"),
        ("2u * index < p.n_dims", "2u * index <= p.n_dims"),
        ("has_rope && 2u * index", "2u * index"),
        ("values[lane ^ 1u]", "values[lane]"),
        ("select(1u, 2u, is_halves)", "1u"),
        ("let is_halves = place.turns && ", "let is_halves = "),
        (
            "(position * projection.n_rows + column)",
            "(row * projection.n_rows + column)",
        ),
        (
            "    values[lane] = value;\n    workgroupBarrier();\n    if has_output && column",
            "    if has_output && column",
        ),
        (
            "lane < 2u * p.n_pairs && 2u * pair < projection.n_rows",
            "lane < p.n_pairs && 2u * pair < projection.n_rows",
        ),
        ("planes = p.second_planes", "planes = p.matrix.planes"),
        ("planes = p.third_planes", "planes = p.second_planes"),
        ("given = p.third;", "given = p.second;"),
        (
            "(p.first.x + outputs - 1u) / outputs",
            "p.first.x / outputs",
        ),
        ("start = third_start;", "start = second_start;"),
        ("vec2(rows_count - 1u)", "vec2(rows_count - 5u)"),
        ("KEPT_ROWS * stride + at", "at"),
        ("else if projection == 1u {", "else if projection == 2u {"),
        (
            "(projection.n_rows + 31u) / 32u * 32u",
            "(p.first.x + 31u) / 32u * 32u",
        ),
        ("if has_rope || has_cache {", "if has_rope {"),
    ] {
        let found = run_heads(context, &HEADS, Some((from, to))).is_err();
        assert!(found, "`{to}` for `{from}` was not noticed");
    }
    // Where an invocation has four quads, the last of them behind the row.
    let wide = Heads {
        n_cols: 1792,
        ..HEADS
    };
    for (from, to) in [
        ("let y3 = x3 * scale * w3", "let y3 = x3 * scale * w2"),
        (
            "put_quants(y2, quads.z, n_quads)",
            "put_quants(y2, quads.w, n_quads)",
        ),
    ] {
        let found = run_heads(context, &wide, Some((from, to))).is_err();
        assert!(found, "`{to}` for `{from}` was not noticed");
    }
}
