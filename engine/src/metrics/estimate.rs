//! Estimates from sampled spans: weights, what a sampled trace adds to the variance, and 95 % intervals.
//!
//! **Weights.** A span that was kept with probability `p` stands for `1/p` spans.
//!
//! **Variance.** Traces are sampled whole, and independently of each other, so the variance of a sum is the sum over traces. Of one trace
//! with spans of values `y` and weights `w`, the unbiased estimate is `(Σ w·y)² − Σᵢⱼ max(wᵢ, wⱼ)·yᵢ·yⱼ`: all spans of a trace are kept by one
//! random number (OpenTelemetry's consistent probability sampling), so two of them are both kept with the smaller of their probabilities.
//! Where all weights are equal this is `w·(w−1)·(Σ y)²`, that is `(1−p)/p²·(Σ y)²`.
//!
//! **Intervals.** See [`intervals_of_totals`].

use serde::{Deserialize, Serialize};

/// Binary digits of a weight behind the point.
const FRACTION_BITS: u32 = 32;
/// Binary digits of a rejection threshold in `ot=th`.
const THRESHOLD_BITS: u32 = 56;

/// How many spans one span stands for, in steps of 2⁻³²: sums of weights are exact, whatever their order. At most 2⁵⁶.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Weight(pub u128);

impl Weight {
    /// Of a span that was kept for certain.
    pub const ONE: Self = Self(1 << FRACTION_BITS);

    /// Of a span that was kept because its randomness, 56 bits, was not below `threshold`.
    pub fn of_threshold(threshold: u64) -> Self {
        let kept = u128::from((1u64 << THRESHOLD_BITS).saturating_sub(threshold).max(1));
        Self(((1u128 << (THRESHOLD_BITS + FRACTION_BITS)) + kept / 2) / kept)
    }

    /// Of a number that is a probability up to 1 and a weight from 1 on; None for any other.
    pub fn of_number(number: f64) -> Option<Self> {
        let weight = if number < 1.0 { 1.0 / number } else { number };
        let most = (1u64 << THRESHOLD_BITS) as f64;
        (number > 0.0 && weight <= most).then(|| Self((weight * Self::ONE.0 as f64).round() as u128))
    }

    /// The number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Self::ONE.0 as f64
    }

    /// That of `count` such spans.
    pub fn times(self, count: u64) -> Self {
        Self(self.0 * u128::from(count))
    }
}

/// A sum as two numbers.
const SUM_NUMBERS: usize = 2;

impl std::ops::AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// A sum of doubles that carries what rounding lost (Neumaier's summation), so that its order hardly matters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Sum {
    pub sum: f64,
    pub lost: f64,
}

impl Sum {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        if sum.is_finite() {
            self.lost += if self.sum.abs() >= value.abs() { (self.sum - sum) + value } else { (value - sum) + self.sum };
        }
        self.sum = sum;
    }

    /// Adds what another sum has.
    pub fn merge(&mut self, other: &Self) {
        self.add(other.sum);
        self.lost += other.lost;
    }

    /// The sum of all values.
    pub fn total(&self) -> f64 {
        self.sum + self.lost
    }

    /// Reads a sum off the front of `numbers`.
    fn read(numbers: &mut &[f64]) -> Option<Self> {
        let (own, rest) = numbers.split_at_checked(SUM_NUMBERS)?;
        *numbers = rest;
        Some(Self { sum: own[0], lost: own[1] })
    }
}

/// An estimated variance, and how well it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Variance {
    /// What the traces add.
    pub sum: Sum,
    /// The squares of what each of them adds.
    pub squares: Sum,
}

impl Variance {
    /// Adds what a trace adds.
    pub fn add(&mut self, variance: f64) {
        self.sum.add(variance);
        self.squares.add(variance * variance);
    }

    /// Adds another variance.
    pub fn merge(&mut self, other: &Self) {
        self.sum.merge(&other.sum);
        self.squares.merge(&other.squares);
    }

    /// Degrees of freedom (Satterthwaite's): few where few traces make up most of the variance. Infinite without any.
    fn freedom(&self) -> f64 {
        let total = self.sum.total();
        if total > 0.0 { 2.0 * total * total / self.squares.total() } else { f64::INFINITY }
    }
}

