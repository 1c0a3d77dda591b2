package dev.tfsd

import android.app.ActivityManager
import android.content.Context
import android.content.res.AssetManager
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import dev.tfsd.android.LiteRtRuntime
import dev.tfsd.android.availableMemory
import java.io.File

/** What the runtime asks of LiteRT, whose API is a stub here. */
internal fun Tests.liteRt() {
    val tensors = mapOf("x" to TensorInfo("float32", listOf(2)), "n" to TensorInfo("int32", listOf(1)))
    val outputs = mapOf("y" to TensorInfo("float32", listOf(1)), "z" to TensorInfo("int32", listOf(1)))
    val signatures = mapOf("run" to Signature(tensors, outputs))
    val everything = Environment(setOf(Accelerator.CPU, Accelerator.GPU))
    val (both, cpu) = listOf("gpu", "cpu") to listOf("cpu")
    fun used(
        file: String,
        part: String,
        environment: Environment,
        accelerators: List<String> = both,
        wanted: Accelerator = Accelerator.GPU,
        alsoUntried: Boolean = false,
    ): List<Accelerator> {
        val told = mutableListOf<Accelerator>()
        val runtime = LiteRtRuntime(environment, wanted, alsoUntried) { _, used -> told += used }
        runtime.open(File(file), part, accelerators, signatures).close()
        return told
    }
    test("the accelerator is used where there is one and it takes the file") {
        expect(listOf(Accelerator.GPU), used("denoiser", "denoiser", everything))
        expect(listOf(Accelerator.GPU, Accelerator.CPU), CompiledModel.made.last().options.accelerators.toList())
        expect(listOf(Accelerator.CPU), used("cpu_only", "denoiser", everything))
        expect(listOf(Accelerator.CPU), used("denoiser", "denoiser", Environment(setOf(Accelerator.CPU))))
        expect(4, CompiledModel.made.last().options.cpuOptions?.numThreads)
    }
    test("what the bundle does not say may run on the accelerator runs on the CPU") {
        for (part in listOf("sampling", "text_encoder", "denoiser", "decoder")) {
            expect(listOf(Accelerator.CPU), used(part, part, everything, accelerators = cpu))
            expect(listOf(Accelerator.CPU), CompiledModel.made.last().options.accelerators.toList())
        }
    }
    test("an accelerator that was never tried is used only where it is wished, and never for sampling and the text encoder") {
        val phone = Environment(setOf(Accelerator.CPU, Accelerator.NPU))
        expect(listOf(Accelerator.CPU), used("denoiser", "denoiser", phone, wanted = Accelerator.NPU))
        expect(listOf(Accelerator.NPU), used("denoiser", "denoiser", phone, wanted = Accelerator.NPU, alsoUntried = true))
        for (part in listOf("sampling", "text_encoder")) {
            expect(listOf(Accelerator.CPU), used(part, part, phone, cpu, Accelerator.NPU, alsoUntried = true))
        }
    }
    test("values are bound by name and type, and closing closes the buffers") {
        val model = LiteRtRuntime(everything).open(File("any"), "decoder", both, signatures)
        repeat(2) {
            val found = model.run("run", mapOf("x" to floatArrayOf(1.5f, 2f), "n" to intArrayOf(3 + it)))
            expect(6.5f + it, (found.getValue("y") as FloatArray).single())
            expect(6 + it, (found.getValue("z") as IntArray).single())
        }
        model.close()
        val compiled = CompiledModel.made.last()
        expect(4, compiled.buffers.size)
        check(!compiled.isOpen && compiled.buffers.none { it.isOpen })
    }
    test("files that LiteRT cannot load or run are named") {
        expectError<ModelException>("unloadable.tflite cannot be loaded by LiteRT: Failed to load") {
            LiteRtRuntime(everything).open(File("unloadable.tflite"), "decoder", both, signatures)
        }
        val model = LiteRtRuntime(everything).open(File("unrunnable"), "decoder", both, signatures)
        expectError<ModelException>("decoder.run cannot be run by LiteRT: Failed to invoke run") {
            model.run("run", mapOf("x" to floatArrayOf(1f, 2f), "n" to intArrayOf(3)))
        }
    }
    test("memory that Android keeps for itself does not count as free") {
        expect(700L, availableMemory(Phone(File("."), free = 1000, low = 300)))
        expect(0L, availableMemory(Phone(File("."), free = 100, low = 300)))
    }
}

/** A phone whose folders, `assets`, `files` and `external`, are in one. */
internal class Phone(private val folder: File, private val free: Long, private val low: Long = 0) : Context() {
    override val assets = AssetManager(File(folder, "assets"))
    override val filesDir = File(folder, "files")

    override fun getExternalFilesDir(type: String?) = File(folder, "external")

    override fun <T : Any> getSystemService(service: Class<T>): T = service.cast(ActivityManager(free, low))
}
