package dev.tfsd

import java.io.File
import java.util.PriorityQueue

/**
 * Turns prompts into the tokens that a CLIP text encoder reads: the ids of Python's tokenizer.
 *
 * The one difference: text that was once decoded wrongly (`cafÃ©`) is taken as it stands, where Python's ftfy guesses.
 *
 * @param data The `tokenizer.json` of a bundle.
 * @throws BundleException If the file has another format than this version reads.
 */
class Tokenizer(data: File, private val spec: TokenizerSpec) {
    private val cleaner: Cleaner
    private val letters: Ranges
    private val numbers: Ranges
    private val merges: Merges
    private val marks = mapOf("<|startoftext|>" to spec.startToken, "<|endoftext|>" to spec.endToken)

    init {
        @Suppress("UNCHECKED_CAST") // the file is that of the manifest's hash
        val tables = Json.read(data) as Map<String, Any?>
        if (tables["format"] != FORMAT) {
            val values = arrayOf("file" to data, "format" to tables["format"].toString().take(20), "known" to FORMAT)
            throw BundleException(Messages.text("format", *values))
        }
        cleaner = Cleaner(tables, spec.ftfy)
        letters = Ranges.of(tables, "letters")
        numbers = Ranges.of(tables, "numbers")
        merges = Merges((tables["merges"] as List<*>).map { it as String })
    }

    /**
     * Returns the ids of [text] between the start and the end mark, however many there are.
     *
     * @param name What errors call the text.
     * @throws IllegalArgumentException Above 65536 bytes of UTF-8 or, without ftfy, with half a surrogate pair.
     */
    fun encode(text: String, name: String = "prompt"): IntArray {
        val codes = cleaner.clean(checked(text, name)).codePoints().toArray()
        val ids = arrayListOf(spec.startToken)
        var start = 0
        while (start < codes.size) {
            val stop = endOfWord(codes, start)
            if (stop > start) {
                val word = String(codes, start, stop - start)
                marks[word]?.let(ids::add) ?: merges.merge(word.toByteArray(), ids)
            }
            start = maxOf(stop, start + 1)
        }
        ids += spec.endToken
        return ids.toIntArray()
    }

    /** Returns [ids] filled up to the text encoder's length, or cut to it between the marks. */
    fun pad(ids: IntArray): IntArray {
        val padded = IntArray(spec.length) { if (it < ids.size) ids[it] else spec.padToken }
        if (ids.size > spec.length) padded[spec.length - 1] = spec.endToken
        return padded
    }

    private fun checked(text: String, name: String): String {
        val letters = text.codePointCount(0, text.length)
        val size = if (letters > MAX_BYTES) letters.toLong() else text.codePoints().mapToLong(::utf8Size).sum()
        require(size <= MAX_BYTES) { Messages.text("prompt_size", "name" to name, "limit" to MAX_BYTES, "size" to size) }
        val half = text.codePoints().filter { it in SURROGATES }.findFirst()
        if (!half.isPresent) return text
        val shown = "U+%04X".format(half.asInt)
        require(spec.ftfy) { Messages.text("surrogate", "name" to name, "half" to shown) }
        return buildString(text.length) {
            text.codePoints().forEach { appendCodePoint(if (it in SURROGATES) REPLACEMENT else it) } // as ftfy does
        }
    }

    private fun utf8Size(code: Int): Long = if (code < 0x80) 1 else if (code < 0x800) 2 else if (code < 0x10000) 3 else 4

    /** Returns where the word ends that begins at [start]: [start] itself at a space. */
    private fun endOfWord(codes: IntArray, start: Int): Int {
        for (text in SPELLED) {
            if (text.indices.all { codes.getOrNull(start + it)?.let(::folded) == text[it].code }) return start + text.length
        }
        val code = codes[start]
        if (code in numbers) return start + 1
        val isLetter = code in letters
        var stop = start
        while (stop < codes.size && (codes[stop] in letters) == isLetter && codes[stop] != ' '.code) {
            if (codes[stop] in numbers) break
            stop++
        }
        return stop
    }

