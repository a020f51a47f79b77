//! Every variant of every kernel as each backend will see it, and against its Rust declarations.

use super::{variants, warnings};
use crate::kernels::matmul_coop::CooperativeMatrix;
use crate::kernels::{
    ALL, Access, BatchParams, Constants, Kernel, Src, Variant, add, attention, attention_coop,
    attention_few, causal_conv, choose_experts, delta_rule, embed, expert_gated, expert_matmul,
    expert_matvec, expert_tiles, expert_weights, f16_rows, gated_activation, group_norm,
    head_matvec, layer_norm, logit_maxima, map, matmul, matmul_coop, matvec, matvec_gated,
    matvec_heads, quantize, rms_norm, rope, sample, select_outputs, sentinel, state_scan, store_kv,
    take_columns, weigh_slots, weighted_sum,
};
use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, StorageAccess, TypeInner};
use std::mem::offset_of;

/// The limits that every WebGPU adapter has.
const MAX_INVOCATIONS: u32 = 256;
const MAX_WORKGROUP_BYTES: u32 = 16384;
const MAX_STORAGE_BUFFERS: usize = 8;

type Members = Vec<(&'static str, usize)>;

macro_rules! members {
    ($params:ty { $($member:ident),* }) => {
        vec![$((stringify!($member), offset_of!($params, $member))),*]
    };
}

/// Names and offsets of a kernel's `Params` in Rust.
fn params_members(kernel: &Kernel) -> Members {
    match kernel.name {
        "add" => members!(add::Params {
            width,
            stride,
            padding
        }),
        "attention" | "attention_coop" => members!(attention::Params {
            n_head,
            n_head_kv,
            head_dim,
            stride,
            scale,
            window,
            soft_cap,
            of_heads,
            value_dim,
            dst_stride,
            chunk
        }),
        "attention_few" | "attention_merge" => members!(attention_few::Params {
            n_head,
            n_head_kv,
            stride,
            n_splits,
            scale,
            window,
            has_int8,
            soft_cap,
            has_sinks
        }),
        "causal_conv" => members!(causal_conv::Params {
            n_channels,
            stride,
            n_taps,
            activation,
            has_bias
        }),
        "state_scan" => members!(state_scan::Params {
            n_head,
            head_dim,
            n_state,
            n_group,
            x_stride,
            x_first,
            b_stride,
            b_first,
            c_stride,
            c_first,
            dt_stride,
            dst_stride,
            n_lanes,
            has_a_of_each
        }),
        "delta_rule" => members!(delta_rule::Params {
            n_head,
            n_head_k,
            n_state,
            qkv_stride,
            gate_stride,
            dst_stride,
            n_lanes,
            is_tiled,
            eps,
            scale
        }),
        "group_norm" => members!(group_norm::Params {
            group,
            n_groups,
            stride,
            eps
        }),
        "take_columns" => members!(take_columns::Params {
            width,
            src_stride,
            dst_stride,
            first,
            length,
            period
        }),
        "choose_experts" => members!(choose_experts::Params {
            n_expert,
            stride,
            n_chosen,
            dst_stride,
            is_sigmoid,
            has_bias,
            n_group,
            n_used
        }),
        "expert_gated" => members!(expert_gated::Params {
            matrix,
            up_planes,
            src_stride,
            dst_stride,
            n_pairs,
            activation,
            has_int8,
            has_bias,
            up_bias,
            n_out,
            n_expert,
            n_chosen,
            chosen_stride,
            slots_per_src
        }),
        "expert_matmul" | "expert_matmul_coop" => members!(expert_matmul::Params {
            matrix,
            src_stride,
            dst_stride,
            n_out,
            has_bias,
            slots_per_src,
            order_start
        }),
        "expert_tiles" => members!(expert_tiles::Params {
            n_expert,
            n_chosen,
            chosen_stride,
            tile_rows,
            order_start
        }),
        "expert_matvec" => members!(expert_matvec::Params {
            matrix,
            src_stride,
            dst_stride,
            n_pairs,
            has_bias,
            n_out,
            n_expert,
            n_chosen,
            chosen_stride,
            slots_per_src
        }),
        "expert_weights" => members!(expert_weights::Params {
            n_expert,
            stride,
            n_chosen,
            chosen_stride,
            is_sigmoid,
            is_normalised,
            scale,
            least_sum,
            has_factors
        }),
        "weigh_slots" => members!(weigh_slots::Params {
            width,
            stride,
            n_slots,
            weights_stride
        }),
        "weighted_sum" => members!(weighted_sum::Params {
            width,
            stride,
            n_slots,
            weights_stride
        }),
        "embed" => members!(embed::Params {
            matrix,
            dst_stride,
            scale,
            named_by,
            padding
        }),
        "f16_rows" => members!(f16_rows::Params {
            stride,
            extent,
            n_slots,
            padding
        }),
        "gated_activation" => {
            members!(gated_activation::Params {
                width,
                stride,
                activation,
                has_f16
            })
        }
        "layer_norm" => members!(layer_norm::Params {
            group,
            n_groups,
            stride,
            n_weight,
            eps,
            has_bias
        }),
        "logit_maxima" => members!(logit_maxima::Params {
            n_tokens,
            stride,
            padding
        }),
        "map" => members!(map::Params {
            width,
            stride,
            function,
            value
        }),
        "matmul" => members!(matmul::Params {
            matrix,
            src_stride,
            dst_stride,
            extent,
            has_bias,
            has_residual
        }),
        "matmul_coop" => members!(matmul_coop::Params {
            matrix,
            src_stride,
            dst_stride,
            extent,
            has_bias,
            has_residual
        }),
        "head_matvec" => members!(head_matvec::Params {
            matrix,
            src_stride,
            row_quads,
            dst_stride,
            n_pairs,
            n_head,
            src_dim,
            n_out,
            n_rest
        }),
        "matvec" => members!(matvec::Params {
            matrix,
            src_stride,
            dst_stride,
            n_pairs,
            has_bias,
            has_residual
        }),
        "matvec_gated" => members!(matvec_gated::Params {
            matrix,
            up_planes,
            src_stride,
            dst_stride,
            n_pairs,
            activation,
            has_int8,
            eps,
            writes_norm,
            padding
        }),
        "matvec_heads" => members!(matvec_heads::Params {
            matrix,
            second_planes,
            third_planes,
            first,
            second,
            third,
            src_stride,
            n_pairs,
            head_dim,
            n_dims,
            pair_step,
            pair_distance,
            eps,
            writes_norm
        }),
        "quantize" => members!(quantize::Params { stride, n_slots }),
        "rms_norm" => members!(rms_norm::Params {
            group,
            n_groups,
            stride,
            eps,
            rounds,
            is_plain
        }),
        "rope" => members!(rope::Params {
            n_head,
            head_dim,
            n_dims,
            stride,
            pair_step,
            pair_distance,
            padding
        }),
        "sample" => members!(sample::Params {
            n_tokens,
            stride,
            top_k,
            top_p,
            min_p,
            inverse_temperature,
            padding
        }),
        "select_outputs" => members!(select_outputs::Params {
            width,
            stride,
            padding
        }),
        "sentinel" => members!(sentinel::Params {
            slot,
            stride,
            padding
        }),
        "store_kv" => members!(store_kv::Params { widths, strides }),
        name => panic!("the members of the parameters of `{name}` are not listed here"),
    }
}

/// Parses and validates as wgpu does on a device with what the variant of the kernel needs. A warning is an error.
pub(super) fn parse(
    kernel: &Kernel,
    variant: &Variant,
    source: &str,
) -> Result<(Module, ModuleInfo), String> {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32; // Vulkan, Metal and DX12 have it
    capabilities.set(Capabilities::SUBGROUP, has_subgroups(kernel, variant));
    capabilities.set(Capabilities::SHADER_FLOAT16, kernel.uses.f16);
    let has_matrices = matrix_of(kernel, variant).is_some();
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, has_matrices);
    let (parsed, warnings) = warnings::of(|| -> Result<_, String> {
        let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|e| e.emit_to_string(source))?;
        Ok((module, info))
    });
    let parsed = parsed?;
    require(warnings.is_empty(), || {
        format!("naga warns: {}", warnings.join("; "))
    })?;
    Ok(parsed)
}

