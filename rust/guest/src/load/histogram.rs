//! Latencies in buckets that are at most 1/64 wide.

const SUB: u32 = 6;
const BUCKETS: usize = 64 << SUB;

/// Counts of values, by size, to within 1.6 %.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").field("total", &self.total).field("median", &self.quantile(0.5)).finish()
    }
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Adds what another one has counted.
    pub fn merge(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
    }

    /// The value below which the part `q` (0..=1) of all values lies; 0 if there are none.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((self.total as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle(i);
            }
        }
        0
    }
}

fn bucket(value: u64) -> usize {
    let bits = 64 - value.leading_zeros();
    if bits <= SUB {
        return value as usize;
    }
    let shift = bits - SUB - 1;
    (((shift + 1) << SUB) as u64 + ((value >> shift) - (1 << SUB))) as usize
}

fn middle(bucket: usize) -> u64 {
    let (exponent, fraction) = (bucket >> SUB, (bucket & ((1 << SUB) - 1)) as u64);
    if exponent == 0 {
        return fraction;
    }
    let shift = exponent - 1;
    let start = ((1 << SUB) + fraction) << shift;
    start + ((1u64 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_within_a_bucket() {
        let mut all = Histogram::default();
        assert_eq!(all.quantile(0.5), 0);
        (1..=100_000u64).for_each(|value| all.add(value));
        for (q, want) in [(0.5, 50_000f64), (0.99, 99_000.0), (0.001, 100.0), (1.0, 100_000.0)] {
            let got = all.quantile(q) as f64;
            assert!((got / want - 1.0).abs() < 0.017, "{q}: {got}, not {want}");
        }
        let mut two = Histogram::default();
        two.merge(&all);
        two.merge(&all);
        assert_eq!(two.quantile(0.5), all.quantile(0.5));
    }

    #[test]
    fn every_value_has_a_bucket_and_buckets_keep_the_order() {
        let mut last = 0;
        for value in (0..64).map(|bit| 1u64 << bit).chain([u64::MAX]) {
            let at = bucket(value);
            assert!(at < BUCKETS && at >= last, "{value} in {at}");
            last = at;
        }
    }
}
