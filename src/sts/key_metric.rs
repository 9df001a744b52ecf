//! Shows which key signs tokens, and which others are published: replicas whose clocks or files differ sign with
//! different keys, and a rotation becomes visible.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::SigningKeys;

/// Evaluated on each scrape, as which key signs changes with time alone.
pub struct KeyMetric<F>(pub F);

impl<F: Fn() -> Option<SigningKeys> + Send + Sync + 'static> Collector for KeyMetric<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Published keys of tokens: 1 for the one that signs, 0 for the others";
        let mut family = encoder.encode_descriptor("token_key_signs", help, None, MetricType::Gauge)?;
        let Some(keys) = (self.0)() else { return Ok(()) };
        for (kid, signs) in keys.names() {
            ConstGauge::new(i64::from(signs)).encode(family.encode_family(&[("kid", kid)])?)?;
        }
        Ok(())
    }
}

impl<F> fmt::Debug for KeyMetric<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMetric")
    }
}
