//! The splits of attention.

use super::tuner::{CAPACITY, Rows, Tuner, unmeasured};
use super::{Entry, Setting, Subject};
use crate::device::wgpu::lower::Probe;
use crate::error::Result;
use crate::kernels::attention_few::Splits;
use std::time::Instant;

impl Tuner<'_> {
    /// The splits of long contexts first, and then where they begin.
    pub(super) fn splits(
        &mut self,
        probe: &Probe<'_>,
        subject: &Subject,
        deadline: Instant,
    ) -> Result<Entry> {
        let Some(rule) = probe.splits_by_rule(subject) else {
            let none = Splits {
                most_whole: usize::MAX,
                n: 1,
            };
            return Ok(unmeasured(Setting::Splits(none)));
        };
        let setting = |most_whole: usize, n| Setting::Splits(Splits { most_whole, n });
        let at = |n_visible| Rows {
            n_rows: 1,
            n_visible,
        };
        let whole = |n| setting(2 * CAPACITY, n);
        let subjects = [subject, subject];
        let others = [rule.n / 2, rule.n / 4].map(|n| setting(rule.most_whole, n.max(2)));
        let by_rule = setting(rule.most_whole, rule.n);
        if rule.most_whole >= self.kv.capacity {
            return Ok(unmeasured(by_rule));
        }
        let rows = at(self.kv.capacity);
        let mut entry = self.search(probe, subjects, by_rule, &others, rows, deadline)?;
        let Setting::Splits(Splits { n, .. }) = entry.chosen else {
            return Ok(entry);
        };
        let mut most_whole = 1;
        for thirds in [1, 2, 3, 4, 6, 8] {
            let positions = rule.most_whole * thirds / 3;
            if positions > self.kv.capacity || !entry.is_complete {
                break;
            }
            let [apart, together] = [setting(1, n), whole(n)];
            let (first, other) = match thirds <= 3 {
                true => (together, apart),
                false => (apart, together),
            };
            let found = self.search(probe, subjects, first, &[other], at(positions), deadline)?;
            entry.is_complete = found.is_complete;
            if found.chosen == apart {
                break;
            }
            most_whole = positions;
        }
        entry.chosen = match entry.is_complete {
            true => setting(most_whole, n),
            false => by_rule,
        };
        Ok(entry)
    }
}
