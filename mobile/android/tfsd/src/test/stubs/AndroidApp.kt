package android.app

class ActivityManager(private val free: Long, private val low: Long) {
    class MemoryInfo {
        @JvmField var availMem = 0L

        @JvmField var threshold = 0L
    }

    fun getMemoryInfo(info: MemoryInfo) {
        info.availMem = free
        info.threshold = low
    }
}
