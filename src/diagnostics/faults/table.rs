//! The table of docs/PROOF.md, made from the faults.

use super::{Fault, Tool, in_file, kernels, on_device, recurrent};

impl Tool {
    fn in_words(self) -> String {
        match self {
            Tool::Verify(checked) => format!("verify: {checked}"),
            Tool::Load => "load".to_owned(),
            Tool::Running => "any answer".to_owned(),
        }
    }
}

fn all() -> Vec<Fault> {
    [
        in_file::faults(),
        on_device::faults(),
        kernels::of_values(),
        kernels::of_tails(),
        kernels::of_attention(),
        kernels::of_choices(),
        recurrent::faults(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn docs_proof_lists_every_fault() {
    let mut rows = vec!["| fault | named by | place |\n|---|---|---|\n".to_owned()];
    for fault in all() {
        let tool = fault.tool.in_words();
        rows.push(format!("| {} | {tool} | `{}` |\n", fault.what, fault.place));
    }
    let table = rows.concat();
    assert!(rows.len() > 25, "{} faults", rows.len() - 1);
    let docs = include_str!("../../../docs/PROOF.md");
    assert!(
        docs.contains(&table),
        "docs/PROOF.md must have this table:\n{table}"
    );
}
