//! What cannot be right in rows: the kernel against its twin.

use super::{Random, Values, altered, gpu, padded, run_kernel, unwritten_words, variants};
use crate::device::wgpu::context::Context;
use crate::kernels::sentinel::{self, Slot, Wrong};
use crate::kernels::{BatchParams, Kernel};

/// Rows and widths: one, primes, tails, more than a workgroup has lanes, those of real models.
const SHAPES: [(usize, usize); 9] = [
    (1, 1),
    (3, 2),
    (7, 31),
    (2, 127),
    (5, 129),
    (3, 576),
    (2, 1031),
    (1, 16384),
    (67, 33),
];

/// 2^56, from which on a value is too large.
const LIMIT: f32 = 72_057_594_037_927_936.0;

/// What may stand in a row, and what is wrong with a row of small numbers that has it.
fn values() -> Vec<(f32, Option<Wrong>)> {
    let below = f32::from_bits(LIMIT.to_bits() - 1);
    let payload = f32::from_bits(0x7F80_0001);
    let last = f32::from_bits(u32::MAX);
    vec![
        (f32::NAN, Some(Wrong::NotANumber)),
        (-f32::NAN, Some(Wrong::NotANumber)),
        (payload, Some(Wrong::NotANumber)),
        (last, Some(Wrong::NotANumber)),
        (f32::INFINITY, Some(Wrong::Infinite)),
        (f32::NEG_INFINITY, Some(Wrong::Infinite)),
        (f32::MAX, Some(Wrong::Saturated)),
        (f32::MIN, Some(Wrong::Saturated)),
        (LIMIT, Some(Wrong::Saturated)),
        (-LIMIT, Some(Wrong::Saturated)),
        (below, None),
        (-below, None),
        (f32::MIN_POSITIVE, None),
        (1e-45, None),
        (-1e-45, None),
        (-0.0, None),
    ]
}

/// Rows `[n_rows, width]`, of which the first is at a position.
struct Case {
    rows: Vec<f32>,
    width: usize,
    position: usize,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (n_rows, width)) in (1..).zip(SHAPES) {
        let mut random = Random::new(seed);
        for position in [0, 1, 1023, (1 << 31) - 100] {
            let mut push = |rows: Vec<f32>| {
                cases.push(Case {
                    rows,
                    width,
                    position,
                });
            };
            for values in Values::ALL {
                push(values.fill(&mut random, n_rows * width));
            }
            for (wrong, _) in values() {
                // Among zeros, where denormal numbers matter, and among others, at both ends and between.
                for others in [Values::Zero, Values::Random] {
                    let mut rows = others.fill(&mut random, n_rows * width);
                    let at = random.bits() as usize % rows.len();
                    let at = [at, 0, rows.len() - 1][random.bits() as usize % 3];
                    rows[at] = wrong;
                    push(rows);
                }
            }
            // Several kinds at once.
            let mut rows = Values::Random.fill(&mut random, n_rows * width);
            for (wrong, _) in values() {
                let at = random.bits() as usize % rows.len();
                rows[at] = wrong;
            }
            push(rows);
            push(vec![-0.0; n_rows * width]);
        }
    }
    cases
}

/// What is wrong with what the kernel adds to the second of three slots.
fn judge(context: &Context, kernel: &Kernel, case: &Case) -> Result<(), String> {
    let Case {
        rows,
        width,
        position,
    } = case;
    let n_rows = rows.len() / width;
    let params = sentinel::Params::new(1, *width);
    // Of an earlier batch: one that was wrong behind this one, and none that was in front of it.
    let before = Slot {
        n_rows: 9,
        first: [0, !(*position as u32 + 50), 0, 0],
    };
    let unwritten = unwritten_words(5);
    let slots = [&unwritten, bytemuck::bytes_of(&before), &unwritten].concat();
    let batch = BatchParams {
        n_rows: n_rows as u32,
        position: *position as u32,
        n_outputs: 1,
        random: 0,
    };
    // Nobody looks behind the last row.
    let behind = vec![f32::NAN; *width];
    let src = padded(&[rows.as_slice(), &behind].concat(), *width);
    let buffers = run_kernel(
        context,
        kernel,
        &variants(kernel, context.subgroups())[0],
        batch,
        bytemuck::bytes_of(&params),
        sentinel::grid(&params, n_rows),
        &[&src, &slots],
    );
    let mut want = before;
    sentinel::twin(rows, *width, *position, &mut want);
    let want = [&unwritten, bytemuck::bytes_of(&want), &unwritten].concat();
    if buffers[1] == want {
        return Ok(());
    }
    let words = |bytes: &[u8]| -> Vec<u32> { bytemuck::pod_collect_to_vec(bytes) };
    let (got, want) = (words(&buffers[1]), words(&want));
    Err(format!(
        "[{n_rows}, {width}] at {position}: slots {got:x?}, expected {want:x?}"
    ))
}