pub(super) fn has_subgroups(kernel: &Kernel, variant: &Variant) -> bool {
    matrix_of(kernel, variant).is_some() || kernel.reduces(variant) && variant.subgroups
}

/// The cooperative matrices that a variant uses, and its bytes of workgroup memory.
pub(super) fn matrix_of(kernel: &Kernel, variant: &Variant) -> Option<(CooperativeMatrix, usize)> {
    let tile = variant.tile.filter(|_| kernel.uses.tile);
    let attention_tile = variant
        .attention_tile
        .filter(|_| kernel.uses.attention_tile);
    let tile = tile.map(|tile| (tile.matrix, tile.workgroup_bytes()));
    tile.or(attention_tile.map(|tile| (tile.matrix, tile.workgroup_bytes())))
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn check_members(module: &Module, name: &str, bytes: usize, want: &Members) -> Result<(), String> {
    let found = module
        .types
        .iter()
        .find(|(_, ty)| ty.name.as_deref() == Some(name));
    let Some(TypeInner::Struct { members, span }) = found.map(|(_, ty)| &ty.inner) else {
        return Err(format!("there is no struct `{name}`"));
    };
    require(*span as usize == bytes, || {
        format!("`{name}` has {span} bytes, expected {bytes}")
    })?;
    let got: Vec<_> = members
        .iter()
        .map(|m| (m.name.as_deref().unwrap_or(""), m.offset as usize))
        .collect();
    require(got == *want, || {
        format!("`{name}` has members {got:?}, expected {want:?}")
    })
}

fn check_bindings(module: &Module, kernel: &Kernel, variant: &Variant) -> Result<(), String> {
    let load = StorageAccess::LOAD;
    let mut want = vec![
        (0, 0, "batch", AddressSpace::Uniform),
        (0, 1, "p", AddressSpace::Uniform),
    ];
    for (binding, (name, access)) in (2..).zip(kernel.bindings(variant)) {
        let access = match access {
            Access::Read => load,
            Access::ReadWrite => load | StorageAccess::STORE,
        };
        want.push((0, binding, name, AddressSpace::Storage { access }));
    }
    let mut got = Vec::new();
    for (_, global) in module.global_variables.iter() {
        if let Some(binding) = &global.binding {
            let name = global.name.as_deref().unwrap_or("");
            got.push((binding.group, binding.binding, name, global.space));
        }
    }
    got.sort_by_key(|&(group, binding, ..)| (group, binding));
    require(got == want, || {
        format!("bindings {got:?}, expected {want:?}")
    })?;
    check_n_buffers(kernel, variant)
}

fn check_n_buffers(kernel: &Kernel, variant: &Variant) -> Result<(), String> {
    // Where an adapter lacks the ninth, `matvec::may_normalise` keeps the norm out of this one.
    let most = match (kernel.name, variant.src) {
        ("matvec_heads", Src::Norm) => MAX_STORAGE_BUFFERS + 1,
        _ => MAX_STORAGE_BUFFERS,
    };
    let found = kernel.bindings(variant).len();
    require(found <= most, || {
        format!("{found} storage buffers, expected at most {most}")
    })
}

fn check_workgroup(
    module: &Module,
    matrix: Option<(CooperativeMatrix, usize)>,
) -> Result<(), String> {
    let [entry] = &module.entry_points[..] else {
        return Err(format!(
            "{} entry points, expected 1",
            module.entry_points.len()
        ));
    };
    require(
        entry.name == "main" && entry.stage == ShaderStage::Compute,
        || {
            format!(
                "the entry point is {:?} `{}`, expected Compute `main`",
                entry.stage, entry.name
            )
        },
    )?;
    let invocations: u32 = entry.workgroup_size.iter().product();
    let is_apple = matrix.is_none_or(|(matrix, _)| !matrix.from_vectors);
    let is_avoided = is_apple && invocations == 32;
    require(invocations <= MAX_INVOCATIONS && !is_avoided, || {
        format!("{invocations} invocations in a workgroup")
    })?;
    let mut layouter = naga::proc::Layouter::default();
    layouter
        .update(module.to_ctx())
        .map_err(|error| error.to_string())?;
    let shared = |space| space == AddressSpace::WorkGroup;
    let globals = module
        .global_variables
        .iter()
        .filter(|(_, global)| shared(global.space));
    let sizes: Vec<u32> = globals
        .map(|(_, global)| layouter[global.ty].to_stride())
        .collect();
    // So that none moves a matrix off its 16 bytes.
    let is_aligned = matrix.is_none() || sizes.iter().all(|bytes| bytes.is_multiple_of(16));
    require(is_aligned, || {
        format!("workgroup variables of {sizes:?} bytes beside matrices")
    })?;
    let bytes: u32 = sizes.iter().sum();
    let fits = matrix.map_or(bytes <= MAX_WORKGROUP_BYTES, |(_, stated)| {
        bytes as usize == stated
    });
    require(fits, || format!("{bytes} bytes of workgroup memory"))
}

/// Options as wgpu sets them for trusted shaders on macOS 12, the oldest that has what it needs.
pub(super) fn to_msl(module: &Module, info: &ModuleInfo) -> Result<String, String> {
    let mut resources = msl::EntryPointResources {
        sizes_buffer: Some(30),
        ..Default::default()
    };
    for (_, global) in module.global_variables.iter() {
        if let Some(binding) = global.binding {
            let mutable = global.space.access().contains(StorageAccess::STORE);
            let slot = u8::try_from(binding.binding).map_err(|error| error.to_string())?;
            let target = msl::BindTarget {
                buffer: Some(slot),
                mutable,
                ..Default::default()
            };
            resources.resources.insert(binding, target);
        }
    }
    let options = msl::Options {
        lang_version: (2, 4),
        per_entry_point_map: [("main".to_owned(), resources)].into(),
        fake_missing_bindings: false,
        bounds_check_policies: unchecked(),
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, "main".to_owned())),
        ..Default::default()
    };
    let translated = msl::write_string(module, info, &options, &pipeline);
    let (text, translation) = translated.map_err(|error| format!("MSL: {error}"))?;
    let [name] = &translation.entry_point_names[..] else {
        return Err("MSL: not one entry point".to_owned());
    };
    name.as_ref().map_err(|error| format!("MSL: {error}"))?;
    Ok(text)
}

