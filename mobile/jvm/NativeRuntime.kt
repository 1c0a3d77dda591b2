package dev.tfsd.jvm

import dev.tfsd.Messages
import dev.tfsd.Model
import dev.tfsd.ModelException
import dev.tfsd.Runtime
import dev.tfsd.Signature
import dev.tfsd.TensorInfo
import java.io.File

/**
 * Runs models on the CPU of a desktop, by LiteRT's C library: the same code of LiteRT that a phone has, reached by JNI.
 *
 * `libtfsd_jni.so`, made of `litert_jni.c`, must be in `java.library.path`.
 *
 * @param library `libLiteRt.so`, as the Python package ai-edge-litert has it.
 * @param threads How many threads a model may use.
 * @throws UnsatisfiedLinkError If either library cannot be loaded.
 */
class NativeRuntime(library: File, private val threads: Int) : Runtime {
    init {
        System.load(library.absolutePath) // first, as the second library takes LiteRT's functions from it
        System.loadLibrary("tfsd_jni")
    }

    override fun open(file: File, part: String, accelerators: List<String>, signatures: Map<String, Signature>): Model =
        NativeModel(file, part, signatures, threads)
}

private class NativeModel(
    private val file: File,
    private val part: String,
    private val signatures: Map<String, Signature>,
    threads: Int,
) : Model {
    private var handle: Long

    init {
        val error = arrayOfNulls<String>(1)
        handle = open(file.path.toByteArray(), threads, error)
        if (handle == 0L) throw ModelException(Messages.text("load", "file" to file, "reason" to error[0]))
    }

    override fun run(signature: String, inputs: Map<String, Any>): Map<String, Any> {
        check(handle != 0L) { "$file is closed" }
        val expected = signatures[signature]?.outputs.orEmpty()
        val outputs = expected.mapValues { (_, info) -> empty(info) }
        val error = arrayOfNulls<String>(1)
        val done = run(
            handle, signature,
            inputs.keys.toTypedArray(), inputs.values.toTypedArray(),
            outputs.keys.toTypedArray(), outputs.values.toTypedArray(),
            error,
        )
        if (!done) throw ModelException(Messages.text("run", "part" to part, "signature" to signature, "reason" to error[0]))
        return outputs
    }

    override fun close() {
        close(handle)
        handle = 0
    }

    private fun empty(info: TensorInfo): Any = if (info.dtype == "int32") IntArray(info.size) else FloatArray(info.size)

    private companion object {
        @JvmStatic
        external fun open(path: ByteArray, threads: Int, error: Array<String?>): Long

        @JvmStatic
        external fun close(handle: Long)

        @JvmStatic
        external fun run(
            handle: Long,
            signature: String,
            inputNames: Array<String>,
            inputs: Array<Any>,
            outputNames: Array<String>,
            outputs: Array<Any>,
            error: Array<String?>,
        ): Boolean
    }
}
