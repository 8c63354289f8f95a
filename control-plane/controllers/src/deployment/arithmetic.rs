//! How many: the numbers of a rolling update, without anything else.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The bounds of a rollout, resolved to counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// `spec.replicas`.
    pub replicas: i32,
    pub rolling: bool,
    pub surge: i32,
    pub unavailable: i32,
}

impl Bounds {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        let rolling = strategy.and_then(|it| it.type_.as_deref()) != Some("Recreate");
        if !rolling {
            return Self { replicas, rolling, surge: 0, unavailable: 0 };
        }
        let update = strategy.and_then(|it| it.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = update.and_then(|it| it.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = update.and_then(|it| it.max_unavailable.as_ref()).unwrap_or(&quarter);
        Self::rolling(replicas, surge, unavailable)
    }

    /// Surge rounds up, unavailable down; that both be 0 would never get anywhere.
    pub fn rolling(replicas: i32, surge: &IntOrString, unavailable: &IntOrString) -> Self {
        let surge = scaled(surge, replicas, true);
        let mut unavailable = scaled(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, rolling: true, surge, unavailable: unavailable.min(replicas) }
    }

    /// The most pods there may be at once.
    pub fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// The fewest that have to be available.
    pub fn fewest(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    let number = match value {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(text) => {
            let Some(percent) = text.strip_suffix('%').and_then(|it| it.parse::<i64>().ok()) else {
                return 0;
            };
            let product = percent.saturating_mul(i64::from(total));
            if up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) }
        }
    };
    i32::try_from(number.clamp(0, i64::from(i32::MAX))).unwrap_or(i32::MAX)
}

/// What counts of one replica set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// `spec.replicas`.
    pub wanted: i32,
    pub available: i32,
}

fn wanted(sets: &[Size]) -> i32 {
    sets.iter().fold(0, |sum, set| sum.saturating_add(set.wanted))
}

/// How big the new set shall be, given all sets (itself among them).
pub fn new_size(bounds: &Bounds, new: i32, all: &[Size]) -> i32 {
    if !bounds.rolling {
        return bounds.replicas;
    }
    let total = wanted(all);
    if total >= bounds.most() {
        return new;
    }
    new + (bounds.most() - total).min(bounds.replicas - new)
}

/// How big the old sets (oldest first) shall be: first without what is not available anyway, then
/// as small as availability allows.
pub fn old_sizes(bounds: &Bounds, new: Size, old: &[Size]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|set| set.wanted).collect();
    let total = wanted(old).saturating_add(new.wanted);
    let may_go = total - bounds.fewest() - (new.wanted - new.available);
    if may_go <= 0 {
        return sizes;
    }
    let mut left = may_go;
    for (size, set) in sizes.iter_mut().zip(old) {
        let unhealthy = (*size - set.available).clamp(0, left);
        *size -= unhealthy;
        left -= unhealthy;
    }
    let available = old.iter().fold(new.available, |sum, set| sum.saturating_add(set.available));
    let mut left = (available - bounds.fewest()).max(0);
    for size in &mut sizes {
        let fewer = (*size).min(left);
        *size -= fewer;
        left -= fewer;
    }
    sizes
}

/// One replica set in proportional scaling.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub wanted: i32,
    /// The most pods the Deployment was allowed when the set was last scaled.
    pub most: Option<i32>,
}

