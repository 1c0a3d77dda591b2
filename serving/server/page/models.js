// The settings that a model offers, from our manifest or from TF Serving's metadata.

import { ARGUMENTS } from "./arguments.js";

// The choices if the server does not list any, like TF Serving, which refuses unknown ones.
const SAMPLERS = ARGUMENTS.sampler.choices;
const SIZES = [[128, 128], [256, 256], [384, 384], [512, 512]];
const DEFAULTS = { num_steps: 20, guidance_scale: 3, sampler: "ddim", height: 128, width: 128 };

/**
 * Returns the models that a server has, newest versions first:
 * `{name, version, defaults, sizes, samplers, maxSteps, isComplete, identity, licence}`.
 *
 * `isComplete`: the lists are those of the model; `identity`: the model's entries in a recipe.
 */
export async function modelsOf(server, name, version) {
  const manifests = await server.manifests();
  if (manifests === null) return [fromMetadata(name ?? "tiny", await server.metadata(name ?? "tiny", version))];
  const models = manifests.map(fromManifest);
  return models.sort((a, b) => a.name.localeCompare(b.name) || Number(b.version) - Number(a.version));
}

function fromManifest(manifest) {
  const { name, version, defaults, sizes, samplers, model, weights, dtype, numerics, xla, tfsd, tensorflow } = manifest;
  return {
    name,
    version: String(version),
    defaults: { ...DEFAULTS, ...defaults },
    sizes: sizes ?? SIZES,
    samplers: samplers ?? SAMPLERS,
    maxSteps: manifest.max_steps ?? 100,
    isComplete: true,
    identity: { model: model ?? name, weights, dtype, numerics, jit_compile: xla, tfsd, tensorflow },
    licence: { name: manifest.licence, url: manifest.licence_url, restrictions: manifest.use_restrictions },
  };
}

function fromMetadata(name, { version, signature }) {
  const defaults = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    defaults[key] = firstValue(signature.defaults?.[key]) ?? defaults[key];
  }
  const size = [defaults.height, defaults.width];
  const others = SIZES.filter((other) => other.join() !== size.join());
  return {
    name,
    version: version ? String(version) : "",
    defaults,
    sizes: [size, ...others],
    samplers: SAMPLERS,
    maxSteps: 1000,
    isComplete: false,
    identity: { model: name },
    licence: {},
  };
}

/** Returns the first element of a TensorProto in protobuf's JSON, or undefined. */
function firstValue(tensor) {
  if (!tensor) return undefined;
  const listed = tensor.int_val?.[0] ?? tensor.float_val?.[0] ?? tensor.int64_val?.[0];
  if (listed !== undefined) return Number(listed);
  if (tensor.string_val?.length) return atob(tensor.string_val[0]);
  if (!tensor.tensor_content) return undefined;
  const bytes = Uint8Array.from(atob(tensor.tensor_content), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  if (tensor.dtype === "DT_FLOAT") return view.getFloat32(0, true);
  return tensor.dtype === "DT_INT32" ? view.getInt32(0, true) : undefined;
}
