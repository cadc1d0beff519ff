//! What several processes have counted, added up: the text format of Prometheus, read and written.

use std::fmt::Write;

/// What a sum says nothing about: these are told for each worker.
const OF_EACH: [&str; 3] =
    ["tablecloth_generation", "tablecloth_uptime_seconds", "tablecloth_service_start_time_seconds"];

/// A name, with what it has besides.
struct Family<'a> {
    name: &'a str,
    /// Its lines of HELP and TYPE.
    head: Vec<&'a str>,
    /// The series, each with its labels, and the number.
    series: Vec<(String, f64)>,
}

impl Family<'_> {
    fn is_gauge(&self) -> bool {
        self.head.iter().any(|line| line.starts_with("# TYPE") && line.ends_with(" gauge"))
    }
}

/// The sums of what these workers tell, in the order in which the first of them tells it. What those have counted that
/// are gone goes on to count; how they stand does not.
pub(super) fn of(texts: &[(u32, &str)], gone: &[&str]) -> String {
    let mut families: Vec<Family<'_>> = Vec::new();
    let there = texts.iter().map(|(worker, text)| (Some(*worker), *text));
    for (worker, text) in there.chain(gone.iter().map(|text| (None, *text))) {
        // The family that the lines belong to: a histogram's series have longer names.
        let mut at = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let Some(name) = rest.split(' ').nth(1) else { continue };
                let place = find(&mut families, name);
                at = Some(place);
                let head = &mut families[place].head;
                if head.len() < 2 && !head.contains(&line) {
                    head.push(line);
                }
                continue;
            }
            let Some((key, number)) = line.rsplit_once(' ') else { continue };
            let Ok(number) = number.parse::<f64>() else { continue };
            let name = key.split('{').next().unwrap_or(key);
            let place = match at {
                Some(place) if name.starts_with(families[place].name) => place,
                Some(_) | None => find(&mut families, name),
            };
            let key = match worker {
                Some(worker) if OF_EACH.contains(&name) => of_worker(key, worker),
                None if families[place].is_gauge() => continue,
                Some(_) | None => key.to_owned(),
            };
            let series = &mut families[place].series;
            match series.iter_mut().find(|(known, _)| *known == key) {
                Some((_, sum)) => *sum += number,
                None => series.push((key, number)),
            }
        }
    }
    let mut text = String::new();
    for Family { head, series, .. } in families {
        head.iter().for_each(|line| text.extend([line, "\n"]));
        for (key, sum) in series {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{key} {sum}");
        }
    }
    text
}

fn find<'a>(families: &mut Vec<Family<'a>>, name: &'a str) -> usize {
    match families.iter().position(|family| family.name == name) {
        Some(place) => place,
        None => {
            families.push(Family { name, head: Vec::new(), series: Vec::new() });
            families.len() - 1
        }
    }
}

/// The same series, with a label more.
fn of_worker(key: &str, worker: u32) -> String {
    match key.split_once('{') {
        Some((name, labels)) => format!("{name}{{worker=\"{worker}\",{labels}"),
        None => format!("{key}{{worker=\"{worker}\"}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_buckets_are_added_up_and_what_is_of_each_stays_of_each() {
        let one = "# HELP c_total Let in.\n# TYPE c_total counter\nc_total{listener=\"a b\"} 2\n\
                   # HELP h_seconds It took.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.1\"} 1\n\
                   h_seconds_bucket{le=\"+Inf\"} 2\nh_seconds_sum 0.5\nh_seconds_count 2\n\
                   # TYPE tablecloth_generation gauge\ntablecloth_generation 3\n";
        let other = "# HELP c_total Let in.\n# TYPE c_total counter\nc_total{listener=\"a b\"} 5\n\
                     c_total{listener=\"new\"} 1\n\
                     # HELP h_seconds It took.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.1\"} 0\n\
                     h_seconds_bucket{le=\"+Inf\"} 4\nh_seconds_sum 1.25\nh_seconds_count 4\n\
                     # TYPE tablecloth_generation gauge\ntablecloth_generation 4\n";
        let expected = "# HELP c_total Let in.\n# TYPE c_total counter\nc_total{listener=\"a b\"} 7\n\
                        c_total{listener=\"new\"} 1\n\
                        # HELP h_seconds It took.\n# TYPE h_seconds histogram\n\
                        h_seconds_bucket{le=\"0.1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 6\n\
                        h_seconds_sum 1.75\nh_seconds_count 6\n\
                        # TYPE tablecloth_generation gauge\ntablecloth_generation{worker=\"1\"} 3\n\
                        tablecloth_generation{worker=\"2\"} 4\n";
        assert_eq!(of(&[(1, one), (2, other)], &[]), expected);
        // What one has counted that has left.
        let both = of(&[(1, one), (2, other)], &[one]);
        assert!(both.contains("c_total{listener=\"a b\"} 9\n"), "{both}");
        assert!(both.contains("h_seconds_count 8\n"), "{both}");
        assert!(both.ends_with("{worker=\"2\"} 4\n") && !both.contains("generation 3\n"), "{both}");
    }

    #[test]
    fn a_sum_of_one_is_what_that_one_tells() {
        let text = "# HELP a_total A.\n# TYPE a_total counter\na_total 9007199254740991\n";
        assert_eq!(of(&[(1, text)], &[]), text);
        assert_eq!(of(&[(1, ""), (2, "nonsense\n# \n#\nx y\n")], &[]), "");
    }
}
