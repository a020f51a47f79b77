//! Devices that hold what the file gives, of which nothing is to be said. Those that do not are tested
//! beside each device.

use crate::diagnostics::{Depth, check_upload};
use crate::gguf::{Gguf, WeightType};
use crate::support::{devices, model};
use crate::tiny;
use crate::{Device, Engine, WeightStorage};
use std::time::Instant;

#[test]
fn sound_weights_of_every_type_and_storage_are_right_on_every_device() {
    let storages = [
        WeightStorage::Native,
        WeightStorage::F16,
        WeightStorage::F32,
    ];
    for device in devices() {
        for ty in WeightType::ALL {
            for storage in storages {
                let builder = Engine::builder_from(tiny::gguf(ty, None));
                let engine = builder.device(device.clone()).weights(storage);
                let engine = engine.build().unwrap();
                for depth in [Depth::Quick, Depth::Full] {
                    let report = check_upload(engine.weights(), engine.backend(), depth).unwrap();
                    assert!(report.passed(), "{device}, {ty:?}, {storage:?}: {report}");
                    let n_held = report.n_weights - report.n_in_file;
                    let expected = match device {
                        Device::Reference => 0,
                        // Two layers of two norms, and the last one.
                        Device::Cpu if report.n_in_file > 0 => 5,
                        _ => report.n_weights,
                    };
                    assert_eq!(n_held, expected, "{device}, {ty:?}, {storage:?}");
                    // Tiny weights are compared whole; a GPU has tables of angles too.
                    assert!(report.compared_bytes >= report.held_bytes, "{report}");
                    assert_eq!(report.held_bytes > 0, device != Device::Reference);
                }
            }
        }
    }
}

#[test]
fn real_weights_are_right_on_every_device() {
    for path in [model::smollm2().unwrap(), model::gemma3().unwrap()] {
        for device in devices() {
            let gguf = Gguf::open(&path).unwrap();
            let engine = Engine::builder_from(gguf).device(device.clone());
            let engine = engine.context_length(256).build().unwrap();
            for depth in [Depth::Quick, Depth::Full] {
                let started = Instant::now();
                let report = check_upload(engine.weights(), engine.backend(), depth).unwrap();
                eprintln!("{device}, {depth:?}, {:?}: {report}", started.elapsed());
                assert!(report.passed(), "{device}: {report}");
                if depth == Depth::Full {
                    assert!(report.compared_bytes >= report.held_bytes, "{report}");
                }
            }
        }
    }
}