fn unchecked() -> naga::proc::BoundsCheckPolicies {
    let policy = naga::proc::BoundsCheckPolicy::Unchecked;
    naga::proc::BoundsCheckPolicies {
        index: policy,
        buffer: policy,
        image_load: policy,
        binding_array: policy,
    }
}

fn to_spirv(module: &Module, info: &ModuleInfo) -> Result<Vec<u32>, String> {
    let options = spv::Options {
        lang_version: (1, 3),
        bounds_check_policies: unchecked(),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry_point = "main".to_owned();
    let pipeline = spv::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point,
    };
    spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| format!("SPIR-V: {e}"))
}

/// Shader model 5.1 is what Windows compiles without an extra library; subgroups need 6.0.
fn to_hlsl(module: &Module, info: &ModuleInfo, subgroups: bool) -> Result<String, String> {
    let shader_model = if subgroups {
        hlsl::ShaderModel::V6_0
    } else {
        hlsl::ShaderModel::V5_1
    };
    let options = hlsl::Options {
        shader_model,
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        special_constants_binding: Some(hlsl::BindTarget {
            space: 255,
            ..Default::default()
        }),
        force_loop_bounding: false,
        ..Default::default()
    };
    let entry_point = Some((ShaderStage::Compute, "main".to_owned()));
    let pipeline = hlsl::PipelineOptions { entry_point };
    let mut text = String::new();
    let reflection = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|error| format!("HLSL: {error}"))?;
    for name in reflection.entry_point_names {
        name.map_err(|error| format!("HLSL: {error}"))?;
    }
    Ok(text)
}

