package dev.tfsd

import java.util.Locale

/** What went wrong with a bundle or its models; the message tells a person what to do. */
open class TfsdException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** A folder is not a bundle, or a file of it is missing or damaged. */
class BundleException(message: String) : TfsdException(message)

/** The runtime cannot load or run a model file. */
class ModelException(message: String, cause: Throwable? = null) : TfsdException(message, cause)

/** Too little memory is free for a part. */
class MemoryException(message: String) : TfsdException(message)

/** The progress callback cancelled the call, so no image was made. */
class CancelledException(message: String) : TfsdException(message)

/** The texts of all errors: the same as in `mobile/messages.json`, in the Swift package and in Python. */
internal object Messages {
    val TEMPLATES = mapOf(
        "no_bundle" to "{folder} is not a device bundle: it has no manifest.json. `tfsd export tflite` makes one.",
        "not_device" to "{file} is not the manifest of a device bundle. `tfsd export tflite` makes one.",
        "no_json" to "{file} is damaged: it is not a JSON object.",
        "large" to "{file} is larger than {limit} bytes.",
        "lacks" to "{file} is damaged: it lacks {names}.",
        "format" to "{file} has format {format}; this tfsd reads {known}. Export it again.",
        "no_files" to "{file} is damaged: it lists no files.",
        "outside" to "{file} names {name}, which is outside of the folder.",
        "entry" to "{file} is damaged: it does not say what {name} is.",
        "unreadable" to "{file} cannot be read: {reason}.",
        "size" to "{file} is damaged: it has {actual} bytes instead of {wanted}.",
        "hash" to "{file} is damaged: its SHA-256 is {actual}... instead of {wanted}....",
        "part" to "{file} is damaged: it does not say in which of its files {part} is.",
        "field" to "{file} is damaged: {name} is missing or not what it should be.",
        "range" to "{name} must be from {low} to {high}; got {value}.",
        "guidance" to "guidance_scale must be from 0 to {high}; got {value}. Values from 3 to 10 are usual.",
        "sampler" to "sampler must be one of {names}; got '{value}'.",
        "prompt_size" to "{name} must be at most {limit} bytes of UTF-8; got at least {size}. Shorten it.",
        "surrogate" to "{name} must be Unicode text; got half a surrogate pair, {half}. Remove it.",
        "memory" to
            "{part} needs {needed} of memory; {free} are free. Close other programs, or export the bundle with another quantize.",
        "load" to "{file} cannot be loaded by LiteRT: {reason}",
        "run" to "{part}.{signature} cannot be run by LiteRT: {reason}",
        "not_finite" to
            "The latents are NaN or infinite after {done} of {steps} steps. Half precision, which GPUs use, ends at 65504: run the bundle on the CPU, or export it with another quantize.",
        "cancelled" to "Cancelled after {done} of {steps} steps.",
    )
    private val PLACE = Regex("\\{(\\w+)\\}")

    /** Returns the text of an error with [values] in their places. */
    fun text(id: String, vararg values: Pair<String, Any?>): String {
        val known = values.toMap()
        return PLACE.replace(TEMPLATES.getValue(id)) { known.getValue(it.groupValues[1]).toString() }
    }

    /** Returns [bytes] as a person reads them: `1.9 GB`. */
    fun size(bytes: Long): String = "%.1f GB".format(Locale.ROOT, bytes / 1e9)
}
