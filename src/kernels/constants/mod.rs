//! A kernel's parameters as a part of its text.

use std::fmt;

/// The words of a kernel's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Constants {
    words: [u32; Constants::MOST],
}

impl fmt::Display for Constants {
    /// The words up to the last that is not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.words.iter().rposition(|&word| word != 0);
        write!(f, "{:?}", &self.words[..end.map_or(0, |last| last + 1)])
    }
}

impl Constants {
    const MOST: usize = 36;

    /// Of the parameters' bytes; `None` where they are too many.
    pub(crate) fn new(params: &[u8]) -> Option<Constants> {
        let given: Vec<u32> = bytemuck::pod_collect_to_vec(params);
        let mut words = [0; Constants::MOST];
        words.get_mut(..given.len())?.copy_from_slice(&given);
        Some(Constants { words })
    }

    /// `wgsl` with its uniform `p` as a constant.
    pub(super) fn put_into(&self, wgsl: &str) -> String {
        const UNIFORM: &str = "@group(0) @binding(1) var<uniform> p: Params;";
        let (_, members) = wgsl.split_once("struct Params {").unwrap_or_default();
        let (members, _) = members.split_once('}').unwrap_or_default();
        let mut words = self.words.iter();
        let mut next = || words.next().copied().unwrap_or_default();
        let mut values = Vec::new();
        for member in members.lines() {
            let Some((_, ty)) = member.split_once(": ") else {
                continue;
            };
            let ty = ty.split(',').next().unwrap_or_default();
            values.push(match ty {
                "f32" => format!("{:e}f", f32::from_bits(next())),
                "vec2<u32>" => format!("vec2({}u, {}u)", next(), next()),
                "vec4<u32>" => format!("vec4({}u, {}u, {}u, {}u)", next(), next(), next(), next()),
                "Matrix" => {
                    let [n_rows, first_row, units, team] = [next(), next(), next(), next()];
                    let planes = [next(), next(), next(), next()].map(|plane| format!("{plane}u"));
                    let planes = planes.join(", ");
                    format!("Matrix({n_rows}u, {first_row}u, {units}u, {team}u, vec4({planes}))")
                }
                "u32" => format!("{}u", next()),
                // The kernels' tests see that there is none.
                other => format!("`{other}` cannot be a constant"),
            });
        }
        let constant = format!("const p = Params({});", values.join(", "));
        wgsl.replace(UNIFORM, &constant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WGSL: &str = "
struct Params {
    matrix: Matrix,
    stride: u32, // elements: from a row to the next
    eps: f32,
    pair: vec2<u32>,
    @size(16) planes: vec4<u32>,
}

@group(0) @binding(1) var<uniform> p: Params;
fn main() {}
";

    #[test]
    fn the_uniform_becomes_a_constant_of_its_words() {
        let mut words: Vec<u32> = (1..=16).collect();
        words[9] = 1e-5_f32.to_bits();
        let constants = Constants::new(bytemuck::cast_slice(&words)).unwrap();
        let text = constants.put_into(WGSL);
        let constant = "const p = Params(Matrix(1u, 2u, 3u, 4u, vec4(5u, 6u, 7u, 8u)), 9u, 1e-5f, \
                        vec2(11u, 12u), vec4(13u, 14u, 15u, 16u));\nfn main() {}\n";
        assert!(
            text.ends_with(constant) && !text.contains("uniform"),
            "{text}"
        );
    }

    #[test]
    fn too_many_words_are_refused() {
        assert!(Constants::new(&[0; Constants::MOST * 4]).is_some());
        assert!(Constants::new(&[0; Constants::MOST * 4 + 4]).is_none());
    }
}
