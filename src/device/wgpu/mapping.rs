//! Buffers on their way to where the CPU sees them.

use super::buffer::Buffer;
use super::context::Context;
use crate::error::{Error, Result};
use std::fmt;
use std::sync::mpsc::{Receiver, channel};

/// A buffer that the CPU may have once the GPU is done with it. Who gets it unmaps it.
pub(super) struct Mapping {
    /// Names it in errors.
    what: &'static str,
    buffer: Buffer,
    bytes: u64,
    /// The last that uses the buffer; `None` for all that was submitted.
    submission: Option<wgpu::SubmissionIndex>,
    outcome: Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Mapping {
    /// Asks for the first `bytes` bytes of a buffer, behind its last `submission`.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the buffer cannot be mapped.
    pub(super) fn new(
        context: &Context,
        what: &'static str,
        mode: wgpu::MapMode,
        buffer: &Buffer,
        bytes: u64,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Result<Mapping> {
        let (sender, outcome) = channel();
        context.scoped(what, || {
            buffer.map_async(mode, ..bytes, move |outcome| {
                sender.send(outcome).ok();
            });
        })?;
        Ok(Mapping {
            what,
            buffer: buffer.clone(),
            bytes,
            submission,
            outcome,
        })
    }

    /// Waits until the CPU may have the buffer. Once: the outcome comes once.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the GPU failed meanwhile or did not give the buffer.
    pub(super) fn wait(&self, context: &Context) -> Result<()> {
        context.wait_for(self.submission.clone())?;
        // Where other threads wait too, one of theirs may run the callback, after this wait is over.
        match self.outcome.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failed(context, &error)),
            Err(_) => Err(self.failed(context, &"the GPU did not answer")),
        }
    }

    /// Waits, and gives what the buffer holds.
    ///
    /// # Errors
    /// As [`Mapping::wait`].
    pub(super) fn read(&self, context: &Context) -> Result<wgpu::BufferView> {
        self.wait(context)?;
        let view = self.buffer.get_mapped_range(..self.bytes);
        view.map_err(|error| self.failed(context, &error))
    }

    fn failed(&self, context: &Context, message: &dyn fmt::Display) -> Error {
        context.error(format!("{}: {message}", self.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Purpose;
    use crate::device::wgpu::testing::gpu;
    use wgpu::BufferUsages as Usages;

    fn staging(context: &Context) -> Buffer {
        let usage = Usages::MAP_READ | Usages::COPY_DST;
        let staging = context.create_buffer(Purpose::Staging, "staging", 16, usage);
        staging.unwrap()
    }

    fn read_of_a_test(context: &Context, buffer: &Buffer) -> Result<Mapping> {
        Mapping::new(
            context,
            "read of a test",
            wgpu::MapMode::Read,
            buffer,
            8,
            None,
        )
    }

    fn assert_named<T>(result: Result<T>) {
        let error = result.err().unwrap().to_string();
        assert!(error.contains(": read of a test: "), "{error}");
    }

    #[test]
    fn mapping_reads_what_was_submitted_before_and_no_more_bytes_than_were_asked_for() {
        let Some(context) = gpu() else { return };
        let staging = staging(context);
        context.queue.write_buffer(&staging, 0, &[7; 16]);
        let submission = context.queue.submit([]);
        let mode = wgpu::MapMode::Read;
        let mapping = Mapping::new(context, "read", mode, &staging, 8, Some(submission));
        assert_eq!(*mapping.unwrap().read(context).unwrap(), [7; 8]);
    }

    #[test]
    fn buffer_that_is_mapped_already_is_refused_with_the_name_of_the_read() {
        let Some(context) = gpu() else { return };
        let staging = staging(context);
        let first = read_of_a_test(context, &staging).unwrap();
        first.wait(context).unwrap();
        let second = read_of_a_test(context, &staging);
        assert_named(second.and_then(|second| second.wait(context)));
        context.check().unwrap();
    }

    #[test]
    fn mapping_that_was_taken_back_is_an_error_with_the_name_of_the_read() {
        let Some(context) = gpu() else { return };
        let staging = staging(context);
        let mapping = read_of_a_test(context, &staging).unwrap();
        staging.unmap();
        assert_named(mapping.read(context));
        context.check().unwrap();
    }
}
