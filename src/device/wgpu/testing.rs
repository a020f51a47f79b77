//! What the tests of kernels need of a GPU.

use super::adapter::GpuFeatures;
use super::buffer::Buffer;
use super::context::{Context, named};
use crate::device::GpuChoice;
use crate::device::memory::Purpose;
use crate::error::Result;
use crate::kernels::{BatchParams, Kernel, Variant};
use std::io::Write;
use std::sync::OnceLock;
use wgpu::BufferUsages as Usages;

/// The best adapter, software included. Where there is none the calling test says so and is
/// skipped, or fails with `REQUIRE_GPU=1`.
pub(crate) fn gpu() -> Option<&'static Context> {
    static CONTEXT: OnceLock<Result<Context>> = OnceLock::new();
    let opened = CONTEXT.get_or_init(|| Context::new(&GpuChoice::Best, GpuFeatures::default()));
    match opened {
        Ok(context) => Some(context),
        Err(error) => {
            let required = std::env::var("REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_GPU=1: {error}");
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("a test");
            // Written past the test harness, which would swallow what is printed, and in one piece.
            let line = format!("skipped: {test}: {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// Runs a kernel once over `buffers`, in the order of its bindings, and gives back their contents.
pub(crate) fn run_kernel(
    context: &Context,
    kernel: &Kernel,
    variant: &Variant,
    batch: BatchParams,
    params: &[u8],
    grid: [u32; 3],
    buffers: &[&[u8]],
) -> Vec<Vec<u8>> {
    assert_eq!(params.len(), kernel.params_bytes, "`{}`", kernel.name);
    let names = kernel.bindings(variant);
    assert_eq!(buffers.len(), names.len(), "`{}`", kernel.name);
    let upload = |label: &str, contents: &[u8], usage: Usages| {
        let buffer = context.create_buffer(
            Purpose::Scratch,
            label,
            contents.len() as u64,
            usage | Usages::COPY_DST,
        );
        let buffer = buffer.unwrap();
        context.queue.write_buffer(&buffer, 0, contents);
        buffer
    };
    let mut bound = vec![
        upload("batch", bytemuck::bytes_of(&batch), Usages::UNIFORM),
        upload("params", params, Usages::UNIFORM),
    ];
    for (contents, (label, _)) in buffers.iter().zip(names) {
        bound.push(upload(label, contents, Usages::STORAGE | Usages::COPY_SRC));
    }
    let pipeline = context.pipeline(kernel, variant).unwrap();
    let bindings: Vec<_> = bound
        .iter()
        .map(|buffer| buffer.as_entire_buffer_binding())
        .collect();
    let bind_group = context
        .bind_group(kernel.name, &pipeline, &bindings)
        .unwrap();
    let run = || {
        let mut encoder = context.encoder(kernel.name);
        let mut pass = encoder.begin_compute_pass(&named(kernel.name));
        pass.set_pipeline(&pipeline.compiled);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        drop(pass);
        context.queue.submit([encoder.finish()]);
    };
    context.scoped(kernel.name, run).unwrap();
    let read = |buffer: &Buffer| context.read_buffer(buffer, 0, buffer.size()).unwrap();
    bound[2..].iter().map(read).collect()
}
