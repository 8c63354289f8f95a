//! One write seen by many.

use anyhow::Result;

use super::{Context, each, repeat};
use crate::cluster::Cluster;
use crate::load::{self, Load};
use crate::plot::{Plot, Series};
use crate::row::{Reach, Row, median};

const RUNS: usize = 3;
const WATCHERS: usize = 1000;
const WRITES: usize = 30;

pub async fn run(context: &Context) -> Result<Vec<Row>> {
    let cluster = Cluster::start(&context.program, "server", &[]).await?;
    for number in 0..RUNS {
        super::api::namespace(&cluster, &format!("fan-{number}")).await?;
    }
    let load = |number: usize, watchers| Load::Watch {
        kubeconfig: cluster.kubeconfig(),
        namespace: format!("fan-{number}"),
        watchers,
        writes: WRITES,
    };
    let runs = repeat(RUNS, |number| load(number, WATCHERS)).await?;
    let mut curve = vec![];
    for watchers in [1, 10, 100, 250, 500] {
        let namespace = format!("few-{watchers}");
        super::api::namespace(&cluster, &namespace).await?;
        let kubeconfig = cluster.kubeconfig();
        let outcome = load::run(&Load::Watch { kubeconfig, namespace, watchers, writes: WRITES }).await?;
        curve.push((watchers as f64, outcome.percentile(50), outcome.percentile(99)));
    }
    let p50 = median(&each(&runs, |run| run.percentile(50)));
    let row = Row::new("watch_fanout_p99_ms", "ms", each(&runs, |run| run.percentile(99)), Reach::AtMost(50.0));
    curve.push((WATCHERS as f64, p50, row.value()));
    let series = vec![
        Series { name: "p99".into(), points: curve.iter().map(|point| (point.0, point.2)).collect() },
        Series { name: "p50".into(), points: curve.iter().map(|point| (point.0, point.1)).collect() },
    ];
    Plot { title: "One write until all watchers have read it", x: "watchers", y: "ms", series }
        .save(&context.out, "watch_fanout")?;
    let mut row = row.note(format!("p50 {p50:.1} ms; {WRITES} writes a run, all read by all"));
    if let Some(last) = runs.last() {
        row = row.note(last.cost());
    }
    Ok(vec![row])
}
