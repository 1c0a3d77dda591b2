package dev.tfsd

/** Collects tests and prints `ok NAME` or `FAIL NAME: why` for each: enough for a plain JVM. */
internal class Tests {
    private var failed = 0

    fun test(name: String, body: () -> Unit) {
        try {
            body()
            println("ok $name")
        } catch (error: Throwable) {
            failed++
            println("FAIL $name: $error at ${error.stackTrace.firstOrNull { "Tests.kt" !in it.toString() }}")
        }
    }

    fun exit(): Nothing = kotlin.system.exitProcess(if (failed == 0) 0 else 1)
}

internal fun expect(wanted: Any?, actual: Any?, what: () -> String = { "" }) {
    if (wanted != actual) throw AssertionError("${what()} expected $wanted, got $actual")
}

internal inline fun <reified T : Throwable> expectError(message: String, body: () -> Unit): T {
    val thrown = try {
        body()
        null
    } catch (error: Throwable) {
        error
    }
    if (thrown !is T || thrown.message != message) throw AssertionError("expected \"$message\", got $thrown")
    return thrown
}
