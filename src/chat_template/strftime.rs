//! `strftime_now`: the date for prompts that begin with it.
//!
//! In UTC, since the standard library does not know the local time zone; the few directives that
//! chat templates use do not make a date library worth its weight.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// `time` in UTC by a format of C's `strftime`, names in English.
pub(super) fn utc(format: &str, time: SystemTime) -> Result<String, Error> {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs_f64().ceil() as i64),
    };
    let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
    );
    // 1 January 1970 was a Thursday.
    let day_name = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let hour_of_12 = (hour + 11) % 12 + 1;

    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        // A hyphen drops the zeros in front, as in glibc.
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        let two_digits = |n: i64| {
            if unpadded {
                n.to_string()
            } else {
                format!("{n:02}")
            }
        };
        text.push_str(&match directive {
            Some('Y') => format!("{year:04}"),
            Some('y') => two_digits(year.rem_euclid(100)),
            Some('m') => two_digits(month),
            Some('d') => two_digits(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two_digits(hour),
            Some('I') => two_digits(hour_of_12),
            Some('M') => two_digits(minute),
            Some('S') => two_digits(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let directive = other.map_or(String::new(), String::from);
                let message = format!("strftime_now: `%{directive}` is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(text)
}

/// Year, month and day of the day that lies `days` after 1 January 1970, Gregorian.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`: years
/// begin in March, so that the leap day is a year's last, and repeat every 400.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (
        days.div_euclid(DAYS_OF_400_YEARS),
        days.rem_euclid(DAYS_OF_400_YEARS),
    );
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn utc_shows_known_instants() {
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        // Expected values from Python 3: `datetime.fromtimestamp(n, timezone.utc).strftime(..)`.
        let long = "%A %d %B %Y %H:%M:%S, %a %b %y %I %p %-d %%";
        for (seconds, expected) in [
            (0, "Thursday 01 January 1970 00:00:00, Thu Jan 70 12 AM 1 %"),
            (
                951_782_400,
                "Tuesday 29 February 2000 00:00:00, Tue Feb 00 12 AM 29 %",
            ),
            (
                1_767_323_045,
                "Friday 02 January 2026 03:04:05, Fri Jan 26 03 AM 2 %",
            ),
            (
                4_107_542_399,
                "Sunday 28 February 2100 23:59:59, Sun Feb 00 11 PM 28 %",
            ),
            (
                4_133_980_799,
                "Friday 31 December 2100 23:59:59, Fri Dec 00 11 PM 31 %",
            ),
        ] {
            assert_eq!(utc(long, at(seconds)).unwrap(), expected);
        }
        assert_eq!(
            utc("%F %T", at(1_767_323_045)).unwrap(),
            "2026-01-02 03:04:05"
        );
        assert_eq!(
            utc("%F", UNIX_EPOCH - Duration::from_millis(1)).unwrap(),
            "1969-12-31"
        );
    }

    #[test]
    fn unknown_directives_are_named() {
        let error = utc("%Q", UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("`%Q`"), "{error}");
    }
}