/// An estimated number of spans.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Estimate {
    pub weight: Weight,
    pub variance: Variance,
}

impl Estimate {
    /// Adds what another estimate has.
    pub fn merge(&mut self, other: &Self) {
        self.weight += other.weight;
        self.variance.merge(&other.variance);
    }

    /// Adds the spans of a trace.
    pub fn add(&mut self, trace: &TraceSpans) {
        self.weight += trace.weight();
        self.variance.add(trace.covariance(Part::spans, Part::spans));
    }

    /// What is carried beside the weight.
    pub fn sums(&self) -> [Sum; 2] {
        [self.variance.sum, self.variance.squares]
    }

    /// The estimate with these sums, two numbers each, which are taken off `numbers`; None where there are too few.
    pub fn read(weight: Weight, numbers: &mut &[f64]) -> Option<Self> {
        Some(Self { weight, variance: Variance { sum: Sum::read(numbers)?, squares: Sum::read(numbers)? } })
    }
}

/// An estimated sum of values, with the number of spans that have them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)]
pub struct NumberEstimate {
    pub spans: Estimate,
    pub sum: Sum,
    pub sum_variance: Variance,
    /// Between the sum and the number of spans.
    pub covariance: Sum,
    /// The part of the sum that values below zero make up.
    pub negative: Sum,
}

impl NumberEstimate {
    /// Adds what another estimate has.
    pub fn merge(&mut self, other: &Self) {
        self.spans.merge(&other.spans);
        self.sum.merge(&other.sum);
        self.sum_variance.merge(&other.sum_variance);
        self.covariance.merge(&other.covariance);
        self.negative.merge(&other.negative);
    }

    /// Adds the spans of a trace.
    pub fn add(&mut self, trace: &TraceSpans) {
        self.spans.add(trace);
        trace.parts().for_each(|part| self.sum.add(part.weight.as_f64() * part.sum));
        trace.parts().for_each(|part| self.negative.add(part.weight.as_f64() * part.negative));
        self.sum_variance.add(trace.covariance(Part::sum, Part::sum));
        self.covariance.add(trace.covariance(Part::sum, Part::spans));
    }

    /// What is carried beside the weight.
    pub fn sums(&self) -> [Sum; 7] {
        let [variance, squares] = self.spans.sums();
        [variance, squares, self.sum, self.sum_variance.sum, self.sum_variance.squares, self.covariance, self.negative]
    }

    /// The estimate with these sums, as [`Estimate::read`].
    pub fn read(weight: Weight, numbers: &mut &[f64]) -> Option<Self> {
        Some(Self {
            spans: Estimate::read(weight, numbers)?,
            sum: Sum::read(numbers)?,
            sum_variance: Variance { sum: Sum::read(numbers)?, squares: Sum::read(numbers)? },
            covariance: Sum::read(numbers)?,
            negative: Sum::read(numbers)?,
        })
    }
}

/// The spans of one trace and one weight in a cell.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    weight: Weight,
    spans: u64,
    sum: f64,
    negative: f64,
}

impl Part {
    fn spans(&self) -> f64 {
        self.spans as f64
    }

    fn sum(&self) -> f64 {
        self.sum
    }
}

/// What one trace has in a cell, by weight.
#[derive(Debug, Clone, Default)]
pub struct TraceSpans {
    first: Part,
    /// Spans of other weights; hardly any trace has them.
    others: Vec<Part>,
}

