import Foundation

/// CLIP's tokenizer: prompts to token ids by byte-pair encoding, as `tfsd.text.Tokenizer` does it.
///
/// Its tables come from a bundle's `tokenizer.json`; Unicode's normal form C is the system's.
public struct Tokenizer: Sendable {
    /// How many bytes of UTF-8 a prompt may have.
    public static let maxPromptBytes = 65536

    private static let format = 1
    private static let contractions = ["s", "\u{17F}", "t", "re", "ve", "m", "ll", "d"].map { codePoints(of: $0) }
    private static let byteCount: Int32 = 256  // ids of bytes inside a word; as many more of those that end one
    private static let firstMerge: Int32 = 512
    private static let mostMerges = 65536 - 512  // ids have 16 bits where pairs are kept

    private let spec: TokenizerSpec
    private let tables: TokenizerData
    private let cleaner: Cleaner
    private let byteIDs: [Int32]
    private let ranks: [UInt32: Int32]  // left id << 16 | right id
    private let marks: [(text: Codes, id: Int32)]

    /// Reads the tables.
    ///
    /// - Parameter file: the `tokenizer.json` of a bundle.
    /// - Throws: `TFSDError` for a file of another format than this version reads.
    public init(_ file: URL, spec: TokenizerSpec) throws {
        guard let contents = try? Data(contentsOf: file) else {
            throw TFSDError("unreadable", ["file": file.path, "reason": "Permission denied"])
        }
        let decoder = JSONDecoder()
        guard let found = try? decoder.decode(FormatOnly.self, from: contents) else {
            throw TFSDError("no_json", ["file": file.path])
        }
        guard found.format == Self.format else {
            throw TFSDError("format", ["file": file.path, "format": "\(found.format)", "known": "\(Self.format)"])
        }
        guard let tables = try? decoder.decode(TokenizerData.self, from: contents) else {
            throw TFSDError("field", ["file": file.path, "name": "tables"])
        }
        let alphabet = Self.byteAlphabet()
        guard let ranks = Self.ranks(of: tables.merges, pieces: alphabet.pieces) else {
            throw TFSDError("field", ["file": file.path, "name": "merges"])
        }
        self.ranks = ranks
        byteIDs = alphabet.ids
        self.spec = spec
        self.tables = tables
        cleaner = Cleaner(tables, repairs: spec.ftfy)
        marks = [
            (codePoints(of: "<|startoftext|>"), spec.startToken),
            (codePoints(of: "<|endoftext|>"), spec.endToken),
        ]
    }

    /// Returns the ids of a prompt between the start and the end mark, however many there are.
    ///
    /// - Parameter name: what an error calls the prompt.
    /// - Throws: `TFSDError` above `maxPromptBytes`.
    public func encode(_ prompt: String, name: String = "prompt") throws -> [Int32] {
        let letters = prompt.unicodeScalars.count
        let size = letters > Self.maxPromptBytes ? letters : prompt.utf8.count
        guard size <= Self.maxPromptBytes else {
            throw TFSDError("prompt_size", ["name": name, "limit": "\(Self.maxPromptBytes)", "size": "\(size)"])
        }
        let text = cleaner.clean(codePoints(of: prompt))
        var ids = [spec.startToken]
        for word in words(in: text) {
            if let mark = marks.first(where: { $0.text.elementsEqual(word) }) {
                ids.append(mark.id)
            } else {
                ids.append(contentsOf: merged(Array(string(of: Array(word)).utf8)))
            }
        }
        return ids + [spec.endToken]
    }

    /// Returns as many ids as the text encoder reads: filled up, or cut off before an end mark.
    public func pad(_ ids: [Int32]) -> [Int32] {
        if ids.count > spec.length {
            return Array(ids.prefix(spec.length - 1)) + [spec.endToken]
        }
        return ids + [Int32](repeating: spec.padToken, count: spec.length - ids.count)
    }

    // MARK: Words

    /// Returns the stretches of a cleaned text that are encoded each on its own.
    private func words(in text: Codes) -> [ArraySlice<UInt32>] {
        var words: [ArraySlice<UInt32>] = []
        var i = 0
        while i < text.count {
            let end = text[i] == Letter.space ? i + 1 : wordEnd(in: text, from: i)
            if text[i] != Letter.space {
                words.append(text[i..<end])
            }
            i = end
        }
        return words
    }

    private func wordEnd(in text: Codes, from start: Int) -> Int {
        let rest = text[start...]
        if let mark = marks.first(where: { rest.starts(with: $0.text, by: Self.isAlike) }) {
            return start + mark.text.count
        }
        if text[start] == Letter.apostrophe, let found = Self.contractions.first(where: { rest.dropFirst().starts(with: $0) }) {
            return start + 1 + found.count
        }
        if tables.numbers.contains(text[start]) {
            return start + 1
        }
        let isLetter = tables.letters.contains(text[start])
        var end = start + 1
        while end < text.count, text[end] != Letter.space, tables.letters.contains(text[end]) == isLetter {
            if !isLetter && tables.numbers.contains(text[end]) {
                break
            }
            end += 1
        }
        return end
    }

    /// Tells whether a letter stands for one of a mark: a long s, which ignoring case makes equal to s, has no lower case.
    private static func isAlike(_ letter: UInt32, _ ofMark: UInt32) -> Bool {
        letter == ofMark || (letter == Letter.longS && ofMark == Letter.s)
    }

    // MARK: Merges

