package dev.tfsd

import kotlin.random.Random

/**
 * Draws images of prompts with a [bundle]: tokens, then plan, noise and step again and again, then the image's colours.
 *
 * All arithmetic is in the model files. One of them is open at a time, beside the small one that holds plans and noise: first
 * the text encoder, then the denoiser, then the decoder. Calls take seconds to minutes, so make them off the main thread; a
 * second one waits for the first.
 *
 * @param runtime What runs the model files.
 * @param availableMemory The bytes that are free, asked before each file is opened.
 */
class StableDiffusion(
    val bundle: Bundle,
    private val runtime: Runtime,
    private val availableMemory: () -> Long = { Long.MAX_VALUE },
) {
    private val tokenizer by lazy { Tokenizer(bundle.tokenizerFile, bundle.tokenizer) }

    /**
     * Returns an image of [prompt]: for the same arguments that of Python, up to the rounding of the hardware.
     *
     * @param negativePrompt What the image should not show.
     * @param seed Any number; the same one gives the same image.
     * @param index Which of the images of this seed, from 0: others of a batch in Python.
     * @param numSteps Steps, from 1 to [Bundle.maxSteps]; null for the bundle's default.
     * @param guidanceScale How closely the prompt is followed, from 0 to 100; null for the bundle's default.
     * @param sampler One of [Bundle.samplers], or another name of one; null for the bundle's default.
     * @param progress Called on this thread after each step with the steps done and all steps; false stops.
     * @throws IllegalArgumentException For an argument that does not fit; the message names it.
     * @throws BundleException If the tokenizer's file has another format than this version reads.
     * @throws MemoryException If too little memory is free for a part.
     * @throws ModelException If the runtime cannot load or run a file, or what it computes is not finite.
     * @throws CancelledException If [progress] returned false.
     */
    @Synchronized
    fun textToImage(
        prompt: String,
        negativePrompt: String = "",
        seed: Long = Random.nextLong(bundle.seedPeriod),
        index: Int = 0,
        numSteps: Int? = null,
        guidanceScale: Float? = null,
        sampler: String? = null,
        progress: (done: Int, steps: Int) -> Boolean = { _, _ -> true },
    ): Picture {
        val steps = numSteps ?: bundle.defaults.numSteps
        val guidance = guidanceScale ?: bundle.defaults.guidanceScale
        val wanted = sampler ?: bundle.defaults.sampler
        requireRange("num_steps", steps, 1, bundle.maxSteps)
        val chosen = requireNotNull(bundle.findSampler(wanted)) {
            Messages.text("sampler", "names" to bundle.samplers.joinToString(), "value" to wanted)
        }
        require(guidance in 0f..MAX_GUIDANCE.toFloat()) { // false for NaN, too
            Messages.text("guidance", "high" to MAX_GUIDANCE, "value" to shown(guidance))
        }
        requireRange("index", index, 0, bundle.maxIndex)
        val ids = tokenizer.encode(prompt)
        val negativeIds = tokenizer.encode(negativePrompt, "negative_prompt")

        val context = encode(tokenizer.pad(negativeIds) + tokenizer.pad(ids))
        val plan = mapOf("sampler" to intArrayOf(bundle.samplers.indexOf(chosen)), "num_steps" to intArrayOf(steps))
        val draw = mapOf("seed" to intArrayOf(Math.floorMod(seed, bundle.seedPeriod).toInt()), "index" to intArrayOf(index))
        val latents = sample(mapOf("context" to context, "guidance_scale" to floatArrayOf(guidance)), plan, draw, progress)
        val recipe = mapOf(
            "prompt" to prompt, "negative_prompt" to negativePrompt, "seed" to seed, "index" to index,
            "guidance_scale" to guidance, "num_steps" to steps, "sampler" to chosen, "eta" to 0.0,
            "height" to bundle.height, "width" to bundle.width,
        ) + bundle.identity + ("quantize" to bundle.quantize) + bundle.versions
        return Picture(decode(latents), bundle.width, bundle.height, recipe, maxOf(0, ids.size - bundle.tokenizer.length))
    }

    /** Returns the context of tokens: the negative prompt's, then the prompt's. */
    private fun encode(tokens: IntArray): FloatArray =
        part("text_encoder").use { it.run("encode", mapOf("tokens" to tokens)).floats("context") }

    /** Returns the latents after all steps. */
    private fun sample(
        shared: Map<String, Any>,
        plan: Map<String, Any>,
        draw: Map<String, Any>,
        progress: (Int, Int) -> Boolean,
    ): FloatArray = part("sampling").use { sampling ->
        fun noise(stream: Int, scale: FloatArray) =
            sampling.run("noise", draw + mapOf("stream" to intArrayOf(stream), "scale" to scale)).floats("noise")

        fun row(step: Int) = sampling.run("plan", plan + ("step" to intArrayOf(step)))

        part("denoiser").use { denoiser ->
            val first = row(0)
            val count = (first.getValue("count") as IntArray)[0]
            var latents = noise(stream = 0, first.floats("init_scale"))
            var history = List(HISTORY) { FloatArray(latents.size) }
            for (step in 0 until count) {
                val row = if (step == 0) first else row(step)
                val given = shared + row + mapOf(
                    "latents" to latents,
                    "noise" to noise(step + 1, floatArrayOf(1f)),
                ) + history.mapIndexed { i, past -> "history$i" to past }
                val moved = denoiser.run("step", given)
                latents = moved.floats("latents")
                if (!latents.all(Float::isFinite)) {
                    throw ModelException(Messages.text("not_finite", "done" to step + 1, "steps" to count))
                }
                history = listOf(moved.floats("history")) + history.dropLast(1)
                if (!progress(step + 1, count)) {
                    throw CancelledException(Messages.text("cancelled", "done" to step + 1, "steps" to count))
                }
            }
            latents
        }
    }

    private fun decode(latents: FloatArray): IntArray =
        part("decoder").use { it.run("decode", mapOf("latents" to latents)).getValue("colours") as IntArray }

    /** Opens a part, if there is memory for it, for exactly the inputs that the manifest says its signatures take. */
    private fun part(name: String): Model {
        val part = bundle.parts.getValue(name)
        val free = availableMemory()
        if (part.memory > free) {
            val sizes = arrayOf("needed" to Messages.size(part.memory), "free" to Messages.size(free))
            throw MemoryException(Messages.text("memory", "part" to name, *sizes))
        }
        val model = runtime.open(part.file, name, part.accelerators, part.signatures)
        return object : Model by model {
            override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> =
                model.run(signature, part.signatures.getValue(signature).inputs.keys.associateWith(inputs::getValue))
        }
    }

    private fun requireRange(name: String, value: Int, low: Int, high: Int) = require(value in low..high) {
        Messages.text("range", "name" to name, "low" to low, "high" to high, "value" to value)
    }

    private fun shown(number: Float): String =
        if (number.isNaN()) "nan" else if (number.isInfinite()) (if (number > 0) "inf" else "-inf") else number.toString()

    private fun Map<String, Any>.floats(name: String) = getValue(name) as FloatArray

    private companion object {
        const val HISTORY = 4 // earlier values that the signature `step` takes, newest first
        const val MAX_GUIDANCE = 100
    }
}
