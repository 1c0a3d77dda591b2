package dev.tfsd

import java.io.File

/** The errors of the shared `vectors`, in bundles below `work`. */
internal fun Tests.vectors(vectors: File, work: File) {
    val errors = Json.read(File(vectors, "errors.json")) as Map<*, *>
    for (case in errors["cases"] as List<*>) {
        case as Map<*, *>
        test("error of the vectors: ${case["name"]}") {
            val folder = File(work, "${case["name"]}").apply { mkdirs() }
            val files = errors["files"] as Map<*, *> + (case["files"] as? Map<*, *>).orEmpty()
            for ((name, text) in files) if (text != null) File(folder, "$name").writeText("$text")
            expectError<Exception>("${case["text"]}".replace("{folder}", folder.path)) {
                val free = case["memory"] as? Long ?: Long.MAX_VALUE
                draw(Bundle(folder), (case["arguments"] as Map<*, *>).mapValues { (_, value) -> argument(value) }, free)
            }
        }
    }
}

/** Draws with arguments that have the names of Python's. */
internal fun draw(bundle: Bundle, arguments: Map<*, *>, free: Long = Long.MAX_VALUE): Picture =
    StableDiffusion(bundle, Script(count = 1)) { free }.textToImage(
        prompt = arguments["prompt"] as String,
        negativePrompt = arguments["negative_prompt"] as? String ?: "",
        seed = 1,
        index = (arguments["index"] as? Long ?: 0).toInt(),
        numSteps = (arguments["num_steps"] as? Long)?.toInt(),
        guidanceScale = (arguments["guidance_scale"] as? Number)?.toFloat(),
        sampler = arguments["sampler"] as? String,
    )

private fun argument(value: Any?): Any? =
    if (value is Map<*, *>) (value["repeat"] as String).repeat((value["times"] as Long).toInt()) else value
