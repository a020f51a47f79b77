// Reductions over a workgroup of WORKGROUP invocations, by a tree in workgroup memory. Each function
// is called by all invocations in uniform control flow and gives all of them the result; `lane` is
// the local invocation index.

var<workgroup> reduce_partial: array<f32, WORKGROUP>;

fn workgroup_sum(value: f32, lane: u32) -> f32 {
    reduce_partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_partial[lane] += reduce_partial[lane + half];
        }
        workgroupBarrier();
    }
    let result = reduce_partial[0];
    workgroupBarrier(); // `reduce_partial` is free for the next call
    return result;
}

fn workgroup_max(value: f32, lane: u32) -> f32 {
    reduce_partial[lane] = value;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        if lane < half {
            reduce_partial[lane] = max(reduce_partial[lane], reduce_partial[lane + half]);
        }
        workgroupBarrier();
    }
    let result = reduce_partial[0];
    workgroupBarrier();
    return result;
}

