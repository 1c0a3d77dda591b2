import Foundation

/// The code points of a text. Swift compares strings by canonical equivalence, which would merge what CLIP tells apart.
typealias Codes = [UInt32]

/// Returns the code points of a text.
func codePoints(of text: String) -> Codes {
    text.unicodeScalars.map { $0.value }
}

/// Returns the text of code points.
func string(of codes: Codes) -> String {
    var scalars = String.UnicodeScalarView()
    for code in codes {
        scalars.append(Unicode.Scalar(code) ?? "\u{FFFD}")
    }
    return String(scalars)
}

/// A set of code points, given by where its ranges begin and where they have ended, in turn.
struct CodeRanges: Decodable, Sendable {
    private let bounds: [UInt32]

    init(from decoder: Decoder) throws {
        bounds = try decoder.singleValueContainer().decode([UInt32].self)
    }

    func contains(_ code: UInt32) -> Bool {
        var low = 0
        var high = bounds.count
        while low < high {
            let middle = (low + high) / 2
            if bounds[middle] <= code {
                low = middle + 1
            } else {
                high = middle
            }
        }
        return low % 2 == 1  // as many bounds do not lie above the code
    }
}

/// What takes the place of single code points; a list of pairs in JSON.
struct Replacements: Decodable, Sendable {
    private let texts: [UInt32: Codes]

    init(from decoder: Decoder) throws {
        var pairs = try decoder.unkeyedContainer()
        var texts: [UInt32: Codes] = [:]
        while !pairs.isAtEnd {
            var pair = try pairs.nestedUnkeyedContainer()
            let code = try pair.decode(UInt32.self)
            texts[code] = codePoints(of: try pair.decode(String.self))
        }
        self.texts = texts
    }

    subscript(code: UInt32) -> Codes? { texts[code] }

    func apply(to codes: Codes) -> Codes {
        var result = Codes()
        result.reserveCapacity(codes.count)
        for code in codes {
            if let text = texts[code] {
                result.append(contentsOf: text)
            } else {
                result.append(code)
            }
        }
        return result
    }
}

/// What `tfsd.text.cleaning` makes of a prompt before it is split into words.
struct Cleaner: Sendable {
    private let data: TokenizerData
    private let repairs: Bool
    private let entities: Entities
    private let strictEntities: Entities

    /// - Parameter repairs: whether the prompt is first repaired as ftfy does, but for its guesses at wrong decodings.
    init(_ data: TokenizerData, repairs: Bool) {
        self.data = data
        self.repairs = repairs
        entities = Entities(data.entities, references: data.references, strict: false)
        strictEntities = Entities(data.strictEntities, references: data.references, strict: true)
    }

    /// Returns the cleaned text, whose words are parted by single spaces or by nothing.
    func clean(_ codes: Codes) -> Codes {
        let repaired = repairs ? repair(codes) : codes
        return spaced(lowered(entities.resolve(entities.resolve(repaired))))
    }

    // MARK: What ftfy does

    private func repair(_ codes: Codes) -> Codes {
        // From the first line with `<` on, ftfy takes a text for HTML and leaves its references alone.
        var head = codes
        var tail = Codes()
        if let tag = codes.firstIndex(of: Letter.less) {
            let start = (codes[..<tag].lastIndex(of: Letter.newLine) ?? -1) + 1
            head = Array(codes[..<start])
            tail = Array(codes[start...])
        }
        while true {
            let newHead = repairOnce(strictEntities.resolve(head))
            let newTail = repairOnce(tail)
            let changed = newHead != head || newTail != tail
            head = newHead
            tail = newTail
            // All else that there is to repair is repaired at once.
            if !changed || !(head.contains(Letter.ampersand) || tail.contains(Letter.ampersand)) {
                return head + tail
            }
        }
    }

    private func repairOnce(_ codes: Codes) -> Codes {
        let result = withoutEscapes(data.repairs.apply(to: codes)).filter { !data.controls.contains($0) }
        guard result.contains(where: { $0 >= Letter.firstCombining }) else { return result }
        return codePoints(of: string(of: result).precomposedStringWithCanonicalMapping)
    }

    /// Removes the escapes that colour terminals: ESC, [, digits and semicolons, a letter.
    private func withoutEscapes(_ codes: Codes) -> Codes {
        guard codes.contains(Letter.escape) else { return codes }
        var result = Codes()
        var i = 0
        while i < codes.count {
            if codes[i] == Letter.escape, i + 1 < codes.count, codes[i + 1] == Letter.bracket {
                var end = i + 2
                while end < codes.count, codes[end] == Letter.semicolon || data.decimalDigits.contains(codes[end]) {
                    end += 1
                }
                if end < codes.count, Letter.isLatin(codes[end]) {
                    i = end + 1
                    continue
                }
            }
            result.append(codes[i])
            i += 1
        }
        return result
    }

    // MARK: What CLIP does

    private func lowered(_ codes: Codes) -> Codes {
        var result = Codes()
        result.reserveCapacity(codes.count)
        for (i, code) in codes.enumerated() {
            if code == Letter.capitalSigma {
                result.append(endsWord(i, in: codes) ? Letter.finalSigma : Letter.sigma)
            } else if let text = data.lower[code] {
                result.append(contentsOf: text)
            } else {
                result.append(code)
            }
        }
        return result
    }

