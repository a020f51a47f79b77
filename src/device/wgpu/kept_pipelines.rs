//! What the driver has compiled, kept between runs.

use super::context::Context;
use crate::cache_file::CacheFile;
use crate::error::Result;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The driver's own cache of pipelines, with its file.
#[derive(Debug)]
pub(super) struct KeptPipelines {
    pub(super) cache: wgpu::PipelineCache,
    file: CacheFile,
    /// Of the file's contents.
    n_bytes: AtomicUsize,
}

impl KeptPipelines {
    /// Reads the file of this adapter, driver and version of the crate; `None` where the driver gives
    /// nothing out.
    fn open(context: &Context, folder: &Path) -> Result<Option<KeptPipelines>> {
        let name = wgpu::util::pipeline_cache_key(&context.device.adapter_info());
        let has_feature = context.features.contains(wgpu::Features::PIPELINE_CACHE);
        let Some(name) = name.filter(|_| has_feature) else {
            return Ok(None);
        };
        let driver = &context.info.driver;
        let key = format!("{} {driver}", env!("CARGO_PKG_VERSION"));
        let file = CacheFile::new(folder, &format!("{name}.bin"), key);
        let contents = file.read();
        #[expect(unsafe_code, reason = "drivers trust the contents of their caches")]
        // SAFETY: the contents are what `get_data` gave for this adapter and driver: a checksum over
        // all of it says so, wgpu and the driver check their headers, and a folder of caches is as
        // private as the program itself.
        let cache = context.scoped("pipeline cache", || unsafe {
            context
                .device
                .create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                    label: Some("trueshot"),
                    data: contents.as_deref(),
                    fallback: true,
                })
        })?;
        Ok(Some(KeptPipelines {
            cache,
            file,
            n_bytes: AtomicUsize::new(contents.map_or(0, |contents| contents.len())),
        }))
    }

    /// Writes the file where there is more than it has.
    fn save(&self) {
        let Some(contents) = self.cache.get_data() else {
            return;
        };
        if self.n_bytes.swap(contents.len(), Ordering::Relaxed) != contents.len() {
            self.file.write(&contents);
        }
    }
}

impl Context {
    /// Keeps what the driver compiles from now on in a file of `folder`, and uses what is there.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) where the device fails; none for a file that is of no use.
    pub(crate) fn keep_pipelines(&mut self, folder: &Path) -> Result<()> {
        self.kept = KeptPipelines::open(self, folder)?;
        Ok(())
    }

    /// Writes what was compiled since, if [`Context::keep_pipelines`] asked for it.
    pub(super) fn save_pipelines(&self) {
        if let Some(kept) = &self.kept {
            kept.save();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::device::GpuChoice;
    use crate::device::wgpu::adapter::GpuFeatures;
    use crate::device::wgpu::context::Context;
    use crate::device::wgpu::testing::gpu;
    use crate::kernels::{Variant, add};
    use std::fs;

    #[test]
    fn pipelines_are_kept_and_damaged_files_replaced() {
        let Some(_) = gpu() else { return };
        let folder = std::env::temp_dir().join(format!("trueshot-kept-{}", std::process::id()));
        let variant = Variant::PLAIN;
        let compile = || {
            let mut context = Context::new(&GpuChoice::Best, GpuFeatures::default()).unwrap();
            context.keep_pipelines(&folder).unwrap();
            context.pipeline(&add::KERNEL, &variant).unwrap();
            context.save_pipelines();
            context.kept.is_some()
        };
        if compile() {
            let only_file = || {
                fs::read_dir(&folder)
                    .unwrap()
                    .next()
                    .unwrap()
                    .unwrap()
                    .path()
            };
            let good = fs::read(only_file()).unwrap();
            assert!(good.len() > 8);
            assert!(compile());
            let mut bad = good.clone();
            bad[good.len() / 2] ^= 1;
            fs::write(only_file(), &bad).unwrap();
            assert!(compile());
            assert_ne!(fs::read(only_file()).unwrap(), bad);
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