    /// Merges the neighbours of lowest rank, leftmost first, until no neighbours have a rank.
    private func merged(_ word: [UInt8]) -> [Int32] {
        let end = word.count
        var ids = word.map { byteIDs[Int($0)] }
        ids[end - 1] += Self.byteCount
        ids.append(-1)  // both ends of the word; also what has been merged away
        var before = [end] + Array(0..<end)
        var after = Array(1...end) + [end]
        var queue = Queue()
        for i in 0..<end {
            if let found = rank(of: ids[i], ids[i + 1]) {
                queue.push(found, i)
            }
        }
        while let (lowest, i) = queue.pop() {
            let j = after[i]
            guard rank(of: ids[i], ids[j]) == lowest else { continue }  // another merge took one of the two
            ids[i] = Self.firstMerge + lowest
            ids[j] = -1
            after[i] = after[j]
            before[after[j]] = i
            for left in [before[i], i] {
                if let found = rank(of: ids[left], ids[after[left]]) {
                    queue.push(found, left)
                }
            }
        }
        return ids.filter { $0 >= 0 }
    }

    private func rank(of left: Int32, _ right: Int32) -> Int32? {
        left < 0 || right < 0 ? nil : ranks[Self.pair(left, right)]
    }

    private static func pair(_ left: Int32, _ right: Int32) -> UInt32 {
        UInt32(left) << 16 | UInt32(right)
    }

    /// Returns the id of each byte, and the ids of the letters that stand for bytes in the merges.
    private static func byteAlphabet() -> (ids: [Int32], pieces: [[UInt8]: Int32]) {
        let visible: [Int] = Array(0x21...0x7E) + Array(0xA1...0xAC) + Array(0xAE...0xFF)  // these stand for themselves
        let hidden: [Int] = (0..<256).filter { !visible.contains($0) }
        let letters: [UInt32] = visible.map { UInt32($0) } + hidden.indices.map { UInt32(256 + $0) }
        var ids = [Int32](repeating: 0, count: 256)
        var pieces: [[UInt8]: Int32] = [:]
        for (i, byte) in (visible + hidden).enumerated() {
            let letter = string(of: [letters[i]])
            ids[byte] = Int32(i)
            pieces[Array(letter.utf8)] = Int32(i)
            pieces[Array((letter + "</w>").utf8)] = Int32(i) + byteCount
        }
        return (ids, pieces)
    }

    /// Returns the rank of each pair that is merged; nil for merges that do not follow from earlier ones.
    private static func ranks(of merges: [String], pieces: [[UInt8]: Int32]) -> [UInt32: Int32]? {
        var pieces = pieces
        var ranks: [UInt32: Int32] = [:]
        ranks.reserveCapacity(merges.count)
        for (rank, merge) in merges.enumerated() {
            let parts = merge.utf8.split(separator: 0x20).map { Array($0) }
            guard parts.count == 2, let left = pieces[parts[0]], let right = pieces[parts[1]], rank < mostMerges else {
                return nil
            }
            ranks[pair(left, right)] = Int32(rank)
            pieces[parts[0] + parts[1]] = firstMerge + Int32(rank)
        }
        return ranks
    }
}

/// What the manifest says of the tokenizer.
public struct TokenizerSpec: Equatable, Sendable {
    /// The file with its tables.
    public let file: String
    /// How many tokens the text encoder reads.
    public let length: Int
    /// The id of the mark that begins a prompt.
    public let startToken: Int32
    /// The id of the mark that ends one.
    public let endToken: Int32
    /// The id that fills up the rest.
    public let padToken: Int32
    /// Whether prompts are repaired as ftfy does.
    public let ftfy: Bool
}

/// The format of a `tokenizer.json`, which is looked at before the rest.
private struct FormatOnly: Decodable {
    let format: Int
}

/// The tables of `tokenizer.json`, as `tfsd.text.portable` writes them.
struct TokenizerData: Decodable, Sendable {
    let merges: [String]
    let letters: CodeRanges
    let numbers: CodeRanges
    let ends: CodeRanges
    let spaces: CodeRanges
    let lower: Replacements
    let sigmaIgnorable: CodeRanges
    let sigmaCased: CodeRanges
    let repairs: Replacements
    let controls: CodeRanges
    let decimalDigits: CodeRanges
    let entities: [String: String]
    let strictEntities: [String: String]
    let references: Replacements

    private enum CodingKeys: String, CodingKey {
        case merges, letters, numbers, ends, spaces, lower, repairs, controls, entities, references
        case sigmaIgnorable = "sigma_ignorable"
        case sigmaCased = "sigma_cased"
        case decimalDigits = "decimal_digits"
        case strictEntities = "strict_entities"
    }
}

/// Places in a word, the one of lowest rank first, of several the leftmost: a binary heap.
private struct Queue {
    private var items: [UInt64] = []  // rank << 32 | place

    mutating func push(_ rank: Int32, _ place: Int) {
        items.append(UInt64(rank) << 32 | UInt64(place))
        var i = items.count - 1
        while i > 0, items[i] < items[(i - 1) / 2] {
            items.swapAt(i, (i - 1) / 2)
            i = (i - 1) / 2
        }
    }

    mutating func pop() -> (rank: Int32, place: Int)? {
        guard let first = items.first else { return nil }
        let last = items.removeLast()
        if !items.isEmpty {
            items[0] = last
            sink()
        }
        return (Int32(first >> 32), Int(first & 0xFFFF_FFFF))
    }

    private mutating func sink() {
        var i = 0
        while true {
            var least = i
            for child in [2 * i + 1, 2 * i + 2] where child < items.count && items[child] < items[least] {
                least = child
            }
            if least == i {
                return
            }
            items.swapAt(i, least)
            i = least
        }
    }
}
