// Reductions over a workgroup of WORKGROUP invocations, by subgroup operations. Each function is
// called by all invocations in uniform control flow and gives all of them the result; `lane` is the
// local invocation index.
// Every subgroup reduces all the values, so that it does not matter how large the subgroups are, how
// they are filled, or which invocations they hold. The builtins that say so are not exact in HLSL.

var<workgroup> reduce_partial: array<f32, WORKGROUP>;

fn workgroup_sum(value: f32, lane: u32) -> f32 {
    reduce_partial[lane] = value;
    workgroupBarrier();
    let subgroup_size = subgroupAdd(1u);
    var sum = 0.0;
    for (var i = subgroupExclusiveAdd(1u); i < WORKGROUP; i += subgroup_size) {
        sum += reduce_partial[i];
    }
    let result = subgroupAdd(sum);
    workgroupBarrier(); // `reduce_partial` is free for the next call
    return result;
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    reduce_partial[lane] = value;
    workgroupBarrier();
    let subgroup_size = subgroupAdd(1u);
    var largest = value;
    for (var i = subgroupExclusiveAdd(1u); i < WORKGROUP; i += subgroup_size) {
        largest = max(largest, reduce_partial[i]);
    }
    let result = subgroupMax(largest);
    workgroupBarrier();
    return result;
}

