//! The memory that engines hold on a device: by what it is for, against the allocator, and given back.

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use support::{devices, gpu};
use tiny::{engine, greedy, tokens};
use trueshot::gguf::WeightType;
use trueshot::{Device, Engine, MemoryReport, WeightStorage};

fn memory(engine: &Engine) -> MemoryReport {
    engine.memory().unwrap()
}

#[test]
fn memory_of_a_session_is_given_back_when_it_is_dropped() {
    for device in devices() {
        let engine = engine(device.clone());
        let cache_bytes = engine.kv_layout().total_bytes();
        let ahead = memory(&engine);
        assert_eq!(ahead.cache_bytes, cache_bytes, "{device}");
        let mut first = engine.session().unwrap();
        first.eval(&tokens(20)).unwrap();
        let one = memory(&engine);
        assert_eq!(one.cache_bytes, cache_bytes, "{device}");

        let mut second = engine.session().unwrap();
        second
            .generate("w1 w2", &greedy(5))
            .unwrap()
            .text()
            .unwrap();
        let two = memory(&engine);
        assert_eq!(two.cache_bytes, 2 * cache_bytes, "{device}");
        assert!(two.scratch_bytes > one.scratch_bytes, "{device}");
        assert_eq!(two.weights_bytes, one.weights_bytes, "{device}");
        assert_eq!(two.file_bytes, engine.gguf().file_bytes(), "{device}");

        drop(second);
        assert_eq!(memory(&engine), one, "{device}");
        drop(first);
        let none = memory(&engine);
        assert_eq!(none.cache_bytes, 0, "{device}");
        assert!(none.scratch_bytes < one.scratch_bytes, "{device}");
        assert_eq!(none.weights_bytes, one.weights_bytes, "{device}");
    }
}

#[test]
fn weights_count_as_the_device_holds_them() {
    let weights_bytes = |device, storage| {
        let gguf = tiny::gguf(WeightType::Q4_0, None);
        let engine = Engine::builder_from(gguf)
            .device(device)
            .weights(storage)
            .build()
            .unwrap();
        (memory(&engine).weights_bytes, engine.weight_bytes())
    };
    // Five norms of 64 elements.
    const VECTORS: u64 = 5 * 64 * 4;
    assert_eq!(weights_bytes(Device::Cpu, WeightStorage::Native).0, VECTORS);
    let (held, stored) = weights_bytes(Device::Cpu, WeightStorage::F32);
    assert_eq!(held, stored);
    assert_eq!(weights_bytes(Device::Reference, WeightStorage::F32).0, 0);
    let Some(gpu) = gpu() else { return };
    for storage in [WeightStorage::Native, WeightStorage::F32] {
        let (held, stored) = weights_bytes(gpu.clone(), storage);
        assert!(held >= stored, "{storage:?}: {held}, {stored}");
    }
}

/// Of what is allocated, the share that buffers are rounded up by. Measured: 0.0017 with lavapipe.
const ROUNDING_BOUND: f64 = 0.01;

#[test]
fn memory_of_a_gpu_is_what_its_allocator_says() {
    let Some(device) = gpu() else { return };
    let engine = engine(device);
    let mut session = engine.session().unwrap();
    for round in 0..3 {
        session.eval(&tokens(20)).unwrap();
        session.observe(&tokens(3), &mut |_| ()).unwrap();
        let answer = session.generate("w1", &greedy(5)).unwrap();
        answer.text().unwrap();
        let report = memory(&engine);
        let Some(allocator) = report.allocator else {
            return;
        };
        let unexplained = report.unexplained_bytes().unwrap();
        let share = unexplained as f64 / allocator.allocated_bytes as f64;
        assert!(
            (0.0..=ROUNDING_BOUND).contains(&share),
            "round {round}: {share:e}, bound {ROUNDING_BOUND:e}\n{report:?}"
        );
        assert!(allocator.reserved_bytes >= allocator.allocated_bytes);
    }
}
