package dev.tfsd

import java.io.File

/** The tokenizer on a `tokenizer.json`; each of [cases] has texts, their ids, and whether ftfy guesses, as the shared vectors do. */
internal fun Tests.tokenizer(data: File, cases: List<File>) {
    fun spec(ftfy: Boolean) = TokenizerSpec(length = 77, startToken = 49406, endToken = 49407, padToken = 0, ftfy = ftfy)
    val tokenizers = listOf(true, false).associateWith { Tokenizer(data, spec(it)) }
    val tokenizer = tokenizers.getValue(true)
    for (file in cases) {
        val known = (Json.read(file) as List<*>).map { it as Map<*, *> }
        test("tokens equal those of ${file.name} where nothing is guessed") {
            val sure = known.filter { it["guessed"] == false }
            val wrong = sure.filter { tokenizer.encode(it["text"] as String).toList() != ids(it["ids"]) }
            expect(emptyList<Any>(), wrong.take(10).map { it["text"] })
            check(sure.size > 900)
        }
        test("tokens without ftfy equal those of ${file.name}") {
            val plain = tokenizers.getValue(false)
            val wrong = known.filter { plain.encode(it["text"] as String).toList() != ids(it["ids_without_ftfy"] ?: it["ids"]) }
            expect(emptyList<Any>(), wrong.take(10).map { it["text"] })
        }
    }
    test("ids are padded, and cut between the marks") {
        expect(listOf(49406, 320, 49407, 0), tokenizer.pad(tokenizer.encode("a")).take(4))
        val cut = tokenizer.pad(tokenizer.encode("a ".repeat(100)))
        expect(listOf(320, 49407), cut.takeLast(2))
        expect(77, cut.size)
    }
    test("half a surrogate pair is replaced as ftfy does, and refused without it") {
        expect(tokenizer.encode("a\uFFFDb").toList(), tokenizer.encode("a\uD800b").toList())
        expectError<IllegalArgumentException>("prompt must be Unicode text; got half a surrogate pair, U+D800. Remove it.") {
            tokenizers.getValue(false).encode("a\uD800b")
        }
    }
    test("prompts above 65536 bytes are refused, others take no long time") {
        val long = "x".repeat(65536)
        val started = System.nanoTime()
        tokenizer.encode(long)
        tokenizer.encode("&".repeat(65536))
        tokenizer.encode("\u03A3\u0301".repeat(16384))
        check(System.nanoTime() - started < 5_000_000_000) { "took ${(System.nanoTime() - started) / 1e9} s" }
        expectError<IllegalArgumentException>("prompt must be at most 65536 bytes of UTF-8; got at least 65537. Shorten it.") {
            tokenizer.encode("${long}x")
        }
        expectError<IllegalArgumentException>("words must be at most 65536 bytes of UTF-8; got at least 131070. Shorten it.") {
            tokenizer.encode("é".repeat(65535), "words")
        }
    }
    test("tables of another format are refused") {
        val other = File.createTempFile("tokenizer", ".json").apply { writeText("{\"format\": 9}") }
        expectError<BundleException>("$other has format 9; this tfsd reads 1. Export it again.") { Tokenizer(other, spec(true)) }
    }
}

private fun ids(values: Any?): List<Int> = (values as List<*>).map { (it as Long).toInt() }
