//! What a benchmark answers: measured values against what is to be reached and against a peer.

use serde_json::{Value, json};

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    AtLeast(f64),
    AtMost(f64),
    /// At least this many times the peer's value.
    TimesPeer(f64),
    /// Only shown.
    None,
}

/// What somebody else's program gave in the same run.
#[derive(Debug, Clone)]
pub struct Peer {
    pub name: String,
    pub runs: Vec<f64>,
}

/// One line of the table. The value is the median of the runs.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub runs: Vec<f64>,
    pub reach: Reach,
    pub peer: Option<Peer>,
    /// What a reader of the figure should know: cost of the load generator, latencies, sizes.
    pub notes: Vec<String>,
}

impl Row {
    pub fn new(name: &'static str, unit: &'static str, runs: Vec<f64>, reach: Reach) -> Self {
        Self { name, unit, runs, reach, peer: None, notes: Vec::new() }
    }

    pub fn peer(mut self, name: impl Into<String>, runs: Vec<f64>) -> Self {
        self.peer = Some(Peer { name: name.into(), runs });
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    pub fn value(&self) -> f64 {
        median(&self.runs)
    }

    pub fn peer_value(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| median(&peer.runs))
    }

    pub fn ratio(&self) -> Option<f64> {
        self.peer_value().filter(|peer| *peer != 0.0).map(|peer| self.value() / peer)
    }

    /// What is to be reached, in the row's unit; none where that depends on a peer that is not here.
    pub fn reach_value(&self) -> Option<f64> {
        match self.reach {
            Reach::AtLeast(value) | Reach::AtMost(value) => Some(value),
            Reach::TimesPeer(times) => self.peer_value().map(|peer| peer * times),
            Reach::None => None,
        }
    }

    pub fn met(&self) -> Option<bool> {
        let reach = self.reach_value()?;
        Some(match self.reach {
            Reach::AtMost(_) => self.value() <= reach,
            _ => self.value() >= reach,
        })
    }

    /// As `results.json` has it.
    pub fn json(&self, commit: &str, machine: &Value) -> Value {
        json!({
            "name": self.name,
            "value": round(self.value()),
            "unit": self.unit,
            "reach": self.reach_value().map(round),
            "met": self.met(),
            "peer": self.peer.as_ref().map(|peer| &peer.name),
            "peer_value": self.peer_value().map(round),
            "ratio": self.ratio().map(round),
            "commit": commit,
            "machine": machine,
        })
    }
}

/// The middle value; of an even number the mean of the two in the middle. Zero of none.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Linear between the neighbours, as most tools do it. Zero of none.
pub fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let position = at.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (position.floor(), position.ceil());
    match (sorted.get(low as usize), sorted.get(high as usize)) {
        (Some(below), Some(above)) => below + (above - below) * (position - low),
        _ => 0.0,
    }
}

/// Four significant figures: more would claim what was not measured.
pub fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let factor = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 10.0]), 2.5);
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!(quantile(&hundred, 1.0), 100.0);
        assert_eq!(quantile(&hundred, 7.0), 100.0);
    }

    #[test]
    fn four_figures_are_kept() {
        assert_eq!(round(12345.678), 12350.0);
        assert_eq!(round(0.0123456), 0.01235);
        assert_eq!(round(-1.00004), -1.0);
        assert_eq!(round(999.96), 1000.0);
        assert_eq!(round(0.0), 0.0);
        assert_eq!(round(f64::NAN), 0.0);
    }

    #[test]
    fn a_reach_is_met_from_its_own_side() {
        let row = |reach| Row::new("a", "ms", vec![10.0, 30.0, 20.0], reach);
        assert_eq!(row(Reach::AtMost(20.0)).met(), Some(true));
        assert_eq!(row(Reach::AtMost(19.9)).met(), Some(false));
        assert_eq!(row(Reach::AtLeast(20.0)).met(), Some(true));
        assert_eq!(row(Reach::AtLeast(20.1)).met(), Some(false));
        assert_eq!(row(Reach::None).met(), None);
        // Of a peer that is not here nothing is claimed.
        assert_eq!(row(Reach::TimesPeer(0.9)).met(), None);
        assert_eq!(row(Reach::TimesPeer(0.9)).peer("b", vec![22.0]).met(), Some(true));
        assert_eq!(row(Reach::TimesPeer(0.9)).peer("b", vec![23.0]).met(), Some(false));
    }

    #[test]
    fn results_have_the_promised_fields() {
        let machine = json!({ "cpus": 2 });
        let row = Row::new("a", "x/s", vec![50.0], Reach::TimesPeer(0.4)).peer("b", vec![100.0]);
        assert_eq!(
            row.json("abc", &machine),
            json!({ "name": "a", "value": 50.0, "unit": "x/s", "reach": 40.0, "met": true, "peer": "b",
                "peer_value": 100.0, "ratio": 0.5, "commit": "abc", "machine": { "cpus": 2 } })
        );
        let alone = Row::new("a", "x/s", vec![50.0], Reach::AtLeast(1.0)).json("abc", &machine);
        for field in ["peer", "peer_value", "ratio"] {
            assert!(alone.get(field).is_some_and(Value::is_null), "{field}");
        }
    }
}
