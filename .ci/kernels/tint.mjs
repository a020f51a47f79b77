// Compiles each WGSL file of a folder by Tint, the compiler of Dawn, to a pipeline of the Vulkan driver that is there.
// Any message is a failure. Mistakes that it must refuse come first.
//
// usage: node tint.mjs WEBGPU KERNELS        the npm package's folder, and the kernels'
import { readFileSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [webgpu, kernels] = process.argv.slice(2);
const { create, globals } = await import(pathToFileURL(resolve(webgpu, "index.js")).href);
Object.assign(globalThis, globals);

// What `create` gives must outlive all that comes of it.
const gpu = create([]);
const adapter = await gpu.requestAdapter();
if (!adapter) throw new Error("Dawn finds no adapter");
const { maxStorageBuffersPerShaderStage } = adapter.limits;
const device = await adapter.requestDevice({
  requiredFeatures: ["subgroups"],
  requiredLimits: { maxStorageBuffersPerShaderStage },
});

// What the compiler says of a text, a line each.
async function complaints(code) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const said = messages.map((m) => `${m.lineNum}:${m.linePos}: ${m.type}: ${m.message}`);
  if (said.length === 0) device.createComputePipeline({ layout: "auto", compute: { module } });
  const error = await device.popErrorScope();
  return said.length === 0 && error ? [error.message] : said;
}

const names = readdirSync(kernels).filter((name) => name.endsWith(".wgsl"));
const read = (name) => readFileSync(join(kernels, name), "utf8");
const add = read("add_0.wgsl");
const entry = "@compute @workgroup_size(64) fn wrong(@builtin(local_invocation_index) lane: u32)";
const mistakes = {
  "a bracket is missing": `${add} fn wrong() {`,
  "a float is returned as an integer": `${add} fn wrong() -> u32 { return 1.5f; }`,
  "a name is unknown": `${add} fn wrong() -> u32 { return absent; }`,
  // These naga lets pass.
  "operators that do not mix": `${add} fn wrong(a: u32) -> u32 { return a * 2u & 3u; }`,
  "a barrier that some invocations do not reach": `${add} ${entry} { if lane > 3u { workgroupBarrier(); } }`,
  "a sum that some invocations do not reach":
    `enable subgroups; ${add} ${entry} { if lane > 3u { _ = subgroupAdd(lane); } }`,
  "a workgroup that is too large": "@compute @workgroup_size(1024) fn main() {}",
};

let failures = 0;
const fail = (line) => {
  failures += 1;
  console.error(line);
};
for (const [mistake, code] of Object.entries(mistakes)) {
  if ((await complaints(code)).length === 0) fail(`Tint accepts what is wrong: ${mistake}`);
}
for (const name of names) {
  const said = await complaints(read(name));
  if (said.length > 0) fail(`${name}: ${said.join("\n  ")}`);
}
console.log(`Tint: ${names.length} kernels, ${failures} failures`);
process.exitCode = failures === 0 ? 0 : 1;