#[test]
fn sentinel_matches_its_twin() {
    let Some(context) = gpu() else { return };
    for case in cases() {
        judge(context, &sentinel::KERNEL, &case).unwrap();
    }
}

#[test]
fn mistakes_in_sentinel_are_found() {
    let Some(context) = gpu() else { return };
    for (from, to) in [
        ("& vec4<u32>(MAGNITUDE)", "& vec4<u32>(0xffffffffu)"),
        ("largest > INFINITY", "largest >= INFINITY"),
        ("largest == INFINITY", "false"),
        ("largest >= SATURATED", "largest > SATURATED"),
        ("0x5b800000u", "0x5b000000u"),
        (
            "largest == 0u && position",
            "largest < 0x800000u && position",
        ),
        (" && position > 0u", ""),
        ("position > 0u", "position > 1u"),
        ("quad < quads", "quad + 1u < quads"),
        ("quad += LANES", "quad += 2u * LANES"),
        ("workgroup.z * quads + quad", "quad"),
        ("max(found.z, found.w)", "found.z"),
        ("atomicMax(&largest", "atomicStore(&largest"),
        ("batch.position + workgroup.z", "batch.position"),
        ("~position", "position"),
        ("atomicMax(&slots", "atomicStore(&slots"),
        (
            "atomicAdd(&slots[slot], 1u)",
            "atomicStore(&slots[slot], 1u)",
        ),
        ("p.slot * 5u", "p.slot * 4u"),
        ("slot + 1u + wrong", "slot + wrong"),
    ] {
        let variant = variants(&sentinel::KERNEL, context.subgroups())[0];
        let kernel = altered(&sentinel::KERNEL, &variant, from, to);
        let is_noticed = cases()
            .iter()
            .any(|case| judge(context, &kernel, case).is_err());
        assert!(is_noticed, "`{to}` was not noticed");
    }
}

#[test]
fn twin_tells_what_is_wrong_by_the_bits() {
    for (value, wrong) in values() {
        for at in 0..3 {
            let mut rows = [0.5, -1.0, 0.25, 1.0, 1.0, 1.0];
            rows[at] = value;
            let mut slot = Slot::default();
            sentinel::twin(&rows, 3, 41, &mut slot);
            assert_eq!(
                slot.first_wrong(),
                wrong.map(|wrong| (41, wrong)),
                "{value}"
            );
            assert_eq!(slot.n_rows, 2);
        }
    }
    let zeros = |position| {
        let mut slot = Slot::default();
        sentinel::twin(&[0.0, -0.0, 0.0, -1e-45], 2, position, &mut slot);
        slot.first_wrong()
    };
    assert_eq!(zeros(7), Some((7, Wrong::Zero)));
    assert_eq!(zeros(0), None);
    // The first of the batch, whatever it is, and of several kinds the larger in one row.
    let mut slot = Slot::default();
    let rows = [1.0, f32::MAX, f32::INFINITY, f32::NAN];
    sentinel::twin(&rows, 2, 10, &mut slot);
    assert_eq!(slot.first_wrong(), Some((10, Wrong::Saturated)));
    assert_eq!(slot.first, [!11, 0, !10, 0]);
}
