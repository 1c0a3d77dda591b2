package dev.tfsd

import java.text.Normalizer

/**
 * What happens to a prompt before it is split into words: entities resolved twice, lower case, single spaces.
 *
 * With [repair] what ftfy does comes first, but for its guesses at wrong decodings. All tables come from `tokenizer.json`, so
 * that no version of a platform's Unicode counts.
 */
internal class Cleaner(data: Map<String, Any?>, repair: Boolean) {
    private val entities = Entities(data, strict = false)
    private val repairs = if (repair) Repairs(data) else null
    private val lower = table(data, "lower")
    private val ignorable = Ranges.of(data, "sigma_ignorable")
    private val cased = Ranges.of(data, "sigma_cased")
    private val ends = Ranges.of(data, "ends")
    private val spaces = Ranges.of(data, "spaces")

    /** Returns [text], which has no half surrogate pairs, as it is split into words. */
    fun clean(text: String): String {
        val repaired = repairs?.repair(text) ?: text
        return spaced(lower(entities.resolve(entities.resolve(repaired))))
    }

    /** Returns [text] in lower case as Python has it: Unicode 3.13, where a sigma that ends a word looks different. */
    private fun lower(text: String): String {
        val codes = text.codePoints().toArray()
        return buildString(text.length) {
            codes.forEachIndexed { i, code ->
                if (code == CAPITAL_SIGMA) {
                    val before = (i - 1 downTo 0).firstOrNull { codes[it] !in ignorable }
                    val behind = (i + 1..codes.lastIndex).firstOrNull { codes[it] !in ignorable }
                    val final = before != null && codes[before] in cased && (behind == null || codes[behind] !in cased)
                    append(if (final) '\u03C2' else '\u03C3')
                } else {
                    append(lower[code] ?: code.letter())
                }
            }
        }
    }

    private fun spaced(text: String): String {
        val codes = text.codePoints().toArray()
        val first = codes.indexOfFirst { it !in ends }
        val last = codes.indexOfLast { it !in ends }
        return buildString(text.length) {
            for (i in first.coerceAtLeast(0)..last) {
                if (codes[i] !in spaces) appendCodePoint(codes[i]) else if (!endsWith(' ')) append(' ')
            }
        }
    }

    private companion object {
        const val CAPITAL_SIGMA = 0x3A3
    }
}

/** What ftfy repairs: characters, control sequences, normal form C, entities where there are no tags. */
private class Repairs(data: Map<String, Any?>) {
    private val entities = Entities(data, strict = true)
    private val repairs = table(data, "repairs")
    private val controls = Ranges.of(data, "controls")
    private val digits = Ranges.of(data, "decimal_digits")

    fun repair(text: String): String {
        // From the first line with `<` on, ftfy takes a text for HTML and leaves its references alone.
        val tag = text.indexOf('<')
        val split = if (tag < 0) text.length else text.lastIndexOf('\n', tag) + 1
        var head = text.substring(0, split)
        var tail = text.substring(split)
        do {
            val (oldHead, oldTail) = head to tail
            head = repairedCharacters(entities.resolve(head))
            tail = repairedCharacters(tail)
            // All else that there is to repair is repaired at once.
        } while ((head != oldHead || tail != oldTail) && ('&' in head || '&' in tail))
        return head + tail
    }

    private fun repairedCharacters(text: String): String {
        val repaired = buildString(text.length) { text.codePoints().forEach { append(repairs[it] ?: it.letter()) } }
        val kept = withoutEscapes(repaired).filterCodePoints { it !in controls }
        return Normalizer.normalize(kept, Normalizer.Form.NFC)
    }

    /** Removes what terminals take for commands: `\x1b\[[\p{Nd};]*[a-zA-Z]`. */
    private fun withoutEscapes(text: String): String {
        if (ESCAPE !in text) return text
        return buildString(text.length) {
            var at = 0
            while (at < text.length) {
                val stop = if (text.startsWith(ESCAPE, at)) endOfEscape(text, at + ESCAPE.length) else at
                if (stop == at) append(text[at++]) else at = stop
            }
        }
    }

