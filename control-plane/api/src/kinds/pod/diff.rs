//! Unified differences of two texts, matched as the reference matches them: longest blocks first, lines
//! that are all over a long text are no anchors.

use std::collections::HashMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    a: usize,
    b: usize,
    len: usize,
}

struct Matcher<'t> {
    a: Vec<&'t str>,
    b: Vec<&'t str>,
    positions: HashMap<&'t str, Vec<usize>>,
}

impl<'t> Matcher<'t> {
    fn new(a: Vec<&'t str>, b: Vec<&'t str>) -> Self {
        let mut positions: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, line) in b.iter().enumerate() {
            positions.entry(line).or_default().push(i);
        }
        if b.len() >= 200 {
            let popular = b.len() / 100 + 1;
            positions.retain(|_, places| places.len() <= popular);
        }
        Self { a, b, positions }
    }

    fn equal(&self, i: usize, j: usize) -> bool {
        self.a.get(i).is_some_and(|line| self.b.get(j) == Some(line))
    }

    /// The longest block equal in both, the first of several.
    fn longest(&self, a: std::ops::Range<usize>, b: std::ops::Range<usize>) -> Block {
        let mut best = Block { a: a.start, b: b.start, len: 0 };
        let mut lengths: HashMap<usize, usize> = HashMap::new();
        for i in a.clone() {
            let mut next = HashMap::new();
            let places = self.a.get(i).and_then(|line| self.positions.get(line));
            for &j in places.into_iter().flatten().filter(|j| b.contains(j)) {
                let len = j.checked_sub(1).and_then(|before| lengths.get(&before)).copied().unwrap_or(0) + 1;
                next.insert(j, len);
                if len > best.len {
                    best = Block { a: i + 1 - len, b: j + 1 - len, len };
                }
            }
            lengths = next;
        }
        while best.a > a.start && best.b > b.start && self.equal(best.a - 1, best.b - 1) {
            best = Block { a: best.a - 1, b: best.b - 1, len: best.len + 1 };
        }
        while best.a + best.len < a.end && best.b + best.len < b.end && self.equal(best.a + best.len, best.b + best.len)
        {
            best.len += 1;
        }
        best
    }

    /// All equal blocks in order; adjacent ones joined, an empty one at the end.
    fn blocks(&self) -> Vec<Block> {
        let mut found = Vec::new();
        let mut todo = vec![(0..self.a.len(), 0..self.b.len())];
        while let Some((a, b)) = todo.pop() {
            let block = self.longest(a.clone(), b.clone());
            if block.len == 0 {
                continue;
            }
            found.push(block);
            todo.push((a.start..block.a, b.start..block.b));
            todo.push((block.a + block.len..a.end, block.b + block.len..b.end));
        }
        found.sort_by_key(|block| (block.a, block.b));
        let mut joined: Vec<Block> = Vec::new();
        for block in found {
            match joined.last_mut() {
                Some(last) if last.a + last.len == block.a && last.b + last.len == block.b => last.len += block.len,
                _ => joined.push(block),
            }
        }
        joined.push(Block { a: self.a.len(), b: self.b.len(), len: 0 });
        joined
    }
}

#[derive(Clone, Debug)]
struct Step {
    equal: bool,
    a: std::ops::Range<usize>,
    b: std::ops::Range<usize>,
}

const CONTEXT: usize = 3;

fn steps(blocks: &[Block]) -> Vec<Step> {
    let (mut i, mut j) = (0, 0);
    let mut steps = Vec::new();
    for block in blocks {
        if i < block.a || j < block.b {
            steps.push(Step { equal: false, a: i..block.a, b: j..block.b });
        }
        (i, j) = (block.a + block.len, block.b + block.len);
        if block.len > 0 {
            steps.push(Step { equal: true, a: block.a..i, b: block.b..j });
        }
    }
    steps
}

/// Steps in groups, with a few equal lines about each change.
fn groups(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    if let Some(first) = steps.first_mut().filter(|step| step.equal) {
        first.a.start = first.a.start.max(first.a.end.saturating_sub(CONTEXT));
        first.b.start = first.b.start.max(first.b.end.saturating_sub(CONTEXT));
    }
    if let Some(last) = steps.last_mut().filter(|step| step.equal) {
        last.a.end = last.a.end.min(last.a.start + CONTEXT);
        last.b.end = last.b.end.min(last.b.start + CONTEXT);
    }
    let (mut groups, mut group) = (Vec::new(), Vec::new());
    for mut step in steps {
        if step.equal && step.a.len() > 2 * CONTEXT {
            let (a_end, b_end) = (step.a.end, step.b.end);
            let mut head = step.clone();
            head.a.end = head.a.end.min(head.a.start + CONTEXT);
            head.b.end = head.b.end.min(head.b.start + CONTEXT);
            group.push(head);
            groups.push(std::mem::take(&mut group));
            step.a.start = step.a.start.max(a_end.saturating_sub(CONTEXT));
            step.b.start = step.b.start.max(b_end.saturating_sub(CONTEXT));
        }
        group.push(step);
    }
    if group.iter().any(|step| !step.equal) {
        groups.push(group);
    }
    groups
}

fn range(range: &std::ops::Range<usize>) -> String {
    match range.len() {
        1 => (range.start + 1).to_string(),
        0 => format!("{},0", range.start),
        len => format!("{},{len}", range.start + 1),
    }
}

/// The lines that differ, between three lines that do not.
pub fn unified(a: &str, b: &str) -> String {
    let matcher = Matcher::new(a.split('\n').collect(), b.split('\n').collect());
    let mut out = String::new();
    for group in groups(steps(&matcher.blocks())) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let (whole_a, whole_b) = (first.a.start..last.a.end, first.b.start..last.b.end);
        out.push_str(&format!("@@ -{} +{} @@\n", range(&whole_a), range(&whole_b)));
        for step in &group {
            let mut lines = |sign: char, lines: Option<&[&str]>| {
                for line in lines.into_iter().flatten() {
                    out.push(sign);
                    out.push_str(line);
                    out.push('\n');
                }
            };
            if step.equal {
                lines(' ', matcher.a.get(step.a.clone()));
            } else {
                lines('-', matcher.a.get(step.a.clone()));
                lines('+', matcher.b.get(step.b.clone()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::unified;

    #[test]
    fn a_changed_line() {
        let diff = unified("1\n2\n3\n4\n5\n6\n7\n8", "1\n2\n3\n4\nfive\n6\n7\n8");
        assert_eq!(diff, "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n");
        assert_eq!(unified("a\nb", "a\nb"), "");
    }

    proptest! {
        /// Taking away what is marked `-` and keeping the rest gives the new text's lines, in order.
        #[test]
        fn marks_every_difference(a in "[ab\n]{0,40}", b in "[ab\n]{0,40}") {
            let diff = unified(&a, &b);
            prop_assert_eq!(a == b, diff.is_empty());
            let count = |sign: char| diff.lines().filter(|line| line.starts_with(sign) && !line.starts_with("@@")).count();
            let lines = |text: &str| text.split('\n').count();
            prop_assert_eq!(lines(&a) + count('+'), lines(&b) + count('-'));
        }
    }
}