    private companion object {
        const val FORMAT = 1L
        const val MAX_BYTES = 65536 // far more than 75 tokens stand for
        const val REPLACEMENT = 0xFFFD
        val SURROGATES = 0xD800..0xDFFF

        /** What CLIP's pattern of words spells out, before it comes to letters, numbers and the rest. */
        val SPELLED = listOf("<|startoftext|>", "<|endoftext|>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

        /** A long s counts as s where case is ignored, and has no lower case. */
        fun folded(code: Int) = if (code == 0x17F) 's'.code else code
    }
}

/**
 * CLIP's byte-pair vocabulary: ids 0 to 255 are bytes inside a word, 256 to 511 bytes that end one, then one id per merge.
 *
 * @param lines One merge each, two pieces in the byte alphabet, in the order of rank.
 */
private class Merges(lines: List<String>) {
    private val byteIds = IntArray(BYTES)
    private val ranked = LongArray(lines.size) // left id, right id, rank: 16 bits each, ascending

    init {
        val ids = HashMap<String, Int>(2 * lines.size)
        (VISIBLE + (0 until BYTES).filterNot(VISIBLE.toSet()::contains)).forEachIndexed { id, byte ->
            val letter = (if (id < VISIBLE.size) byte else BYTES + id - VISIBLE.size).toChar().toString()
            byteIds[byte] = id
            ids[letter] = id
            ids["$letter</w>"] = BYTES + id
        }
        lines.forEachIndexed { rank, line ->
            val (left, right) = line.split(' ')
            ranked[rank] = pair(ids.getValue(left), ids.getValue(right)) or rank.toLong()
            ids[left + right] = FIRST_MERGE + rank
        }
        ranked.sort()
    }

    /**
     * Appends the ids of one [word] to [found]: neighbours of the lowest rank merge first, the leftmost of them before others.
     *
     * Its time grows as n log n. CLIP merges all places of one pair before it looks again, which comes to the same: a pair
     * that a merge brings about has a higher rank than that merge.
     */
    fun merge(word: ByteArray, found: MutableList<Int>) {
        val ids = IntArray(word.size + 1) { if (it < word.size) byteIds[word[it].toInt() and 0xFF] else NONE }
        ids[word.size - 1] += BYTES
        val before = IntArray(word.size + 1) { it - 1 }
        val after = IntArray(word.size + 1) { minOf(it + 1, word.size) }
        val queue = PriorityQueue<Long>() // rank, then place
        fun look(place: Int) {
            if (place < 0) return
            val rank = rank(ids[place], ids[after[place]])
            if (rank != NONE) queue += rank.toLong() shl 32 or place.toLong()
        }
        for (place in word.indices) look(place)
        while (true) {
            val next = queue.poll() ?: break
            val place = next.toInt()
            val rank = (next shr 32).toInt()
            val gone = after[place]
            if (rank(ids[place], ids[gone]) != rank) continue // another merge took one of the two
            ids[place] = FIRST_MERGE + rank
            ids[gone] = NONE
            after[place] = after[gone]
            before[after[gone]] = place
            look(before[place])
            look(place)
        }
        ids.filterTo(found) { it != NONE }
    }

    private fun rank(left: Int, right: Int): Int {
        if (left == NONE || right == NONE) return NONE
        val pair = pair(left, right)
        val place = ranked.binarySearch(pair)
        val at = if (place < 0) -place - 1 else place
        return if (at < ranked.size && ranked[at] shr 16 == pair shr 16) (ranked[at] and 0xFFFF).toInt() else NONE
    }

    private fun pair(left: Int, right: Int): Long = left.toLong() shl 32 or (right.toLong() shl 16)

    private companion object {
        const val BYTES = 256
        const val FIRST_MERGE = 2 * BYTES
        const val NONE = -1
        val VISIBLE = (0x21..0x7E) + (0xA1..0xAC) + (0xAE..0xFF) // bytes that stand for themselves in the file
    }
}
