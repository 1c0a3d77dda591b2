package dev.tfsd

import java.io.File

/**
 * A runtime that notes what is opened, run and closed, and answers by rule: noise is its stream times the scale, the denoiser
 * adds the noise, the history is the latents it was given.
 */
internal class Script(private val count: Int, private val failing: String? = null, private val scale: Float = 0.5f) : Runtime {
    val log = mutableListOf<String>()
    val accelerators = mutableMapOf<String, List<String>>()
    val calls = mutableListOf<Pair<String, Map<String, Any>>>()

    override fun open(file: File, part: String, accelerators: List<String>, signatures: Map<String, Signature>): Model {
        if (part == failing) throw ModelException("$part fails")
        log += "open $part"
        this.accelerators[part] = accelerators
        return object : Model {
            override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> {
                calls += signature to inputs
                expect(signatures.getValue(signature).inputs.keys, inputs.keys)
                for ((name, tensor) in signatures.getValue(signature).inputs) {
                    val value = inputs.getValue(name)
                    expect(tensor.size, if (tensor.dtype == "int32") (value as IntArray).size else (value as FloatArray).size)
                }
                return answer(signature, inputs)
            }

            override fun close() { log += "close $part" }
        }
    }

    private fun answer(signature: String, inputs: Map<String, Any>): Map<String, Any> = when (signature) {
        "encode" -> mapOf("context" to FloatArray(2 * 77 * 2))
        "plan" -> mapOf(
            "row" to FloatArray(12) { number(inputs, "step").toFloat() },
            "timestep_features" to FloatArray(320),
            "count" to intArrayOf(count),
            "init_scale" to floatArrayOf(scale),
        )
        "noise" -> mapOf("noise" to FloatArray(16) { (10 + number(inputs, "stream")) * (inputs["scale"] as FloatArray)[0] })
        "step" -> {
            val latents = inputs["latents"] as FloatArray
            val noise = inputs["noise"] as FloatArray
            mapOf("latents" to FloatArray(16) { latents[it] + noise[it] }, "history" to latents)
        }
        else -> mapOf("colours" to IntArray(64) { (inputs["latents"] as FloatArray)[0].toInt() })
    }

    fun all(signature: String, name: String): List<Any> = calls.filter { it.first == signature }.map { it.second.getValue(name) }
}

private fun number(inputs: Map<String, Any>, name: String) = (inputs.getValue(name) as IntArray)[0]

