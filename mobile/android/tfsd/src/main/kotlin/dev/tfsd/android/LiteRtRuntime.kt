package dev.tfsd.android

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.Environment
import com.google.ai.edge.litert.LiteRtException
import com.google.ai.edge.litert.TensorBuffer
import dev.tfsd.Messages
import dev.tfsd.Model
import dev.tfsd.ModelException
import dev.tfsd.Runtime
import dev.tfsd.Signature
import java.io.File
import java.util.Locale

/**
 * Runs models with LiteRT, which maps their files.
 *
 * A part runs on [accelerator] if the bundle says that it may; the CPU does what that cannot, and everything if the phone has none or
 * it refuses a file. `sampling` always runs on the CPU, so that seeds give the same noise on all phones, and so does the text
 * encoder, which looks up tables and squares numbers that half precision cannot hold.
 *
 * @param environment LiteRT's, made and closed by the caller: `Environment.create(context)`, with a provider of libraries for an
 *   NPU, or that of Google Play services.
 * @param alsoUntried Whether the denoiser and the decoder run on [accelerator] even if the bundle does not say that they may: on an
 *   NPU, for none was tried. It may refuse them, draw something else, or end the app.
 * @param threads Threads of the CPU.
 * @param onOpen Told of each part that is opened and what runs it.
 */
class LiteRtRuntime(
    private val environment: Environment,
    private val accelerator: Accelerator = Accelerator.GPU,
    private val alsoUntried: Boolean = false,
    private val threads: Int = 4,
    private val onOpen: (part: String, used: Accelerator) -> Unit = { _, _ -> },
) : Runtime {
    override fun open(file: File, part: String, accelerators: List<String>, signatures: Map<String, Signature>): Model {
        val mayRun = accelerator.name.lowercase(Locale.ROOT) in accelerators || (alsoUntried && part !in ON_CPU)
        val (compiled, used) = try {
            // Asked first: LiteRT silently runs on the CPU what it was to run on an accelerator that is not there.
            val isThere = accelerator in environment.getAvailableAccelerators()
            compile(file, if (mayRun && isThere) accelerator else Accelerator.CPU)
        } catch (error: LiteRtException) {
            throw ModelException(Messages.text("load", "file" to file, "reason" to reason(error)), error)
        }
        onOpen(part, used)
        return LiteRtModel(compiled, part, signatures)
    }

    private fun compile(file: File, wanted: Accelerator): Pair<CompiledModel, Accelerator> =
        try {
            val all = setOf(wanted, Accelerator.CPU)
            val options = CompiledModel.Options(*all.toTypedArray())
            options.cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
            CompiledModel.create(file.path, options, environment) to wanted
        } catch (error: LiteRtException) {
            if (wanted == Accelerator.CPU) throw error
            compile(file, Accelerator.CPU)
        }
}

private val ON_CPU = setOf("sampling", "text_encoder")

private class LiteRtModel(
    private val compiled: CompiledModel,
    private val part: String,
    private val signatures: Map<String, Signature>,
) : Model {
    private class Buffers(val inputs: Map<String, TensorBuffer>, val outputs: Map<String, TensorBuffer>)

    private val buffers = mutableMapOf<String, Buffers>()

    override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> =
        try {
            val known = signatures.getValue(signature)
            val own = buffers.getOrPut(signature) {
                Buffers(
                    known.inputs.mapValues { (name, _) -> compiled.createInputBuffer(name, signature) },
                    known.outputs.mapValues { (name, _) -> compiled.createOutputBuffer(name, signature) },
                )
            }
            for ((name, buffer) in own.inputs) {
                val values = inputs.getValue(name)
                if (values is IntArray) buffer.writeInt(values) else buffer.writeFloat(values as FloatArray)
            }
            compiled.run(own.inputs, own.outputs, signature)
            own.outputs.mapValues { (name, buffer) ->
                if (known.outputs.getValue(name).dtype == "int32") buffer.readInt() else buffer.readFloat()
            }
        } catch (error: LiteRtException) {
            val values = arrayOf("part" to part, "signature" to signature, "reason" to reason(error))
            throw ModelException(Messages.text("run", *values), error)
        }

    override fun close() {
        buffers.values.forEach { own -> (own.inputs.values + own.outputs.values).forEach(TensorBuffer::close) }
        compiled.close()
    }
}

private fun reason(error: LiteRtException): String =
    error.message.orEmpty().trim().lines().last().ifEmpty { error.javaClass.simpleName }
