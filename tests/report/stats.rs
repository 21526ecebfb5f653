//! Medians and quantiles.

/// The quantile `q` of the samples; the mean of the two middle ones for an even median.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = q * last as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * (place - place.floor()))
}

pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// The median of the ratios of each round, and not the ratio of the medians: a slow round slows both sides.
pub fn paired_ratio(values: &[Option<f64>], bases: &[Option<f64>]) -> Option<f64> {
    let ratio = |(value, base): (&Option<f64>, &Option<f64>)| Some((*value)? / (*base)?);
    median(&values.iter().zip(bases).filter_map(ratio).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles() {
        assert_eq!(None, median(&[]));
        assert_eq!(Some(2.0), median(&[9.0, 1.0, 2.0]));
        assert_eq!(Some(1.5), median(&[2.0, 1.0]));
        let hundred: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(Some(99.0), quantile(&hundred, 0.99));
    }

    #[test]
    fn a_slow_round_does_not_change_a_ratio() {
        let (values, bases) = ([Some(5.0), Some(50.0), Some(4.0)], [Some(10.0), Some(100.0), Some(8.0)]);
        assert_eq!(Some(0.5), paired_ratio(&values, &bases));
        assert_eq!(Some(0.5), paired_ratio(&[None, Some(1.0)], &[Some(3.0), Some(2.0)]));
        assert_eq!(None, paired_ratio(&[None, Some(1.0)], &[Some(3.0), None]));
    }
}