    /// Tells whether a letter with case stands before the sigma at `i`, and none behind: Unicode 3.13, Final_Sigma.
    private func endsWord(_ i: Int, in codes: Codes) -> Bool {
        let before = codes[..<i].last { !data.sigmaIgnorable.contains($0) }
        let after = codes[(i + 1)...].first { !data.sigmaIgnorable.contains($0) }
        return before.map(data.sigmaCased.contains) == true && after.map(data.sigmaCased.contains) != true
    }

    private func spaced(_ codes: Codes) -> Codes {
        var stripped = codes.drop(while: data.ends.contains)
        while let last = stripped.last, data.ends.contains(last) {
            stripped.removeLast()
        }
        var result = Codes()
        result.reserveCapacity(stripped.count)
        var behindSpace = false
        for code in stripped {
            let isSpace = data.spaces.contains(code)
            if !isSpace {
                result.append(code)
            } else if !behindSpace {
                result.append(Letter.space)
            }
            behindSpace = isSpace
        }
        return result
    }
}

/// The characters that HTML writes as `&...;`.
///
/// They are read as Python's `html.unescape` does or, if `strict`, as ftfy does, which asks for the semicolon.
struct Entities: Sendable {
    private static let longestDigits = (decimal: 24, hexadecimal: 23)  // that ftfy reads

    private let names: [Codes: Codes]
    private let references: Replacements
    private let strict: Bool
    private let longest: Int

    init(_ names: [String: String], references: Replacements, strict: Bool) {
        var table: [Codes: Codes] = [:]
        for (name, value) in names {
            table[codePoints(of: name)] = codePoints(of: value)
        }
        self.names = table
        self.references = references
        self.strict = strict
        longest = table.keys.map(\.count).max() ?? 0
    }

    /// Returns the text with its references replaced, once.
    func resolve(_ codes: Codes) -> Codes {
        guard codes.contains(Letter.ampersand) else { return codes }
        var result = Codes()
        result.reserveCapacity(codes.count)
        var i = 0
        while i < codes.count {
            if codes[i] == Letter.ampersand, let found = reference(in: codes, at: i + 1) {
                result.append(contentsOf: found.text)
                i = found.end
            } else {
                result.append(codes[i])
                i += 1
            }
        }
        return result
    }

    private func reference(in codes: Codes, at start: Int) -> (text: Codes, end: Int)? {
        guard start < codes.count else { return nil }
        return codes[start] == Letter.hash ? number(in: codes, at: start + 1) : name(in: codes, at: start)
    }

    private func name(in codes: Codes, at start: Int) -> (text: Codes, end: Int)? {
        var end = start
        while end < codes.count, end - start < longest, Letter.isLatin(codes[end]) || Letter.digit(codes[end]) != nil {
            end += 1
        }
        if end < codes.count, codes[end] == Letter.semicolon, let text = names[Array(codes[start...end])] {
            return (text, end + 1)
        }
        while end > start {  // the longest of the names that need no semicolon
            if let text = names[Array(codes[start..<end])] {
                return (text, end)
            }
            end -= 1
        }
        return nil
    }

    private func number(in codes: Codes, at start: Int) -> (text: Codes, end: Int)? {
        let isHexadecimal = start < codes.count && (codes[start] == Letter.x || codes[start] == Letter.capitalX)
        let base: UInt32 = isHexadecimal ? 16 : 10
        let first = isHexadecimal ? start + 1 : start
        var end = first
        var value: UInt32 = 0
        while end < codes.count, let digit = Letter.digit(codes[end]), digit < base {
            value = min(value * base + digit, Letter.stop)
            end += 1
        }
        let closed = end < codes.count && codes[end] == Letter.semicolon
        let most = isHexadecimal ? Self.longestDigits.hexadecimal : Self.longestDigits.decimal
        guard end > first, !strict || (closed && end - first <= most) else { return nil }
        if value >= Letter.stop || (0xD800..<0xE000).contains(value) {
            value = Letter.replacement
        }
        let text = references[value] ?? [value]
        // A semicolon that comes out is a leftover, ftfy believes.
        guard !strict || text != [Letter.semicolon] else { return nil }
        return (text, closed ? end + 1 : end)
    }
}

/// The code points that cleaning asks for by name.
enum Letter {
    static let newLine: UInt32 = 0x0A
    static let escape: UInt32 = 0x1B
    static let space: UInt32 = 0x20
    static let hash: UInt32 = 0x23
    static let ampersand: UInt32 = 0x26
    static let apostrophe: UInt32 = 0x27
    static let semicolon: UInt32 = 0x3B
    static let less: UInt32 = 0x3C
    static let capitalX: UInt32 = 0x58
    static let bracket: UInt32 = 0x5B
    static let s: UInt32 = 0x73
    static let x: UInt32 = 0x78
    static let longS: UInt32 = 0x17F
    static let firstCombining: UInt32 = 0x300  // text of lower code points alone is in normal form C
    static let capitalSigma: UInt32 = 0x3A3
    static let finalSigma: UInt32 = 0x3C2
    static let sigma: UInt32 = 0x3C3
    static let replacement: UInt32 = 0xFFFD
    static let stop: UInt32 = 0x110000  // behind the last code point

    /// Tells whether a code point is one of A to Z and a to z.
    static func isLatin(_ code: UInt32) -> Bool {
        (0x41...0x5A).contains(code) || (0x61...0x7A).contains(code)
    }

    /// Returns what a digit stands for, also one of a to f and A to F; nil for others.
    static func digit(_ code: UInt32) -> UInt32? {
        switch code {
        case 0x30...0x39: return code - 0x30
        case 0x41...0x46: return code - 0x41 + 10
        case 0x61...0x66: return code - 0x61 + 10
        default: return nil
        }
    }
}
