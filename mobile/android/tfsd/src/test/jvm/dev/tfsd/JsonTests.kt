package dev.tfsd

/** The parser of manifests and tables. */
internal fun Tests.json() {
    test("JSON is read as it stands") {
        val text = " {\"a\": [1, -2.5e1, true, false, null, []], \"b\\u00e9\\ud83d\\ude00\\n\": {}, \"c\": 12345678901234567890}"
        val list = listOf(1L, -25.0, true, false, null, emptyList<Any>())
        val wanted = mapOf("a" to list, "bé😀\n" to emptyMap<String, Any>(), "c" to 1.2345678901234567e19)
        expect(wanted, Json.read(text))
    }
    test("what is no JSON is refused") {
        val wrong = listOf(
            "", "{", "[1,]", "{\"a\" 1}", "{a: 1}", "01", "1.", "-", "+1", "NaN", "tru", "\"a", "\"\\x\"", "\"\\u12g4\"", "\"\\u12\"",
            "\"\t\"", "[1] 2", "\uFEFF1", "'a'", "[" .repeat(100_000), "\"\\", "{\"a\":}", "nullx", ",",
        )
        for (text in wrong) {
            try {
                throw AssertionError("read $text as ${Json.read(text)}")
            } catch (_: IllegalArgumentException) {
                continue
            }
        }
    }
    test("what is written is read again") {
        val list = listOf(1L, 2.5, null, true)
        val value = mapOf("text" to "quote \" back \\ line \n é 😀", "list" to list, "none" to emptyMap<String, Any>())
        expect(value, Json.read(Json.write(value)))
        expect(value, Json.read(Json.write(value, indent = 2)))
    }
}
