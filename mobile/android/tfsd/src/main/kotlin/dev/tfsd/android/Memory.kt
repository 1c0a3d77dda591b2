package dev.tfsd.android

import android.app.ActivityManager
import android.content.Context

/** Returns the bytes that an app can take before Android begins to end others: what `StableDiffusion` asks for. */
fun availableMemory(context: Context): Long {
    val info = ActivityManager.MemoryInfo()
    context.getSystemService(ActivityManager::class.java).getMemoryInfo(info)
    return maxOf(0, info.availMem - info.threshold)
}
