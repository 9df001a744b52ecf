//! The log of the program itself: JSON or text lines on standard error, and W3C trace context.
//!
//! Lines go through a bounded queue to a thread of their own, so that a stalled reader of the log cannot stop requests;
//! lines that do not fit are counted. Code does not log credentials. If one gets into a line anyway, for instance
//! within an error of a library, `redact` removes it.

mod redact;
mod trace_context;
mod writer;

use std::io;

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tracing_subscriber::{
    EnvFilter, Registry as Subscribers, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

pub use self::trace_context::TraceContext;
use self::writer::Lines;
use crate::config::{
    raw::{self, LogFormat},
    report::At,
    resolver::Resolver,
};

/// The log, initialised. Dropping it writes the queued lines, within a second.
#[derive(Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Subscribers>,
    lines: Lines,
}

/// The reason why the log cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("`{0}` is not a log filter: {1}")]
    Filter(String, tracing_subscriber::filter::ParseError),
    #[error("the log was set up before: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    #[error("the thread that writes the log cannot be started: {0}")]
    Thread(#[from] io::Error),
    #[error("the filter of the log cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

/// Checks the `log` part of a configuration.
pub fn check(raw: &raw::Log, at: &At, resolver: &mut Resolver) {
    if let Err(error) = parse_filter(&raw.filter) {
        resolver
            .error(&at.key("filter"), error.to_string())
            .help("write a level, or levels of parts, such as `info,doorward=debug`");
    }
}

impl Logging {
    /// Sets up the log of this process, once. The format is fixed until restart.
    pub fn init(raw: &raw::Log) -> Result<Self, LoggingError> {
        let (filter, handle) = reload::Layer::new(parse_filter(&raw.filter)?);
        let lines = Lines::new(io::stderr())?;
        let registry = tracing_subscriber::registry().with(filter);
        let writer = lines.writer();
        match raw.format {
            LogFormat::Json => {
                let layer = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
                registry.with(layer.with_ansi(false).with_writer(writer)).try_init()?;
            }
            LogFormat::Text => registry.with(fmt::layer().with_ansi(false).with_writer(writer)).try_init()?,
        }
        Ok(Self { filter: handle, lines })
    }

    /// Applies the filter of a new generation.
    pub fn apply(&self, raw: &raw::Log) -> Result<(), LoggingError> {
        Ok(self.filter.reload(parse_filter(&raw.filter)?)?)
    }

    pub fn metrics(&self) -> LogMetrics {
        LogMetrics { dropped: self.lines.dropped() }
    }
}

/// The number of lines that the log lost.
#[derive(Clone, Debug, Default)]
pub struct LogMetrics {
    dropped: Counter,
}

impl LogMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("log_dropped", "Log lines that were dropped as the queue was full", self.dropped.clone());
    }
}

/// Parses a filter. A single frame can make `h2` log a warning, and any client can send as many as it likes, so `h2`
/// logs only errors unless the filter names it.
fn parse_filter(text: &str) -> Result<EnvFilter, LoggingError> {
    let wrong = |error| LoggingError::Filter(text.to_owned(), error);
    let filter = EnvFilter::builder().parse(text).map_err(wrong)?;
    if text.split(',').any(|directive| directive.trim_start().starts_with("h2")) {
        return Ok(filter);
    }
    Ok(filter.add_directive("h2=error".parse().map_err(wrong)?))
}

/// The result of a call, and its log.
#[cfg(test)]
pub(crate) fn logged<T>(call: impl FnOnce() -> T) -> (T, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let writer = std::sync::Arc::new(file.reopen().unwrap());
    let subscriber = fmt().with_ansi(false).with_writer(writer).finish();
    let result = tracing::subscriber::with_default(subscriber, call);
    (result, std::fs::read_to_string(file.path()).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for (filter, good) in
            [("info", true), ("info,doorward=debug", true), ("off", true), ("doorward=loud", false), ("=", false)]
        {
            let raw = raw::Log { filter: filter.to_owned(), ..raw::Log::default() };
            let mut resolver = Resolver::default();
            check(&raw, &At::root().key("log"), &mut resolver);
            assert_eq!(!resolver.report.has_errors(), good, "{filter}");
        }
    }

    /// `h2` warns of each answer to a ping that was not sent: a line for 17 bytes from a stranger.
    #[test]
    fn warnings_of_h2_are_logged_only_if_the_filter_names_it() {
        for (filter, h2, ours) in [
            ("info", false, true),
            ("debug", false, true),
            ("info,doorward=debug", false, true),
            ("info,h2=warn", true, true),
            ("h2::proto=debug", true, false),
            ("off", false, false),
        ] {
            let subscriber = tracing_subscriber::registry().with(parse_filter(filter).unwrap());
            let enabled = tracing::subscriber::with_default(subscriber, || {
                (
                    tracing::enabled!(target: "h2::proto::ping_pong", tracing::Level::WARN),
                    tracing::enabled!(target: "doorward::logging", tracing::Level::WARN),
                )
            });
            assert_eq!(enabled, (h2, ours), "{filter}");
        }
    }

    #[test]
    fn the_log_is_set_up_once_and_its_filter_changes() {
        let raw = |filter: &str| raw::Log { filter: filter.to_owned(), ..raw::Log::default() };
        let logging = Logging::init(&raw("off")).unwrap();
        assert!(!tracing::enabled!(tracing::Level::ERROR));
        logging.apply(&raw("off,doorward::logging=error")).unwrap();
        assert!(tracing::enabled!(tracing::Level::ERROR));
        assert!(matches!(logging.apply(&raw("doorward=loud")), Err(LoggingError::Filter(..))));
        assert!(matches!(Logging::init(&raw("off")), Err(LoggingError::Twice(_))));
    }
}
