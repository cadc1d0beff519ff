//! The report as a picture: latency and drops over time, and latency by percentile.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::latency::micros;
use crate::report::{LATE_US, Report, milliseconds};
use crate::timeline::Slice;

const SIZE: (u32, u32) = (1200, 860);
const HEAD_PIXELS: i32 = 60;
const TIMELINE_PIXELS: i32 = 420;
const COMMAND_CHARACTERS_MAX: usize = 70;
/// About as many points as there are pixels to tell them apart.
const POINTS_MAX: usize = 1100;

const LATENCY: RGBColor = RGBColor(31, 99, 166);
const AFTER: RGBColor = RGBColor(214, 112, 0);
const DROPPED: RGBColor = RGBColor(208, 0, 32);
const LATE: RGBColor = RGBColor(190, 160, 225);
const UPGRADE: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Whether a picture can be written there: before the run, and not only after it.
pub(crate) fn try_path(path: &Path) -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| format!("--svg {}: {error}", path.display()))
}

/// Where the picture of the run of this number goes, counted from 0.
pub(crate) fn path_of(path: &Path, run: usize) -> PathBuf {
    if run == 0 {
        return path.to_path_buf();
    }
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().to_string();
    let name = format!("{}-{}", text(path.file_stem()), run + 1);
    match path.extension() {
        None => path.with_file_name(name),
        Some(extension) => path.with_file_name(format!("{name}.{}", text(Some(extension)))),
    }
}

pub(crate) fn write(report: &Report, path: &Path) -> Result<(), String> {
    let picture = draw(report).map_err(|error| format!("the picture: {error}"))?;
    std::fs::write(path, picture).map_err(|error| format!("--svg {}: {error}", path.display()))
}

fn draw(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, panels) = root.split_vertically(HEAD_PIXELS);
        let (timeline, percentiles) = panels.split_vertically(TIMELINE_PIXELS);
        draw_head(report, &head)?;
        draw_timeline(report, &timeline)?;
        draw_percentiles(report, &percentiles)?;
        root.present()?;
    }
    Ok(picture)
}

fn draw_head(report: &Report, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let options = &report.options;
    let title = format!("{} ({})", options.label(), options.protocol.name());
    let mut line = format!(
        "{} upgrades by {}, {} short connections a second, {} long ones, {} dropped",
        report.storm.sent,
        shortened(&options.trigger.to_string()),
        options.short_rate,
        options.long_connections,
        report.load.drops.total()
    );
    if report.generator_was_late() {
        line.push_str("; the generator itself was late");
    }
    area.draw(&Text::new(title, (24, 12), (FONT, 20).into_font()))?;
    area.draw(&Text::new(line, (24, 38), (FONT, 14).into_font()))?;
    Ok(())
}

fn shortened(text: &str) -> String {
    match text.chars().count() > COMMAND_CHARACTERS_MAX {
        true => format!("{}...", text.chars().take(COMMAND_CHARACTERS_MAX).collect::<String>()),
        false => text.to_string(),
    }
}

/// Latencies are drawn by their logarithm: each line of the grid is ten times the one below.
struct Decades {
    least: i32,
    most: i32,
}

impl Decades {
    fn around(values_us: impl Iterator<Item = u64>) -> Decades {
        let (mut least, mut most) = (u64::MAX, 1);
        for value in values_us.filter(|value| *value > 0) {
            (least, most) = (least.min(value), most.max(value));
        }
        let least = if least == u64::MAX { 1 } else { least };
        let least = (least as f64).log10().floor() as i32;
        let most = ((most as f64).log10() + 0.1).ceil() as i32;
        Decades { least, most: most.max(least + 1) }
    }

    fn axis(&self) -> Axis {
        let marks = (self.least..=self.most).map(f64::from).collect();
        Axis { range: self.bottom()..self.top(), marks }
    }

    fn top(&self) -> f64 {
        self.most.into()
    }

    fn bottom(&self) -> f64 {
        self.least.into()
    }
}

