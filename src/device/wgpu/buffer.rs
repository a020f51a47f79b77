//! Buffers of the GPU that count as memory in use until the last clone of each is dropped.

use super::context::Context;
use crate::device::memory::{AllocatorMemory, Charge, MemoryReport, Purpose};
use crate::error::Result;
use std::ops::Deref;
use std::sync::Arc;

/// How wgpu names the buffers that it makes for itself.
pub(super) const INTERNAL: &str = "(wgpu internal)";

/// A buffer on the GPU. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    raw: wgpu::Buffer,
    /// Counts the buffer until the last clone is dropped.
    _charge: Arc<Charge>,
}

impl Deref for Buffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.raw
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        self.raw == other.raw
    }
}

impl Context {
    /// A buffer of `bytes` bytes, zeroed at its first use.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory) where it does not fit, [`Gpu`](crate::Error::Gpu) where it is
    /// refused.
    pub(crate) fn create_buffer(
        &self,
        purpose: Purpose,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Buffer> {
        if bytes > self.limits.max_buffer_size {
            return Err(self.out_of_memory(label, bytes));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage,
            mapped_at_creation: false,
        };
        let raw = self.sized(label, bytes, || self.device.create_buffer(&descriptor))?;
        Ok(Buffer {
            raw,
            _charge: Arc::new(self.ledger.charge(purpose, bytes)),
        })
    }

    /// The buffers that are alive, once the GPU has done all that was submitted and given back what it had of
    /// dropped ones.
    ///
    /// # Errors
    /// As [`Context::wait`].
    pub(super) fn memory(&self) -> Result<MemoryReport> {
        // Uploads that wait for a submission are held until there is one.
        self.scoped("report of memory", || self.queue.submit([]))?;
        self.wait()?;
        let allocator = self.device.generate_allocator_report().map(|report| {
            let allocations = report.allocations.iter();
            let internal = allocations.filter(|allocation| allocation.name.starts_with(INTERNAL));
            AllocatorMemory {
                allocated_bytes: report.total_allocated_bytes,
                internal_bytes: internal.map(|allocation| allocation.size).sum(),
                reserved_bytes: report.total_reserved_bytes,
            }
        });
        Ok(MemoryReport {
            allocator,
            ..self.ledger.report()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::GpuChoice;
    use crate::device::wgpu::adapter::GpuFeatures;
    use crate::device::wgpu::testing::gpu;

    /// A device of its own, whose memory no other test uses.
    fn alone() -> Option<Context> {
        gpu()?;
        Some(Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap())
    }

    #[test]
    fn a_buffer_counts_until_its_last_clone_is_dropped() {
        let Some(context) = alone() else { return };
        let before = context.memory().unwrap();
        assert_eq!(before.total_bytes(), 0);
        let usage = wgpu::BufferUsages::STORAGE;
        let buffer = context.create_buffer(Purpose::Cache, "keys", 3 << 20, usage);
        let buffer = buffer.unwrap();
        let clone = buffer.clone();
        drop(buffer);
        let held = context.memory().unwrap();
        assert_eq!(held.cache_bytes, 3 << 20);
        assert_eq!(held.total_bytes(), 3 << 20);
        drop(clone);
        assert_eq!(context.memory().unwrap().total_bytes(), 0);
        let (Some(before), Some(held)) = (before.allocator, held.allocator) else {
            return;
        };
        assert!(held.allocated_bytes >= before.allocated_bytes + (3 << 20));
        let after = context.memory().unwrap().allocator.unwrap();
        assert_eq!(after.allocated_bytes, before.allocated_bytes);
    }

    #[test]
    fn a_buffer_that_was_not_counted_is_unexplained() {
        let Some(context) = alone() else { return };
        if context.memory().unwrap().allocator.is_none() {
            return;
        }
        let unexplained = || context.memory().unwrap().unexplained_bytes().unwrap();
        let before = unexplained();
        let hidden = context.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("hidden"),
            size: 1 << 20,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        assert!(unexplained() >= before + (1 << 20));
        drop(hidden);
        assert_eq!(unexplained(), before);
    }
}
