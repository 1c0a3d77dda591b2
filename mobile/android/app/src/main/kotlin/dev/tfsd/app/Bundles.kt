package dev.tfsd.app

import android.content.Context
import dev.tfsd.Bundle
import java.io.File
import java.io.FileNotFoundException

private const val NAME = "bundle"
private const val MANIFEST = "manifest.json"

/**
 * Returns the app's bundle: the one pushed with adb if there is one, else that of `assets/bundle`, as files.
 *
 * LiteRT maps files, which assets are not: they are copied and their hashes checked once, and again when an update of the app
 * brings others.
 *
 * @throws dev.tfsd.BundleException If there is none, or it is damaged.
 */
fun openBundle(context: Context): Bundle {
    val pushed = File(context.getExternalFilesDir(null), NAME)
    if (File(pushed, MANIFEST).isFile) return Bundle(pushed)
    val installed = File(context.filesDir, NAME)
    val manifest = try {
        context.assets.open("$NAME/$MANIFEST").use { it.readBytes() }
    } catch (_: FileNotFoundException) {
        return Bundle(installed)
    }
    val known = File(installed, MANIFEST)
    if (!known.isFile || !known.readBytes().contentEquals(manifest)) install(context, installed)
    return Bundle(installed, checkHashes = false)
}

/** Copies the assets to a folder beside [target], which takes its place if all hashes are right. */
private fun install(context: Context, target: File) {
    val partial = File(target.path + ".partial").apply { deleteRecursively(); mkdirs() }
    for (name in context.assets.list(NAME).orEmpty()) {
        context.assets.open("$NAME/$name").use { from -> File(partial, name).outputStream().use { from.copyTo(it) } }
    }
    Bundle(partial)
    target.deleteRecursively()
    check(partial.renameTo(target)) { "$target cannot be written" }
}
