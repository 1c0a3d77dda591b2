package dev.tfsd

import java.io.File
import java.io.IOException
import java.security.MessageDigest
import java.util.Locale

/**
 * A model file of a bundle.
 *
 * @property memory The bytes that it needs while it runs.
 * @property accelerators What it may run on, `gpu` or `cpu`, the fastest first: what its kind of file has passed on. Bundles of
 *   older versions do not say it and run on the CPU.
 * @property signatures What it can do, by name.
 */
class Part(val file: File, val memory: Long, val accelerators: List<String>, val signatures: Map<String, Signature>)

/** What a bundle's text encoder reads: [length] tokens, and whether text is repaired as ftfy does before it is split. */
class TokenizerSpec(val length: Int, val startToken: Int, val endToken: Int, val padToken: Int, val ftfy: Boolean)

/** What a bundle's maker chose for callers who do not choose. */
class Defaults(val numSteps: Int, val guidanceScale: Float, val sampler: String)

/**
 * A folder that `tfsd export tflite` wrote, checked: every file is there and whole.
 *
 * @param folder The folder with `manifest.json`.
 * @param checkHashes Whether to read all files and compare their SHA-256, seconds for a large model. Without it sizes are
 *   compared, which is enough for a folder that was checked when it was put there.
 * @throws BundleException If the folder is not a bundle, or a file is missing or damaged.
 */
class Bundle(val folder: File, checkHashes: Boolean = true) {
    private val manifest = File(folder, MANIFEST)
    private val fields = readManifest()

    /** Names of the files beside the manifest. */
    val files: Set<String> = checkedFiles(checkHashes)

    /** What the model is called. */
    val name: String = fields["name"]

    /** What tells this model from others, for [Picture.recipe]: texts and numbers by name. */
    val identity: Map<String, Any?> = fields.fields("identity").values

    /** How the weights were quantized. */
    val quantize: String = fields["quantize"]

    /** Height of images in pixels. */
    val height: Int

    /** Width of images in pixels. */
    val width: Int

    /** Shape of the latents of one image: height, width, channels. */
    val latents: List<Int> = fields.ints("latents", 3)

    /** Samplers by name, in the order that the signature `plan` counts them. */
    val samplers: List<String> = fields.list<String>("samplers")

    /** Samplers by their other names, in lower case. */
    val samplerAliases: Map<String, String> =
        if ("sampler_aliases" in fields.values) fields.fields("sampler_aliases").texts() else emptyMap()

    /** Most steps that `num_steps` may be. */
    val maxSteps: Int = fields.int("max_steps")

    /** Highest `index` of an image. */
    val maxIndex: Int = fields.int("max_index")

    /** Seeds that differ by it stand for the same noise. */
    val seedPeriod: Long = fields.long("seed_period").also { if (it !in 1..1L + Int.MAX_VALUE) fields.fail("seed_period") }

    /** The versions of the packages that wrote the bundle, by name. */
    val versions: Map<String, Any?> = fields.values.filterKeys { it == "tfsd" || it == "tensorflow" }

    /** What a caller gets who does not choose. */
    val defaults: Defaults

    /** What the text encoder reads. */
    val tokenizer: TokenizerSpec

    /** The file with the tokenizer's tables. */
    val tokenizerFile: File

    /** The model files by name: `sampling`, `text_encoder`, `denoiser`, `decoder`. */
    val parts: Map<String, Part>

    init {
        val parts = fields.values["parts"] as? Map<*, *>
        for (part in SIGNATURES.keys) {
            val file = (parts?.get(part) as? Map<*, *>)?.get("file")
            if (file !in files) fail("part", "file" to manifest, "part" to part)
        }
        this.parts = fields.fields("parts").run { SIGNATURES.keys.associateWith { part(fields(it), SIGNATURES.getValue(it)) } }
        fields.ints("size", 2).let { (height, width) -> this.height = height; this.width = width }
        defaults = fields.fields("defaults").run { Defaults(int("num_steps"), number("guidance_scale"), this["sampler"]) }
        fields.fields("tokenizer").run {
            val file: String = this["file"]
            if (file !in files) fail("file")
            tokenizerFile = File(folder, file)
            tokenizer = TokenizerSpec(int("length"), int("start_token"), int("end_token"), int("pad_token"), this["ftfy"])
        }
    }

    /** Returns the sampler that a name or an alias, in upper or lower case, stands for; null if there is none. */
    fun findSampler(name: String): String? =
        listOf(name, samplerAliases[name.lowercase(Locale.ROOT)]).firstOrNull { it in samplers }