/// Spreads a change of the number of replicas over the active sets, in the order given (the
/// largest first), in proportion to their sizes; the first takes what rounding leaves.
pub fn proportional(bounds: &Bounds, status_replicas: i32, shares: &[Share]) -> Vec<i32> {
    let allowed = if bounds.replicas > 0 { bounds.most() } else { 0 };
    let total = shares.iter().fold(0_i32, |sum, share| sum.saturating_add(share.wanted));
    let to_add = allowed - total;
    let mut added = 0;
    let mut sizes: Vec<i32> = shares.iter().map(|share| share.wanted).collect();
    if to_add != 0 {
        for (size, share) in sizes.iter_mut().zip(shares) {
            let part = proportion(bounds, status_replicas, share, to_add, added);
            *size += part;
            added += part;
        }
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sizes
}

fn proportion(bounds: &Bounds, status_replicas: i32, share: &Share, to_add: i32, added: i32) -> i32 {
    if share.wanted == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if bounds.replicas == 0 {
        -share.wanted
    } else {
        let before = share.most.filter(|most| *most > 0).unwrap_or(status_replicas);
        if before <= 0 {
            0
        } else {
            let size = f64::from(share.wanted) * f64::from(bounds.most()) / f64::from(before);
            // Half away from zero, as is usual.
            (size.round() as i32) - share.wanted
        }
    };
    let allowed = to_add - added;
    // Annotations may say anything: no set goes the other way.
    if to_add > 0 { fraction.clamp(0, allowed) } else { fraction.clamp(allowed, 0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percent(n: i32) -> IntOrString {
        IntOrString::String(format!("{n}%"))
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        for (replicas, surge, unavailable, expected) in [
            (10, percent(25), percent(25), (3, 2)),
            (1, percent(25), percent(25), (1, 0)),
            (3, percent(25), percent(25), (1, 0)),
            (4, percent(25), percent(25), (1, 1)),
            (10, IntOrString::Int(0), percent(5), (0, 1)),
            (2, IntOrString::Int(0), IntOrString::Int(5), (0, 2)),
            (0, percent(25), percent(25), (0, 0)),
            (5, percent(100), percent(100), (5, 5)),
        ] {
            let bounds = Bounds::rolling(replicas, &surge, &unavailable);
            assert_eq!((bounds.surge, bounds.unavailable), expected, "{replicas} {surge:?} {unavailable:?}");
        }
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        let bounds = Bounds::rolling(10, &IntOrString::Int(3), &IntOrString::Int(2));
        let all = [Size { wanted: 10, available: 10 }, Size::default()];
        assert_eq!(new_size(&bounds, 0, &all), 3);
        assert_eq!(new_size(&bounds, 3, &[Size { wanted: 8, available: 8 }, Size { wanted: 3, available: 0 }]), 5);
        assert_eq!(new_size(&bounds, 10, &[Size { wanted: 10, available: 4 }]), 10);
        let recreate = Bounds { replicas: 7, rolling: false, surge: 0, unavailable: 0 };
        assert_eq!(new_size(&recreate, 0, &[]), 7);
    }

    #[test]
    fn old_sets_lose_the_unhealthy_first() {
        let bounds = Bounds::rolling(10, &IntOrString::Int(0), &IntOrString::Int(5));
        let old = [Size { wanted: 5, available: 5 }, Size { wanted: 5, available: 0 }];
        assert_eq!(old_sizes(&bounds, Size::default(), &old), [5, 0]);
        let new = Size { wanted: 5, available: 0 };
        assert_eq!(old_sizes(&bounds, new, &[Size { wanted: 5, available: 5 }]), [5]);
        let new = Size { wanted: 5, available: 2 };
        assert_eq!(old_sizes(&bounds, new, &[Size { wanted: 5, available: 5 }]), [3]);
    }

    #[test]
    fn scaling_in_mid_rollout_keeps_proportions() {
        // 10 replicas with surge 3, 8 old and 5 new; then 15 are wanted.
        let bounds = Bounds::rolling(15, &IntOrString::Int(3), &IntOrString::Int(2));
        let shares = [Share { wanted: 8, most: Some(13) }, Share { wanted: 5, most: Some(13) }];
        assert_eq!(proportional(&bounds, 13, &shares), [11, 7]);
        let down = Bounds::rolling(5, &IntOrString::Int(3), &IntOrString::Int(2));
        assert_eq!(proportional(&down, 13, &shares), [5, 3]);
        let none = Bounds::rolling(0, &IntOrString::Int(3), &IntOrString::Int(2));
        assert_eq!(proportional(&none, 13, &shares), [0, 0]);
    }

    proptest! {
        #[test]
        fn proportional_scaling_adds_up(
            replicas in 0_i32..200,
            surge in 0_i32..50,
            parts in prop::collection::vec((1_i32..100, 1_i32..300), 1..6),
        ) {
            let bounds = Bounds::rolling(replicas, &IntOrString::Int(surge), &IntOrString::Int(1));
            let mut shares: Vec<Share> = parts
                .into_iter().map(|(wanted, most)| Share { wanted, most: Some(most) }).collect();
            shares.sort_by_key(|share| -share.wanted);
            let sizes = proportional(&bounds, 1, &shares);
            prop_assert!(sizes.iter().all(|size| *size >= 0), "{sizes:?}");
            let allowed = if replicas == 0 { 0 } else { bounds.most() };
            let total: i32 = sizes.iter().sum();
            let before: i32 = shares.iter().map(|share| share.wanted).sum();
            if before <= allowed {
                prop_assert_eq!(total, allowed);
            } else {
                prop_assert!(total >= allowed.min(before) && total <= before);
            }
        }

        /// Whatever becomes available and when: a rollout keeps within its bounds and ends.
        #[test]
        fn a_rollout_keeps_its_bounds_and_ends(
            replicas in 1_i32..40,
            surge in 0_i32..60,
            unavailable in 0_i32..60,
            ready in prop::collection::vec(0_i32..6, 1..20),
            broken in 0_i32..10,
        ) {
            let bounds = Bounds::rolling(replicas, &percent(surge), &percent(unavailable));
            let mut new = Size::default();
            let mut old = [Size { wanted: replicas, available: (replicas - broken).max(0) }];
            let healthy_before = old[0].available;
            let mut steps = 0;
            for may in ready.iter().cycle() {
                steps += 1;
                prop_assert!(steps < 2000, "never ends: {bounds:?} {new:?} {old:?}");
                let size = new_size(&bounds, new.wanted, &[old[0], new]);
                prop_assert!(size >= new.wanted && size <= replicas);
                new.wanted = size;
                prop_assert!(new.wanted + old[0].wanted <= bounds.most().max(replicas));
                let sizes = old_sizes(&bounds, new, &old);
                prop_assert!(sizes[0] <= old[0].wanted && sizes[0] >= 0);
                old[0].wanted = sizes[0];
                // The ones that are not available go first.
                old[0].available = old[0].available.min(old[0].wanted);
                prop_assert!(new.available + old[0].available >= bounds.fewest().min(healthy_before));
                new.available = new.wanted.min(new.available + may);
                if new.available == replicas && old[0].wanted == 0 {
                    break;
                }
                if ready.iter().all(|may| *may == 0) {
                    break;
                }
            }
        }
    }
}