/// HLSL has no subgroup id: naga 30 derives it from the invocation's index, which no device promises,
/// and leaves members of a struct that are subgroup builtins unset.
fn check_subgroup_builtins(module: &Module) -> Result<(), String> {
    use naga::{Binding, BuiltIn};
    let arguments = module
        .entry_points
        .iter()
        .flat_map(|entry| &entry.function.arguments);
    let members = module.types.iter().filter_map(|(_, ty)| match &ty.inner {
        TypeInner::Struct { members, .. } => Some(members),
        _ => None,
    });
    let of_arguments = arguments.map(|argument| &argument.binding);
    let mut bindings = of_arguments.chain(members.flatten().map(|member| &member.binding));
    let of_subgroups = |binding: &Option<Binding>| {
        use BuiltIn::{NumSubgroups, SubgroupId, SubgroupInvocationId, SubgroupSize};
        let Some(Binding::BuiltIn(builtin)) = binding else {
            return false;
        };
        matches!(
            builtin,
            NumSubgroups | SubgroupId | SubgroupInvocationId | SubgroupSize
        )
    };
    require(!bindings.any(of_subgroups), || {
        "a subgroup builtin".to_owned()
    })
}

fn check(
    kernel: &Kernel,
    variant: &Variant,
    source: &str,
    members: &Members,
) -> Result<(), String> {
    let (module, info) = parse(kernel, variant, source)?;
    let batch = members!(BatchParams {
        n_rows,
        position,
        n_outputs,
        random
    });
    check_members(&module, "Batch", size_of::<BatchParams>(), &batch)?;
    check_members(&module, "Params", kernel.params_bytes, members)?;
    require(kernel.params_bytes.is_multiple_of(16), || {
        "`Params` is not padded".to_owned()
    })?;
    check_bindings(&module, kernel, variant)?;
    let matrix = matrix_of(kernel, variant);
    check_workgroup(&module, matrix)?;
    to_spirv(&module, &info)?;
    if matrix.is_none_or(|(matrix, _)| !matrix.from_vectors) {
        to_msl(&module, &info)?;
    }
    // DirectX 12 has no cooperative matrices, and 16-bit floats are there for them alone.
    if !kernel.uses.f16 {
        check_subgroup_builtins(&module)?;
        to_hlsl(&module, &info, has_subgroups(kernel, variant))?;
    }
    Ok(())
}

