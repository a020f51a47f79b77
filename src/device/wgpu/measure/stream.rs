//! How fast a GPU reads its memory: what every kernel that reads weights is held against.

use super::{Bench, Timed};
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::kernels::{Access, Kernel, Uses, grid};
use wgpu::BufferUsages as Usages;

const KERNEL: Kernel = Kernel {
    name: "stream",
    wgsl: include_str!("stream.wgsl"),
    bindings: &[("src", Access::Read), ("dst", Access::ReadWrite)],
    params_bytes: 16,
    uses: Uses::NOTHING,
};

/// Bytes that a workgroup reads.
const BLOCK_BYTES: u64 = 8 * 256 * 16;
/// More than any cache holds.
const MOST_BYTES: u64 = 1 << 30;

impl Bench {
    /// Bytes a second that the GPU reads from its memory, one large buffer from start to end.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read_bandwidth(&self) -> Result<f64> {
        let bytes = MOST_BYTES.min(self.context.max_binding_bytes());
        let n_blocks = bytes / BLOCK_BYTES;
        let bytes = n_blocks * BLOCK_BYTES;
        let src = self
            .context
            .create_buffer(Purpose::Scratch, "src", bytes, Usages::STORAGE)?;
        let dst = self
            .context
            .create_buffer(Purpose::Scratch, "dst", 16, Usages::STORAGE)?;
        let time = self.time(&Timed {
            kernel: &KERNEL,
            variant: self.choice.plain(),
            n_rows: 1,
            params: bytemuck::bytes_of(&[n_blocks as u32, 0, 0, 0]),
            storages: vec![vec![&src, &dst]],
            grid: grid(n_blocks as usize, 1),
        })?;
        Ok(bytes as f64 / time.as_secs_f64())
    }
}
