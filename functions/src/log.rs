//! Logs: one JSON object a line, each with the ids of the invocation that it belongs to.

use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::invocation::About;

/// Says how much is logged: `error`, `warn`, `info` (the default), `debug` or `trace`.
const LEVEL: &str = "REHOST_LOG";

/// Starts logging to standard output, which Lambda carries to CloudWatch. Called twice, it changes nothing.
pub(crate) fn start() {
    let level = std::env::var(LEVEL).ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(std::io::stdout);
    // Others stay at warnings whatever is asked: what SDKs tell while debugging may hold what must not be logged.
    let filter = Targets::new().with_default(LevelFilter::WARN).with_target("rehost", level);
    drop(tracing_subscriber::registry().with(filter).with(lines).try_init());
}

/// The span of an invocation: its fields stand on every line that is logged in it.
pub(crate) fn span(about: &About) -> Span {
    tracing::info_span!(
        "invocation",
        function = about.function,
        requestId = about.request_id,
        xrayTraceId = about.trace_id,
        execution = about.execution,
        sourceServerID = about.server,
        jobID = about.job,
    )
}
