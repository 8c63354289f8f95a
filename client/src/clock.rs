//! The time of day, injected. Timers are tokio's: a simulation pauses them and hands out a clock
//! that moves with them, so that both stand still or leap together.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

/// Where the time of day comes from.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    simulated: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// Begins at `start` and moves with tokio's (paused) time. Within a tokio runtime only.
    pub fn simulated(start: Timestamp) -> Self {
        Self { simulated: Some((start, Instant::now())) }
    }

    pub fn now(&self) -> Timestamp {
        let Some((start, since)) = self.simulated else { return Timestamp::now() };
        start.checked_add(since.elapsed()).unwrap_or(Timestamp::MAX)
    }

    /// Now, as an API object holds it: in whole seconds.
    pub fn time(&self) -> Time {
        let now = self.now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_moves_with_the_timers() {
        let start = Timestamp::UNIX_EPOCH;
        let clock = Clock::simulated(start);
        assert_eq!(clock.now(), start);
        tokio::time::sleep(Duration::from_millis(90_500)).await;
        assert_eq!(clock.now().as_millisecond(), 90_500);
        assert_eq!(clock.time().0.as_millisecond(), 90_000);
    }
}