impl TraceSpans {
    /// Adds a span.
    pub fn add(&mut self, weight: Weight, value: f64) {
        if self.first.spans == 0 {
            self.first.weight = weight;
        }
        let part = if self.first.weight == weight {
            &mut self.first
        } else {
            let at = self.others.iter().position(|part| part.weight == weight).unwrap_or_else(|| {
                self.others.push(Part { weight, ..Part::default() });
                self.others.len() - 1
            });
            &mut self.others[at]
        };
        part.spans += 1;
        part.sum += value;
        part.negative += value.min(0.0);
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn weight(&self) -> Weight {
        let mut weight = Weight::default();
        self.parts().for_each(|part| weight += part.weight.times(part.spans));
        weight
    }

    /// What the trace adds to the covariance of two totals; see the module.
    fn covariance(&self, a: impl Fn(&Part) -> f64, b: impl Fn(&Part) -> f64) -> f64 {
        if self.others.is_empty() {
            let weight = self.first.weight.as_f64();
            return weight * (weight - 1.0) * a(&self.first) * b(&self.first);
        }
        let mut parts: Vec<&Part> = self.parts().collect();
        parts.sort_by_key(|part| part.weight);
        let (mut below_a, mut below_b, mut total_a, mut total_b, mut both) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for part in parts {
            let (weight, a, b) = (part.weight.as_f64(), a(part), b(part));
            both += weight * (a * b + a * below_b + b * below_a);
            (below_a, below_b) = (below_a + a, below_b + b);
            (total_a, total_b) = (total_a + weight * a, total_b + weight * b);
        }
        total_a * total_b - both
    }
}

/// Lower and upper ends, interval by interval.
pub type Bounds = [Vec<f64>; 2];

/// Smaller parts of a series are taken for this one.
const PART_MIN: f64 = 1e-3;

/// 0.975 quantile of the normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;

/// 0.975 quantile of Student's distribution, by its expansion around the normal one (Abramowitz and Stegun, 26.7.5); good to a per cent from
/// three degrees on. Fewer than two degrees count as two, below which the quantile says little.
fn student(freedom: f64) -> f64 {
    let (z, n) = (NORMAL, freedom.max(2.0));
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / n + second / n.powi(2) + third / n.powi(3)
}

/// 95 % intervals of totals that cannot be negative: the numbers of spans of a series in each interval, or sums of values.
///
/// `total ± 1.96·σ` covers badly where few traces were sampled: a total that came out small by chance has a small estimated variance too, and
/// one of zero has none. Three things mend that. The variance of a total of sampled traces grows in proportion to the total, `V = c·T`, so
/// the interval is the set of `T` that the estimate is compatible with, `(total − T)² ≤ q²·c·T` (Wilson's way). The factor `c`, which says how
/// traces cluster, is estimated from all intervals of the series together; so an interval without a single sampled span still has an upper end.
/// And `q` is Student's quantile with the degrees of freedom of that estimate, for where a few large traces make up most of it. An interval that
/// has a small part of all spans gets more of them, by the root of that part: its own error and that of `c` hardly go together. (The root is no
/// theorem; with it 94 to 97 % are covered for traces of equal and of very different sizes, one interval or sixty, from three sampled traces on.)
pub fn intervals_of_totals(totals: &[f64], variances: &[Variance]) -> Bounds {
    let mut variance = Variance::default();
    variances.iter().for_each(|own| variance.merge(own));
    let total: f64 = totals.iter().sum();
    let per_total = if total > 0.0 { variance.sum.total().max(0.0) / total } else { 0.0 };
    let ends = |own: f64| {
        let part = (own / total).max(PART_MIN);
        let q = student(variance.freedom() / part.sqrt());
        let spread = q * q * per_total;
        let (middle, half) = (own + spread / 2.0, (spread * (own + spread / 4.0)).sqrt());
        [(middle - half).max(0.0), middle + half]
    };
    [0, 1].map(|end| totals.iter().map(|&total| ends(total)[end]).collect())
}

/// 95 % intervals of sums of values of either sign: `sum ± q·σ`, with `q` as in [`intervals_of_totals`].
pub fn intervals_of_sums(cells: &[NumberEstimate]) -> Bounds {
    let mut variance = Variance::default();
    cells.iter().for_each(|cell| variance.merge(&cell.sum_variance));
    let q = student(variance.freedom());
    let end = |cell: &NumberEstimate, sign: f64| cell.sum.total() + sign * q * cell.sum_variance.sum.total().max(0.0).sqrt();
    [-1.0, 1.0].map(|sign| cells.iter().map(|cell| end(cell, sign)).collect())
}

/// 95 % intervals of means: `mean ± q·σ` of the ratio of the sum and the number of spans, linearised. What a span adds to the variance is
/// estimated from all intervals together, by how far traces are from the mean of the whole series: from that of their own interval few of them
/// would seem to be nearer than they are. Where means differ from interval to interval this makes the ends a little too wide.
pub fn intervals_of_means(cells: &[NumberEstimate]) -> Bounds {
    let mut all = NumberEstimate::default();
    cells.iter().for_each(|cell| all.merge(cell));
    let spans = all.spans.weight.as_f64();
    let mean = all.sum.total() / spans;
    let residual = all.sum_variance.sum.total() - 2.0 * mean * all.covariance.total() + mean * mean * all.spans.variance.sum.total();
    let per_span = residual.max(0.0) / spans;
    let q = student(all.spans.variance.freedom().min(all.sum_variance.freedom()));
    let end = |cell: &NumberEstimate, sign: f64| {
        let weight = cell.spans.weight.as_f64();
        cell.sum.total() / weight + sign * q * (per_span / weight).sqrt()
    };
    [-1.0, 1.0].map(|sign| cells.iter().map(|cell| end(cell, sign)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn trace(spans: &[(f64, f64)]) -> TraceSpans {
        let mut trace = TraceSpans::default();
        spans.iter().for_each(|&(weight, value)| trace.add(Weight::of_number(weight).unwrap(), value));
        trace
    }

    #[test]
    fn weights_are_one_over_the_probability() {
        assert_eq!(Weight::of_threshold(0), Weight::ONE);
        assert_eq!(Weight::of_threshold(0x80_0000_0000_0000).as_f64(), 2.0);
        assert_eq!(Weight::of_threshold(0xc0_0000_0000_0000).as_f64(), 4.0);
        assert_eq!(Weight::of_threshold(0xff_ffff_ffff_ffff).as_f64(), (1u64 << 56) as f64);
        assert!((Weight::of_threshold(0xe6_6666_6666_6668).as_f64() - 10.0).abs() < 1e-9);
        assert_eq!([0.25, 4.0].map(|number| Weight::of_number(number).unwrap().as_f64()), [4.0, 4.0]);
        assert_eq!(Weight::of_number(1.0), Some(Weight::ONE));
        assert_eq!([0.0, -0.5, f64::NAN, f64::INFINITY, 1e-30, 1e30].map(Weight::of_number), [None; 6]);
    }

    #[test]
    fn a_trace_adds_the_square_of_all_that_it_has() {
        // One chance in four for three spans: 4·3·3² = 108. Counted span by span it would be 3·4·3 = 36.
        let mut estimate = Estimate::default();
        estimate.add(&trace(&[(4.0, 0.0), (4.0, 0.0), (4.0, 0.0)]));
        assert_eq!((estimate.weight.as_f64(), estimate.variance.sum.total()), (12.0, 108.0));
        // Weights 2 (one span) and 4 (two): (2 + 8)² − (2·1 + 2·4·1·2 + 4·4) = 100 − 34.
        assert_eq!(trace(&[(4.0, 0.0), (2.0, 0.0), (4.0, 0.0)]).covariance(Part::spans, Part::spans), 66.0);
        let mut certain = Estimate::default();
        certain.add(&trace(&[(1.0, 7.0), (1.0, 7.0)]));
        assert_eq!((certain.weight.as_f64(), certain.variance.sum.total()), (2.0, 0.0));
    }

    #[test]
    fn sums_have_variances_of_their_own() {
        let mut estimate = NumberEstimate::default();
        estimate.add(&trace(&[(2.0, 5.0), (2.0, -1.0)]));
        // w·(w−1) = 2; the sum of the trace is 4, its spans 2.
        assert_eq!((estimate.sum.total(), estimate.negative.total()), (8.0, -2.0));
        assert_eq!((estimate.sum_variance.sum.total(), estimate.covariance.total()), (2.0 * 16.0, 2.0 * 8.0));
        // Weights 2 and 4, values 3 and 5: (6 + 20)·(2 + 4) − (2·3·1 + 4·(5·1 + 5·1 + 1·3)) = 156 − 58.
        assert_eq!(trace(&[(2.0, 3.0), (4.0, 5.0)]).covariance(Part::sum, Part::spans), 98.0);
    }

    #[test]
    fn unbiased_variances() {
        // A trace of weights 2 and 4: kept are both spans (1/4), the first alone (1/4), or none. The total 1/p is 2 + 4, 2, or 0, with mean 2
        // and variance 36/4 + 4/4 − 4 = 6; the estimates must have that mean.
        let both = trace(&[(2.0, 0.0), (4.0, 0.0)]).covariance(Part::spans, Part::spans);
        let first = trace(&[(2.0, 0.0)]).covariance(Part::spans, Part::spans);
        assert_eq!(both / 4.0 + first / 4.0, 6.0);
    }

    #[test]
    fn intervals_are_those_of_hand() {
        // 100 traces of one span at one in two: V = 2·1·100 = 200 of T = 200, c = 1; ν = 2·200²/(100·2²) = 200.
        let mut variance = Variance::default();
        (0..100).for_each(|_| variance.add(2.0));
        let q = student(200.0);
        assert!((q - 1.97190).abs() < 1e-4, "tables have 1.9719");
        let [lower, upper] = intervals_of_totals(&[200.0], &[variance]);
        let half = (q * q * (200.0 + q * q / 4.0)).sqrt();
        assert!((lower[0] - (200.0 + q * q / 2.0 - half)).abs() < 1e-9 && (upper[0] - (200.0 + q * q / 2.0 + half)).abs() < 1e-9);
        // Both ends satisfy (200 − T)² = q²·T.
        [lower[0], upper[0]].iter().for_each(|end| assert!(((200.0 - end).powi(2) - q * q * end).abs() < 1e-6));
        assert!((student(f64::INFINITY) - NORMAL).abs() < 1e-12);
        assert!((student(5.0) - 2.571).abs() < 0.01 && (student(3.0) - 3.182).abs() < 0.03);
    }

    #[test]
    fn an_interval_without_spans_has_an_upper_end_and_without_sampling_there_is_no_width() {
        let mut variance = Variance::default();
        (0..50).for_each(|_| variance.add(90.0));
        let [lower, upper] = intervals_of_totals(&[500.0, 0.0], &[variance, Variance::default()]);
        assert_eq!(lower[1], 0.0);
        // c = 4500/500 = 9, ν = 100, over the root of the smallest part.
        assert!((upper[1] - student(100.0 / 1e-3f64.sqrt()).powi(2) * 9.0).abs() < 1e-9);
        assert_eq!(intervals_of_totals(&[7.0, 0.0], &[Variance::default(); 2]), [vec![7.0, 0.0], vec![7.0, 0.0]]);
        assert_eq!(intervals_of_totals(&[0.0], &[Variance::default()]), [vec![0.0], vec![0.0]]);
    }

    #[test]
    fn means_and_signed_sums() {
        let mut cell = NumberEstimate::default();
        // Equal means of all traces: nothing is uncertain about the mean.
        (1..20).for_each(|spans| cell.add(&trace(&vec![(10.0, 3.0); spans])));
        let [lower, upper] = intervals_of_means(&[cell]);
        assert!((lower[0] - 3.0).abs() < 1e-6 && (upper[0] - 3.0).abs() < 1e-6);
        let mut mixed = NumberEstimate::default();
        [-4.0, 4.0].into_iter().cycle().take(100).for_each(|value| mixed.add(&trace(&[(2.0, value)])));
        // Var = 100·2·16, ν = 200.
        let [lower, upper] = intervals_of_sums(&[mixed]);
        let half = student(200.0) * 3200f64.sqrt();
        assert!((lower[0] + half).abs() < 1e-9 && (upper[0] - half).abs() < 1e-9);
        // The mean is 0 of 200 spans: σ² = 3200/200².
        let [lower, _] = intervals_of_means(&[mixed]);
        assert!((lower[0] + student(200.0) * (3200f64 / 40_000.0).sqrt()).abs() < 1e-9);
        assert!(intervals_of_means(&[NumberEstimate::default()])[0][0].is_nan());
    }
}
