package dev.tfsd

import java.io.File

/**
 * Runs all tests. Arguments: a `tokenizer.json`, the folder `mobile`, a bundle whose models are never opened, a folder to work in.
 *
 * `hard.json` in the last one has more prompts; each line of `errors.jsonl` there asks for an error, whose text is printed as `error NAME: TEXT`.
 */
fun main(arguments: Array<String>) {
    val (tokenizer, mobile, bundle, work) = arguments.map(::File)
    with(Tests()) {
        test("messages are those of the shared table") { expect(Json.read(File(mobile, "messages.json")), Messages.TEMPLATES) }
        json()
        tokenizer(tokenizer, listOf(File(mobile, "vectors/tokens.json"), File(work, "hard.json")))
        loop(bundle)
        vectors(File(mobile, "vectors"), File(work, "vectors"))
        liteRt()
        app(bundle, File(work, "app"))
        File(work, "errors.jsonl").readLines().forEach { println(errorText(Json.read(it) as Map<*, *>)) }
        exit()
    }
}

/** Returns what goes wrong when a `folder` is opened and, if there is a `prompt`, drawn with. */
private fun errorText(asked: Map<*, *>): String {
    val guidance = when (asked["guidance_scale"]) {
        "nan" -> Float.NaN
        "inf" -> Float.POSITIVE_INFINITY
        else -> asked["guidance_scale"]
    }
    val text = try {
        val bundle = Bundle(File(asked["folder"] as String))
        if ("prompt" in asked) draw(bundle, asked + ("guidance_scale" to guidance))
        "none"
    } catch (error: TfsdException) {
        error.message
    } catch (error: IllegalArgumentException) {
        error.message
    }
    return "error ${asked["name"]}: $text"
}