    /** Returns where the control sequence ends whose parameters begin at [start], or where it began if it is none. */
    private fun endOfEscape(text: String, start: Int): Int {
        var at = start
        while (at < text.length) {
            val code = text.codePointAt(at)
            if (code != ';'.code && code !in digits) break
            at += Character.charCount(code)
        }
        return if (at < text.length && text[at].isAsciiLetter()) at + 1 else start - ESCAPE.length
    }

    private companion object {
        const val ESCAPE = "\u001b["
    }
}

/** The characters that HTML writes as `&...;`: as Python's `html.unescape` or, if [strict], ftfy reads them. */
private class Entities(data: Map<String, Any?>, private val strict: Boolean) {
    @Suppress("UNCHECKED_CAST") // the file is that of the manifest's hash
    private val named = data[if (strict) "strict_entities" else "entities"] as Map<String, String>
    private val longest = named.keys.filterNot { it.endsWith(';') }.maxOfOrNull { it.length } ?: 0
    private val references = table(data, "references")

    /** Returns [text] with its references replaced, once. */
    fun resolve(text: String): String {
        if ('&' !in text) return text
        val pieces = text.split('&')
        return pieces.drop(1).joinToString("", prefix = pieces[0]) { named(it) ?: numbered(it) ?: "&$it" }
    }

    private fun named(piece: String): String? {
        val size = piece.indexOfFirst { !it.isAsciiLetter() && it !in '0'..'9' }
        val whole = if (size > 0 && piece[size] == ';') piece.substring(0, size + 1) else ""
        named[whole]?.let { return it + piece.substring(whole.length) }
        for (length in minOf(longest, piece.length) downTo 1) { // without the semicolon the longest name counts
            named[piece.substring(0, length)]?.let { return it + piece.substring(length) }
        }
        return null
    }

    private fun numbered(piece: String): String? {
        val found = (if (strict) STRICT_NUMBER else NUMBER).matchAt(piece, 0)?.value ?: return null
        val hexadecimal = found[1] in "xX"
        val digits = found.substring(if (hexadecimal) 2 else 1).removeSuffix(";").trimStart('0').take(MAX_DIGITS)
        val code = digits.ifEmpty { "0" }.toLong(if (hexadecimal) 16 else 10).coerceAtMost(NO_CHARACTER).toInt()
        val isCharacter = code < NO_CHARACTER && code !in 0xD800..0xDFFF
        val text = if (isCharacter) references[code] ?: code.letter() else "\uFFFD"
        // ftfy believes a semicolon that comes out to be a leftover.
        return if (strict && text == ";") null else text + piece.substring(found.length)
    }

    private companion object {
        const val NO_CHARACTER = 0x110000L
        const val MAX_DIGITS = 8 // one more than any character needs: what is cut off behind them makes no difference
        val NUMBER = Regex("#([0-9]+|[xX][0-9a-fA-F]+);?")
        val STRICT_NUMBER = Regex("#([0-9]{1,24}|[xX][0-9a-fA-F]{1,23});")
    }
}

/** Ranges of code points, given by where they begin and where they have ended in turn, ascending. */
internal class Ranges(private val bounds: IntArray) {
    operator fun contains(code: Int): Boolean {
        val place = bounds.binarySearch(code)
        return (if (place < 0) -place - 1 else place + 1) % 2 == 1
    }

    companion object {
        fun of(data: Map<String, Any?>, name: String) =
            Ranges((data[name] as List<*>).map { (it as Long).toInt() }.toIntArray())
    }
}

/** Returns the table of code points and the texts that take their places. */
private fun table(data: Map<String, Any?>, name: String): Map<Int, String> =
    (data[name] as List<*>).associate { pair -> (pair as List<*>).let { (it[0] as Long).toInt() to it[1] as String } }

private fun Int.letter(): String = String(Character.toChars(this))

private fun Char.isAsciiLetter() = this in 'a'..'z' || this in 'A'..'Z'

private inline fun String.filterCodePoints(crossinline keep: (Int) -> Boolean): String =
    buildString(length) { this@filterCodePoints.codePoints().filter { keep(it) }.forEach(::appendCodePoint) }
