package android.content.res

import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream

class AssetManager(private val folder: File) {
    fun open(name: String): InputStream = File(folder, name).also { if (!it.isFile) throw FileNotFoundException(name) }.inputStream()

    fun list(name: String): Array<String>? = File(folder, name).list()
}