#[test]
fn every_variant_of_every_kernel_translates_and_matches_its_declaration() {
    for kernel in ALL {
        for variant in variants(kernel, true) {
            let source = kernel.source(&variant);
            if let Err(error) = check(kernel, &variant, &source, &params_members(kernel)) {
                panic!("`{}` {variant:?}: {error}", kernel.name);
            }
        }
    }
}

/// The variant with its parameters in the text, of kernels of few rows.
pub(super) fn with_constants(kernel: &Kernel, variant: &Variant) -> Option<Variant> {
    let is_of_few = kernel.uses.matvec || kernel.uses.heads || kernel.name == rms_norm::KERNEL.name;
    let words = vec![16_u32; kernel.params_bytes / 4];
    is_of_few.then(|| Variant {
        constants: Constants::new(bytemuck::cast_slice(&words)),
        ..*variant
    })
}

#[test]
fn parameters_as_constants_translate() {
    for kernel in ALL {
        for variant in variants(kernel, true) {
            let Some(variant) = with_constants(kernel, &variant) else {
                continue;
            };
            let source = kernel.source(&variant);
            assert!(!source.contains("var<uniform> p"), "`{}`", kernel.name);
            let translated = parse(kernel, &variant, &source).and_then(|(module, info)| {
                to_spirv(&module, &info)?;
                to_msl(&module, &info)
            });
            if let Err(error) = translated {
                panic!("`{}` {variant:?}: {error}", kernel.name);
            }
        }
    }
}

