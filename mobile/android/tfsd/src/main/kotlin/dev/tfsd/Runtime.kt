package dev.tfsd

import java.io.File

/**
 * One input or output of a signature, as the bundle's manifest names it.
 *
 * @property dtype `int32` or `float32`; other types do not occur in a bundle.
 * @property shape The dimensions, all known; empty for a scalar.
 */
data class TensorInfo(val dtype: String, val shape: List<Int>) {
    /** The number of values: the product of [shape]. */
    val size: Int get() = shape.fold(1, Int::times)
}

/** What one signature of a model file takes and gives, by name. */
data class Signature(val inputs: Map<String, TensorInfo>, val outputs: Map<String, TensorInfo>)

/**
 * What runs the model files of a bundle: LiteRT on a phone, something else in a test.
 *
 * [open] is given the path of a model, to be mapped and not read, as the denoiser of a full model has gigabytes.
 */
interface Runtime {
    /**
     * Opens the model [file], the [part] (`sampling`, `text_encoder`, `denoiser` or `decoder`) of a bundle.
     *
     * @param accelerators What the manifest says that it may run on, `gpu` or `cpu`, the fastest first.
     * @param signatures What the manifest says of each of its signatures.
     * @return The open model; whoever opened it closes it.
     * @throws ModelException If the runtime cannot load the file.
     */
    fun open(file: File, part: String, accelerators: List<String>, signatures: Map<String, Signature>): Model
}

/** An open model file. One thread at a time may use it. */
interface Model : AutoCloseable {
    /**
     * Runs one signature.
     *
     * @param inputs An [IntArray] for each `int32` input and a [FloatArray] for each `float32` one, by name, flat and
     *   row-major; the caller's, not changed.
     * @return The same for the outputs; the arrays are new at each call.
     * @throws ModelException If the runtime cannot run it.
     */
    fun run(signature: String, inputs: Map<String, Any>): Map<String, Any>
}
