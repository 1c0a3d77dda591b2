// The recipe of an image: as a list, as JSON, and as the command that makes the image again.

import { ARGUMENTS } from "./arguments.js";

const SENT = Object.keys(ARGUMENTS).filter((name) => ARGUMENTS[name].column !== null);
const OPTIONS = SENT.filter((name) => ARGUMENTS[name].flag !== null);
const FLAGS = {
  ...Object.fromEntries(OPTIONS.map((name) => [name, ARGUMENTS[name].flag])),
  model: "--model",
  dtype: "--dtype",
};
const LEFT_OUT = { // the command's own defaults
  ...Object.fromEntries(OPTIONS.map((name) => [name, ARGUMENTS[name].default])),
  dtype: "float32",
};

/** Returns the recipe of an image that `model` made with `settings`. */
export function recipeOf(settings, model) {
  const image = Object.fromEntries(SENT.map((name) => [name, settings[name]]));
  const recipe = { ...image, ...model.identity, served: { name: model.name, version: model.version } };
  return Object.fromEntries(Object.entries(recipe).filter(([, value]) => value !== undefined));
}

/** Returns JSON with all digits of a BigInt, which `JSON.stringify` refuses and a number would round. */
export function exactJson(value, indent = "", at = "") {
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object") return JSON.stringify(value) ?? "null";
  const inner = at + indent;
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((one) => exactJson(one, indent, inner))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${exactJson(one, indent, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  if (!indent || parts.length === 0) return open + parts.join(", ") + close;
  return `${open}\n${inner}${parts.join(`,\n${inner}`)}\n${at}${close}`;
}

/** Returns the `tfsd` command line that makes an image again. */
export function commandOf(recipe) {
  const flags = [];
  for (const [name, flag] of Object.entries(FLAGS)) {
    if (name in recipe && recipe[name] !== LEFT_OUT[name]) flags.push(`${flag}=${recipe[name]}`);
  }
  if (recipe.jit_compile === false) flags.push("--no-jit");
  const { prompt } = recipe;
  if (prompt.trim() === "") flags.push("--allow-empty");
  const words = prompt.startsWith("-") ? [...flags, "--", prompt] : [prompt, ...flags];
  return ["tfsd", "generate", ...words].map(quoted).join(" ");
}

/** Quotes a word for a POSIX shell, on one line. */
export function quoted(word) {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  // eslint-disable-next-line no-control-regex
  if (!/[\u0000-\u001f\u007f]/.test(word)) return `'${word.replaceAll("'", `'"'"'`)}'`;
  const escaped = word.replace(/[\\']/g, "\\$&").replace(/[\u0000-\u001f\u007f]/g, octal);
  return `$'${escaped}'`;
}

function octal(character) {
  return `\\${character.charCodeAt(0).toString(8).padStart(3, "0")}`;
}

/** Returns the recipe as pairs of a name and a value, to show. */
export function readable(recipe, seconds) {
  const { served } = recipe;
  const pairs = [
    ["Prompt", recipe.prompt || "(empty)"],
    ["Negative prompt", recipe.negative_prompt],
    ["Seed", recipe.seed],
    ["Index", recipe.index],
    ["Steps", recipe.num_steps],
    ["Guidance scale", recipe.guidance_scale],
    ["Sampler", recipe.sampler],
    ["Size", `${recipe.width} × ${recipe.height}`],
    ["Model", served.version ? `${served.name}, version ${served.version}` : served.name],
    ["Weights", recipe.weights],
    ["Made in", seconds === undefined ? "" : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`],
  ];
  return pairs.filter(([, value]) => value !== undefined && value !== "").map(([name, value]) => [name, String(value)]);
}
