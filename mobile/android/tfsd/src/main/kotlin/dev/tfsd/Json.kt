package dev.tfsd

import java.io.File
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/**
 * JSON as RFC 8259 has it, no more: the platform's own parser lets through what others refuse, and a plain JVM has none.
 *
 * Objects are `Map<String, Any?>`, arrays `List<Any?>`, whole numbers [Long], others [Double].
 */
internal object Json {
    private const val MAX_DEPTH = 64

    /** Returns what the UTF-8 [file] holds. Throws [IllegalArgumentException] if that is not JSON. */
    fun read(file: File): Any? {
        val bytes = ByteBuffer.wrap(file.readBytes())
        val text = try {
            Charsets.UTF_8.newDecoder().decode(bytes)
        } catch (_: CharacterCodingException) {
            fail("UTF-8", bytes.position())
        }
        return read(text.toString())
    }

    /** Returns what [text] stands for. Throws [IllegalArgumentException] if it is not JSON. */
    fun read(text: String): Any? = Reader(text).run { value(0).also { end() } }

    /** Returns the JSON of maps, lists, texts, numbers and null, on one line or, with an [indent], one line for each entry. */
    fun write(value: Any?, indent: Int = 0): String = buildString { write(value, indent, 0) }

    private fun fail(wanted: String, place: Int): Nothing = throw IllegalArgumentException("no $wanted at $place")

    private class Reader(private val text: String) {
        private var at = 0

        fun value(depth: Int): Any? {
            if (depth > MAX_DEPTH) fail("so deep nesting", at)
            return when (next()) {
                '{' -> items('}') { name() to value(depth + 1) }.toMap()
                '[' -> items(']') { value(depth + 1) }
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        fun end() {
            space()
            if (at < text.length) fail("end", at)
        }

        /** Returns the character after any space. */
        private fun next(): Char {
            space()
            return text.getOrNull(at) ?: fail("value", at)
        }

        private fun space() {
            while (at < text.length && text[at] in " \t\r\n") at++
        }

        private fun take(wanted: Char) = if (next() == wanted) at++ else fail("'$wanted'", at)

        private fun <T> items(closing: Char, item: () -> T): List<T> {
            val found = ArrayList<T>()
            at++
            if (next() != closing) {
                found += item()
                while (next() == ',') {
                    at++
                    found += item()
                }
            }
            take(closing)
            return found
        }

        private fun name(): String {
            if (next() != '"') fail("name", at)
            return string().also { take(':') }
        }

        private fun <T> word(word: String, value: T): T =
            if (text.startsWith(word, at)) value.also { at += word.length } else fail("value", at)

        private fun number(): Number {
            val found = NUMBER.matchAt(text, at) ?: fail("value", at)
            at += found.value.length
            return found.value.toLongOrNull() ?: found.value.toDouble()
        }

        private fun string(): String = buildString {
            while (true) {
                val letter = text.getOrNull(++at) ?: fail("closing quote", at)
                when {
                    letter == '"' -> break
                    letter == '\\' -> append(escaped())
                    letter < ' ' -> fail("control character", at)
                    else -> append(letter)
                }
            }
            at++
        }

        private fun escaped(): Char {
            val letter = text.getOrNull(++at) ?: fail("escape", at)
            if (letter != 'u') return ESCAPES[letter] ?: fail("escape", at)
            val digits = text.substring(at + 1, minOf(at + 5, text.length))
            if (digits.length < 4 || digits.any { Character.digit(it, 16) < 0 || it > 'f' }) fail("escape", at)
            at += 4
            return digits.toInt(16).toChar()
        }
    }

    private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?")
    private val ESCAPES =
        mapOf('"' to '"', '\\' to '\\', '/' to '/', 'b' to '\b', 'f' to '\u000C', 'n' to '\n', 'r' to '\r', 't' to '\t')

    private fun StringBuilder.write(value: Any?, indent: Int, depth: Int) {
        when (value) {
            is Map<*, *> -> writeAll('{', '}', value.entries, indent, depth) { (name, item) ->
                writeText(name.toString())
                append(": ")
                write(item, indent, depth + 1)
            }
            is List<*> -> writeAll('[', ']', value, indent, depth) { write(it, indent, depth + 1) }
            is String -> writeText(value)
            else -> append(value)
        }
    }

    private fun <T> StringBuilder.writeAll(
        opening: Char, closing: Char, items: Collection<T>, indent: Int, depth: Int, item: (T) -> Unit,
    ) {
        fun line(depth: Int) = if (indent > 0 && items.isNotEmpty()) "\n" + " ".repeat(indent * depth) else ""
        append(opening)
        items.forEachIndexed { i, one ->
            if (i > 0) append(if (indent > 0) "," else ", ")
            append(line(depth + 1))
            item(one)
        }
        append(line(depth)).append(closing)
    }

    private fun StringBuilder.writeText(text: String) {
        append('"')
        for (letter in text) {
            when {
                letter == '"' || letter == '\\' -> append('\\').append(letter)
                letter < ' ' -> append("\\u%04x".format(letter.code))
                else -> append(letter)
            }
        }
        append('"')
    }
}