#[test]
fn every_kernel_opens_with_its_header() {
    let keys = ["twin", "shapes", "grid", "needs", "numerics", "source"];
    for kernel in ALL {
        let comments: Vec<_> = kernel
            .wgsl
            .lines()
            .map_while(|line| line.strip_prefix("// "))
            .collect();
        let begins = |line: &&str, key: &str| line.starts_with(&format!("{key}: "));
        let missing = |key: &&str| !comments.iter().any(|line| begins(line, key));
        assert!(begins(&comments[0], kernel.name), "`{}`", kernel.name);
        let missing: Vec<_> = keys.into_iter().filter(missing).collect();
        assert!(
            missing.is_empty(),
            "the header of `{}` lacks {missing:?}",
            kernel.name
        );
    }
}

/// What [`check`] says of `add` after a replacement in its text.
fn refusal(from: &str, to: &str) -> String {
    let variant = variants(&add::KERNEL, true)[0];
    let source = add::KERNEL.source(&variant);
    assert!(source.contains(from), "`{from}` is not in the text");
    let source = source.replacen(from, to, 1);
    check(
        &add::KERNEL,
        &variant,
        &source,
        &params_members(&add::KERNEL),
    )
    .unwrap_err()
}

#[test]
fn the_check_refuses_a_broken_kernel() {
    assert!(refusal("a[at] + b[at]", "a[at] + absent").contains("absent"));
    assert!(refusal("a[at] + b[at]", "subgroupAdd(a[at])").contains("apabilit"));
    let unknown = refusal("@compute", "@diagnostic(off, no_such_rule) @compute");
    assert!(unknown.starts_with("naga warns: "), "{unknown}");
    assert!(refusal("fn main", "fn start").contains("`start`"));
    assert!(refusal("width: u32,", "width: u32, more: u32,").contains("`Params` has "));
    assert!(refusal("position: u32", "place: u32").contains("`Batch` has members"));
    assert!(refusal("storage, read> b", "storage, read_write> b").contains("bindings"));
    assert!(refusal("@binding(3)", "@binding(7)").contains("bindings"));
    assert!(refusal("workgroup_size(64)", "workgroup_size(512)").contains("512 invocations"));
    assert!(refusal("workgroup_size(64)", "workgroup_size(32)").contains("32 invocations"));
    let nine = Kernel {
        bindings: &[("a", Access::Read); MAX_STORAGE_BUFFERS + 1],
        ..add::KERNEL
    };
    let error = check_n_buffers(&nine, &variants(&nine, true)[0]).unwrap_err();
    assert_eq!(error, "9 storage buffers, expected at most 8");
    let lane = "@builtin(subgroup_invocation_id) lane: u32, @builtin(local_invocation_index)";
    let variant = variants(&rms_norm::KERNEL, true)[1];
    let source = rms_norm::KERNEL.source(&variant);
    let source = source.replacen(
        "@builtin(local_invocation_index) lane",
        &format!("{lane} _lane"),
        1,
    );
    let members = params_members(&rms_norm::KERNEL);
    let error = check(&rms_norm::KERNEL, &variant, &source, &members).unwrap_err();
    assert_eq!(error, "a subgroup builtin");
    let shared = "var<workgroup> large: array<vec4<f32>, 1025>;\n@compute";
    assert!(refusal("@compute", shared).contains("16400 bytes of workgroup memory"));
    let kernel = &attention_coop::KERNEL;
    let variant = variants(kernel, true)[0];
    let source = kernel
        .source(&variant)
        .replace("must_rescale: vec4<u32>", "must_rescale: vec2<u32>");
    let error = check(kernel, &variant, &source, &params_members(kernel)).unwrap_err();
    assert!(error.contains(" bytes beside matrices"), "{error}");
}
