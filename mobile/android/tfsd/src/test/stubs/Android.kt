package android.content

import android.content.res.AssetManager
import java.io.File

// The part of Android that the library and the app's generator use, so that they compile and run without it.

abstract class Context {
    abstract val assets: AssetManager
    abstract val filesDir: File

    abstract fun getExternalFilesDir(type: String?): File?

    abstract fun <T : Any> getSystemService(service: Class<T>): T
}
