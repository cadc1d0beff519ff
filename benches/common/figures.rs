//! Figures: the middle one, the least one, and how they are printed.

use std::time::Duration;

/// The middle one, or the mean of the two in the middle. Not a number if there are none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// The least one. Not a number if there are none.
pub(crate) fn least(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().min_by(f64::total_cmp).unwrap_or(f64::NAN)
}

pub(crate) fn milliseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A line of a table: a name, and cells that are aligned to the right.
pub(crate) fn line<const N: usize>(name: &str, cells: [String; N]) {
    let cells: String = cells.iter().map(|cell| format!("{cell:>13}")).collect();
    println!("{}", format!("{name:<28}{cells}").trim_end());
}

/// The line above it.
pub(crate) fn head<const N: usize>(name: &str, cells: [&str; N]) {
    line(name, cells.map(String::from));
}
