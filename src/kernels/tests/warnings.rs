//! What naga warns of. It does so through the log alone (<https://github.com/gfx-rs/wgpu/issues/6458>).

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::cell::RefCell;
use std::sync::Once;

struct Recorder;

thread_local! {
    /// While this thread wants to know.
    static WARNINGS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

impl Log for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("naga")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            WARNINGS.with_borrow_mut(|warnings| {
                if let Some(warnings) = warnings {
                    warnings.push(record.args().to_string());
                }
            });
        }
    }

    fn flush(&self) {}
}

/// What `work` gives, and what naga warned of on this thread meanwhile.
pub(super) fn of<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    static RECORDER: Once = Once::new();
    RECORDER.call_once(|| {
        log::set_logger(&Recorder).expect("unit tests have no other logger");
        log::set_max_level(LevelFilter::Warn);
    });
    WARNINGS.set(Some(Vec::new()));
    let result = work();
    (result, WARNINGS.take().unwrap_or_default())
}
