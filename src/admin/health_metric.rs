//! The failed components as a metric, for alerts, as few components have metrics of their own.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::health::{Health, Status};

/// A metric that is collected from the components on demand.
#[derive(Debug)]
pub struct HealthMetric(pub Health);

impl Collector for HealthMetric {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Components: 1 for one that has failed, 0 for the others";
        let mut family = encoder.encode_descriptor("component_failed", help, None, MetricType::Gauge)?;
        for component in self.0.report().components {
            let failed = i64::from(component.status == Status::Failed);
            ConstGauge::new(failed).encode(family.encode_family(&[("component", component.name.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;
    use crate::{admin::health::Gate, clock::Clock};

    #[test]
    fn a_failed_component_is_reported_by_its_name() {
        let health = Health::new(Clock::default());
        let [store, rollout] = ["store", "rollout"].map(|name| health.component(name, Gate::Report));
        store.failed("away");
        rollout.degraded("slow");
        let mut registry = Registry::with_prefix("doorward");
        registry.register_collector(Box::new(HealthMetric(health)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("doorward_component_failed{component=\"store\"} 1"), "{text}");
        assert!(text.contains("doorward_component_failed{component=\"rollout\"} 0"), "{text}");
    }
}
