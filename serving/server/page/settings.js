// The settings: read from the form and written to it, and as the part of an address after '#'.

import { ARGUMENTS } from "./arguments.js";

const SEED_MIN = BigInt(ARGUMENTS.seed.low);
const SEED_MAX = BigInt(ARGUMENTS.seed.high);
const SENT = Object.keys(ARGUMENTS).filter((name) => ARGUMENTS[name].column !== null);
const TEXTS = ["prompt", "negative_prompt"];
// Those that a field of the form holds as a number: a seed has too many digits, and a choice of sizes has both sides.
const NUMBERS = SENT.filter((name) => ["whole", "real"].includes(ARGUMENTS[name].kind))
  .filter((name) => !["seed", "height", "width"].includes(name));

/** Returns a seed as a BigInt, or null if the text is not a 64-bit integer. */
export function parseSeed(text) {
  const trimmed = text.trim().replace(/^\u2212/, "-");
  if (!/^[+-]?\d{1,30}$/.test(trimmed)) return null;
  const seed = BigInt(trimmed.replace(/^\+/, ""));
  return SEED_MIN <= seed && seed <= SEED_MAX ? seed : null;
}

/** Returns a random seed from the range of `tfsd`. */
export function randomSeed() {
  const [word] = crypto.getRandomValues(new Uint32Array(1));
  return BigInt(word % (2 ** 31 - 2)); // from 0 to 2^31 - 3
}

/** The fields of the form, for the models of one server. */
export class Settings {
  constructor(form, models) {
    this.fields = form.elements;
    this.models = models;
    this.#options(this.fields.model, models.map((model) => [keyOf(model), labelOf(model, models)]));
    this.numbers = NUMBERS.filter((name) => this.fields.namedItem(name) !== null);
    for (const name of this.numbers) {
      this.fields[name].min = ARGUMENTS[name].low;
      this.fields[name].max = ARGUMENTS[name].high;
    }
    form.querySelector("#model-field").hidden = models.length < 2;
    this.useModel(models[0], true);
  }

  get model() {
    return this.models.find((model) => keyOf(model) === this.fields.model.value);
  }

  /** Offers a model's samplers, sizes and limits; keeps the current choice if the model has it, unless `reset`. */
  useModel(model, reset = false) {
    const { fields } = this;
    const { defaults } = model;
    const before = { sampler: fields.sampler.value, size: fields.size.value };
    fields.model.value = keyOf(model);
    fields.model.dataset.name = model.name;
    this.#options(fields.sampler, model.samplers.map((name) => [name, name]));
    this.#options(fields.size, model.sizes.map(([height, width]) => [`${width}x${height}`, `${width} × ${height}`]));
    fields.num_steps.max = model.maxSteps;
    this.#choose("sampler", reset ? defaults.sampler : before.sampler, defaults.sampler);
    const size = `${defaults.width}x${defaults.height}`;
    this.#choose("size", reset ? size : before.size, size);
    if (reset) {
      fields.num_steps.value = defaults.num_steps;
      fields.guidance_scale.value = roundScale(defaults.guidance_scale);
    }
  }

  /** Returns the settings, or null if a field is wrong, which the browser then shows. */
  read() {
    const { fields, model } = this;
    const seed = parseSeed(fields.seed.value);
    fields.seed.setCustomValidity(seed === null ? "The seed is a whole number from -2⁶³ to 2⁶³-1." : "");
    if (!fields.prompt.form.reportValidity()) return null;
    const [width, height] = fields.size.value.split("x").map(Number);
    return {
      model: model.name,
      version: model.version,
      prompt: fields.prompt.value,
      negative_prompt: fields.negative_prompt.value,
      seed,
      ...Object.fromEntries(this.numbers.map((name) => [name, fields[name].valueAsNumber])),
      sampler: fields.sampler.value,
      height,
      width,
    };
  }

  /** Fills the form from what follows '#' in an address; returns sentences about parts that could not be used. */
  fill(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const { fields } = this;
    const problems = this.#fillModel(given);
    for (const name of TEXTS) fields[name].value = given.get(name) ?? "";
    for (const name of this.numbers) {
      if (!given.has(name)) continue;
      const value = given.get(name);
      fields[name].value = value;
      if (fields[name].value === "") problems.push(`The link's ${name} is not a number.`);
    }
    if (given.has("seed")) fields.seed.value = given.get("seed");
    if (given.has("sampler")) problems.push(...this.#pick("sampler", given.get("sampler")));
    if (given.has("width") && given.has("height")) {
      problems.push(...this.#pick("size", `${given.get("width")}x${given.get("height")}`));
    }
    return problems;
  }

  #fillModel(given) {
    const name = given.get("model") ?? this.models[0].name;
    const version = given.get("version");
    const named = this.models.filter((model) => model.name === name);
    const model = named.find((one) => version === null || one.version === version) ?? named[0] ?? this.models[0];
    this.useModel(model, true);
    if (named.length === 0) return [`The link names the model ${name}, which is not here: ${model.name} is used.`];
    if (version !== null && model.version !== version) {
      return [`The link names version ${version} of ${name}, which is not here: version ${model.version} is used.`];
    }
    return [];
  }

  #pick(name, value) {
    const { defaults, isComplete } = this.model;
    if (!isComplete && !this.#has(name, value)) this.fields[name].add(new Option(value, value));
    const fallback = name === "size" ? `${defaults.width}x${defaults.height}` : defaults[name];
    if (this.#choose(name, value, fallback)) return [];
    return [`The link names the ${name} ${value}, which this model does not have: ${this.fields[name].value} is used.`];
  }

  #has(name, value) {
    return [...this.fields[name].options].some((option) => option.value === value);
  }

  #choose(name, value, fallback) {
    const found = this.#has(name, value);
    this.fields[name].value = found ? value : fallback;
    if (this.fields[name].selectedIndex < 0) this.fields[name].selectedIndex = 0;
    return found;
  }

  #options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, label]) => new Option(label, value)));
  }
}

/** Returns settings as the part of an address that begins with '#'. */
export function hashOf(settings) {
  const given = Object.entries(settings).filter(([name, value]) => value !== "" || name === "prompt");
  return `#${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}

function keyOf(model) {
  return `${model.name}/${model.version}`;
}

function labelOf(model, models) {
  const versions = models.filter((other) => other.name === model.name).length;
  return versions > 1 ? `${model.name}, version ${model.version}` : model.name;
}

function roundScale(scale) {
  return Number(scale.toPrecision(7)); // a float32 from metadata: 7.1, not 7.099999904632568
}