    private fun readManifest(): Fields {
        if (!manifest.isFile) fail("no_bundle", "folder" to folder)
        if (manifest.length() > MAX_JSON) fail("large", "file" to manifest, "limit" to MAX_JSON)
        val values = try {
            Json.read(manifest) as? Map<*, *>
        } catch (_: IllegalArgumentException) {
            null
        } catch (_: IOException) {
            fail("unreadable", "file" to manifest, "reason" to DENIED)
        }
        values ?: fail("no_json", "file" to manifest)
        if (values["kind"] != "device") fail("not_device", "file" to manifest)
        val missing = NEEDED.filter { it !in values }
        if (missing.isNotEmpty()) fail("lacks", "file" to manifest, "names" to missing.joinToString())
        val format = values["format"]
        if (format !in FORMATS) {
            val known = FORMATS.joinToString(" and ")
            fail("format", "file" to manifest, "format" to format.toString().take(20), "known" to known)
        }
        return Fields(manifest, "", values)
    }

    private fun checkedFiles(checkHashes: Boolean): Set<String> {
        val listed = (fields.values["files"] as? Map<*, *>).orEmpty()
        if (listed.isEmpty()) fail("no_files", "file" to manifest)
        for ((name, entry) in listed) {
            name as String
            if (File(name).isAbsolute || ".." in name.split('/')) fail("outside", "file" to manifest, "name" to name)
            val wanted = (entry as? Map<*, *>).orEmpty()
            if ("sha256" !in wanted || "bytes" !in wanted) fail("entry", "file" to manifest, "name" to name)
            check(File(folder, name), wanted["bytes"], wanted["sha256"].toString().takeIf { checkHashes })
        }
        return listed.keys.mapTo(LinkedHashSet()) { it as String }
    }

    private fun check(file: File, size: Any?, hash: String?) {
        if (!file.exists()) fail("unreadable", "file" to file, "reason" to "No such file or directory")
        val actualSize = file.length()
        if (actualSize != size) fail("size", "file" to file, "actual" to actualSize, "wanted" to size)
        if (hash == null) return
        val actual = try {
            sha256(file)
        } catch (_: IOException) {
            fail("unreadable", "file" to file, "reason" to if (file.isDirectory) "Is a directory" else DENIED)
        }
        if (actual != hash) fail("hash", "file" to file, "actual" to actual.take(12), "wanted" to hash.take(12))
    }

    private fun part(fields: Fields, needed: List<String>): Part {
        val signatures = fields.fields("signatures").run {
            (needed + values.keys).distinct().associateWith { name ->
                fields(name).run { Signature(tensors("inputs"), tensors("outputs")) }
            }
        }
        val accelerators = if ("accelerators" in fields.values) fields.list<String>("accelerators") else listOf("cpu")
        return Part(File(folder, fields["file"]), fields.long("memory"), accelerators, signatures)
    }

    private fun Fields.tensors(key: String): Map<String, TensorInfo> = fields(key).run {
        values.keys.associateWith { name ->
            fields(name).run {
                val dtype: String = this["dtype"]
                if (dtype != "int32" && dtype != "float32") fail("dtype")
                TensorInfo(dtype, ints("shape"))
            }
        }
    }

    private companion object {
        const val MANIFEST = "manifest.json"
        val FORMATS = listOf(2L, 3L) // in 2 the input `timestep_features` of `step` is called `waves`
        const val MAX_JSON = 64 shl 20 // bytes
        const val DENIED = "Permission denied"
        val NEEDED = listOf(
            "defaults", "files", "format", "identity", "latents", "max_index", "max_steps", "name", "parts", "quantize",
            "samplers", "seed_period", "size", "tokenizer",
        )
        val SIGNATURES = mapOf(
            "sampling" to listOf("plan", "noise"),
            "text_encoder" to listOf("encode"),
            "denoiser" to listOf("step"),
            "decoder" to listOf("decode"),
        )
    }
}

private fun fail(id: String, vararg values: Pair<String, Any?>): Nothing = throw BundleException(Messages.text(id, *values))

private fun sha256(file: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val piece = ByteArray(1 shl 20)
    file.inputStream().use { input ->
        while (true) {
            val count = input.read(piece)
            if (count < 0) break
            digest.update(piece, 0, count)
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}

/** The entries of an object in the manifest; one that is missing or of another kind is an error that names it. */
private class Fields(private val file: File, private val path: String, values: Map<*, *>) {
    @Suppress("UNCHECKED_CAST") // JSON has no other keys
    val values = values as Map<String, Any?>

    inline operator fun <reified T> get(key: String): T = values[key] as? T ?: fail(key)

    fun fail(key: String): Nothing = fail("field", "file" to file, "name" to path + key)

    fun fields(key: String) = Fields(file, "$path$key.", get<Map<*, *>>(key))

    fun long(key: String): Long = get<Long>(key).also { if (it < 0) fail(key) }

    fun int(key: String): Int = long(key).also { if (it > Int.MAX_VALUE) fail(key) }.toInt()

    fun number(key: String): Float = get<Number>(key).toFloat()

    inline fun <reified T> list(key: String): List<T> = get<List<*>>(key).map { it as? T ?: fail(key) }

    fun texts(): Map<String, String> = values.keys.associateWith { get<String>(it) }

    fun ints(key: String, count: Int? = null): List<Int> {
        val found = list<Long>(key)
        if (found.any { it !in 0..Int.MAX_VALUE } || found.size != (count ?: found.size)) fail(key)
        return found.map(Long::toInt)
    }
}
