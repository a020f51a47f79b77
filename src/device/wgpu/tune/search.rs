//! The fastest of some candidates, by times that vary.

use crate::error::Result;
use std::cmp::Ordering;

/// Another candidate than the rule's must take this share of the rule's time, or less: medians of a few runs differ by
/// some percent for no reason.
pub(super) const WORTH_IT: f64 = 0.95;
/// Candidates that are measured again beside the rule's.
const FINALISTS: usize = 2;
/// As often.
const ROUNDS: usize = 5;

/// What a search came to.
#[derive(Debug)]
pub(super) struct Found<T> {
    pub(super) chosen: T,
    /// The rule's first, then the others in the order of trial.
    pub(super) trials: Vec<(T, f64)>,
    pub(super) is_complete: bool,
}

/// Times the rule's candidate and the others, and then the fastest of them in turns with the rule's. `time` gives `None`
/// once there is no time left: then nothing but what was measured to the end can win.
///
/// # Errors
/// Those of `time`.
pub(super) fn search<T: Copy + PartialEq>(
    rule: T,
    others: &[T],
    mut time: impl FnMut(T) -> Result<Option<f64>>,
) -> Result<Found<T>> {
    let mut found = Found {
        chosen: rule,
        trials: Vec::new(),
        is_complete: false,
    };
    let others = others.iter().filter(|&&other| other != rule);
    let mut is_cut = false;
    for candidate in std::iter::once(&rule).chain(others) {
        match time(*candidate)? {
            Some(time) => found.trials.push((*candidate, time)),
            None => is_cut = true,
        }
        if is_cut {
            break;
        }
    }
    let mut places: Vec<usize> = (1..found.trials.len()).collect();
    places.sort_by(|&a, &b| by_time(found.trials[a].1, found.trials[b].1));
    places.truncate(FINALISTS);
    let may_win = |&place: &usize| found.trials[place].1 < found.trials[0].1;
    if is_cut || !places.first().is_some_and(may_win) {
        found.is_complete = !is_cut;
        return Ok(found);
    }
    places.insert(0, 0);
    let mut times = vec![Vec::new(); places.len()];
    for _ in 0..ROUNDS {
        for (place, times) in places.iter().zip(&mut times) {
            match time(found.trials[*place].0)? {
                Some(time) => times.push(time),
                None => return Ok(found),
            }
        }
    }
    for (place, times) in places.iter().zip(&mut times) {
        found.trials[*place].1 = median(times);
    }
    let best = places
        .iter()
        .min_by(|&&a, &&b| by_time(found.trials[a].1, found.trials[b].1));
    if let Some(&best) = best
        && found.trials[best].1 < WORTH_IT * found.trials[0].1
    {
        found.chosen = found.trials[best].0;
    }
    found.is_complete = true;
    Ok(found)
}

fn by_time(a: f64, b: f64) -> Ordering {
    a.total_cmp(&b)
}

/// That of an odd number of times; infinity of none.
pub(super) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates are numbers, and these their times; each is measured a little longer or shorter every time.
    fn found(times: &[f64], n_measurements: usize) -> Found<usize> {
        let mut n = 0;
        let time = |candidate: usize| {
            n += 1;
            let noise = [1.0, 1.02, 0.98, 1.01][n % 4];
            Ok((n <= n_measurements).then_some(times[candidate] * noise))
        };
        let others: Vec<usize> = (0..times.len()).collect();
        search(0, &others, time).unwrap()
    }

    #[test]
    fn the_fastest_candidate_is_chosen_and_a_slow_one_is_not() {
        let found = found(&[10.0, 30.0, 8.0, 9.0], usize::MAX);
        assert_eq!(found.chosen, 2);
        assert!(found.is_complete);
        let tried: Vec<usize> = found
            .trials
            .iter()
            .map(|(candidate, _)| *candidate)
            .collect();
        assert_eq!(tried, [0, 1, 2, 3]);
    }

    #[test]
    fn the_rule_stays_where_nothing_is_faster_by_more_than_the_noise() {
        assert_eq!(found(&[10.0, 9.7, 9.8, 12.0], usize::MAX).chosen, 0);
        assert_eq!(found(&[10.0], usize::MAX).chosen, 0);
        let slower = found(&[10.0, 12.0], 2);
        assert_eq!((slower.chosen, slower.is_complete), (0, true));
        assert_eq!(found(&[f64::NAN, 1.0], usize::MAX).chosen, 0);
    }

    #[test]
    fn the_rule_stays_where_time_runs_out() {
        let n_measurements = 3 + 3 * ROUNDS;
        for n in 0..n_measurements {
            let found = found(&[10.0, 1.0, 2.0], n);
            assert_eq!((found.chosen, found.is_complete), (0, false), "{n}");
        }
        let found = found(&[10.0, 1.0, 2.0], n_measurements);
        assert_eq!((found.chosen, found.is_complete), (1, true));
    }
}
