//! How many bytes a device holds, and for what: counted where memory is taken, given back when it is dropped.

use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Weights,
    Cache,
    Scratch,
    Staging,
}

/// The bytes of a device in use, by [`Purpose`].
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    bytes: [AtomicU64; 4],
}

/// Bytes of a [`Ledger`] that are in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    ledger: Arc<Ledger>,
    purpose: Purpose,
    bytes: u64,
}

impl Ledger {
    fn bytes(&self, purpose: Purpose) -> &AtomicU64 {
        &self.bytes[purpose as usize]
    }

    /// Counts bytes as used from now on.
    pub(crate) fn charge(self: &Arc<Ledger>, purpose: Purpose, bytes: u64) -> Charge {
        self.bytes(purpose).fetch_add(bytes, Ordering::Relaxed);
        Charge {
            ledger: self.clone(),
            purpose,
            bytes,
        }
    }

    /// What is in use now.
    pub(crate) fn report(&self) -> MemoryReport {
        let bytes = |purpose| self.bytes(purpose).load(Ordering::Relaxed);
        MemoryReport {
            weights_bytes: bytes(Purpose::Weights),
            cache_bytes: bytes(Purpose::Cache),
            scratch_bytes: bytes(Purpose::Scratch),
            staging_bytes: bytes(Purpose::Staging),
            file_bytes: 0,
            allocator: None,
        }
    }
}

impl Charge {
    /// Changes the bytes that are in use.
    pub(crate) fn set(&mut self, bytes: u64) {
        let counter = self.ledger.bytes(self.purpose);
        counter.fetch_add(bytes, Ordering::Relaxed);
        counter.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let counter = self.ledger.bytes(self.purpose);
        counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The memory that an engine holds on its device, for all of its sessions that are alive: see
/// [`Engine::memory`](crate::Engine::memory).
///
/// It shows as a table, here with a difference of 0.1 MiB to what the allocator says:
///
/// ```text
/// weights          92.1 MiB
/// cache             0.1 MiB
/// scratch           2.0 MiB
/// staging           0.9 MiB
/// sum              95.2 MiB
/// wgpu's own        0.5 MiB
/// allocated        95.7 MiB (+0.1 MiB)
/// reserved        104.7 MiB
/// file             93.8 MiB
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryReport {
    /// Weights as the device holds them. The CPU reads those of the file's type where they lie in the file; only
    /// what it converted counts. The reference converts nothing.
    pub weights_bytes: u64,
    /// Keys and values of all sessions.
    pub cache_bytes: u64,
    /// Activations, partial results, parameters and rope tables.
    pub scratch_bytes: u64,
    /// Buffers through which the host and a GPU pass weights, logits and tokens.
    pub staging_bytes: u64,
    /// The model's file: mapped, so that the system gives and takes its pages as it likes, or in a vector.
    pub file_bytes: u64,
    /// What the allocator in front of the GPU says, for comparison; `None` on Metal, and where there is no GPU.
    pub allocator: Option<AllocatorMemory>,
}

/// A GPU's memory as the allocator says that takes it from the driver. Compiled kernels are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AllocatorMemory {
    /// In buffers, with what each is rounded up by.
    pub allocated_bytes: u64,
    /// Of them, those in buffers that wgpu made for itself.
    pub internal_bytes: u64,
    /// Taken from the driver: blocks that buffers share, with the gaps in them.
    pub reserved_bytes: u64,
}

impl MemoryReport {
    /// Everything but the file.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.cache_bytes + self.scratch_bytes + self.staging_bytes
    }

    /// Bytes that are allocated and neither counted here nor wgpu's own: what buffers are rounded up by, and
    /// leaks. `None` without an [`allocator`](MemoryReport::allocator).
    pub fn unexplained_bytes(&self) -> Option<i64> {
        let allocator = self.allocator?;
        let explained = self.total_bytes() + allocator.internal_bytes;
        Some(allocator.allocated_bytes as i64 - explained as i64)
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let line = |f: &mut fmt::Formatter<'_>, name: &str, bytes: u64| {
            write!(f, "{name:<12}{:>9.1} MiB", mib(bytes as f64))
        };
        for (name, bytes) in [
            ("weights", self.weights_bytes),
            ("cache", self.cache_bytes),
            ("scratch", self.scratch_bytes),
            ("staging", self.staging_bytes),
            ("sum", self.total_bytes()),
        ] {
            line(f, name, bytes)?;
            writeln!(f)?;
        }
        if let (Some(allocator), Some(unexplained)) = (self.allocator, self.unexplained_bytes()) {
            line(f, "wgpu's own", allocator.internal_bytes)?;
            writeln!(f)?;
            line(f, "allocated", allocator.allocated_bytes)?;
            writeln!(f, " ({:+.1} MiB)", mib(unexplained as f64))?;
            line(f, "reserved", allocator.reserved_bytes)?;
            writeln!(f)?;
        }
        line(f, "file", self.file_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_counts_for_its_purpose_until_it_is_dropped() {
        let ledger = Arc::new(Ledger::default());
        let weights = ledger.charge(Purpose::Weights, 5);
        let mut scratch = ledger.charge(Purpose::Scratch, 7);
        let cache = ledger.charge(Purpose::Cache, 11);
        let staging = ledger.charge(Purpose::Staging, 13);
        scratch.set(3);
        let report = ledger.report();
        let bytes = |r: &MemoryReport| {
            [
                r.weights_bytes,
                r.cache_bytes,
                r.scratch_bytes,
                r.staging_bytes,
            ]
        };
        assert_eq!(bytes(&report), [5, 11, 3, 13]);
        assert_eq!(report.total_bytes(), 32);
        drop((weights, scratch));
        assert_eq!(bytes(&ledger.report()), [0, 11, 0, 13]);
        drop((cache, staging));
        assert_eq!(ledger.report(), MemoryReport::default());
    }

    #[test]
    fn what_the_allocator_has_beyond_the_counted_is_unexplained() {
        let mut report = MemoryReport {
            weights_bytes: 1000,
            staging_bytes: 24,
            ..MemoryReport::default()
        };
        assert_eq!(report.unexplained_bytes(), None);
        let text = report.to_string();
        assert!(!text.contains("allocated"), "{text}");
        for (allocated_bytes, unexplained) in [(1536, 0), (1600, 64), (1500, -36)] {
            report.allocator = Some(AllocatorMemory {
                allocated_bytes,
                internal_bytes: 512,
                reserved_bytes: 4096,
            });
            assert_eq!(report.unexplained_bytes(), Some(unexplained));
        }
    }

    #[test]
    fn report_shows_as_a_table() {
        let report = MemoryReport {
            weights_bytes: 85 << 20,
            cache_bytes: 3 << 19,
            file_bytes: 90 << 20,
            allocator: Some(AllocatorMemory {
                allocated_bytes: 88 << 20,
                internal_bytes: 1 << 19,
                reserved_bytes: 96 << 20,
            }),
            ..MemoryReport::default()
        };
        let expected = "\
weights          85.0 MiB
cache             1.5 MiB
scratch           0.0 MiB
staging           0.0 MiB
sum              86.5 MiB
wgpu's own        0.5 MiB
allocated        88.0 MiB (+1.0 MiB)
reserved         96.0 MiB
file             90.0 MiB";
        assert_eq!(report.to_string(), expected);
    }
}