/** `folder` is a bundle whose model files are never opened. */
internal fun Tests.loop(folder: File) {
    val bundle = Bundle(folder)
    fun first(values: List<Any>) = values.map { if (it is IntArray) it[0].toFloat() else (it as FloatArray)[0] }

    test("one part is open at a time beside sampling") {
        val script = Script(count = 2)
        StableDiffusion(bundle, script).textToImage("a star", seed = 1)
        val wanted = "open text_encoder, close text_encoder, open sampling, open denoiser, close denoiser, close sampling, " +
            "open decoder, close decoder"
        expect(wanted, script.log.joinToString())
    }
    test("noise is drawn from stream 0 at the plan's scale, then from step + 1 at 1") {
        val script = Script(count = 3)
        val picture = StableDiffusion(bundle, script).textToImage("a", seed = -1, index = 3, numSteps = 3)
        expect(listOf(0f, 1f, 2f, 3f), first(script.all("noise", "stream")))
        expect(listOf(0.5f, 1f, 1f, 1f), first(script.all("noise", "scale")))
        expect(setOf(2147483645f), first(script.all("noise", "seed")).toSet())
        expect(setOf(3f), first(script.all("noise", "index")).toSet())
        expect(listOf(0f, 1f, 2f), first(script.all("plan", "step")))
        expect(listOf(5f, 16f, 28f), first(script.all("step", "latents")))
        expect(5 + 11 + 12 + 13, picture.pixels[0])
    }
    test("history moves by one each step and forgets the fifth") {
        val script = Script(count = 6)
        StableDiffusion(bundle, script).textToImage("a", seed = 0)
        expect(listOf(0f, 5f, 16f, 28f, 41f, 55f), first(script.all("step", "history0")))
        expect(listOf(0f, 0f, 0f, 0f, 5f, 16f), first(script.all("step", "history3")))
    }
    test("the negative prompt's tokens come first") {
        val script = Script(count = 1)
        StableDiffusion(bundle, script).textToImage("a", negativePrompt = "the", seed = 0)
        val tokens = script.all("encode", "tokens").single() as IntArray
        expect(listOf(49406, 518, 49407), tokens.take(3))
        expect(listOf(49406, 320, 49407), tokens.drop(77).take(3))
    }
    test("progress is told after every step, and false stops and closes everything") {
        val told = mutableListOf<Pair<Int, Int>>()
        StableDiffusion(bundle, Script(count = 3)).textToImage("a", seed = 0) { done, steps -> told.add(done to steps) }
        expect(listOf(1 to 3, 2 to 3, 3 to 3), told)
        val script = Script(count = 3)
        expectError<CancelledException>("Cancelled after 2 of 3 steps.") {
            StableDiffusion(bundle, script).textToImage("a", seed = 0) { done, _ -> done < 2 }
        }
        expect(listOf("close denoiser", "close sampling"), script.log.takeLast(2))
    }
    test("a runtime is told what the manifest says that a part may run on") {
        val script = Script(count = 1)
        StableDiffusion(bundle, script).textToImage("a", seed = 0)
        val (cpu, both) = listOf("cpu") to listOf("gpu", "cpu")
        expect(mapOf("text_encoder" to cpu, "sampling" to cpu, "denoiser" to both, "decoder" to both), script.accelerators)
    }
    test("a bundle that does not say what it may run on runs on the CPU") {
        val older = File(folder.parentFile, "older").apply { folder.copyRecursively(this) }
        val manifest = File(older, "manifest.json")
        val parts = Regex(", \"accelerators\": \\[[^]]*]|, \"sampler_aliases\": \\{[^}]*}")
        manifest.writeText(parts.replace(manifest.readText(), ""))
        val found = Bundle(older)
        expect(setOf(listOf("cpu")), found.parts.values.map { it.accelerators }.toSet())
        expect(emptyMap<String, String>(), found.samplerAliases)
        expect(null, found.findSampler("Euler a"))
    }
    test("samplers have their names in other programs, in upper and lower case") {
        for ((name, wanted) in mapOf("Euler" to "euler", "k_EULER" to "euler", "ddim" to "ddim", "DDIM" to "ddim")) {
            val script = Script(count = 1)
            expect(wanted, StableDiffusion(bundle, script).textToImage("a", seed = 0, sampler = name).recipe["sampler"])
            expect(setOf(bundle.samplers.indexOf(wanted).toFloat()), first(script.all("plan", "sampler")).toSet())
        }
    }
    test("latents that are not finite are an error, after which all is closed") {
        val script = Script(count = 3, scale = Float.NaN)
        val text = "The latents are NaN or infinite after 1 of 3 steps. Half precision, which GPUs use, ends at 65504: " +
            "run the bundle on the CPU, or export it with another quantize."
        expectError<ModelException>(text) { StableDiffusion(bundle, script).textToImage("a", seed = 0) }
        expect(listOf("close denoiser", "close sampling"), script.log.takeLast(2))
    }
    test("a part is not opened without memory for it") {
        val script = Script(count = 1)
        val text = "denoiser needs 1.9 GB of memory; 1.2 GB are free. Close other programs, or export the bundle with another quantize."
        expectError<MemoryException>(text) { StableDiffusion(bundle, script) { 1_200_000_000 }.textToImage("a", seed = 0) }
        expect("open text_encoder, close text_encoder, open sampling, close sampling", script.log.joinToString())
    }
    test("a part that fails leaves nothing open") {
        val script = Script(count = 1, failing = "denoiser")
        expectError<ModelException>("denoiser fails") { StableDiffusion(bundle, script).textToImage("a", seed = 0) }
        expect("close sampling", script.log.last())
    }
    test("defaults are the bundle's, and the recipe says what was drawn") {
        val script = Script(count = 1)
        val picture = StableDiffusion(bundle, script).textToImage("a \"star\"", seed = 5)
        expect(setOf(4f), first(script.all("plan", "num_steps")).toSet())
        expect(setOf(1f), first(script.all("plan", "sampler")).toSet())
        expect(listOf(3f), first(script.all("step", "guidance_scale")))
        val wanted = mapOf(
            "prompt" to "a \"star\"", "negative_prompt" to "", "seed" to 5L, "index" to 0L, "guidance_scale" to 3.0, "num_steps" to 4L,
            "sampler" to "euler", "eta" to 0.0, "height" to 8L, "width" to 8L, "model" to "toy", "quantize" to "none",
            "tfsd" to "0.1.0", "tensorflow" to "2.21.0",
        )
        expect(wanted, Json.read(picture.recipeText))
        expect(wanted.keys.toList(), picture.recipe.keys.toList())
        expect(0, picture.unread)
        expect(25, StableDiffusion(bundle, script).textToImage("a ".repeat(100), seed = 5).unread)
    }
}
