@file:Suppress("UNUSED_PARAMETER")

package com.google.ai.edge.litert

import android.content.Context

// The part of LiteRT 2.3's Kotlin API that the library uses, as documented, so that its code compiles and runs without Android.
// Models are stand-ins: "run" of a signature gives every output the sum of its inputs.

enum class Accelerator { NONE, CPU, GPU, NPU }

class LiteRtException(message: String) : Exception(message)

class Environment(private val accelerators: Set<Accelerator>) : AutoCloseable {
    fun getAvailableAccelerators(): Set<Accelerator> = accelerators

    override fun close() = Unit

    companion object {
        fun create(context: Context): Environment = Environment(setOf(Accelerator.CPU, Accelerator.GPU))
    }
}

class TensorBuffer : AutoCloseable {
    private var values = DoubleArray(1)
    var isOpen = true

    fun writeInt(data: IntArray) { values = DoubleArray(data.size) { data[it].toDouble() } }

    fun writeFloat(data: FloatArray) { values = DoubleArray(data.size) { data[it].toDouble() } }

    fun readInt(): IntArray = IntArray(values.size) { values[it].toInt() }

    fun readFloat(): FloatArray = FloatArray(values.size) { values[it].toFloat() }

    override fun close() { isOpen = false }
}

class CompiledModel private constructor(val filePath: String, val options: Options) : AutoCloseable {
    data class CpuOptions(val numThreads: Int? = null, val xnnPackFlags: Int? = null, val xnnPackWeightCachePath: String? = null)

    class Options(vararg val accelerators: Accelerator) {
        var cpuOptions: CpuOptions? = null
    }

    val buffers = mutableListOf<TensorBuffer>()
    var isOpen = true

    fun createInputBuffer(inputName: String, signature: String? = null) = TensorBuffer().also(buffers::add)

    fun createOutputBuffer(outputName: String, signature: String? = null) = TensorBuffer().also(buffers::add)

    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String? = null) {
        if ("unrunnable" in filePath) throw LiteRtException("first line\nFailed to invoke $signature")
        val sum = inputs.values.sumOf { it.readFloat().sum().toDouble() }
        outputs.values.forEach { it.writeFloat(floatArrayOf(sum.toFloat())) }
    }

    override fun close() { isOpen = false }

    companion object {
        val made = mutableListOf<CompiledModel>()

        fun create(filePath: String, options: Options, optionalEnv: Environment? = null): CompiledModel {
            if ("unloadable" in filePath) throw LiteRtException("Failed to load")
            if ("cpu_only" in filePath && options.accelerators.any { it != Accelerator.CPU }) throw LiteRtException("Failed to compile")
            return CompiledModel(filePath, options).also(made::add)
        }
    }
}
