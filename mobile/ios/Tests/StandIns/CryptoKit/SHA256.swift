import Foundation

/// Stands in for that of Apple's systems, where memory of Objective-C is given back at its end.
public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result {
    try body()
}

/// Stands in for CryptoKit's: FIPS 180-4, section 6.2.
public struct SHA256 {
    private static let primes = (2...311).filter { number in (2..<number).allSatisfy { number % $0 != 0 } }
    private static let constants = primes.map { fraction(cbrt(Double($0))) }

    private var state = SHA256.primes.prefix(8).map { fraction(Double($0).squareRoot()) }
    private var rest: [UInt8] = []
    private var count: UInt64 = 0

    public init() {}

    public mutating func update(data: Data) {
        count += UInt64(data.count)
        rest += data
        var start = 0
        while rest.count - start >= 64 {
            absorb(Array(rest[start..<start + 64]))
            start += 64
        }
        rest.removeFirst(start)
    }

    public func finalize() -> [UInt8] {
        var last = self
        let padding = (119 - Int(count % 64)) % 64
        let bits = (0..<8).reversed().map { UInt8(truncatingIfNeeded: (count * 8) >> (8 * UInt64($0))) }
        last.update(data: Data([0x80] + [UInt8](repeating: 0, count: padding) + bits))
        return last.state.flatMap { word in [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: word >> UInt32($0)) } }
    }

    /// Returns the first 32 bits behind the point.
    private static func fraction(_ number: Double) -> UInt32 {
        UInt32((number - number.rounded(.down)) * 4_294_967_296)
    }

    private mutating func absorb(_ block: [UInt8]) {
        var words = (0..<16).map { i in block[4 * i..<4 * i + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) } }
        for i in 16..<64 {
            let early = rotated(words[i - 15], 7) ^ rotated(words[i - 15], 18) ^ words[i - 15] >> 3
            let late = rotated(words[i - 2], 17) ^ rotated(words[i - 2], 19) ^ words[i - 2] >> 10
            words.append(words[i - 16] &+ early &+ words[i - 7] &+ late)
        }
        var v = state
        for i in 0..<64 {
            let mixed = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25)
            let chosen = (v[4] & v[5]) ^ (~v[4] & v[6])
            let first = v[7] &+ mixed &+ chosen &+ SHA256.constants[i] &+ words[i]
            let turned = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)
            let most = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2])
            v = [first &+ turned &+ most, v[0], v[1], v[2], v[3] &+ first, v[4], v[5], v[6]]
        }
        state = zip(state, v).map { $0 &+ $1 }
    }

    private func rotated(_ word: UInt32, _ by: UInt32) -> UInt32 {
        word >> by | word << (32 - by)
    }
}
