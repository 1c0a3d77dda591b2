package dev.tfsd

import dev.tfsd.app.Generator
import dev.tfsd.app.State
import dev.tfsd.app.Wishes
import dev.tfsd.app.openBundle
import java.io.File
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout

/** The sample app without its screen; `folder` is a bundle, `work` a folder to fill. */
internal fun Tests.app(folder: File, work: File) {
    fun phone(name: String, free: Long = 8_000_000_000): Phone {
        val root = File(work, name)
        folder.copyRecursively(File(root, "assets/bundle"))
        return Phone(root, free)
    }
    fun wait(generator: Generator): State = runBlocking { withTimeout(10_000) { generator.state.first { !it.isBusy } } }
    fun generator(phone: Phone) = Generator(phone, CoroutineScope(Job()), Dispatchers.IO)
    val wishes = Wishes.of("a star", "", "7", "", "", null)!!

    test("the app copies its bundle once, and again when it has changed") {
        val phone = phone("copied")
        expect("toy", openBundle(phone).name)
        val copy = File(phone.filesDir, "bundle/denoiser.tflite").apply { setLastModified(1_000_000) }
        openBundle(phone)
        expect(1_000_000L, copy.lastModified())
        File(work, "copied/assets/bundle/manifest.json").appendText("\n")
        openBundle(phone)
        check(copy.lastModified() != 1_000_000L)
    }
    test("a bundle that is damaged in the app's assets is not installed") {
        val phone = phone("damaged")
        File(work, "damaged/assets/bundle/decoder.tflite").appendText("?")
        val damaged = File(phone.filesDir, "bundle.partial/decoder.tflite")
        val size = File(folder, "decoder.tflite").length()
        expectError<BundleException>("$damaged is damaged: it has ${size + 1} bytes instead of $size.") { openBundle(phone) }
        check(!File(phone.filesDir, "bundle").exists())
    }
    test("a bundle that was pushed comes before that of the assets") {
        val phone = phone("pushed")
        folder.copyRecursively(File(work, "pushed/external/bundle"))
        expect(File(work, "pushed/external/bundle"), openBundle(phone).folder)
    }
    test("the app says that it has no bundle") {
        val state = wait(generator(Phone(File(work, "none"), free = 0)))
        val bundle = File(work, "none/files/bundle")
        expect("$bundle is not a device bundle: it has no manifest.json. `tfsd export tflite` makes one.", state.error)
    }
    test("the app draws, tells of progress and what it ran on") {
        val generator = generator(phone("draws"))
        expect(listOf("ddim", "euler"), wait(generator).samplers)
        generator.generate(wishes)
        val state = wait(generator)
        expect(null, state.error)
        expect(7L, state.picture?.recipe?.get("seed"))
        check(state.done > 1 && state.done == state.steps) { "$state" }
        val used = mapOf("text_encoder" to "CPU", "sampling" to "CPU", "denoiser" to "GPU", "decoder" to "GPU")
        expect(used, state.used.mapValues { "${it.value}" })
    }
    test("the app shows errors, and can be asked again") {
        val generator = generator(phone("full", free = 1_000_000_000))
        wait(generator)
        generator.generate(wishes)
        check(wait(generator).error.orEmpty().startsWith("denoiser needs 1.9 GB of memory; 1.0 GB are free."))
        generator.generate(wishes.copy(sampler = "dpm"))
        expect("sampler must be one of ddim, euler; got 'dpm'.", wait(generator).error)
    }
    test("the app stops when it is told to") {
        val generator = generator(phone("stops"))
        wait(generator)
        generator.generate(wishes)
        generator.cancel()
        val state = wait(generator)
        expect(null, state.picture)
        expect(null, state.error)
    }
    test("what is no number is no wish, and what is empty is the default") {
        expect(null, Wishes.of("a", "", "x", "", "", null))
        expect(null, Wishes.of("a", "", "1", "1.5", "", null))
        expect(null, Wishes.of("a", "", "1", "2", "three", null))
        expect(listOf(null, 4.5f), Wishes.of("a", "", "", " ", "4.5", null)!!.run { listOf(steps, guidance) })
    }
}
