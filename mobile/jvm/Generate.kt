package dev.tfsd.jvm

import dev.tfsd.Bundle
import dev.tfsd.Picture
import dev.tfsd.StableDiffusion
import dev.tfsd.TfsdException
import java.awt.image.BufferedImage
import java.io.File
import java.io.IOException
import java.nio.file.Files
import javax.imageio.IIOImage
import javax.imageio.ImageIO
import javax.imageio.ImageTypeSpecifier
import javax.imageio.metadata.IIOMetadata
import javax.imageio.metadata.IIOMetadataNode
import kotlin.system.exitProcess

private const val USAGE = """
usage: java -Djava.library.path=FOLDERS -cp CLASSES dev.tfsd.jvm.GenerateKt BUNDLE PROMPT PNG [NAME=VALUE ...]
FOLDERS have libLiteRt.so and libtfsd_jni.so; NAME is one of
  negative_prompt, seed, index, num_steps, guidance_scale, sampler: as in Python
  threads: of the processor, 2 unless given
  free_memory: bytes to take as free, instead of what the system says
  stop_after: steps after which to cancel"""
private val NAMES = Regex("""^  (\w+(?:, \w+)*):""", RegexOption.MULTILINE)
    .findAll(USAGE).flatMap { it.groupValues[1].split(", ") }.toSet()

/**
 * Draws an image as the Android app does, by the same code, on a desktop: see the text that it prints without arguments.
 *
 * Ends with 1 if it fails, and with 2 for arguments that cannot be met; the last line on standard error says why.
 */
fun main(arguments: Array<String>) {
    if (arguments.size < 3) leave(2, USAGE.trim())
    try {
        generate(arguments[0], arguments[1], File(arguments[2]), options(arguments.drop(3)))
    } catch (error: IllegalArgumentException) {
        leave(2, error.message)
    } catch (error: TfsdException) {
        leave(1, error.message)
    } catch (error: IOException) {
        leave(1, "${arguments[2]} cannot be written: ${error.message}")
    } catch (error: UnsatisfiedLinkError) {
        leave(1, error.message)
    }
}

private fun leave(status: Int, text: String?): Nothing {
    System.err.println(text)
    exitProcess(status)
}

private fun options(arguments: List<String>): Map<String, String> = arguments.associate {
    val (name, value) = it.split('=', limit = 2) + ""
    require(name in NAMES && '=' in it) { "an option must be NAME=VALUE, with a name of ${NAMES.joinToString()}; got '$it'." }
    name to value
}

private fun generate(bundle: String, prompt: String, png: File, options: Map<String, String>) {
    fun <T> number(name: String, read: String.() -> T?): T? =
        options[name]?.let { requireNotNull(it.read()) { "$name must be a number; got '$it'." } }

    val threads = number("threads", String::toIntOrNull) ?: 2
    val free = number("free_memory", String::toLongOrNull)
    val last = number("stop_after", String::toIntOrNull) ?: Int.MAX_VALUE
    val model = StableDiffusion(Bundle(File(bundle)), NativeRuntime(findLiteRt(), threads)) { free ?: availableMemory() }
    var previous = System.nanoTime()
    val started = previous
    val picture = model.textToImage(
        prompt,
        options["negative_prompt"].orEmpty(),
        number("seed", String::toLongOrNull) ?: 0,
        number("index", String::toIntOrNull) ?: 0,
        number("num_steps", String::toIntOrNull),
        number("guidance_scale", String::toFloatOrNull),
        options["sampler"],
    ) { done, steps ->
        val now = System.nanoTime()
        println("step $done of $steps, ${(now - previous) / 1_000_000} ms")
        previous = now
        done < last
    }
    if (picture.unread > 0) println("the last ${picture.unread} tokens of the prompt were not read")
    write(picture, png)
    println("$png, ${picture.width} x ${picture.height}, ${(System.nanoTime() - started) / 1_000_000} ms")
}

private fun findLiteRt(): File {
    val name = System.mapLibraryName("LiteRt")
    val folders = System.getProperty("java.library.path").split(File.pathSeparator)
    return folders.map { File(it, name) }.firstOrNull(File::isFile)
        ?: throw UnsatisfiedLinkError("there is no $name in java.library.path, ${folders.joinToString()}.")
}

/** Returns the bytes that programs may still take: free ones and those of caches. */
private fun availableMemory(): Long = try {
    val line = File("/proc/meminfo").readLines().first { it.startsWith("MemAvailable:") }
    line.filter(Char::isDigit).toLong() * 1024
} catch (_: IOException) {
    Long.MAX_VALUE // another system than Linux
}

/** Writes an image with its recipe, where Python reads it. */
private fun write(picture: Picture, file: File) {
    val image = BufferedImage(picture.width, picture.height, BufferedImage.TYPE_INT_RGB)
    image.setRGB(0, 0, picture.width, picture.height, picture.pixels, 0, picture.width)
    val writer = ImageIO.getImageWritersByFormatName("png").next()
    val metadata = writer.getDefaultImageMetadata(ImageTypeSpecifier(image), null)
    addText(metadata, "tfsd", picture.recipeText)
    Files.newOutputStream(file.toPath()).use { stream ->
        ImageIO.createImageOutputStream(stream).use {
            writer.output = it
            writer.write(IIOImage(image, null, metadata))
        }
    }
    writer.dispose()
}

private fun addText(metadata: IIOMetadata, key: String, text: String) {
    val entry = IIOMetadataNode("iTXtEntry")
    val values = mapOf(
        "keyword" to key, "text" to text, "compressionFlag" to "FALSE", "compressionMethod" to "0",
        "languageTag" to "", "translatedKeyword" to "",
    )
    for ((name, value) in values) entry.setAttribute(name, value)
    val root = IIOMetadataNode(metadata.nativeMetadataFormatName)
    root.appendChild(IIOMetadataNode("iTXt")).appendChild(entry)
    metadata.mergeTree(metadata.nativeMetadataFormatName, root)
}