/// An axis with marks where they are wanted, and nowhere else.
struct Axis {
    range: Range<f64>,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // The fine lines between the marks are not drawn.
        if hint.weight().allow_light_points() { Vec::new() } else { self.marks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn place(value_us: u64) -> f64 {
    (value_us.max(1) as f64).log10()
}

fn name_of_decade(place: &f64) -> String {
    let value_us = 10_f64.powf(*place).round();
    match value_us {
        value if value < 1e3 => format!("{value} µs"),
        value if value < 1e6 => format!("{} ms", value / 1e3),
        value => format!("{} s", value / 1e6),
    }
}

fn draw_timeline(report: &Report, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let latency = &report.load.latency;
    let (length, slices) = latency.timeline.in_slices(POINTS_MAX);
    let decades = Decades::around(slices.iter().map(|slice| slice.worst_us));
    let seconds = report.elapsed.as_secs_f64().max(0.1);
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(30)
        .margin_top(30)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..seconds, decades.axis())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_desc("time since the start of the load, seconds")
        .x_label_formatter(&|seconds| format!("{seconds:.1}"))
        .y_desc("worst latency")
        .y_label_formatter(&name_of_decade)
        .label_style((FONT, 13))
        .draw()?;
    let since = |at: std::time::Instant| at.saturating_duration_since(report.began).as_secs_f64();
    let upgrades: Vec<f64> = latency.windows.signals().map(since).collect();
    chart.draw_series(upgrades.iter().map(|at| {
        PathElement::new(vec![(*at, decades.bottom()), (*at, decades.top())], UPGRADE.mix(0.45))
    }))?;
    // In the middle of the time that it stands for.
    let middle = |index: usize| (index as f64 + 0.5) * length.as_secs_f64();
    let late = |(_, slice): &(usize, &Slice)| slice.late_us >= LATE_US;
    chart.draw_series(slices.iter().enumerate().filter(late).map(|(index, slice)| {
        Circle::new((middle(index), place(slice.late_us)), 4, LATE.filled())
    }))?;
    let shown = |(_, slice): &(usize, &Slice)| slice.worst_us > 0;
    chart.draw_series(slices.iter().enumerate().filter(shown).map(|(index, slice)| {
        Circle::new((middle(index), place(slice.worst_us)), 2, LATENCY.filled())
    }))?;
    let dropped = |(_, slice): &(usize, &Slice)| slice.dropped > 0;
    chart.draw_series(slices.iter().enumerate().filter(dropped).map(|(index, _)| {
        Cross::new((middle(index), decades.top()), 5, DROPPED.stroke_width(2))
    }))?;
    let drops = report.load.drops.total();
    legend(
        area,
        &[
            (LATENCY, format!("worst latency in {} ms", milliseconds(length))),
            (LATE, format!("generator itself late, if by {} ms or more", LATE_US / 1000)),
            (UPGRADE, format!("upgrade asked for ({})", upgrades.len())),
            (DROPPED, format!("dropped ({drops})")),
        ],
    )
}

/// Above a panel: what its colours stand for.
fn legend(
    area: &Area<'_>,
    entries: &[(RGBColor, String)],
) -> Result<(), Box<dyn std::error::Error>> {
    let mut left = 92;
    for (colour, text) in entries {
        area.draw(&Rectangle::new([(left, 12), (left + 12, 20)], colour.filled()))?;
        area.draw(&Text::new(text.clone(), (left + 18, 10), (FONT, 13).into_font()))?;
        left += 50 + 8 * i32::try_from(text.chars().count()).unwrap_or(0);
    }
    Ok(())
}

/// The places of percentiles: each nine takes as much room as the one before.
const PERCENTILES: [(f64, &str); 6] = [
    (0.0, "0 %"),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (0.9999, "99.99 %"),
];
const LAST_PLACE: f64 = 4.2;
const STEPS: u32 = 400;

fn place_of_quantile(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn draw_percentiles(report: &Report, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let latency = &report.load.latency;
    let window = Duration::from_micros(micros(report.options.window));
    let curves = [
        (LATENCY, format!("before any upgrade ({} requests)", latency.calm.len()), &latency.calm),
        (
            AFTER,
            format!(
                "within {} ms after an upgrade ({} requests)",
                milliseconds(window),
                latency.after_signal.len()
            ),
            &latency.after_signal,
        ),
    ];
    let bounds = curves.iter().filter(|(.., histogram)| !histogram.is_empty());
    let decades = Decades::around(
        bounds.flat_map(|(.., histogram)| [histogram.min().max(1), histogram.max()]),
    );
    let marks = PERCENTILES.map(|(quantile, _)| place_of_quantile(quantile)).to_vec();
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(30)
        .margin_top(30)
        .margin_bottom(8)
        .x_label_area_size(46)
        .y_label_area_size(76)
        .build_cartesian_2d(Axis { range: 0.0..LAST_PLACE, marks }, decades.axis())?;
    let name = |place: &f64| {
        let near =
            |(quantile, _): &&(f64, &str)| (place_of_quantile(*quantile) - place).abs() < 0.01;
        PERCENTILES.iter().find(near).map_or(String::new(), |(_, name)| (*name).to_string())
    };
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .x_desc("percentile: this part of the requests was answered as fast, or faster")
        .x_label_formatter(&name)
        .y_desc("latency")
        .y_label_formatter(&name_of_decade)
        .label_style((FONT, 13))
        .draw()?;
    for (colour, _, histogram) in &curves {
        chart.draw_series(LineSeries::new(curve(histogram), colour.stroke_width(2)))?;
    }
    legend(area, &curves.map(|(colour, text, _)| (colour, text)))
}

/// No further than there are requests to tell percentiles apart.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let last = (histogram.len() as f64).log10().min(LAST_PLACE);
    let at = |step: u32| {
        let x = last * f64::from(step) / f64::from(STEPS);
        (x, place(histogram.value_at_quantile(1.0 - 10_f64.powf(-x))))
    };
    (0..=STEPS).map(at).collect()
}
